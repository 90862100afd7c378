"""Training: one visible loop over a recipe. Alone, under torchrun, on CPU or CUDA, without a change of recipe.

What a step computes follows from the recipe, the seed and the step alone (the clock only decides when to stop and
where the decay branch begins, and that is written down), so a resumed run gives the same bytes on a CPU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nlrn import trainstate
from nlrn.checkpoint import save_model
from nlrn.datasets import PatchSet, data_root, read_folder
from nlrn.errors import CheckpointError, ConfigError, TrainingError
from nlrn.model import NLRN
from nlrn.progress import TrainingLog
from nlrn.recipe import TrainConfig, read_recipe
from nlrn.validation import Validation

NOISE_STREAM = 1  # keeps the noise's counters apart from the patches'


def train_from_recipe(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    tensorboard: bool = False,
    data: str | Path | None = None,
    quiet: bool = False,
) -> Path:
    """Train as the TOML file says and return the path of the averaged weights it ends with.

    output: the run folder, by default runs/<recipe name>. resume: go on from the newest verified state; a run
    that had ended goes on from its state before the decay. minutes: stop by the clock, the last part of them
    spent on the decay branch. steps: overrules the recipe's number. Raises ConfigError, InputError,
    CheckpointError, or TrainingError when the loss stops being finite (the last good state is kept).
    """
    config = read_recipe(recipe)
    if steps is not None:
        config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=steps))
    folder = Path(output or Path("runs") / config.name)
    folder.mkdir(parents=True, exist_ok=True)
    with _processes() as (rank, world, device):
        trainer = Trainer(config, folder, data_root(data), device=device, rank=rank, world=world)
        trainer.start(resume)
        with TrainingLog(folder, enabled=rank == 0 and not quiet, tensorboard=tensorboard and rank == 0) as log:
            trainer.run(log, minutes)
        return trainer.finish()


class _processes:
    """(rank, world, device) of this process; joins torchrun's group when started by it."""

    def __enter__(self) -> tuple[int, int, torch.device]:
        self.joined = "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not self.joined:
            return 0, 1, device
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return dist.get_rank(), dist.get_world_size(), device

    def __exit__(self, *_: object) -> None:
        if self.joined:
            dist.destroy_process_group()


