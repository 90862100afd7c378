"""A stack against a folder of its planes: seconds, and the peak of memory.

    python scripts/measure_stacks.py [--planes 200] [--side 512] [--model NAME|FILE|tiny] [--sigma 15] [--work FOLDER]
    python scripts/measure_stacks.py --planes 520 --side 2048 --model tiny --memory 256 --stack-only

Planes of uint16, a ramp with noise, in one TIFF and as files; `nlrn denoise` restores each of the two, in a process
of one thread. Seconds are those of the processor, user and system, and of the clock; the peak is that of resident
memory. "tiny" is a network of two channels and one state: what remains is reading, writing and the bookkeeping. The
results are compared, byte for byte. --memory: MiB, as of `nlrn denoise`. --stack-only: no folder, for large stacks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch

from nlrn.io.image import read_image
from nlrn.models.checkpoint import save_model
from nlrn.models.nlrn import NLRN, NLRNConfig

DIFFERENT = 16  # planes of a stack that is measured alone, which recur


def make(folder: Path, planes: int, side: int, files: bool) -> None:
    """stack.tif, and the folder `planes` with the same where files are asked for."""
    (folder / "planes").mkdir()
    ramp = np.linspace(4000, 40000, side)
    with tifffile.TiffWriter(folder / "stack.tif", bigtiff=True) as writer:
        kept: list[np.ndarray] = []
        for index in range(planes):
            if files or index < DIFFERENT:
                noise = np.random.default_rng(index).normal(0, 15 * 257, (side, side))
                plane = (ramp + noise).clip(0, 65535).astype(np.uint16)
                kept += [] if files else [plane]
            else:
                plane = kept[index % DIFFERENT]
            writer.write(plane, contiguous=False, metadata=None)
            if files:
                tifffile.imwrite(folder / "planes" / f"{index:05}.tif", plane, metadata=None)


def tiny(path: Path) -> str:
    torch.manual_seed(0)
    save_model(
        path, NLRN(NLRNConfig(channels=2, embed_channels=2, states=1, window=3, sigma_input=True)), {"steps": "0"}
    )
    return str(path)


def measured(words: list[str]) -> str:
    """A row of the table: processor, clock, peak."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "nlrn", *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = code
    if code:
        raise SystemExit(f"{words} ended with {code}")
    clock = time.monotonic() - began
    return f"{used.ru_utime + used.ru_stime:.0f} | {clock:.0f} | {used.ru_maxrss / 1024:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--model", default="denoise-gray-small")
    parser.add_argument("--sigma", default="15")
    parser.add_argument("--memory", default="4096")
    parser.add_argument("--stack-only", action="store_true")
    parser.add_argument("--work", type=Path, help="where the files are made (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        make(folder, options.planes, options.side, not options.stack_only)
        model = tiny(folder / "tiny.safetensors") if options.model == "tiny" else options.model
        common = ["--model", model, "--sigma", options.sigma, "--range", "type", "--memory", options.memory, "-q"]
        size = (folder / "stack.tif").stat().st_size / 2**30
        print(f"{options.planes} planes of {options.side} x {options.side}, {size:.2f} GiB, {options.model}")
        print("| | processor (s) | clock (s) | peak (MiB) |\n| --- | --- | --- | --- |")
        print(
            "| one stack |",
            measured(["denoise", str(folder / "stack.tif"), "-o", str(folder / "out.tif"), *common]),
            "|",
        )
        if options.stack_only:
            return
        print("| a folder |", measured(["denoise", str(folder / "planes"), "-o", str(folder / "out"), *common]), "|")
        with tifffile.TiffFile(folder / "out.tif") as stack:
            for index in (0, options.planes // 2, options.planes - 1):
                plane = read_image(folder / "out" / f"{index:05}.tif")
                same = np.array_equal(stack.pages[index].asarray(), np.rint(plane.array.astype(np.float64) * 65535))
                assert same, f"plane {index} differs"


if __name__ == "__main__":
    main()
