"""Pixels a second that a core trains by every recipe, before a change and after it, into results/recipes.json.

  python scripts/measure_recipes.py --before ../before-venv/bin/python

A step of each recipe's last stage on one thread (its model, its patches and its batch norms; PATCHES of them, one of 48
x 48 at most for the large models), by this checkout and by the nlrn of another Python, in turn, `--rounds` times:
float32 held to AVX2 and, where the processor multiplies bfloat16, that. Seconds are those of the processor. Every step
lies between products of 1024 x 1024 matrices: what slows the machine slows both, and the ratio is that of fractions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "recipes.json"
PATCHES = 2
LARGE, SIDE = 100, 48  # channels from which a network trains here on one patch, and the most of its side
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "NLRN_INSTRUCTION_SET": "avx2"}
FIELDS = ("in_channels", "channels", "embed_channels", "states", "window", "propagation", "sigma_input", "task")


def worker(cells: list[dict[str, Any]], kind: str) -> list[dict[str, float]]:
    """{"seconds", "gflops"} of a step of every cell, by the nlrn of this Python."""
    from nlrn.models.nlrn import NLRN, NLRNConfig
    from nlrn.system.allocator import keep_freed_memory
    from nlrn.training.config import OptimConfig, TrainConfig
    from nlrn.training.norms import freeze_norms
    from nlrn.training.optim import loss_of, make_optimizer

    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = TrainConfig("measured", NLRNConfig(sigma_input=True), optim=OptimConfig("muon"))
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))

    def products() -> float:
        began = time.thread_time()
        for _ in range(4):
            a @ b
        return 4 * 2 * 1024**3 / (time.thread_time() - began) / 1e9

    found = []
    for cell in cells:
        model = NLRN(NLRNConfig(**cell["model"])).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if cell["frozen"]:
            freeze_norms(model)
        optimizer = make_optimizer(recipe, model)
        clean = torch.rand(cell["patches"], cell["model"]["in_channels"], cell["side"], cell["side"])
        noisy = clean + 0.1 * torch.randn_like(clean)
        sigma = 0.1 if cell["model"]["sigma_input"] else None

        def step(
            model: NLRN = model,
            optimizer: torch.optim.Optimizer = optimizer,
            pair: tuple[Tensor, Tensor, float | None] = (noisy, clean, sigma),
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
                restored = model(pair[0], pair[2])
            loss_of(restored.float(), pair[1], "rms").backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        step()
        seconds, rates = [], []
        for _ in range(cell["steps"]):
            around = products()
            began = time.thread_time()
            step()
            seconds.append(time.thread_time() - began)
            rates.append((around + products()) / 2)
        found.append({"seconds": statistics.median(seconds), "gflops": statistics.median(rates)})
    return found


def cells() -> list[dict[str, Any]]:
    """The last stage of every recipe."""
    from nlrn.training.config import read_recipe

    found = []
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        config = read_recipe(path)
        stage, large = config.stages[-1], config.model.channels > LARGE
        model = {k: v for k, v in dataclasses.asdict(config.model).items() if k in FIELDS}
        side = min(stage.patch, SIDE) if large else stage.patch
        shape = {"side": side, "patches": 1 if large else PATCHES, "steps": 2 if large else 5}
        found.append({"recipe": path.stem, "model": model, "frozen": stage.frozen, **shape})
    return found


def measured(python: str, todo: list[dict[str, Any]], kind: str) -> list[dict[str, float]]:
    """What the worker of a Python finds."""
    environment = {**os.environ, **(AVX2 if kind == "fp32" else {})}
    environment.pop("PYTHONPATH", None)
    command = [python, __file__, "--worker", json.dumps(todo), "--kind", kind]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(
    cell: dict[str, Any], kind: str, before: list[dict[str, float]], now: list[dict[str, float]]
) -> dict[str, Any]:
    """One recipe's medians over the rounds, and the median ratio of fractions."""
    pixels = cell["patches"] * cell["side"] ** 2
    ratios = [b["seconds"] * b["gflops"] / (n["seconds"] * n["gflops"]) for b, n in zip(before, now, strict=True)]
    rate = pixels / statistics.median(n["seconds"] for n in now)
    ratio = statistics.median(ratios)
    words = {"recipe": cell["recipe"], "kind": kind, "patches": cell["patches"], "side": cell["side"]}
    return {**words, "before": rate / ratio, "now": rate, "ratio": ratio}


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--before", help="the Python of the nlrn to compare with")
    words.add_argument("--commit", default="", help="what that one is")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--only", default="", help="of the recipes, those whose names hold this")
    words.add_argument("--kind", choices=("fp32", "bf16"), help="of the two types, this one only")
    words.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return words


def main() -> None:
    options = parser().parse_args()
    if options.worker is not None:
        print(json.dumps(worker(options.worker, options.kind)))
        return
    from nlrn.evaluation.protocols import machine
    from nlrn.system.atomic import publish_json
    from nlrn.system.hardware import hardware_bf16

    cpu, todo = torch.device("cpu"), [cell for cell in cells() if options.only in cell["recipe"]]
    kinds = [options.kind] if options.kind else ["fp32", *(["bf16"] if hardware_bf16(cpu) else [])]
    run = machine(cpu) | {"threads": 1}
    known = json.loads(RESULT.read_text())["lines"] if RESULT.exists() else []
    for kind in kinds:
        before, now = [], []
        for _ in range(options.rounds):
            before.append(measured(options.before or sys.executable, todo, kind))
            now.append(measured(sys.executable, todo, kind))
        for i, cell in enumerate(todo):
            found = line(cell, kind, [r[i] for r in before], [r[i] for r in now])
            known = [k for k in known if (k["recipe"], k["kind"]) != (found["recipe"], kind)] + [found]
            print(json.dumps(found), flush=True)
        known.sort(key=lambda k: (k["kind"], k["recipe"]))
        publish_json(RESULT, {"before": options.commit, "rounds": options.rounds, "lines": known, "run": run})


if __name__ == "__main__":
    main()
