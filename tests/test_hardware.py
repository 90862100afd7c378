"""What a program of ours asks of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nlrn

FAULTS = """
import resource, sys, torch
from nlrn.hardware import keep_freed_memory
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


def test_freed_memory_is_used_again() -> None:
    """Ten blocks of 64 MiB, one after the other: their pages come from the system each time, or never again."""
    environment = {**os.environ, "PYTHONPATH": str(Path(nlrn.__file__).parents[1])}
    # transparent huge pages make faults fewer, not none
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True, env=environment
            ).stdout
        )
        for how in ("leave", "keep")
    }
    assert faults["leave"] >= 10 * 32
    assert faults["keep"] <= faults["leave"] / 10
