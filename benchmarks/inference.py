"""Seconds and peak memory of one square picture, small and base, window against patch mode, in one run.

Each measurement is a process of its own, so that its peak memory is its own. The base model has random weights
unless it is shipped: time and memory do not depend on them.

    python benchmarks/inference.py --size 512 -o results/inference.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from nlrn.evaluation import provenance
from nlrn.model import NLRN, PRESETS
from nlrn.restore import Restorer, Settings

MODES = ("window", "patch")


def measure(preset: str, mode: str, size: int, precision: str) -> dict[str, object]:
    """One picture of noise through one model."""
    torch.manual_seed(0)
    restorer = Restorer(NLRN(PRESETS[preset]), settings=Settings(mode=mode, precision=precision, tile=0))
    noise = np.random.RandomState(0)
    restorer.denoise(noise.rand(64, 64).astype(np.float32), 25)  # warm up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    picture = noise.rand(size, size).astype(np.float32)
    started = time.perf_counter()
    restorer.denoise(picture, 25)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predicted = restorer.memory_per_pixel(size, size) * size * size if mode == "window" else None
    return {
        "model": preset,
        "mode": mode,
        "size": size,
        "precision": precision,
        "seconds": seconds,
        "peak_mib": peak / 1024,
        "above_idle_mib": (peak - before) / 1024,
        "predicted_mib": predicted and predicted / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=list(PRESETS))
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.models[0], options.modes[0], options.size, options.precision)))
        return
    rows = []
    for model in options.models:
        for mode in options.modes:
            command = [sys.executable, __file__, "--one", "--models", model, "--modes", mode]
            command += ["--size", str(options.size), "--precision", options.precision]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{model} {mode}: {row['seconds']:.1f} s, {row['above_idle_mib']:.0f} MiB above idle", flush=True)
            rows.append(row)
    result = {"run": provenance(Settings(precision=options.precision), torch.device("cpu")), "rows": rows}
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
