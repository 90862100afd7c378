"""The notebook of the documentation: every cell runs, and prints what is stored below it."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
NUMBER = re.compile(r"\d+\.\d+")


def test_every_cell_runs_and_prints_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decimal numbers may differ by 0.2: the arithmetic of another machine."""
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict[str, Any] = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    compared = 0
    for cell in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
        stored = "".join("".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream")
        found = printed.getvalue()
        assert NUMBER.sub("#", found) == NUMBER.sub("#", stored)
        numbers = [[float(n) for n in NUMBER.findall(text)] for text in (found, stored)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.2)
        compared += len(numbers[0])
    assert compared >= 4


def test_its_images_are_stored_and_it_is_small() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    kinds = [kind for cell in cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert kinds.count("image/png") == 2
    assert NOTEBOOK.stat().st_size < 300_000
