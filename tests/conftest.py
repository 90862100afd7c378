"""What the tests share: the data folder, the long counts, one thread a worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two workers on two cores
ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long counts whole instead of a tenth")


@pytest.fixture(scope="session")
def count(request: pytest.FixtureRequest) -> object:
    """count(n): n under --slow, else a tenth of it, at least 1."""
    whole = request.config.getoption("--slow")
    return lambda n: n if whole else max(1, n // 10)


def _data() -> Path:
    return Path(os.environ.get("NLRN_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the data sets; skips where there is none."""
    if not _data().is_dir():
        pytest.skip(f"the data sets are not at {_data()} (set NLRN_DATA)")
    return _data()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With the data there, a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if _data().is_dir() and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
