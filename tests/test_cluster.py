"""Folders on a Ray cluster: the results of the local engine, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from folders import ROOT, deadly, digests, fill, give, records, same
from PIL import Image

from nlrn.batch.manifest import MANIFEST, Manifest
from nlrn.batch.plan import plan
from nlrn.batch.ray import RayEngine, _own_token
from nlrn.batch.run import Restore, run
from nlrn.cli import run as command
from nlrn.errors import BackendError, ConfigError, NLRNError

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, for all tests of the module that run in this process."""
    import ray

    options = {"include_dashboard": False, "log_to_driver": False}
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])  # of the workers
    with _own_token():
        ray.init("local", num_cpus=2, object_store_memory=200 << 20, **options)
        yield ray
        ray.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def words_of(folder: Path, output: Path, weights: Path) -> list[str]:
    words = ["denoise", str(folder), "-o", str(output), "-r", "--sigma", "20", "--model", str(weights)]
    return [*words, "--precision", "fp32", "--memory", "512", "-j", "2"]


def test_the_results_are_those_of_the_local_engine(
    ray: Any, tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 24, bad=8)
    pages = [Image.new("L", (18, 16), 50 * i) for i in range(3)]
    pages[0].save(tmp_path / "in" / "stack.tif", save_all=True, append_images=pages[1:])
    before = digests(tmp_path / "in")
    assert command([*words_of(tmp_path / "in", tmp_path / "here", weights), "-q", "-j", "1"]) == 1
    words = [*words_of(tmp_path / "in", tmp_path / "there", weights), "--engine", "ray", "--json"]
    capfd.readouterr()
    assert command(words) == 1
    shown = capfd.readouterr()
    outcome = json.loads(shown.out)
    assert set(outcome["failed"]) == {"deep/000.jpg", "008.png", "016.png"}
    assert outcome["failed"]["008.png"] == "truncated"
    assert len(outcome["done"]) == 22
    assert "stack.tif" in outcome["done"]
    assert digests(tmp_path / "there") == digests(tmp_path / "here")
    assert digests(tmp_path / "in") == before
    assert command([*words, "-j", "1"]) == 1
    outcome = json.loads(capfd.readouterr().out)
    assert (len(outcome["skipped"]), outcome["done"]) == (22, [])
    done = Counter(r["in"] for r in records(tmp_path / "there") if r.get("published"))
    assert set(done.values()) == {1}
    with Manifest(tmp_path / "there", "work"):  # another run holds it
        assert command(words) == 2
    assert f"is held by process {os.getpid()} on " in capfd.readouterr().err


@pytest.mark.slow
def test_an_image_that_ends_its_worker_twice_is_left_and_the_rest_is_done(ray: Any, tmp_path: Path) -> None:
    fill(tmp_path / "in", 12)
    Image.new("L", (9, 9), 255).save(tmp_path / "in" / "005b.png")
    jobs = plan(tmp_path / "in", tmp_path / "out")
    outcome = run(jobs, partial(give, deadly), tmp_path / "out", "work", engine=RayEngine(workers=1))
    assert outcome.failed == {"005b.png": "its worker ended, 2 times, probably out of memory"}
    assert len(outcome.done) == len(jobs) - 1
    assert run(jobs, partial(give, same), tmp_path / "out", "work", engine=RayEngine(workers=1)).done == ["005b.png"]


def _unfit() -> Restore:
    os.kill(os.getpid(), signal.SIGKILL)
    return same


def _unlucky() -> str:
    raise ConfigError("there is no folder here")


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cluster_that_cannot_work_is_an_error_and_no_wait(ray: Any, tmp_path: Path, whole: bool) -> None:
    fill(tmp_path / "in", 3)
    jobs = plan(tmp_path / "in", tmp_path / "out")

    def fails(make: Callable[[], Restore], engine: RayEngine, error: type[NLRNError], match: str) -> None:
        with pytest.raises(error, match=match):
            run(jobs, make, tmp_path / "out", "work", engine=engine)
        assert not digests(tmp_path / "out")

    plain = partial(give, same)
    fails(plain, RayEngine(cpus=999), ConfigError, "holds a worker of 999 CPUs, 0 GPUs and 0 MiB: they have at most 2")
    fails(plain, RayEngine(gpus=1), ConfigError, "1 GPUs")
    fails(plain, RayEngine(memory=1 << 50), ConfigError, "1,073,741,824 MiB")
    fails(plain, RayEngine(workers=1, check=_unlucky), ConfigError, "a worker on .*: there is no folder here")
    if not whole:
        return
    fails(plain, RayEngine(workers=1, expected="another"), ConfigError, "its version, options or weights are others")
    fails(_unfit, RayEngine(workers=1), BackendError, "end before they begin")
    assert len(run(jobs, plain, tmp_path / "out", "work", engine=RayEngine(workers=1)).done) == len(jobs)


