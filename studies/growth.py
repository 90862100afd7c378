"""Growth against the finished network from the start, at equal CPU seconds: python -m studies.growth.

Two arms, one thread each: "direct" has 12 states and a window of 45 from the first step, "grown" begins with 2 and 9. A
look at some minutes is the run at its full rate up to four fifths of them, then a branch in which the rate falls to
zero; the run continues from before it. What was lost by a kill counts as spent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlrn.cli import Parser, execute
from nlrn.cli.shared import check_result, count, number, print_table, reporter
from nlrn.errors import ConfigError, UnfinishedError
from nlrn.evaluation.protocols import denoising, evaluate, provenance
from nlrn.inference.restorer import Restorer, Settings
from nlrn.io.datasets import NamedImage, data_root, read_folder, validation_images
from nlrn.models.checkpoint import load_model, model_metadata
from nlrn.system.allocator import keep_freed_memory
from nlrn.system.atomic import publish_json
from nlrn.training.config import ScheduleConfig, Stage, TrainConfig, read_recipe
from nlrn.training.distributed import Processes
from nlrn.training.state import BEFORE_DECAY, holds_a_run, undecayed
from nlrn.training.trainer import Trainer, train
from studies.study import Report, Table

POSITIVE = number("number of minutes", 0.01, 100_000)
SIGMAS = (15.0, 25.0, 50.0)
SIDE = 96  # of the crops that are scored
WARMUP = 200  # steps
FROZEN = 300  # the step from which the batch norms are frozen, in both arms
DECAY = 0.2  # of a look's minutes
SHARES = (0.05, 0.15, 0.4)  # of all minutes, after which "grown" grows
SIZES = ((2, 9, 32, 8), (4, 15, 32, 8), (6, 31, 48, 4), (12, 45, 48, 4))  # states, window, patch, batch
SECONDS = (0.143, 0.284, 0.645, 1.69)  # of a step of each: bf16, a thread of an AMD EPYC (Zen 5)


def stages_of(arm: str, minutes: float) -> tuple[Stage, ...]:
    """The stages of an arm whose whole training takes so many CPU minutes."""
    if arm == "direct":
        return (_stage(-1, 0, frozen=False), _stage(-1, FROZEN))
    stages, start, before = [_stage(0, 0, frozen=False), _stage(0, FROZEN)], 0, 0.0
    for i, share in enumerate(SHARES):
        start += round(60 * minutes * (share - before) / SECONDS[i])
        before = share
        stages.append(_stage(i + 1, max(start, stages[-1].start + 1)))
    return tuple(stages)


def _stage(i: int, start: int, frozen: bool = True) -> Stage:
    states, window, patch, batch = SIZES[i]
    return Stage(start, patch, batch, frozen=frozen, states=states, window=window)


def arms_of(recipe: TrainConfig, minutes: float, warmup: int = WARMUP) -> dict[str, TrainConfig]:
    """The recipe of each arm: but for the stages that of `recipe`, with little validation beside the steps."""
    return {arm: _with_stages(recipe, arm, stages_of(arm, minutes), warmup) for arm in ("direct", "grown")}


def _with_stages(recipe: TrainConfig, name: str, stages: tuple[Stage, ...], warmup: int = WARMUP) -> TrainConfig:
    """The recipe with these stages, the last of which has the network's own sizes."""
    last = stages[-1]
    states = recipe.model.states if last.states is None else last.states
    data = dataclasses.replace(recipe.data, validation_images=1, validation_size=min(48, recipe.data.validation_size))
    return dataclasses.replace(
        recipe,
        name=name,
        model=dataclasses.replace(recipe.model, states=states, window=last.window),
        data=data,
        schedule=ScheduleConfig(steps=10**7, warmup=warmup, decay=0.0),
        norm_batches=50,
        validate_every=10**6,
        stages=stages,
    )


