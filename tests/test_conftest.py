"""A test that needs the data sets is never passed over unseen: what conftest.py promises, in runs of its own."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import selection

NEEDS = "def test_needs(data_root):\n    assert (data_root / 'set12').is_dir()\n"
SKIPS = "import pytest\ndef test_skips():\n    pytest.skip('no reason')\n"
EMPTY = "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_empty(x):\n    pass\n"


@pytest.mark.parametrize(
    ("body", "data", "workers", "code", "said"),
    [
        (NEEDS, "there", 0, 0, "1 passed"),
        (NEEDS, "nowhere", 0, 5, "1 deselected"),  # a clone without the data sets, and nobody says that they are there
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


@pytest.mark.parametrize(("whole", "said"), [(False, "1 passed, 1 deselected"), (True, "2 passed")])
def test_what_is_slow_runs_under_slow_only(tmp_path: Path, whole: bool, said: str) -> None:
    body = "import pytest\n@pytest.mark.slow\ndef test_long():\n    pass\ndef test_short():\n    pass\n"
    done = run(tmp_path / "clone", "test_it.py", body, {}, *["--slow"] * whole)
    assert said in done.stdout


def test_a_sampled_grid_holds_every_pair_of_values() -> None:
    """Against a count by hand: of 7 x 5 x 3 x 2 cells at least 35 must run, and every value with every other."""
    grid = [dict(zip("abcd", v, strict=True)) for v in itertools.product(range(7), range(5), range(3), range(2))]
    kept = [grid[i] for i in selection.pairwise(grid)]
    assert 35 <= len(kept) <= 42
    for one, other in itertools.combinations("abcd", 2):
        assert {(c[one], c[other]) for c in kept} == {(c[one], c[other]) for c in grid}
    uneven = [cell for cell in grid if not (cell["a"] == 0 and cell["b"] > 0)]  # some cells cannot be
    kept = [uneven[i] for i in selection.pairwise(uneven)]
    assert {(c["a"], c["b"]) for c in kept} == {(c["a"], c["b"]) for c in uneven}


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
    for helper in ("conftest.py", "selection.py"):
        shutil.copy(here / helper, clone / "tests")
    shutil.copy(here.parent / "pyproject.toml", clone)
    (clone / "tests" / name).write_text(body)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NLRN_", "PYTEST_"))} | more
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
