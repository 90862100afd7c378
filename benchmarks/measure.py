"""Clocks: a call's time against the matrix products that surround it, and its memory, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nlrn

GEMM = {"cpu": 1024, "cuda": 8192}  # the side of the square matrices whose product is the limit: enough for all cores
LEAST = 0.02  # seconds of a measurement; shorter calls are repeated within it
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Cell = dict[str, Any]  # what is measured, in words and numbers of JSON, and what came out


class Limit:
    """The machine's rate of matrix products of a type, on the threads and the device at hand."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        chance, side = torch.Generator().manual_seed(0), GEMM[device.type]
        self.a, self.b = (torch.randn(side, side, generator=chance).to(device, dtype) for _ in range(2))
        self.flop = 2 * side**3
        self.clock: Callable[[], float] = time.perf_counter
        if device.type == "cpu" and torch.get_num_threads() == 1:
            self.clock = time.thread_time  # what other programs take does not count
        self.products = 6
        self.seconds(self.multiply)

    def multiply(self) -> None:
        """Some products."""
        for _ in range(self.products):
            self.a @ self.b

    def seconds(self, call: Callable[[], object]) -> float:
        """The time of one call, all that it started included."""
        self.wait()
        started = self.clock()
        call()
        self.wait()
        return self.clock() - started

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def compare(self, call: Callable[[], object], flop: float, repeats: int, *, warm: bool = True) -> Cell:
        """Median seconds of a call, and the median fraction of the limit that its `flop` useful operations reach.

        Every measurement, of about LEAST seconds or more, lies between two of the limit, so that what slows the machine
        down slows both. warm: call twice before, the second time to see how many calls that takes.
        """
        calls = 1
        if warm:
            call()
            calls = math.ceil(LEAST / max(self.seconds(call), 1e-6))
        seconds, fractions, limits = [], [], []
        for _ in range(repeats):
            around = self.seconds(self.multiply)
            took = self.seconds(lambda: [call() for _ in range(calls)]) / calls
            around += self.seconds(self.multiply)
            limit = 2 * self.products * self.flop / around
            seconds.append(took)
            limits.append(limit)
            fractions.append(flop / took / limit)
        return {
            "seconds": statistics.median(seconds),
            "fraction": statistics.median(fractions),
            "limit_gflops": statistics.median(limits) / 1e9,
            "useful_gflop": flop / 1e9,
            "repeats": repeats,
        }


def reset_peak(device: torch.device) -> int:
    """Bytes held now, freed ones given back, from which on the next peak counts."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark begins again at what is resident
    except (OSError, AttributeError, TypeError):
        pass
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory that was held at once since reset_peak; where that cannot be reset, in this process's life."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_bytes(device: torch.device) -> int:
    """Memory that a measurement may take: three quarters of what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * 3 // 4
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        free = 8 << 30
    return free * 3 // 4


def in_own_process(cell: Cell, limit: float) -> Cell:
    """The cell with its measurement, or with "reason", a sentence why there is none: a failure, or `limit` seconds."""
    command = [sys.executable, "-m", "benchmarks.worker", json.dumps(cell)]
    environment = {**os.environ, "PYTHONPATH": _path()}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        return cell | {"reason": f"took more than {limit:g} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        killed = f"its process was ended by signal {-done.returncode}" if done.returncode < 0 else "it failed"
        return cell | {"reason": lines[-1][:200] if lines and done.returncode > 0 else killed}
    found: Cell = json.loads(done.stdout.strip().splitlines()[-1])
    return cell | found


def _path() -> str:
    """A search path that finds these very packages first."""
    found = [str(Path(nlrn.__file__).parents[1]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return os.pathsep.join(filter(None, found))


def leaves(*tensors: Tensor) -> Iterator[Tensor]:
    """The same numbers, asking for gradients."""
    return (x.detach().clone().requires_grad_() for x in tensors)
