"""A folder's bytes: the same from one process, from several and after a kill, on each machine that can be imitated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import digests, fill, records
from networks import random_model

import nlrn
from nlrn.batch.manifest import MANIFEST
from nlrn.models.checkpoint import save_model
from nlrn.ops import cpu

TORCH = {  # for each instruction set of the kernel, what holds torch and oneDNN to a machine like it
    "avx512bf16": {},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "portable": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}
NUMBER = 24
HERE = list(cpu.INSTRUCTION_SETS)
USUAL = {"avx2"}  # the others under --slow; test_batch.py kills and resumes on this machine as it is


def command(folder: Path, out: str, workers: int, name: str) -> subprocess.Popen[str]:
    source = str(Path(nlrn.__file__).parents[1])
    held = {"ONEDNN_MAX_CPU_ISA": "", "ATEN_CPU_CAPABILITY": ""} | TORCH[name]
    environment = {k: v for k, v in ({**os.environ, "PYTHONPATH": source} | held).items() if v or k not in held}
    environment[cpu.VARIABLE] = name
    words = ["denoise", "in", "-o", out, "-r", "-j", str(workers), "--sigma", "25", "--model", "w.safetensors", "-q"]
    line = [sys.executable, "-m", "nlrn", *words]
    return subprocess.Popen(
        line, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def done(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in USUAL)) for n in HERE])
def test_one_process_several_and_a_resumed_run_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    """One process does all; or one begins, is killed, and two resume."""
    fill(tmp_path / "in", NUMBER)
    save_model(tmp_path / "w.safetensors", random_model())
    done(command(tmp_path, "one", 1, name))
    killed = command(tmp_path, "killed", 1, name)
    while killed.poll() is None and not (tmp_path / "killed" / MANIFEST).exists():
        time.sleep(0.001)
    while killed.poll() is None and len(records(tmp_path / "killed")) < 3:
        time.sleep(0.001)
    if killed.poll() is None:
        os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(digests(tmp_path / "killed")) < NUMBER
    done(command(tmp_path, "killed", 2, name))
    assert len(digests(tmp_path / "one")) == NUMBER
    assert digests(tmp_path / "one") == digests(tmp_path / "killed")


def test_every_instruction_set_has_its_machine() -> None:
    assert set(cpu.INSTRUCTION_SETS) <= set(TORCH)
