"""Seconds and peak memory of one square picture, small and base, window against patch mode, in one run.

On the CPU, each measurement in a process of its own, so that its peak memory is its own; of --repeats runs the median
time counts. The models are the presets with the sigma plane and random weights: time and memory do not depend on them.

    python benchmarks/inference.py -o results/inference.json

A cell is model:mode:size. Freed memory is used again, as the nlrn command does it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from nlrn.evaluation import provenance
from nlrn.hardware import keep_freed_memory
from nlrn.model import NLRN, PRESETS
from nlrn.restore import Restorer, Settings

CELLS = ("small:window:512", "small:patch:512", "base:window:512", "base:patch:512")


def measure(preset: str, mode: str, size: int, precision: str, repeats: int) -> dict[str, object]:
    """One picture of noise through one model."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = NLRN(dataclasses.replace(PRESETS[preset], sigma_input=True))
    restorer = Restorer(model, device="cpu", settings=Settings(mode=mode, precision=precision, tile=0))
    noise = np.random.RandomState(0)
    restorer.denoise(noise.rand(64, 64).astype(np.float32), 25)  # warm up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    picture = noise.rand(size, size).astype(np.float32)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        restorer.denoise(picture, 25)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predicted = restorer.memory_per_pixel(size, size) * size * size if mode == "window" else None
    return {
        "model": preset,
        "mode": mode,
        "size": size,
        "precision": "bf16" if restorer.bf16 else "fp32",
        "threads": torch.get_num_threads(),
        "seconds": statistics.median(seconds),
        "repeats": repeats,
        "peak_mib": peak / 1024,
        "above_idle_mib": (peak - before) / 1024,
        "predicted_mib": predicted and predicted / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", nargs="*", default=list(CELLS), metavar="MODEL:MODE:SIZE")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.one:
        model, mode, size = options.cells[0].split(":")
        print(json.dumps(measure(model, mode, int(size), options.precision, options.repeats)))
        return
    rows = []
    for cell in options.cells:
        command = [sys.executable, __file__, cell, "--one", "--precision", options.precision]
        command += ["--repeats", str(options.repeats)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{cell}: {row['seconds']:.1f} s, {row['above_idle_mib']:.0f} MiB above idle", flush=True)
        rows.append(row)
    run = provenance(Restorer(NLRN(PRESETS["small"]), device="cpu"))
    result = {"run": {k: v for k, v in run.items() if k not in ("mode", "precision", "tile")}, "rows": rows}
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
