"""The package imports nothing heavy by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nlrn.errors import BackendError
from nlrn.integrations import require


def test_a_missing_library_is_named_with_its_extra() -> None:
    require("hub", "json")
    with pytest.raises(BackendError, match=r'this needs no_such_library: pip install "nlrn\[hub\]"'):
        require("hub", "json", "no_such_library")


@pytest.mark.parametrize("words", [["model", "-o", "here.pt"], ["model"], ["model", "-o", "no-folder/a.onnx"]])
def test_export_checks_its_arguments_before_torch_is_imported(words: list[str]) -> None:
    command = f"""
import sys
from nlrn.cli import run
assert run(["export", *{words!r}]) in (1, 2)
sys.exit(any(m in sys.modules for m in ("torch", "numpy", "onnx", "onnxscript")))
"""
    done = subprocess.run([sys.executable, "-c", command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
