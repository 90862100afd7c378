"""Laws of publishing: a file is there whole or not at all, and what was there before stays."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nlrn.errors import InputError
from nlrn.system.atomic import LEFTOVERS, publish, remove_leftovers

OLD, NEW = b"old" * 1000, b"new" * 500


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(LEFTOVERS))


def test_a_file_appears_whole_with_the_rights_of_any_new_file(tmp_path: Path) -> None:
    path = publish(tmp_path / "a", NEW)
    (tmp_path / "b").write_bytes(b"")
    assert path.read_bytes() == NEW
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_a_file_that_is_there_is_refused_or_replaced_as_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(OLD)
    with pytest.raises(InputError, match="exists already"):
        publish(path, NEW)
    assert path.read_bytes() == OLD
    publish(path, NEW, overwrite=True)
    assert path.read_bytes() == NEW
    assert not leftovers(tmp_path)


def test_a_link_is_replaced_and_what_it_points_at_is_not_written(tmp_path: Path) -> None:
    original, link = tmp_path / "original", tmp_path / "link"
    original.write_bytes(OLD)
    link.symlink_to(original)
    with pytest.raises(InputError, match="exists already"):
        publish(link, NEW)
    publish(link, NEW, overwrite=True)
    assert (original.read_bytes(), link.read_bytes(), link.is_symlink()) == (OLD, NEW, False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "none" / "a",
        tmp_path / "file" / "a",
        tmp_path / "folder",
        tmp_path / ("n" * 300),
    ):
        with pytest.raises(InputError):
            publish(path, NEW, overwrite=overwrite)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}
    assert (tmp_path / "file").read_bytes() == OLD


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(code, os.strerror(code))  # what FAT and some network file systems answer

    monkeypatch.setattr(os, "link", link)
    path = publish(tmp_path / "a", OLD)
    with pytest.raises(InputError, match="exists already"):
        publish(path, NEW)
    assert path.read_bytes() == OLD
    assert not leftovers(tmp_path)


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, count: Callable[[int], int]) -> None:
    path = tmp_path / "a"
    path.write_bytes(OLD)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails, as on a full disk
    chance = random.Random(0)
    try:
        for _ in range(count(60)):
            size = chance.randrange(1, 100_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (chance.randrange(size), limits[1]))
            with pytest.raises(InputError, match="cannot write"):
                publish(path, bytes(size), overwrite=True)
            with pytest.raises(InputError, match="cannot write"):
                publish(tmp_path / "b", bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == OLD
    assert {p.name for p in tmp_path.iterdir()} == {"a"}


WRITER = """
import sys
from nlrn.system.atomic import publish
for i in range(1_000_000):
    publish(sys.argv[1], bytes([i % 251]) * 2_000_000, overwrite=True)
"""

SEVERAL = """
import sys
from nlrn.system.atomic import publish
for i in range(int(sys.argv[2])):
    publish(sys.argv[1], bytes([i % 251]) * 5000, overwrite=True)
"""


def test_leftovers_are_removed_and_what_is_being_written_is_not(tmp_path: Path, count: Callable[[int], int]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")}
    below = tmp_path / "below"
    below.mkdir()
    times = str(count(10_000))
    writer = subprocess.Popen([sys.executable, "-c", SEVERAL, str(below / "a"), times], env=environment)
    sweeps = 0
    while writer.poll() is None:
        (tmp_path / ".nlrn-0123456789abcdef.part").write_bytes(OLD)
        remove_leftovers(tmp_path)
        assert not leftovers(tmp_path)
        remove_leftovers(tmp_path, recursive=True)
        sweeps += (below / "a").exists()
    assert writer.returncode == 0  # none of its files was taken away
    assert sweeps > 20
    assert {p.name for p in below.iterdir()} == {"a"}


def test_what_is_no_leftover_of_ours_stays_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would hang, a folder is none; a file system that cannot lock, or not so, has leftovers all the same."""
    os.mkfifo(tmp_path / ".nlrn-pipe.part")
    (tmp_path / ".nlrn-folder.part").mkdir()
    (tmp_path / ".nlrn-link.part").symlink_to(tmp_path / "a")
    for code in (None, errno.EBADF, errno.ENOLCK, errno.EINVAL):

        def refuses(file: object, how: int, code: int | None = code) -> None:
            if code is not None:
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr("nlrn.system.atomic.fcntl.flock", refuses)
        publish(tmp_path / "a", NEW, overwrite=True)
        (tmp_path / ".nlrn-0123.part").write_bytes(OLD)
        remove_leftovers(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {"a", *(f".nlrn-{x}.part" for x in ("pipe", "folder", "link"))}


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path: Path, count: Callable[[int], int]) -> None:
    chance, path = random.Random(1), tmp_path / "a"
    source = Path(__file__).resolve().parents[1] / "src"
    for _ in range(count(100)):
        environment = {**os.environ, "PYTHONPATH": str(source)}
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=environment)
        deadline = time.monotonic() + 60
        while not path.exists():
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        data = path.read_bytes()
        assert len(data) == 2_000_000
        assert len(set(data)) == 1
        path.unlink()
        remove_leftovers(tmp_path)
        assert not list(tmp_path.iterdir())