@dataclass(frozen=True)
class Run:
    """One arm with one seed in a folder. looks: at how many minutes it is scored."""

    config: TrainConfig
    folder: Path
    data: Path
    looks: tuple[float, ...]

    def advance(self, seconds: float) -> bool:
        """Train for about so many CPU seconds; whether a look has been trained to its end by that."""
        look = self.next_look
        branch = self.branch(look)
        target = 60 * look * (1 - DECAY)
        if not holds_a_run(branch) and spent(self.folder) < target:
            self._train(self.config, self.folder, min(seconds, target - spent(self.folder)))
            return False
        if not holds_a_run(branch):
            source = undecayed(self.folder)
            if source is None:
                raise ConfigError(f"{self.folder} holds no state to look at: were the minutes too few for a step?")
            branch.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, branch / BEFORE_DECAY)
        decaying = dataclasses.replace(self.config, schedule=dataclasses.replace(self.config.schedule, decay=0.98))
        self._train(decaying, branch, max(1.0, 60 * look * DECAY - spent(branch)))
        if not self.weights(look).exists():
            raise ConfigError(
                f"a look at {look:g} minutes lies within the warm-up: give it more, or fewer --warmup steps"
            )
        return True

    def branch(self, look: float) -> Path:
        """The folder of what a look is about."""
        return self.folder / f"look-{look:g}"

    def weights(self, look: float) -> Path:
        """Those that a look is about."""
        return self.branch(look) / f"{self.config.name}.safetensors"

    @property
    def next_look(self) -> float:
        """The first look that is not trained yet, or the last one."""
        return next((look for look in self.looks if not self.weights(look).exists()), self.looks[-1])

    @property
    def ended(self) -> bool:
        """Whether every look is trained."""
        return self.weights(self.looks[-1]).exists()

    def _train(self, config: TrainConfig, folder: Path, seconds: float) -> None:
        resume = holds_a_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        minutes = seconds / 60
        with suppress(UnfinishedError), _counted(folder):  # a piece that ended within the warm-up: its state is kept
            train(config, output=folder, data=self.data, resume=resume, cpu_minutes=minutes, quiet=True)


def spent(folder: Path) -> float:
    """CPU seconds of one thread that trainings in a folder took so far."""
    file = folder / "spent.json"
    return float(json.loads(file.read_text())["cpu_seconds"]) if file.exists() else 0.0


@contextmanager
def _counted(folder: Path, every: float = 5.0) -> Iterator[None]:
    """Add the CPU seconds of what runs within to those of the folder, also where it is killed."""
    before, began, ended = spent(folder), time.process_time(), threading.Event()

    def write() -> None:
        found = {"cpu_seconds": before + (time.process_time() - began) / torch.get_num_threads()}
        publish_json(folder / "spent.json", found)

    def watch() -> None:
        while not ended.wait(every):
            write()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        write()


# -- the scores ------------------------------------------------------------------------------------------------


def scored_on(data: Path) -> dict[str, list[NamedImage]]:
    """20 images of T91 and the 20 of SunHays80 that are never trained on (HELD_OUT): grey centre crops of SIDE."""
    t91 = [(name, image) for name, image in read_folder(data / "t91", channels=1) if min(image.shape) >= SIDE]
    sun = validation_images(data, "sunhays80", ["sunhays80"], channels=1)
    return {"t91": [(n, _centre(i)) for n, i in t91[:20]], "sunhays80": [(n, _centre(i)) for n, i in sun]}


