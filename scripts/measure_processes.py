"""A training by one process and by several, into results/processes.json: how near they are, and how fast.

The same short run of a recipe (patches of its first stage, half of the steps with the batch norms of the batch, half
with frozen ones, float32) alone on one thread, alone on several, and by several processes of one thread each, in turn,
`--rounds` times. Everything on this machine, whatever else it does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nlrn.evaluation.protocols import machine
from nlrn.io.datasets import data_root
from nlrn.system.atomic import publish_json
from nlrn.training.config import TrainConfig, read_recipe
from nlrn.training.distributed import joined
from nlrn.training.logging import TrainingLog
from nlrn.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "processes.json"
PHASES = ("batch norms of the batch", "frozen")


def shortened(recipe: Path, steps: int) -> TrainConfig:
    """Half of the steps before the batch norms are frozen, half after."""
    config = read_recipe(recipe)
    first = dataclasses.replace(config.stages[0], frozen=False)
    stages = (first, dataclasses.replace(first, start=steps // 2, frozen=True))
    schedule = dataclasses.replace(config.schedule, steps=steps)
    return dataclasses.replace(config, stages=stages, schedule=schedule, norm_batches=4, precision="fp32", ema=0.9)


def worker(options: argparse.Namespace) -> None:
    """One process of a run; rank 0 writes losses, gradient norms, seconds, and what the resulting model restores."""
    torch.set_num_threads(options.threads)
    with joined() as processes:
        config = shortened(options.recipe, options.steps)
        trainer = Trainer(config, options.worker.parent / "none", data_root(options.data), processes)
        trainer.align()
        trainer.model.train()
        found: dict[str, list[float]] = {"losses": [], "norms": [], "seconds": []}
        with TrainingLog(options.worker.parent, show=False, keep=False) as log:
            while trainer.step < options.steps:
                if trainer.step == config.freeze:
                    trainer._freeze(log)
                processes.wait()
                began = time.monotonic()
                loss, norm = trainer.train_step()
                values = {"losses": float(processes.sum(loss)), "norms": float(norm)}
                values["seconds"] = time.monotonic() - began
                for name, value in values.items():
                    found[name].append(value)
                trainer.step += 1
        degraded, _, sigma = trainer.batches(options.steps, whole=True)
        with torch.no_grad():
            restored = trainer.averaged_model()(degraded, sigma)
        if processes.leads:
            curves = {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}
            save_file(curves | {"restored": restored.contiguous()}, options.worker)


def measured(processes: int, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """The tensors of a run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.safetensors"
        words = ["--worker", out, "--threads", threads, "--recipe", options.recipe, "--steps", options.steps]
        words += ["--data", options.data] if options.data else []
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        command = [sys.executable, *(launcher if processes > 1 else []), __file__, *words]
        subprocess.run([str(word) for word in command], check=True)
        return load_file(out)


def compared(runs: list[dict[str, Any]], alone: dict[str, Any]) -> dict[str, Any]:
    """Of each phase the median steps a second, and the largest relative differences from the run alone.

    Of the first step too: what comes later has grown out of its rounding.
    """
    half = len(alone["losses"]) // 2
    line: dict[str, Any] = {}
    for phase, part in zip(PHASES, (slice(0, half), slice(half, None)), strict=True):
        seconds = [float(s) for run in runs for s in run["seconds"][part]]
        far = {k: max(float((run[k] / alone[k] - 1)[part].abs().max()) for run in runs) for k in ("losses", "norms")}
        line[phase] = {"steps_a_second": 1 / statistics.median(seconds), **far}
    line["first loss"] = max(float((run["losses"] / alone["losses"] - 1)[0].abs()) for run in runs)
    line["restored"] = max(float((run["restored"] - alone["restored"]).abs().max()) for run in runs)
    return line


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "denoise-gray-small.toml")
    words.add_argument("--data", type=Path)
    words.add_argument("--steps", type=int, default=24)
    words.add_argument("--processes", type=int, default=2)
    words.add_argument("--rounds", type=int, default=2)
    words.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    words.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return words


def main() -> None:
    options = parser().parse_args()
    if options.worker:
        worker(options)
        return
    n = options.processes
    contestants = {"1 process": (1, 1), f"1 process, {n} threads": (1, n), f"{n} processes": (n, 1)}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, (processes, threads) in contestants.items():
            runs[name].append(measured(processes, threads, options))
            print(name, flush=True)
    lines = {name: compared(found, runs["1 process"][0]) for name, found in runs.items()}
    print(json.dumps(lines, indent=1))
    publish_json(
        RESULT,
        {"recipe": options.recipe.stem, "steps": options.steps, "lines": lines, "run": machine(torch.device("cpu"))},
    )


if __name__ == "__main__":
    main()
