"""What the tests share: the data folder, the long counts, generated cases, one thread a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores, their child processes too
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where a test takes two, they do not spin

import pytest
import selection
import torch  # reads the variable when it is imported
from hypothesis import HealthCheck, settings

from nlrn.ops import cpu

if TYPE_CHECKING:
    import httpx
    from webserver import Service

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
SLOW_IS_FINE = [HealthCheck.too_slow]  # nothing depends on how busy the machine is, so no deadline either
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=SLOW_IS_FINE)
settings.register_profile("random", derandomize=False, deadline=None, suppress_health_check=SLOW_IS_FINE)
ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("NLRN_CHROMIUM") or "/usr/bin/chromium"
# The page is tried in a real browser. Where there is none, that file is not collected; CONTRIBUTING.md says how to
# have one. A path that was given and is none is an error, not a silence.
ABSENT = {} if "NLRN_CHROMIUM" in os.environ or Path(CHROMIUM).exists() else {"test_web_page.py": "no Chromium"}
if not all(find_spec(name) for name in ("dask", "xarray")):  # the extra "arrays"
    ABSENT["test_arrays_lazy.py"] = "no dask or xarray"
if not all(find_spec(name) for name in ("napari", "qtpy")):  # the extra "napari"; make test-napari
    ABSENT["test_napari.py"] = "no napari"
collect_ignore = list(ABSENT)


def pytest_addoption(parser: pytest.Parser) -> None:
    what = "run the long counts whole instead of a tenth, the tests marked slow, and full grids"
    parser.addoption("--slow", action="store_true", help=what)


def pytest_configure(config: pytest.Config) -> None:
    """The same generated cases every time; under --slow new ones, before any test module is imported."""
    settings.load_profile("random" if config.getoption("--slow") else "fixed")


@pytest.fixture(scope="session")
def count(request: pytest.FixtureRequest) -> object:
    """count(n): n under --slow, else a tenth of it, at least 1."""
    whole = request.config.getoption("--slow")
    return lambda n: n if whole else max(1, n // 10)


def _data() -> Path:
    return Path(os.environ.get("NLRN_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the data sets. Where there is none, and NLRN_DATA names none, its tests are deselected."""
    assert _data().is_dir(), f"NLRN_DATA names no folder: {_data()}"
    return _data()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights file of a small network that was not trained."""
    from networks import random_model

    from nlrn.models.checkpoint import save_model

    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_model(path, random_model(), {"steps": "0"})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of a module's service lie."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def running(folder: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A real service for the tests of one module, with the options that it calls SERVE."""
    from webserver import service

    with service(folder, *getattr(request.module, "SERVE", ())) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Service) -> Iterator[httpx.Client]:
    """A client of that service."""
    with running.client() as found:
        yield found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks by file and fixture, long files first; what is marked and cannot or need not run here is deselected."""
    selection.mark(items)
    data = _data().is_dir() or bool(os.environ.get("NLRN_DATA"))
    out = selection.left_out(items, config.getoption("--slow"), data)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in out])
    items[:] = sorted((item for item in items if item.nodeid not in out), key=selection.long_first)


def pytest_report_header() -> list[str]:
    """What is not collected is said."""
    absent = [] if _data().is_dir() else [f"deselected: tests marked data (no data sets at {_data()}; set NLRN_DATA)"]
    return absent + [f"not collected: {name} ({why}; see CONTRIBUTING.md)" for name, why in ABSENT.items()]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With the data there, a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if _data().is_dir() and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(params=list(cpu.INSTRUCTION_SETS))
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this processor in turn."""
    before = cpu.instruction_set()
    cpu.use_instruction_set(request.param)
    yield request.param
    cpu.use_instruction_set(before)
