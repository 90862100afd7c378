"""A training run as data: frozen dataclasses read from a TOML file, strict about every key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlrn.errors import ConfigError
from nlrn.functional.camera import DENOISING
from nlrn.functional.limits import MAX_SIGMA
from nlrn.models.nlrn import MAX_SIZE, NLRNConfig
from nlrn.training.degradations import NOISES, degradation_of
from nlrn.training.tables import FORMER_KEYS, build

MAX_RECIPE = 1 << 20  # bytes
MAX_NAME = 200  # bytes, with room for a suffix below the 255 that file systems take
MAX_BATCH_PIXELS = 1 << 26
_YOUNGER: dict[str | None, tuple[str, ...]] = {  # fields by their part (None: of the whole), newer than released states
    "model": ("distance", "noise"),
    "noise": ("kind", "enlarge", "regularization", "denoising", "coarse"),
    "data": ("noisy", "validation_noisy", "depth"),
    "schedule": ("halve_at",),
    None: ("loss_region", "image_range"),
}


def _check_name(name: str, what: str) -> None:
    """Raises ConfigError for what is no file name: control characters, or longer than file systems allow."""
    if not name.isprintable() or len(name.encode()) > MAX_NAME:
        raise ConfigError(f"{what} cannot be called {name[:80]!r}: control characters, or over {MAX_NAME} bytes")


@dataclass(frozen=True)
class DataConfig:
    """The images of a run.

    folders: below the data root; the part of a folder that nlrn.io.datasets.HELD_OUT names is not trained on.
    validation: a folder that is neither trained on nor a scoring set, or one of `folders` with such a part, and then
    that part. validation_images, validation_size: how many of its images, and the side of their centre crops.
    noisy, validation_noisy: for the noise kinds "pairs" and "noise2noise", folders whose files bear the names of those
    in `folders` and `validation`. depth: 8, or 16 for images of any depth, each on the range that it is restored on
    (nlrn.functional.ranges); where the noise stands in the files, that holds in any case.
    """

    folders: tuple[str, ...] = ("bsds500/train", "bsds500/test")
    validation: str = "t91"
    validation_images: int = 6
    validation_size: int = 128
    noisy: tuple[str, ...] = ()
    validation_noisy: str = ""
    depth: int = 8

    def __post_init__(self) -> None:
        if self.depth not in (8, 16):
            raise ConfigError(f"data.depth must be 8 or 16, not {self.depth}")
        if not self.folders or not 1 <= self.validation_images <= 4096 or not 8 <= self.validation_size <= 4096:
            raise ConfigError("data requires a folder, 1 to 4,096 validation images, of 8 to 4,096 pixels")
        for name in (*self.folders, self.validation, *self.noisy, self.validation_noisy):
            _check_name(name, "a folder of data")


@dataclass(frozen=True)
class NoiseConfig:
    """The noise of a denoiser's training patches.

    kind "gaussian": sigma uniform in [low, high] on the 0..255 scale; equal bounds mean one fixed level.
    kind "camera": of a camera drawn for each patch (nlrn.functional.camera.draw_camera), which has its own levels.
    enlarge, with "camera": a third of the patches are used unchanged, the others are enlarged by a factor drawn,
    uniform in its logarithm, from 1 to this one: at 100 % a photograph holds less detail a pixel than the reduced
    images of the usual training sets.
    denoising, coarse, with "camera": the shares of cameras that spare detail where they denoise, of coarse noise.
    kinds "pairs", "noise2noise" and "neighbor2neighbor": the noise of the user's files (nlrn.training.recorded).
    regularization: the weight of the second term of "neighbor2neighbor".
    """

    low: float = 0.0
    high: float = MAX_SIGMA
    kind: str = "gaussian"
    enlarge: float = 1.0
    denoising: float = DENOISING
    coarse: float = 0.0
    regularization: float = 2.0

    def __post_init__(self) -> None:
        if self.regularization < 0 or (self.kind != "neighbor2neighbor" and self.regularization != 2):
            raise ConfigError(f"noise.regularization is for neighbor2neighbor, from 0 on, not {self.regularization:g}")
        for name, unused, low, high in (("enlarge", 1, 1, 4), ("denoising", DENOISING, 0, 1), ("coarse", 0, 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high or (self.kind != "camera" and value != unused):
                raise ConfigError(f"noise.{name} is for camera noise, from {low} to {high}, not {value:g}")
        if self.kind not in NOISES:
            raise ConfigError(f"noise.kind must be {' or '.join(NOISES)}, not {self.kind!r}")
        if self.kind == "camera" and (self.low, self.high) != (NoiseConfig.low, NoiseConfig.high):
            raise ConfigError("camera noise draws its levels itself: leave noise.low and noise.high out")
        if not 0 <= self.low <= self.high <= 255:
            raise ConfigError(f"noise requires 0 <= low <= high <= 255, not {self.low} and {self.high}")


@dataclass(frozen=True)
class ResizeConfig:
    """The degradation that a model of the task "sr" undoes.

    scales: of these one is drawn for each patch, whose luminance is made smaller by MATLAB's bicubic and enlarged to
    its size. rounded: the share of patches whose small image is rounded to 8 bits, as files are.
    """

    scales: tuple[int, ...] = (2, 3, 4)
    rounded: float = 0.5

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 2 or max(self.scales) > 8 or not 0 <= self.rounded <= 1:
            raise ConfigError(f"resize requires scales of 2 to 8 and rounded in [0, 1], not {self}")


@dataclass(frozen=True)
class StartConfig:
    """The trained weights that a run begins with (nlrn.training.starting.start_from).

    from: a shipped model's name or a file. Where the first stage is frozen, the statistics of its batch norms stay
    those of the start.
    """

    from_: str

    def __post_init__(self) -> None:
        if not self.from_:
            raise ConfigError("start.from must name a shipped model or a weights file")
        _check_name(self.from_, "start.from")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser, its learning rate and the clipping.

    optimizer: "muon" (nlrn.training.optim.Muon), "adamw", "adam", or "tf-adam", Adam as TensorFlow computes it. clip:
    limit of the gradient norm, over all variables together or (clip_per_variable) for each.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip: float = 1.0
    clip_per_variable: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in ("muon", "adamw", "adam", "tf-adam"):
            raise ConfigError(f"optimizer must be muon, adamw, adam or tf-adam, not {self.optimizer!r}")
        if min(self.lr, self.clip, self.eps) <= 0 or self.weight_decay < 0:
            raise ConfigError("lr, clip and eps must be positive and weight_decay not negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must lie in [0, 1), not {self.betas}")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps.

    kind "slices": warm-up, constant rate, then a decay branch over the last `decay` of the run, to zero.
    kind "halving": the paper's; the rate is halved every `halve_every` steps, or after each of the steps `halve_at`.
    """

    kind: str = "slices"
    steps: int = 100_000
    warmup: int = 300
    decay: float = 0.2
    halve_every: int = 100_000
    halve_at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("slices", "halving"):
            raise ConfigError(f"schedule kind must be slices or halving, not {self.kind!r}")
        if self.steps < 1 or self.warmup < 0 or not 0 <= self.decay < 1 or self.halve_every < 1:
            raise ConfigError("schedule requires steps >= 1, warmup >= 0, 0 <= decay < 1, halve_every >= 1")
        if list(self.halve_at) != sorted(set(self.halve_at)) or min(self.halve_at, default=1) < 1:
            raise ConfigError(f"schedule.halve_at must be steps that rise from 1 on, not {list(self.halve_at)}")
        if (self.halve_at or self.halve_every != type(self).halve_every) and self.kind != "halving":
            raise ConfigError('schedule.halve_at and schedule.halve_every are for the kind "halving"')


