"""The speed of several installations of nlrn, measured in turns: operator, network and a folder, a process each.

    python scripts/compare_speed.py MODEL.safetensors before=PYTHON again=PYTHON after=PYTHON

Each PYTHON is that of an environment with another version of the package. In every round each of them is measured once,
on one thread, by CPU time, which other programs disturb least; printed are medians in milliseconds, the quartiles of
their ratio to the first within a round, and that ratio's median. The first given twice shows what differs by chance.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WORKER = """
import json, sys, time, numpy, torch, nlrn
torch.set_num_threads(1)
random = numpy.random.default_rng(0)
q, k, v = (torch.from_numpy(random.normal(0, 0.3, (1, 128, 128, n)).astype("f4")) for n in (32, 32, 64))
image = random.random((256, 256), numpy.float32)
loaded = {name: nlrn.load(sys.argv[1], device="cpu", precision=name) for name in ("fp32", "bf16")}
work = {"operator": lambda: nlrn.neighborhood_attention(q, k, v, window=15)}
work |= {f"network {name}": lambda one=one: one.denoise(image, 25.0) for name, one in loaded.items()}
for line in sys.stdin:
    name = line.strip()
    with torch.no_grad():
        began = time.process_time()
        work[name]()
    print(json.dumps(time.process_time() - began), flush=True)
"""
MEASURED = ("operator", "network fp32", "network bf16")


def folder_seconds(python: str, images: Path, model: str) -> float:
    """CPU time of `nlrn denoise FOLDER`, its start included."""
    with tempfile.TemporaryDirectory() as out:
        command = [python, "-m", "nlrn", "denoise", str(images), "-o", out, "--sigma", "25", "--model", model, "--json"]
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


Times = dict[str, dict[str, list[float]]]  # by what is measured and by installation, one number a round


def computed(pythons: dict[str, str], model: str, rounds: int) -> Times:
    """Operator and network, by one process for each installation."""
    workers = {
        name: subprocess.Popen([python, "-c", WORKER, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, python in pythons.items()
    }
    found: Times = {what: {name: [] for name in pythons} for what in MEASURED}
    for turn in range(-2, rounds):  # the first two warm up
        for what, (name, worker) in itertools.product(MEASURED, workers.items()):
            assert worker.stdin is not None
            assert worker.stdout is not None
            print(what, file=worker.stdin, flush=True)
            seconds = json.loads(worker.stdout.readline())
            found[what][name] += [seconds] * (turn >= 0)
    for worker in workers.values():
        worker.communicate()
    return found


def folders(pythons: dict[str, str], model: str, rounds: int) -> Times:
    """A folder of 12 images of 128 x 128 through the command line."""
    found: Times = {"folder of 12": {name: [] for name in pythons}}
    with tempfile.TemporaryDirectory() as images:
        random = np.random.default_rng(0)
        for i in range(12):
            Image.fromarray(random.integers(0, 256, (128, 128), np.uint8)).save(Path(images) / f"{i:02}.png")
        for _ in range(rounds):
            for name, python in pythons.items():
                found["folder of 12"][name].append(folder_seconds(python, Path(images), model))
    return found


def main() -> None:
    """Measure, and print a line for each kind of work and installation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pythons", nargs="+", metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folders", type=int, default=5, help="rounds of the folder of 12 images")
    options = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in options.pythons)
    os.environ["OMP_NUM_THREADS"] = "1"
    found = computed(pythons, options.model, options.rounds) | folders(pythons, options.model, options.folders)
    for what, times in found.items():
        first = next(iter(times.values()))
        for name, each in times.items():
            low, middle, high = statistics.quantiles([a / b for a, b in zip(each, first, strict=True)], n=4)
            milliseconds = 1000 * statistics.median(each)
            print(f"{what:12} {name:8} {milliseconds:9.2f} ms, of the first: {middle:.3f} ({low:.3f}..{high:.3f})")


if __name__ == "__main__":
    main()
