"""What ONNX costs beside this package: the file, its export, and seconds and memory of one image.

Every line is a process of its own with one thread; seconds are the processor's. Memory is what the first call takes
beside what was resident before it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for benchmarks, also in the processes of the lines
MODEL = "denoise-gray-small"
WAYS = ("onnxruntime", "fp32", "bf16")


def measure(way: str, file: str, side: int) -> str:
    """One line: seconds of the second call, MiB and KB a pixel of the first."""
    import torch

    from benchmarks.measure import peak_bytes, reset_peak

    torch.set_num_threads(1)
    image = np.random.default_rng(0).random((1, 1, side, side), dtype=np.float32)
    if way == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        inputs = {"image": image, "sigma": np.full_like(image, 25 / 255)}
        call: Callable[[], Any] = partial(session.run, None, inputs)
    else:
        from nlrn import Restorer, Settings

        restorer = Restorer(MODEL, settings=Settings(precision=way, tile=0))
        restorer.denoise(np.zeros((16, 16), np.float32), 25)  # the kernel is loaded
        call = partial(restorer.denoise, image[0, 0], 25)
    cpu = torch.device("cpu")
    before = reset_peak(cpu)
    call()
    taken = peak_bytes(cpu) - before
    started = time.process_time()
    call()
    seconds = time.process_time() - started
    return f"{way}: {seconds:.2f} s, {taken / 2**20:,.0f} MiB, {taken / side**2 / 1000:.1f} KB a pixel"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(measure(options.way, options.file, options.side))
        return

    from nlrn.integrations.onnx import export

    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        file = export(MODEL, Path(folder) / "model.onnx")
        print(f"{MODEL}: exported in {time.process_time() - started:.1f} s, {file.stat().st_size / 1e6:.2f} MB")
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--file", str(file), "--side", str(options.side)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
