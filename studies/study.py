"""Studies: equal short trainings that differ in one thing, each with several seeds, scored alike.

Those of the paper (section 5: neighbourhood size, recurrent states, propagation, parameters) and those behind our own
recipes. What a study with a short budget shows is what pays early; it says nothing about the end of a long training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlrn.errors import ConfigError, ModelError, NotFiniteError, TrainingError
from nlrn.evaluation.plotting import new_figure, write_figure
from nlrn.evaluation.protocols import denoising, evaluate, provenance
from nlrn.inference.restorer import Restorer, Settings
from nlrn.io.datasets import SCORING_SETS, NamedImage, read_folder, scoring_set
from nlrn.models.checkpoint import model_metadata, sha256
from nlrn.models.distances import DISTANCES
from nlrn.ops.cpu import warn_for_workers
from nlrn.system.atomic import publish_json
from nlrn.system.workers import pool
from nlrn.training.config import TrainConfig
from nlrn.training.state import holds_a_run
from nlrn.training.trainer import train

Report = Callable[[str], None]
Table = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True)
class Study:
    """question: what it asks. arms: what each changes of the recipe, {field: value} or {part: {field: value}}; what is
    said of stages holds for all of them.

    scored_on: scoring sets, or folders of the data; a choice about training is never made on a scoring set.
    axis: what the arms' names are numbers of, for a plot; None where they are not.
    """

    question: str
    arms: dict[str, dict[str, Any]]
    scored_on: tuple[str, ...] = ("set12",)
    axis: str | None = None


def _along(name: str, *values: int) -> dict[str, dict[str, Any]]:
    return {str(v): {"model": {name: v}} for v in values}


STUDIES = {
    "attention": Study(
        "Does the attention help?",
        {
            "full": {},
            "no propagation": {"model": {"propagation": False}},
            "no attention": {"model": {"window": 1}},  # every pixel attends to itself; the parameters stay
        },
        ("set12", "bsd68"),
    ),
    "choices": Study(
        "Which choices of the recipe help?",
        {
            "the recipe": {},
            "AdamW, 1e-3": {"optim": {"optimizer": "adamw", "lr": 1e-3}},
            "theta and phi drawn apart": {"embedding_tied": False},
            "theta and phi at a tenth of the rate": {"embedding_lr": 0.1},
            "theta and phi at the full rate": {"embedding_lr": 1.0},
            "batch norms of the batch": {"stages": {"frozen": False}},
            "mean squared error": {"loss": "mse"},
            "4 patches of 48": {"stages": {"patch": 48, "batch": 4}},  # an eighth more pixels
            "decay over half of the steps": {"schedule": {"decay": 0.5}},
        },
        ("t91",),
    ),
    "distance": Study(
        "Which of the paper's six distances?",
        # The embedded Gaussian alone carries correlations: none does here. Frozen batch norms let the dot product run
        # away, which nothing bounds: none are frozen, as in the paper.
        {
            name.replace("_", " "): {"model": {"distance": name, "propagation": False}, "stages": {"frozen": False}}
            for name in DISTANCES
        },
    ),
    "window": Study("How wide a neighbourhood?", _along("window", 3, 7, 15, 23), axis="side of the window, q"),
    "states": Study("How many recurrent states?", _along("states", 2, 4, 6, 9), axis="recurrent states, T"),
    "channels": Study(
        "How many parameters?",
        {str(c): {"model": {"channels": c, "embed_channels": c // 2}} for c in (16, 32, 64, 96)},
        axis="channels of the state",
    ),
}


def arm_config(recipe: TrainConfig, change: dict[str, Any], name: str, seed: int, steps: int) -> TrainConfig:
    """The recipe of one arm's run. Raises ConfigError for a change that the recipe does not know."""
    changed = {"schedule": {}, "stages": {}} | change
    changed["schedule"] = changed["schedule"] | {"steps": steps}
    every = changed.pop("stages")
    stages = tuple(dataclasses.replace(stage, **every) for stage in recipe.stages)
    name = f"{name}-{seed}".replace(" ", "-").replace(",", "")
    try:
        parts = {
            k: dataclasses.replace(getattr(recipe, k), **v) if isinstance(v, dict) else v for k, v in changed.items()
        }
        return dataclasses.replace(recipe, name=name, seed=seed, stages=stages, **parts)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"the study's arm {name} changes what a recipe does not have: {error}") from error