class Trainer:
    """A model on its way: `start` it (fresh or resumed), `run` it, `finish` it."""

    def __init__(
        self, config: TrainConfig, folder: Path, data: Path, *, device: torch.device, rank: int = 0, world: int = 1
    ) -> None:
        if any(stage.batch % world for stage in config.stages):
            raise ConfigError(f"every stage's batch must divide by the {world} processes")
        self.config, self.folder, self.device, self.rank, self.world = config, folder, device, rank, world
        torch.manual_seed(config.seed)
        self.model = NLRN(config.model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            self.model.block.compile()
        self.parallel: nn.Module = DistributedDataParallel(self.model) if world > 1 else self.model
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer = _optimizer(config, self.model)
        channels = config.model.in_channels
        images = [image for f in config.data.folders for _, image in read_folder(data / f, channels=channels)]
        self.patches = PatchSet(images, config.stages[0].patch, device=device)
        self.validation = Validation(config, data, device)
        self.step, self.decay_start, self.decay_steps = 0, config.schedule.steps, 0
        self._plan_decay()

    # -- state ---------------------------------------------------------------------------------------------------

    def _plan_decay(self) -> None:
        """Where the decay branch of a run that ends by steps lies."""
        schedule = self.config.schedule
        self.end = schedule.steps
        if schedule.kind == "slices":
            self.decay_steps = int(schedule.decay * max(0, self.end - self.step))
            self.decay_start = self.end - self.decay_steps

    def meta(self) -> dict[str, Any]:
        names = ("step", "decay_start", "decay_steps", "end", "world")
        return {name: getattr(self, name) for name in names} | {"recipe": self.config.digest()}

    def start(self, resume: bool) -> None:
        """Fresh, or from the newest verified state; after a finished run, from the state before its decay."""
        files = trainstate.rolling(self.folder)
        if not resume:
            if files:
                raise ConfigError(f"{self.folder} holds a run already: resume it, or give another folder")
            return
        before = self.folder / trainstate.BEFORE_DECAY
        found = trainstate.newest_verified([*files, before])
        if found is not None and found[2]["step"] >= found[2]["end"]:
            found = trainstate.newest_verified([before, *files]) if before.exists() else found
        if found is None:
            raise CheckpointError(f"there is nothing to resume in {self.folder}")
        path, tensors, meta = found
        if meta["recipe"] != self.config.digest():
            raise ConfigError(f"{path} belongs to another recipe; only steps and decay may change on the way")
        if meta["world"] != self.world:
            raise ConfigError(f"{path} was written by {meta['world']} processes, not {self.world}")
        trainstate.unpack(tensors, self.model, self.ema, self.optimizer)
        self.step = meta["step"]
        if path.name != trainstate.BEFORE_DECAY and self.step < meta["end"]:
            self.decay_start, self.decay_steps, self.end = (meta[k] for k in ("decay_start", "decay_steps", "end"))
        else:
            self._plan_decay()

    def save(self) -> None:
        """Rank 0 writes the rolling state, and the one before the decay when that is where we are."""
        if self.rank == 0:
            tensors = trainstate.pack(self.model, self.ema, self.optimizer)
            trainstate.save_rolling(self.folder, tensors, self.meta())
            if self.step <= self.decay_start:
                trainstate.write_state(self.folder / trainstate.BEFORE_DECAY, tensors, self.meta())

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, log: TrainingLog, minutes: float | None = None) -> None:
        """Until the planned end, or until the clock says so, decay included."""
        started = saved = time.monotonic()
        first = self.step
        self.model.train()
        while self.step < self.end:
            now = time.monotonic()
            self._mind_the_clock(now - started, first, minutes)
            if self.step == self.decay_start or now - saved > 60 * self.config.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
            loss, norm = self.train_step()
            self.step += 1
            lr = self.config.lr(self.step - 1, self.decay_start, self.decay_steps)
            log.step(self.step, self.end, loss, lr, norm, minutes)
            if self.step % self.config.validate_every == 0 or self.step == self.end:
                log.validation(self.step, self.validation(self.model))
        self.save()

    def _mind_the_clock(self, elapsed: float, first: int, minutes: float | None) -> None:
        """With a time budget the decay begins when its share is what remains, and lasts as many steps as fit."""
        if minutes is None or self.step >= self.decay_start or self.step == first:
            return
        share = self.config.schedule.decay if self.config.schedule.kind == "slices" else 0.0
        if self._agree(elapsed >= 60 * minutes * (1 - share)):
            self.decay_start = self.step
            self.decay_steps = math.ceil((self.step - first) * share / (1 - share))
            self.end = self.step + self.decay_steps

    def _agree(self, value: bool) -> bool:
        """Rank 0's answer, for all."""
        if self.world == 1:
            return value
        answer = torch.tensor(int(value), device=self.device)
        dist.broadcast(answer, 0)
        return bool(answer)

    def train_step(self) -> tuple[float, float]:
        """One step of the optimiser: returns the loss and the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr(self.step, self.decay_start, self.decay_steps)
        noisy, clean, sigma = self.batch(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            restored = self.parallel(noisy, sigma)
        loss = _loss(restored.float(), clean, self.config.loss)
        loss.backward()
        norm = self._clip()
        if not math.isfinite(float(loss.detach())) or not math.isfinite(norm):
            raise TrainingError(f"the loss or its gradient is not finite at step {self.step}; the last state is kept")
        self.optimizer.step()
        self._average()
        return float(loss.detach()), norm

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """(noisy, clean, sigma / 255) of this process: a pure function of the recipe's seed and the step."""
        stage = self.config.stage(step)
        size = stage.batch // self.world
        if self.patches.patch != stage.patch:
            self.patches = self.patches.with_patch(stage.patch)
        clean = self.patches.batch(self.config.seed, step, size, self.rank * size).float() / 255
        clean = clean.contiguous(memory_format=torch.channels_last)
        sigmas, noise = np.empty(size, np.float32), np.empty(clean.shape, np.float32)
        for i in range(size):
            # a stream for every place in the global batch: Philox counts up its first word alone
            counter = [0, self.rank * size + i, NOISE_STREAM, 0]
            random = np.random.Generator(np.random.Philox(key=[self.config.seed, step], counter=counter))
            sigmas[i] = random.uniform(self.config.noise.low, self.config.noise.high) / 255
            noise[i] = sigmas[i] * random.standard_normal(noise.shape[1:], dtype=np.float32)
        noisy = clean + torch.from_numpy(noise).to(self.device)
        sigma = torch.from_numpy(sigmas).to(self.device)
        return noisy, clean, sigma if self.config.model.sigma_input else None

    def _autocast(self) -> Any:
        if _bf16(self.config.precision, self.device):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _clip(self) -> float:
        o, parameters = self.config.optim, list(self.model.parameters())
        if not o.clip_per_variable:
            return float(nn.utils.clip_grad_norm_(parameters, o.clip))
        return max(float(nn.utils.clip_grad_norm_([p], o.clip)) for p in parameters)

    @torch.no_grad()
    def _average(self) -> None:
        """The exponential moving average of the weights, quicker at the start."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for name, p in self.model.named_parameters():
            self.ema[name].lerp_(p.detach(), 1 - decay)

    # -- the end -------------------------------------------------------------------------------------------------

    def finish(self) -> Path:
        """The averaged weights with statistics recomputed for them, as <run folder>/<name>.safetensors."""
        path = self.folder / f"{self.config.name}.safetensors"
        averaged = self.averaged_model()
        if self.rank == 0:
            save_model(path, averaged, self.provenance())
        return path

    @torch.no_grad()
    def averaged_model(self) -> NLRN:
        """A model of the averaged weights, its batch-norm statistics taken anew over `norm_batches` batches.

        Averaged weights under statistics that other weights left behind lose up to 0.16 dB.
        """
        model = NLRN(self.config.model).to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.load_state_dict(self.ema, strict=False)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # type: ignore[assignment]  # a plain mean over the batches
        model.train()
        for i in range(self.config.norm_batches):
            noisy, _, sigma = self.batch(self.step + i)
            with self._autocast():
                model(noisy, sigma)
        result: NLRN = model.eval()
        return result

    def provenance(self) -> dict[str, str]:
        """What the weights file says of its origin."""
        c = self.config
        pixels = sum(c.stage(s).batch * c.stage(s).patch ** 2 for s in range(self.step))
        return {
            "name": c.name,
            "steps": str(self.step),
            "training_pixels": str(pixels),
            "recipe": json.dumps(dataclasses.asdict(c), sort_keys=True),
            "torch": torch.__version__,
        }


def _loss(restored: Tensor, clean: Tensor, kind: str) -> Tensor:
    """"mse", or "rms": the mean over patches of each patch's root-mean-square error."""
    error = (restored - clean).square().flatten(1).mean(1)  # [B]
    return error.mean() if kind == "mse" else (error + 1e-8).sqrt().mean()


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW; weight decay on convolution kernels alone, never on biases or batch norms."""
    o = config.optim
    kernels = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": kernels, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if o.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=o.lr, betas=o.betas, eps=o.eps)


def _bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast: as told, or where the hardware multiplies bf16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return hardware_bf16()


def hardware_bf16() -> bool:
    """Does this CPU multiply bf16 itself (AVX512-BF16 or AMX)?"""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run's log.jsonl; a torn last line is left out."""
    for line in (folder / "log.jsonl").read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
