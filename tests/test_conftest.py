"""A test that needs the data sets is never passed over unseen: what conftest.py promises, in runs of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NEEDS = "def test_needs(data_root):\n    assert (data_root / 'set12').is_dir()\n"
SKIPS = "import pytest\ndef test_skips():\n    pytest.skip('no reason')\n"
EMPTY = "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_empty(x):\n    pass\n"


@pytest.mark.parametrize(
    ("body", "data", "workers", "code", "said"),
    [
        (NEEDS, "there", 0, 0, "1 passed"),
        (NEEDS, "nowhere", 0, 0, "1 skipped"),  # a clone without the data sets, and nobody says that they are there
        (NEEDS, "named, but missing", 0, 1, "NLRN_DATA names no folder"),
        (SKIPS, "there", 0, 1, "1 skipped"),
        (SKIPS, "there", 2, 1, "1 skipped"),
        (SKIPS, "nowhere", 0, 0, "1 skipped"),
        (EMPTY, "there", 0, 2, "Empty parameter set"),
    ],
)
def test_a_skip_with_the_data_there_is_a_failure(
    tmp_path: Path, body: str, data: str, workers: int, code: int, said: str
) -> None:
    environment = {}
    if data == "there":
        (tmp_path / "shared" / "data" / "set12").mkdir(parents=True)
    elif data != "nowhere":
        environment["NLRN_DATA"] = str(tmp_path / "missing")
    done = run(tmp_path / "clone", "test_it.py", body, environment, "-n", str(workers))
    assert said in done.stdout
    assert done.returncode == code


@pytest.mark.parametrize("named", [False, True])
def test_the_page_is_tried_or_it_is_said_that_it_is_not(tmp_path: Path, named: bool) -> None:
    """A browser that is named is wanted, whether it is there or not."""
    environment = {"NLRN_CHROMIUM": "/nowhere"} if named else {}
    done = run(tmp_path / "clone", "test_web_page.py", "def test_page():\n    pass\n", environment)
    tried = named or Path("/usr/bin/chromium").exists()
    assert ("1 passed" in done.stdout) == tried
    assert ("not collected: test_web_page.py" in done.stdout) != tried


def run(clone: Path, name: str, body: str, more: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """pytest over one file in a clone of its own, without what this run's environment says of data and browsers."""
    (clone / "tests").mkdir(parents=True)
    here = Path(__file__).parent
    shutil.copy(here / "conftest.py", clone / "tests")
    shutil.copy(here.parent / "pyproject.toml", clone)
    (clone / "tests" / name).write_text(body)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NLRN_", "PYTEST_"))} | more
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
