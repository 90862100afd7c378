"""A test that needs the data sets is never passed over unseen: what conftest.py promises, in runs of its own."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import selection

NEEDS = "def test_needs(data_root):\n    assert (data_root / 'set12').is_dir()\n"
SKIPS = "import pytest\ndef test_skips():\n    pytest.skip('no reason')\n"
EMPTY = "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_empty(x):\n    pass\n"


LONG = "import pytest\n@pytest.mark.slow\ndef test_long():\n    pass\ndef test_short():\n    pass\n"
PAGE = "def test_page():\n    pass\n"
TRIED = Path("/usr/bin/chromium").exists()
UNTRIED = "not collected: test_web_page.py"
CASES: list[tuple[str, dict[str, Any]]] = [  # what is printed, and of `run`; code: the status of the exit
    ("1 passed", {"body": NEEDS, "data": "there", "code": 0}),
    ("1 deselected", {"body": NEEDS, "data": "nowhere", "code": 5}),  # a clone without the data sets
    ("NLRN_DATA names no folder", {"body": NEEDS, "data": "named, but missing", "code": 1}),
    ("1 skipped", {"body": SKIPS, "data": "there", "code": 1}),
    ("1 skipped", {"body": SKIPS, "data": "there", "code": 1, "words": ["-n", "1"]}),
    ("1 skipped", {"body": SKIPS, "data": "nowhere", "code": 0}),
    ("Empty parameter set", {"body": EMPTY, "data": "there", "code": 2}),
    ("1 passed, 1 deselected", {"body": LONG, "code": 0}),
    ("2 passed", {"body": LONG, "code": 0, "words": ["--slow"]}),
    # a browser that is named is wanted, whether it is there or not
    ("1 passed" if TRIED else UNTRIED, {"body": PAGE, "name": "test_web_page.py", "code": 0 if TRIED else 5}),
    ("1 passed", {"body": PAGE, "name": "test_web_page.py", "code": 0, "more": {"NLRN_CHROMIUM": "/nowhere"}}),
]
# Reads the runs, and makes each in a fork: what they import is imported once.
RUNS = """
import json, os, sys
import hypothesis, pytest, torch, xdist.plugin
from nlrn.ops import cpu
for clone, environment, words in json.load(sys.stdin):
    process = os.fork()
    if process == 0:
        os.chdir(clone)
        os.environ.update(environment)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = int(pytest.main(words))
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def test_what_is_selected_and_what_is_a_failure(tmp_path: Path) -> None:
    """With the data there, a skip is a failure; `slow` runs under --slow only; where no browser is, that is said."""
    runs = [_run(tmp_path / str(number), **case) for number, (_, case) in enumerate(CASES)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NLRN_", "PYTEST_"))}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1] / "src")
    command = [sys.executable, "-c", RUNS]
    done = subprocess.run(
        command, input=json.dumps(runs), check=True, env=environment, stdout=subprocess.PIPE, text=True, timeout=300
    )
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == len(CASES)
    for code, (clone, *_), (said, case) in zip(codes, runs, CASES, strict=True):
        printed = Path(clone, "output.txt").read_text()
        assert said in printed, (case, printed)
        assert code == case["code"], (case, printed)
        assert (UNTRIED in printed) == (not TRIED and "NLRN_CHROMIUM" not in case.get("more", {})), (case, printed)


def _run(
    folder: Path,
    body: str,
    code: int,
    data: str = "nowhere",
    name: str = "test_it.py",
    more: dict[str, str] | None = None,
    words: list[str] | None = None,
) -> tuple[str, dict[str, str], list[str]]:
    """A clone with one file of tests, what its environment says of data and browsers, and the words for pytest."""
    environment, clone, here = dict(more or {}), folder / "clone", Path(__file__).parent
    if data == "there":
        (folder / "shared" / "data" / "set12").mkdir(parents=True)
    elif data != "nowhere":
        environment["NLRN_DATA"] = str(folder / "missing")
    (clone / "tests").mkdir(parents=True)
    for helper in ("conftest.py", "selection.py"):
        shutil.copy(here / helper, clone / "tests")
    shutil.copy(here.parent / "pyproject.toml", clone)
    (clone / "tests" / name).write_text(body)
    usual = ["-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
    return str(clone), environment, [*usual, *(words or [])]


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