def trained(config: TrainConfig, folder: Path, data: Path, quiet: bool = False) -> Path:
    """The weights that a run ends with; it is made, or made to its end, when they are not there."""
    weights = folder / f"{config.name}.safetensors"
    try:
        made = model_metadata(weights)
        if (made.get("steps"), made.get("recipe")) == (str(config.schedule.steps), config.header()):
            return weights
    except ModelError:
        pass
    return train(config, output=folder, data=data, resume=holds_a_run(folder), quiet=quiet)


@dataclass(frozen=True)
class Run:
    """One arm's training with one seed, and what it is scored on."""

    config: TrainConfig
    folder: Path
    data: Path
    sets: tuple[str, ...]
    sigmas: tuple[float, ...]

    def __call__(self, quiet: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the result says of it, and where that came about."""
        path = trained(self.config, self.folder, self.data, quiet)
        restorer = Restorer(str(path), device="cpu", settings=Settings(precision="fp32", tile=0))
        made, origin = model_metadata(path), provenance(restorer)
        return {
            "recipe": _digest(self.config),
            "commit": origin["commit"],
            "sha256": sha256(path),
            "parameters": sum(p.numel() for p in restorer.model.parameters()),
            "training_pixels": int(made["training_pixels"]),
            "training_seconds": float(made["hardware_seconds"]),
            "scores": {name: self._scores(restorer, name) for name in self.sets},
        }, origin

    def _scores(self, restorer: Restorer, name: str) -> dict[str, Any]:
        """{sigma: what evaluate says}, None where the network ran away on an image."""
        found: dict[str, Any] = {}
        for condition in denoising(self.sigmas):
            try:
                found |= evaluate(restorer, {name: _images(self.data, name)}, [condition])[name]
                del found[condition.name]["images"]
            except NotFiniteError:
                found[condition.name] = {"psnr": None, "ssim": None}
        return found


Key = tuple[str, int]  # arm and seed


def _all_made(runs: dict[Key, Run], jobs: int, quiet: bool) -> Generator[tuple[Key, Any]]:
    """What every run comes to, as they come; several at once are processes with a share of the threads each.

    An error, or an interrupt, ends the others at once: they resume from their last states another time.
    """
    if jobs == 1:
        yield from ((key, run(quiet)) for key, run in runs.items())
        return
    with pool(jobs, warn_for_workers()) as processes:
        ahead = {processes.submit(run, True): key for key, run in runs.items()}
        try:
            for future in as_completed(ahead):
                yield ahead[future], future.result()
        except BrokenProcessPool as error:
            raise TrainingError("a training's process was killed (its memory?); the same command resumes") from error


def run(
    name: str,
    recipe: TrainConfig,
    data: Path,
    *,
    runs: Path,
    output: Path,
    seeds: Sequence[int] = (0, 1),
    steps: int | None = None,
    sigmas: Sequence[float] = (25.0, 50.0),
    jobs: int = 1,
    quiet: bool = False,
    study: Study | None = None,
    say: Report = lambda line: None,
) -> dict[str, Any]:
    """Make every run that `output` does not know, score it in float32, and keep what is known there after each.

    Runs lie in `runs`/<arm>-<seed> and resume from where they stand. jobs: how many are made at once, each on its
    share of the threads, on CPUs (there, one after the other leaves threads idle); quiet: a single one shows nothing.
    Raises ConfigError when `output` holds another study, or one of another recipe, TrainingError when the process of
    one was killed, and what training raises.
    """
    study = study or STUDIES[name]
    if (recipe.model.task, recipe.model.in_channels) != ("denoise", 1):
        raise ConfigError(f"a study is scored as a grey denoiser, and {recipe.name} makes another model")
    steps = recipe.schedule.steps if steps is None else steps
    head = {"study": name, "recipe": recipe.name, "steps": steps, "sigmas": list(sigmas)}
    result: dict[str, Any] = _known(output, head) or {**head, "runs": {}}
    known = result["runs"]
    for scored_on in study.scored_on:
        _images(data, scored_on)  # before hours of training

    def config_of(arm: str, seed: int) -> TrainConfig:
        return arm_config(recipe, study.arms[arm], arm, seed, steps)

    _check_known(known, study, config_of, output)
    wanted = {}
    for seed in seeds:
        for arm in study.arms:
            if str(seed) not in known.get(arm, {}):
                config = config_of(arm, seed)
                wanted[arm, seed] = Run(config, runs / config.name, data, study.scored_on, tuple(sigmas))
    with closing(_all_made(wanted, jobs, quiet)) as made:
        for (arm, seed), found in made:
            known.setdefault(arm, {})[str(seed)], result["run"] = found
            result["runs"] = known = {a: dict(sorted(known[a].items())) for a in study.arms if a in known}
            publish_json(output, result)
            say(f"{arm}, seed {seed}: {_summary(found[0]['scores'])}")
    return result


def _check_known(
    known: dict[str, Any], study: Study, config_of: Callable[[str, int], TrainConfig], output: Path
) -> None:
    """Raises ConfigError when a run that `output` holds was made by another recipe: arms would not be equal."""
    for arm, seeds in known.items():
        for seed, found in seeds.items():
            if arm not in study.arms or found.get("recipe") != _digest(config_of(arm, int(seed))):
                raise ConfigError(f"{output} holds {arm}, seed {seed}, of another recipe: give another name")


def _digest(config: TrainConfig) -> str:
    """Of all that makes a run what it is."""
    return hashlib.sha256(config.header().encode()).hexdigest()[:16]


def _summary(scores: dict[str, Any]) -> str:
    return ", ".join(f"{s} {x}: {_db(score['psnr'], 3)} dB" for s, by in scores.items() for x, score in by.items())


def _db(value: float | None, digits: int = 2) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _mean(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return statistics.mean(finite) if len(finite) == len(values) else None


def _known(output: Path, head: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call left in `output`."""
    if not output.exists():
        return None
    try:
        found = json.loads(output.read_text())
    except ValueError as error:
        raise ConfigError(f"{output} is there and no study's: give another name") from error
    if not isinstance(found, dict) or {key: found.get(key) for key in head} != head:
        raise ConfigError(f"{output} holds another study, or other steps or noise levels: give another name")
    return found


def _images(data: Path, name: str) -> list[NamedImage]:
    return scoring_set(data, name) if name in SCORING_SETS else read_folder(data / name, channels=1)


# -- what came out -----------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> Table:
    """(title, header, rows): of every arm the mean over the seeds and each of them, in dB, by set and sigma."""
    arms = result["runs"]
    sets = list(next(iter(next(iter(arms.values())).values()))["scores"])
    columns = [(s, f"{x:g}") for s in sets for x in result["sigmas"]]
    lines = []
    for arm, runs in arms.items():
        each = [[run["scores"][s][x]["psnr"] for run in runs.values()] for s, x in columns]
        cells = [f"{_db(_mean(v))} ({', '.join(map(_db, v))})" for v in each]
        lines.append([arm, f"{next(iter(runs.values()))['parameters']:,}", *cells])
    title = f"{result['study']}: {result['steps']:,} steps, PSNR (dB), the mean and each seed"
    return title, ["", "parameters", *(f"{s}, sigma {x}" for s, x in columns)], lines


def plot(result: dict[str, Any], path: Path, study: Study | None = None) -> None:
    """PSNR by arm as a PNG, a point for every seed, over at least 1 dB, so that chance looks as small as it is.

    Raises BackendError without matplotlib.
    """
    study = study or STUDIES[result["study"]]
    sets = study.scored_on
    figure = new_figure(4.2 * len(sets) * len(result["sigmas"]), 3.4)
    axes: Any = figure.subplots(1, len(sets) * len(result["sigmas"]), squeeze=False)[0]
    for axis, (s, x) in zip(axes, [(s, f"{x:g}") for s in sets for x in result["sigmas"]], strict=True):
        every_run = {
            arm: [run["scores"][s][x]["psnr"] for run in runs.values()] for arm, runs in result["runs"].items()
        }
        points = {arm: [value for value in values if value is not None] for arm, values in every_run.items()}
        at = [float(arm) for arm in points] if study.axis else list(range(len(points)))
        for place, values in zip(at, points.values(), strict=True):
            axis.plot([place] * len(values), values, "o", color="C0", markersize=4, alpha=0.6)
        axis.plot(
            at,
            [statistics.mean(v) if v else math.nan for v in points.values()],
            "-" if study.axis else "_",
            color="C1",
            markersize=14,
        )
        every = [value for values in points.values() for value in values] or [0.0]
        middle, half = (max(every) + min(every)) / 2, max(0.5, 0.6 * (max(every) - min(every)))
        axis.set(
            title=f"{s}, sigma {x}", ylabel="PSNR (dB)", xlabel=study.axis or "", ylim=(middle - half, middle + half)
        )
        if study.axis is None:
            axis.set_xticks(at, list(points), rotation=25, ha="right", fontsize=7)
        else:
            axis.set_xticks(at)
        axis.grid(alpha=0.3)
    write_figure(figure, path)