def _centre(image: np.ndarray) -> np.ndarray:
    top, left = ((n - SIDE) // 2 for n in image.shape)
    return image[top : top + SIDE, left : left + SIDE]


def score(run: Run, look: float, sets: dict[str, list[NamedImage]]) -> dict[str, Any]:
    """What a look shows, kept in its folder."""
    file = run.branch(look) / "scores.json"
    if file.exists():
        known: dict[str, Any] = json.loads(file.read_text())
        return known
    path = run.weights(look)
    restorer = Restorer(str(path), device="cpu", settings=Settings(precision="auto", tile=0))
    scores = evaluate(restorer, sets, denoising(SIGMAS))
    made, network, origin = model_metadata(path), load_model(path).config, provenance(restorer)
    found = {
        "states": network.states,
        "window": network.window,
        "steps": int(made["steps"]),
        "pixels": int(made["training_pixels"]),
        "cpu_seconds": round(60 * look * (1 - DECAY) + spent(run.branch(look))),
        "scores": {s: {x: by["psnr"] for x, by in each.items()} for s, each in scores.items()},
        "run": origin,
    }
    publish_json(file, found)
    return found


def collected(folder: Path, arms: dict[str, TrainConfig], minutes: float, looks: Sequence[float]) -> dict[str, Any]:
    """What all looks in a folder of runs show, those of other calls too: {look: {arm: {seed: ...}}}, and where."""
    result: dict[str, Any] = {"study": "growth", "minutes": minutes, "sigmas": list(SIGMAS), "looks": {}}
    result["stages"] = {arm: [dataclasses.asdict(stage) for stage in config.stages] for arm, config in arms.items()}
    for look in looks:
        for arm in arms:
            for run in sorted(folder.glob(f"{minutes:g}-{arm}-*")):
                file = run / f"look-{look:g}" / "scores.json"
                if file.exists():
                    found = json.loads(file.read_text())
                    result["run"] = found.pop("run")
                    seed = run.name.rpartition("-")[2]
                    result["looks"].setdefault(f"{look:g}", {}).setdefault(arm, {})[seed] = found
    return result


def table(result: dict[str, Any]) -> Table:
    """(title, header, rows): of every look and arm the mean over the seeds, in dB; last each seed's over all."""
    rows: list[list[str]] = []
    names: list[str] = []
    for look, arms in result["looks"].items():
        for arm, seeds in arms.items():
            each = list(seeds.values())
            first, cells, names = each[0], [], list(each[0]["scores"])
            for name in names:
                levels = [statistics.mean(run["scores"][name][f"{x:g}"] for run in each) for x in result["sigmas"]]
                cells.append(" / ".join(f"{level:.2f}" for level in levels))
            means = [statistics.mean(v for by in run["scores"].values() for v in by.values()) for run in each]
            size = f"{first['states']}, {first['window']}"
            work = [f"{statistics.mean(run['steps'] for run in each):,.0f}"]
            work.append(f"{statistics.mean(run['pixels'] for run in each) / 1e6:.1f}")
            mean = f"{statistics.mean(means):.2f} ({', '.join(f'{m:.2f}' for m in means)})"
            rows.append([look, arm, size, *work, *cells, mean])
    sigmas = " / ".join(f"{x:g}" for x in result["sigmas"])
    header = ["CPU minutes", "", "states, window", "steps", "million pixels", *(f"{n}, sigma {sigmas}" for n in names)]
    return f"growth, {result['minutes']:g} CPU minutes an arm", [*header, "mean (seeds)"], rows


def speeds(recipe: TrainConfig, data: Path, rounds: int = 3) -> Table:
    """(title, header, rows): what a step of each size takes once frozen, the median of some rounds in turn."""
    configs = [_with_stages(recipe, "none", (_stage(i, 0),)) for i in range(len(SIZES))]
    trainers = [Trainer(config, Path("none"), data, Processes(torch.device("cpu"))) for config in configs]
    found: list[list[float]] = [[] for _ in trainers]
    for trainer, seconds in [(t, s) for _ in range(rounds + 1) for t, s in zip(trainers, found, strict=True)]:
        began = time.process_time()
        trainer.model.train()
        trainer.train_step()
        seconds.append((time.process_time() - began) / torch.get_num_threads())
    rows = []
    for (states, window, patch, batch), seconds in zip(SIZES, found, strict=True):
        a_step = statistics.median(seconds[1:])  # the first one also includes what is set up once
        pixels = f"{batch * patch**2 / a_step:,.0f}"
        rows.append([f"{states}, {window}", f"{batch} of {patch}", f"{a_step:.3f}", pixels])
    header = ["states, window", "patches", "CPU seconds a step", "pixels a second"]
    return f"{recipe.model.channels} channels, {torch.get_num_threads()} thread", header, rows


# -- the command -----------------------------------------------------------------------------------------------


def study(
    recipe: TrainConfig,
    data: Path,
    sets: dict[str, list[NamedImage]],
    *,
    minutes: float,
    looks: Sequence[float],
    seeds: Sequence[int],
    runs: Path,
    output: Path,
    piece: float = 600.0,
    limit: float = float("inf"),
    warmup: int = WARMUP,
    arms: dict[str, TrainConfig] | None = None,
    say: Report = lambda line: None,
) -> dict[str, Any]:
    """Train the arms in turn, score every look, and keep what is known in `output`.

    piece: CPU seconds of an arm before it is the next one's turn. limit: CPU seconds of this call, after which it
    returns; the next one continues. arms: instead of those of the study. Raises what training raises.
    """
    if sorted(looks) != list(looks) or looks[-1] != minutes:
        raise ConfigError(f"looks must rise to the {minutes:g} minutes of the study, not be {list(looks)}")
    configs = arms or arms_of(recipe, minutes, warmup)
    every = {
        (arm, seed): Run(dataclasses.replace(config, seed=seed), runs / f"{minutes:g}-{arm}-{seed}", data, tuple(looks))
        for seed in seeds
        for arm, config in configs.items()
    }
    began = time.process_time()
    while open_ := [key for key, run in every.items() if not run.ended]:
        key = min(open_, key=lambda key: spent(every[key].folder))
        run, look = every[key], every[key].next_look
        if run.advance(piece):
            found = score(run, look, sets)
            say(f"{key[0]}, seed {key[1]}, {look:g} minutes: {found['scores']}")
            publish_json(output, collected(runs, configs, minutes, looks))
        else:
            say(f"{key[0]}, seed {key[1]}: {spent(run.folder) / 60:.1f} CPU minutes")
        if (time.process_time() - began) / torch.get_num_threads() > limit:
            break
    return collected(runs, configs, minutes, looks)


def parser() -> argparse.ArgumentParser:
    """The arguments of python -m studies.growth."""
    found = Parser(prog="python -m studies.growth", description="Growth against the finished network from the start.")
    found.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/denoise-gray.toml"), metavar="RECIPE.toml")
    found.add_argument("-o", "--output", type=Path, default=Path("study-growth.json"), metavar="FILE.json")
    what = found.add_mutually_exclusive_group(required=True)
    what.add_argument("--minutes", type=POSITIVE, help="CPU minutes of an arm, one thread")
    what.add_argument("--speed", action="store_true", help="print what a step of each size takes, and end")
    found.add_argument("--look", type=POSITIVE, nargs="*", default=[], help="earlier looks, in minutes")
    found.add_argument("--limit", type=POSITIVE, default=float("inf"), help="CPU minutes of this call; then continue")
    found.add_argument("--piece", type=POSITIVE, default=10.0, help="CPU minutes of an arm's turn (default: 10)")
    found.add_argument("--warmup", type=count, default=WARMUP, help=f"steps (default: {WARMUP})")
    found.add_argument("--seeds", type=count, nargs="+", default=[0, 1], help="default: 0 1")
    found.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    found.add_argument("--runs", type=Path, default=Path("runs/growth"), metavar="FOLDER", help="default: runs/growth")
    found.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    found.set_defaults(run=_study)
    return found


def _study(options: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    data = data_root(options.data)
    if options.speed:
        print_table(*speeds(read_recipe(options.recipe), data))
        return 0
    check_result(options.output, ".json", overwrite=True)
    result = study(
        read_recipe(options.recipe),
        data,
        scored_on(data),
        minutes=options.minutes,
        looks=[*options.look, options.minutes],
        seeds=options.seeds,
        runs=options.runs,
        output=options.output,
        piece=60 * options.piece,
        limit=60 * options.limit,
        warmup=options.warmup,
        say=reporter(options),
    )
    if not options.quiet and result["looks"]:
        print_table(*table(result))
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(execute(parser(), sys.argv[1:]))