@dataclass(frozen=True)
class Stage:
    """From step `start` on: patches of `patch` x `patch` pixels, `batch` of them over all processes.

    lr: a factor on the schedule's learning rate. frozen: when the first such stage begins, the averaged weights
    take over with statistics measured for them, and from there on the batch norms keep these: a step computes what
    inference does. The recurrent states feed themselves; statistics of a batch hide where that diverges, and add noise
    to every gradient. accumulate: the batch goes through in so many parts, one after the
    other, whose gradients add up: less memory, the same step once frozen; before, each part is normalised by its own
    statistics, as a smaller batch is. states, window: of the network in this stage, by default the model's own, to
    which those of the stages rise (nlrn.training.growth).
    """

    start: int
    patch: int
    batch: int
    lr: float = 1.0
    frozen: bool = False
    accumulate: int = 1
    states: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.accumulate <= self.batch:
            raise ConfigError(f"a batch of {self.batch} can be accumulated in 1 to {self.batch} parts: {self}")
        if self.start < 0 or self.patch < 1 or self.batch < 1 or self.lr <= 0:
            raise ConfigError(f"a stage requires start >= 0, patch >= 1, batch >= 1 and lr > 0, not {self}")
        if self.batch * self.patch**2 > MAX_BATCH_PIXELS:
            raise ConfigError(f"a batch of a stage holds at most {MAX_BATCH_PIXELS:,} pixels: {self}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    loss: "rms", the root-mean-square error of each patch, or "log", its logarithm, in which weak noise weighs as much
    as strong noise, or "mse"; of all of a patch, or of the middle loss_region x loss_region pixels. image_range: the
    largest value of the training images, 1 or 255, which decides what the clip of the gradients touches; the weights
    are for 0..1 in any case.

    ema: decay of the averaged weights that are scored and shipped, their batch-norm statistics measured over
    norm_batches batches; 0 ships the last weights and statistics. embedding_gain: the factor on the kernels of theta
    and phi at the start, embedding_lr: on their learning rate; 1 is the paper. embedding_tied: phi starts as a copy of
    theta. A model for many noise levels needs less: its features grow with the noise and the logits with their square,
    are summed over the states, and a softmax that is saturated from the start never learns. precision "auto": bf16
    autocast on CUDA and on CPUs with bf16 units, else float32. compile: on CUDA, one state through torch.compile.
    """

    name: str
    model: NLRNConfig = field(default_factory=NLRNConfig)
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)  # of the task "denoise"
    resize: ResizeConfig = field(default_factory=ResizeConfig)  # of the task "sr"
    start: StartConfig | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stages: tuple[Stage, ...] = (Stage(0, 48, 16),)
    loss: str = "rms"
    loss_region: int = 0
    image_range: int = 1
    embedding_gain: float = 1.0
    embedding_tied: bool = False
    embedding_lr: float = 1.0
    ema: float = 0.999
    norm_batches: int = 200
    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    validate_every: int = 500
    checkpoint_minutes: float = 2.0

    def __post_init__(self) -> None:
        starts = [stage.start for stage in self.stages]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
            raise ConfigError(f"stages must start at step 0 and rise, not {starts}")
        if sorted(stage.frozen for stage in self.stages) != [stage.frozen for stage in self.stages]:
            raise ConfigError("a stage after a frozen one must be frozen too")
        if self.loss not in ("rms", "mse", "log") or self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError("loss must be rms, mse or log, precision auto, fp32 or bf16")
        if not 0 <= self.loss_region <= min(stage.patch for stage in self.stages) or self.image_range not in (1, 255):
            raise ConfigError("loss_region must lie in a patch, or be 0 for all of it, and image_range be 1 or 255")
        if not 0 <= self.ema < 1 or self.norm_batches < 1 or self.validate_every < 1:
            raise ConfigError("ema must be in [0, 1), norm_batches and validate_every at least 1")
        if self.embedding_gain <= 0 or self.embedding_lr < 0:
            raise ConfigError("embedding_gain must be positive and embedding_lr not negative")
        if self.checkpoint_minutes < 0 or not 0 <= self.seed < 2**64:
            raise ConfigError("checkpoint_minutes must not be negative, seed between 0 and 2^64 - 1")
        _check_name(self.name, "name")
        if not self.name or Path(self.name).name != self.name or self.name.startswith(("state-", "before-decay")):
            raise ConfigError(f"name becomes a file's name, which {self.name!r} cannot be")
        self._check_growth()
        self._check_task()

    def _check_growth(self) -> None:
        """Raises ConfigError where the networks of the stages do not rise to the model."""
        networks = [*(self.network(stage.start) for stage in self.stages), self.model]
        for name, sizes in (("states", [n.states for n in networks]), ("window", [n.window for n in networks])):
            wide = [MAX_SIZE + 1 if size is None else size for size in sizes]
            if wide != sorted(wide) or wide[-2] != wide[-1]:
                raise ConfigError(
                    f"stages.{name} must rise to model.{name}, which is {sizes[-1] or 0} (0: the whole image), and"
                    f" reach it in the last stage, but they are {', '.join(str(size or 0) for size in sizes[:-1])}"
                )

    def _check_task(self) -> None:
        """Raises ConfigError where task, model, data and degradation do not fit together."""
        if self.model.task != "denoise" and self.noise.kind != NoiseConfig.kind:
            raise ConfigError(f'{self.noise.kind} noise is for models of the task "denoise", not {self.model.task!r}')
        if self.start is not None and self.image_range != 1:
            raise ConfigError("[start] begins with weights for 0..1, and image_range is not 1")
        if (self.data.noisy or self.data.validation_noisy) and self.noise.kind in ("gaussian", "camera"):
            raise ConfigError("data.noisy and data.validation_noisy are for noise that stands in files (noise.kind)")
        if self.data.depth != 8 and self.model.task != "denoise":
            raise ConfigError('data.depth = 16 is for models of the task "denoise"')
        degradation_of(self).check(self)

    def stage(self, step: int) -> Stage:
        """The stage that `step` belongs to."""
        return [stage for stage in self.stages if stage.start <= step][-1]

    def network(self, step: int) -> NLRNConfig:
        """The network that the step is made with: the model, or a smaller one where its stage says so."""
        stage = self.stage(step)
        states, window = stage.states, stage.window
        return dataclasses.replace(
            self.model,
            states=self.model.states if states is None else states,
            window=self.model.window if window is None else window,
        )

    @property
    def freeze(self) -> int | None:
        """The step at which the batch norms are frozen, or None."""
        return next((stage.start for stage in self.stages if stage.frozen), None)

    def pixels(self, start: int, end: int) -> int:
        """Pixels that the steps from `start` up to but without `end` train on, over all processes."""
        return sum(n for _, n in self.pixels_by_stage(start, end))

    def pixels_by_stage(self, start: int, end: int) -> list[tuple[Stage, int]]:
        """The stages, and the pixels that those of the steps train on which belong to each."""
        following = [stage.start for stage in self.stages[1:]] + [end]
        pairs = list(zip(self.stages, following, strict=True))
        steps = [max(0, min(last, end) - max(stage.start, start)) for stage, last in pairs]
        return [(stage, n * stage.batch * stage.patch**2) for (stage, _), n in zip(pairs, steps, strict=True)]

    def lr(self, step: int, decay_start: int, decay_steps: int) -> float:
        """The learning rate of a step: a pure function of the step and of where the decay branch lies."""
        s = self.schedule
        rate = self.optim.lr * self.stage(step).lr * min(1.0, (step + 1) / max(1, s.warmup))
        if s.kind == "halving":
            # halve_at as in TensorFlow's piecewise_constant: that step itself still has the old rate
            return rate * 0.5 ** (sum(at < step for at in s.halve_at) if s.halve_at else step // s.halve_every)
        left = 1 - (step - decay_start) / decay_steps if decay_steps else 1.0
        return rate * min(1.0, max(0.0, left))

    def _values(self) -> dict[str, Any]:
        """Every field that has a meaning here; those newer than released states unless they have their defaults."""
        values = dataclasses.asdict(self)
        del values["noise" if self.model.task == "sr" else "resize"]
        for part, keys in _YOUNGER.items():
            owner, table = (getattr(self, part), values.get(part, {})) if part else (self, values)
            for key in keys:
                if getattr(owner, key) == getattr(type(owner), key):
                    table.pop(key, None)
        for table, old, new in FORMER_KEYS:
            values[table][old] = values[table].pop(new)
        start = values.pop("start")
        if start is not None:
            values["start"] = {"from": start["from_"]}
        for stage in values["stages"]:
            for key in ("accumulate", "states", "window"):
                if stage[key] == getattr(Stage, key):
                    del stage[key]
        return values

    def header(self) -> str:
        """The whole recipe as JSON, for the header of the weights file."""
        return json.dumps(self._values(), sort_keys=True)

    def digest(self) -> str:
        """16 hex digits that identify what a step computes, so that a run is never resumed under another recipe."""
        fixed = {k: v for k, v in self._values().items() if k not in ("validate_every", "checkpoint_minutes")}
        fixed["schedule"] = {k: v for k, v in fixed["schedule"].items() if k not in ("steps", "decay")}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def read_recipe(path: str | Path) -> TrainConfig:
    """The TrainConfig in a TOML file. Raises ConfigError, with key and table, for a file that is not one.

    The file's tables are the fields of TrainConfig; [model] window = 0 means None (the whole image),
    and [[stages]] are listed in order.
    """
    try:
        if not Path(path).is_file() and Path(path).exists():  # to open a pipe waits for its other end
            raise ConfigError(f"the recipe {path} is not a regular file")
        with Path(path).open("rb") as file:
            text = file.read(MAX_RECIPE + 1)
        if len(text) > MAX_RECIPE:
            raise ConfigError(f"the recipe {path} is over {MAX_RECIPE:,} bytes")
        values = tomllib.loads(text.decode().replace("\r\n", "\n"))
    except RecursionError as error:
        raise ConfigError(f"cannot read the recipe {path}: its values are nested too deeply") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    values.setdefault("name", Path(path).stem)
    if isinstance(model := values.get("model"), dict) and model.get("window") == 0:
        model["window"] = None
    recipe: TrainConfig = build(TrainConfig, values, str(Path(path).name))
    if (other := "noise" if recipe.model.task == "sr" else "resize") in values:
        raise ConfigError(f"[{other}] is not for models of the task {recipe.model.task!r}")
    return recipe