def _without_rights() -> Restore:
    os.setgid(65534)
    os.setuid(65534)
    return same


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root to give rights up")
def test_workers_write_nothing(ray: Any) -> None:
    """So a late one cannot replace a result: here they have no right to write at all."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        fill(Path(name, "in"), 6)
        jobs = plan(Path(name, "in"), Path(name, "out"))
        outcome = run(jobs, _without_rights, Path(name, "out"), "work", engine=RayEngine(workers=1))
        assert len(outcome.done) == len(jobs)
        assert {file.stat().st_uid for file in Path(name, "out").iterdir()} == {0}


def test_options_of_the_cluster_are_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "in", 3)
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--sigma", "20"]
    for more in (["--address", "auto"], ["--worker-cpus", "2"], ["--worker-gpus", "1"]):
        assert command([*words, *more]) == 2
        assert f"{more[0]} is for --engine ray" in capsys.readouterr().err
    assert command([*words, "--engine", "ray", "--worker-gpus", "1.5"]) == 2
    assert "a share of one GPU, such as 0.5, or whole ones" in capsys.readouterr().err
    elsewhere = [sys.executable, "-m", "nlrn", *words, "--engine", "ray", "--address", "127.0.0.1:1"]
    found = subprocess.run(elsewhere, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 3
    assert found.stderr.startswith("nlrn: no Ray cluster at 127.0.0.1:1: ")
    assert "Traceback" not in found.stderr
    assert not list((tmp_path / "out").glob("*.png"))


def workers_of(session: int) -> list[int]:
    """Processes with a worker of ours, of the run that leads a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::_Worker") and f"NLRN_TEST={session}".encode() in environment:
                found.append(int(entry.name))
    return found


@pytest.mark.slow  # the local engine's are killed in test_batch.py
def test_killed_runs_end_as_an_uninterrupted_one_and_nothing_is_done_twice(
    tmp_path: Path, weights: Path, count: Callable[[int], int]
) -> None:
    """300 images, a tenth of them bad; workers and runs are killed at random times, the run is repeated."""
    number = count(300)
    fill(tmp_path / "in", number, bad=10)
    before, chance = digests(tmp_path / "in"), random.Random(0)
    assert command([*words_of(tmp_path / "in", tmp_path / "whole", weights), "-q", "-j", "1"]) == 1
    tag = random.SystemRandom().randrange(1 << 30)

    def start(output: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "NLRN_TEST": str(tag)}
        environment["HOME"] = str(tmp_path / "home")
        words = [*words_of(tmp_path / "in", tmp_path / output, weights), "-q", "--engine", "ray"]
        return subprocess.Popen([sys.executable, "-m", "nlrn", *words], env=environment, stderr=subprocess.DEVNULL)

    def size() -> int:
        return manifest.stat().st_size if manifest.exists() else 0

    for round_ in range(count(10)):
        manifest = tmp_path / f"killed-{round_}" / MANIFEST
        for victim in ("run", "worker"):
            had, process = size(), start(manifest.parent.name)
            while size() <= had + chance.randrange(60 * number) and process.poll() is None:
                time.sleep(0.002)
            if victim == "worker":
                found = workers_of(tag)
                assert found or process.poll() is not None
                for worker in found[:1]:
                    os.kill(worker, signal.SIGKILL)
                assert process.wait(300) == 1  # it is finished without that worker
            else:
                process.kill()
                process.wait()
        assert digests(manifest.parent) == digests(tmp_path / "whole")
        assert not list(manifest.parent.rglob(".nlrn-*.part"))
    assert digests(tmp_path / "in") == before
    assert not (tmp_path / "home").exists()  # where Ray would leave its token
    deadline = time.monotonic() + 120
    while workers_of(tag):  # none outlives the run that it worked for
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_sigterm_is_no_refused_image(tmp_path: Path, weights: Path) -> None:
    """A scheduler sees that the work is not done: 143, not the 1 of Ray's own handler."""
    fill(tmp_path / "in", 200)
    words = [*words_of(tmp_path / "in", tmp_path / "out", weights), "-q", "--engine", "ray"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "nlrn", *words], env=environment, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob("*.png")):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(120) == 143


TWICE = """
import sys
from nlrn.cli import run
print([run([*sys.argv[1:], "-o", name]) for name in ("a", "b")])
"""


@pytest.mark.slow
def test_one_process_may_use_a_cluster_twice(tmp_path: Path, weights: Path) -> None:
    """Ray is started and ended for each, and reads its token once."""
    fill(tmp_path / "in", 2)
    words = [*words_of(tmp_path / "in", tmp_path, weights), "--engine", "ray", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    call = [sys.executable, "-c", TWICE, *words]
    found = subprocess.run(
        call, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.stdout == "[0, 0]\n", found.stderr
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != {}
