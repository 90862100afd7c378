"""nlrn doctor: what it says is so, and what is wrong is found."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import nlrn
from nlrn.cli import run
from nlrn.cli.diagnosis import EXTRAS, examine, is_well
from nlrn.models import checkpoint
from nlrn.ops import BACKENDS, cpu


def test_it_tells_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["instruction set in use"] == cpu.instruction_set()
    assert 1 <= found["machine"]["cores"] <= (os.cpu_count() or 1)
    assert set(found["backends"]) == set(BACKENDS)
    assert found["backends"]["reference"] == "runs"
    if found["machine"]["device"] == "cpu":
        assert "CUDA device" in found["backends"]["gpu"] or "Triton" in found["backends"]["gpu"]
        assert found["backend in use"] == "cpu"
    assert set(found["models"]) == {info.name for info in nlrn.list_models()}
    for info in nlrn.list_models():
        assert info.sha256 in found["models"][info.name]
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "no problems found" in text
    assert f"torch: {torch.__version__}" in text


def test_the_extras_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its metadata: each with the modules of all its libraries; dev, docs and bundles are none of them."""
    needed: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("nlrn") or []:
        name, _, extra = line.partition("; extra == ")
        if extra:
            needed.setdefault(extra.strip("\"'"), set()).add(re.split(r"[\[<>=; ]", name)[0].lower().replace("_", "-"))
    bundles = {extra for extra, names in needed.items() if "nlrn" in names}
    assert set(EXTRAS) == set(needed) - bundles - {"docs"}
    brought = importlib.metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        assert len(modules) == len(needed[extra]), extra
        for module in modules:
            assert {name.lower().replace("_", "-") for name in brought.get(module, [])} <= needed[extra], module
    found = examine()
    assert sorted(found["extras"] + found["extras not installed"]) == sorted(EXTRAS)
    for name in found["extras"]:
        assert all(importlib.util.find_spec(module) for module in EXTRAS[name])
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None if module == "uvicorn" else module)
    found = examine()
    assert found["extras not installed"] == ["web"]  # of several libraries one is missing


def test_a_damaged_model_and_a_missing_kernel_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert is_well(examine())
    shutil.copytree(checkpoint.WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path / "weights")
    file = tmp_path / "weights" / "denoise-gray-small.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    assert run(["doctor"]) == 3
    assert "not the file that was released" in capsys.readouterr().out
    for damage in (b"", b"version https://git-lfs", None):
        file.unlink(missing_ok=True)
        if damage is not None:
            file.write_bytes(damage)
        assert run(["doctor"]) == 3
        assert "denoise-gray-small: " in (shown := capsys.readouterr().out)
        assert "not the file that was released" in shown if damage is not None else "cannot be read" in shown
    (tmp_path / "weights" / "SHA256SUMS").write_text("a\n\n\xff")
    assert run(["doctor"]) == 3
    assert "SHA256SUMS: cannot be read" in capsys.readouterr().out
    monkeypatch.setattr(checkpoint, "WEIGHTS", Path(checkpoint.__file__).parent / "weights")
    with monkeypatch.context() as named:
        named.setattr(cpu, "MISNAMED", "NLRN_INSTRUCTION_SET is 'sse9'")
        found = examine()
        assert found["backend in use"] == "none: NLRN_INSTRUCTION_SET is 'sse9'"
        assert not is_well(found)
    monkeypatch.setattr(cpu, "_problem_found", "the fused CPU kernel was not built")
    found = examine()
    assert found["backends"]["cpu"] == "the fused CPU kernel was not built"
    assert found["backend in use"] == "tiled"
    assert not is_well(found)
