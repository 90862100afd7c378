"""What happens where the system refuses memory that was promised: in processes with a limit of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nlrn
from nlrn import cli
from nlrn.inference import pipeline
from nlrn.system.hardware import _group_memory

SCRIPT = """
import logging, resource, sys
import numpy as np
import nlrn
from nlrn.inference import pipeline
from nlrn import cli
logging.basicConfig(format="%(message)s")
tile, room = int(sys.argv[1]), int(sys.argv[2])
image = np.random.default_rng(0).random((300, 330), np.float32)
settings = nlrn.Settings(tile=tile if tile >= 0 else None, precision="fp32")
restorer = nlrn.Restorer("denoise-gray-small", settings=settings)
restorer.denoise(image[:64, :64], 25)  # whatever is made once is made
if room:
    status = open("/proc/self/status").read().split("VmSize:")[1].split()[0]
    limit = (int(status) << 10) + (room << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    np.save(sys.argv[3], restorer.denoise(image, 25))
except nlrn.MemoryBudgetError as error:
    print("refused:", error)
"""


def restored(tile: int, room: int, file: Path) -> subprocess.CompletedProcess[str]:
    """Restore an image in tiles of a side, 0 for the whole, -1 for what fits, with so many MiB left to allocate."""
    environment = {**os.environ, "PYTHONPATH": str(Path(nlrn.__file__).parents[1]), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tile), str(room), str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process and its size are Linux's")
def test_where_memory_is_refused_the_work_goes_on_in_smaller_tiles_and_says_so(tmp_path: Path) -> None:
    """The result is that of the smaller tiles."""
    backed_off = restored(-1, 230, tmp_path / "a.npy")
    lines = [line for line in backed_off.stderr.splitlines() if "no memory" in line]
    assert lines[0] == "no memory for the whole image; continuing with tiles of 256"
    side = int(lines[-1].split()[-1])
    image = np.random.default_rng(0).random((300, 330), np.float32)
    smaller = nlrn.Restorer("denoise-gray-small", settings=nlrn.Settings(tile=side, precision="fp32"))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), smaller.denoise(image, 25))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process and its size are Linux's")
def test_where_memory_is_refused_a_tile_that_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    refused = restored(0, 230, tmp_path / "c.npy")
    assert refused.stdout.startswith("refused: no memory for 330 x 300 pixels at once")
    assert not (tmp_path / "c.npy").exists()


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    own, folder = tmp_path / "cgroup", tmp_path / "groups" / "a" / "b"
    own.write_text("12:pids:/elsewhere\n0::/a/b\n")
    assert _group_memory(tmp_path / "groups", own) == {}
    folder.mkdir(parents=True)
    (folder / "memory.current").write_text(f"{700 << 20}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {120 << 20}\nactive_file {80 << 20}\n")
    (folder / "memory.max").write_text("max\n")
    assert _group_memory(tmp_path / "groups", own) == {}
    (folder / "memory.max").write_text(f"{1 << 30}\n")
    assert _group_memory(tmp_path / "groups", own) == {"total": 1024, "available": 524}
    for name in ("current", "stat"):  # a limit above counts too
        (folder.parent / f"memory.{name}").write_text((folder / f"memory.{name}").read_text())
    (folder.parent / "memory.max").write_text(f"{800 << 20}\n")
    assert _group_memory(tmp_path / "groups", own) == {"total": 800, "available": 300}
    older = tmp_path / "groups" / "memory" / "c"
    older.mkdir(parents=True)
    own.write_text("12:pids:/elsewhere\n9:memory:/c\n")
    for name, text in (
        ("limit_in_bytes", 600 << 20),
        ("usage_in_bytes", 100 << 20),
        ("stat", f"inactive_file 1\ntotal_inactive_file {20 << 20}\ntotal_active_file {30 << 20}"),
    ):
        (older / f"memory.{name}").write_text(f"{text}\n")
    assert _group_memory(tmp_path / "groups", own) == {"total": 600, "available": 550}


def test_an_image_that_does_not_fit_what_is_free_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((300, 330), np.uint8)).save(tmp_path / "in.png")
    command = ["denoise", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--sigma", "25"]
    monkeypatch.setattr(pipeline, "memory", lambda: {"total": 1000, "available": 80})
    assert cli.run(command) == 3
    assert "give --memory what may be taken" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
    assert cli.run([*command, "--memory", "80", "--precision", "fp32"]) == 0  # in tiles
    assert (tmp_path / "out.png").exists()
