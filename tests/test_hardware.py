"""What a program of ours asks of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nlrn
from nlrn.ops.cpu import leave_warning_to_parent
from nlrn.system.workers import pool

FAULTS = """
import resource, sys, torch
from nlrn.system.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    torch.ones(16 << 20)  # 64 MiB, above glibc's highest threshold of its own accord
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_freed_memory_is_used_again() -> None:
    """Ten blocks of 64 MiB, one after the other: their pages come from the system each time, or at most some times.

    What lies between them in the heap is not the same in every Python: one build took 5 of the 10 anew.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(nlrn.__file__).parents[1])}

    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    left = faults("leave")
    assert left >= 10 * 32  # of huge pages, where there are some
    assert any(faults("keep") <= 0.8 * left for _ in range(3))
    with pool(1, leave_warning_to_parent) as processes:  # so do ours that share the work
        assert any(processes.submit(_faults).result() <= 0.8 * left for _ in range(3))


def _faults() -> int:
    """What FAULTS prints, in a process of a pool."""
    import resource

    torch.ones(16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
