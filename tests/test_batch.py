"""Folders of images: planned, restored once, gone on with after a kill, bad ones listed."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import deadly, digests, fill, give, records, same
from networks import FP32, random_model
from PIL import Image

from nlrn.batch.manifest import MANIFEST, Manifest
from nlrn.batch.plan import plan
from nlrn.batch.run import run
from nlrn.cli import run as command
from nlrn.errors import ConfigError, InputError, MemoryBudgetError
from nlrn.inference.restorer import Restorer
from nlrn.io.image import ImageData, read_image
from nlrn.models.checkpoint import save_model

ROOT = Path(__file__).resolve().parents[1]


# -- the plan


def test_the_plan_keeps_folders_and_formats(tmp_path: Path) -> None:
    fill(tmp_path / "in", 4)
    Image.new("L", (4, 4)).save(tmp_path / "in" / "e.gif")
    for name in ("notes.txt", ".hidden.png", "x.PNG"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / ".git").mkdir()
    (tmp_path / "in" / ".git" / "a.png").touch()
    out = tmp_path / "out"
    flat = plan(tmp_path / "in", out)
    assert [(j.name, j.target.relative_to(out).as_posix()) for j in flat] == [
        ("001.png", "001.png"), ("002.png", "002.png"), ("e.gif", "e.png"), ("x.PNG", "x.PNG")
    ]  # fmt: skip
    whole = plan(tmp_path / "in", out, recursive=True, ending="_clean", form=".tif")
    assert [j.target.relative_to(out).as_posix() for j in whole] == [
        "001_clean.tif", "002_clean.tif", "deep/000_clean.tif", "deep/003_clean.tif", "e_clean.tif", "x_clean.tif"
    ]  # fmt: skip
    assert not out.exists()


@pytest.mark.parametrize(
    ("names", "form", "way"),
    [
        (("a.png", "a.jpg"), ".png", "leave out --format"),
        (("a.png", "A.png"), None, "rename one"),
        ((unicodedata.normalize("NFC", "\u00e9.png"), unicodedata.normalize("NFD", "\u00e9.png")), None, "rename one"),
        (("b.gif", "b.png"), None, "rename one"),
        (("b.gif", "b.PNG"), ".tif", "rename one"),
    ],
)
def test_two_results_of_one_name_are_found_before_any_work(
    tmp_path: Path, names: tuple[str, ...], form: str | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names what separates them."""
    monkeypatch.setattr("nlrn.batch.plan._tells_case_apart", lambda target: False)  # as on macOS and Windows
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).touch()
    with pytest.raises(ConfigError, match=f"would both become .*: {way}"):
        plan(tmp_path / "in", tmp_path / "out", form=form)
    if form and way == "leave out --format":
        assert len(plan(tmp_path / "in", tmp_path / "out")) == 2


def test_originals_are_out_of_reach(tmp_path: Path) -> None:
    fill(tmp_path / "in", 2)
    for output in (tmp_path / "in", tmp_path / "in" / "clean", tmp_path / "in" / "deep" / ".." / "x"):
        with pytest.raises(ConfigError, match="lies inside"):
            plan(tmp_path / "in", output)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "001.png").symlink_to(tmp_path / "in" / "001.png")
    with pytest.raises(ConfigError, match="is an input"):
        plan(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ConfigError, match="are not written"):
        plan(tmp_path / "in", tmp_path / "new", form=".gif")
    with pytest.raises(ConfigError, match="end of a file"):
        plan(tmp_path / "in", tmp_path / "new", ending="/../x")
    with pytest.raises(InputError, match="no folder"):
        plan(tmp_path / "none", tmp_path / "out")


# -- the work


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_is_restored_and_bad_images_stop_nothing(
    tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    fill(tmp_path / "in", 24, bad=8)
    before = digests(tmp_path / "in")
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out" / "new"), "-r", "--sigma", "20"]
    words += ["--model", str(weights), "--precision", "fp32", "--memory", "512"]
    assert command([*words, "--json", "-j", str(workers)]) == 1
    shown = capfd.readouterr()
    outcome = json.loads(shown.out)
    assert set(outcome["failed"]) == {"deep/000.jpg", "008.png", "016.png"}
    assert len(outcome["done"]) == 21
    assert outcome["skipped"] == []
    assert shown.err.count("nlrn: ") == 3
    assert "008.png: " in shown.err
    assert digests(tmp_path / "in") == before
    made = digests(tmp_path / "out" / "new")
    assert set(made) == set(before) - set(outcome["failed"])
    restorer = Restorer(weights, settings=FP32)
    for name in ("001.png", "002.png"):  # grey, colour
        exact = restorer.denoise(read_image(tmp_path / "in" / name).array, 20)
        levels = np.rint(np.clip(exact, 0, 1) * 255)
        made_of = read_image(tmp_path / "out" / "new" / name).array * 255
        np.testing.assert_allclose(made_of, levels, atol=1e-3)

    assert command([*words, "--json"]) == 1  # the same again: only the bad ones are tried
    outcome = json.loads(capfd.readouterr().out)
    assert (len(outcome["skipped"]), len(outcome["failed"]), outcome["done"]) == (21, 3, [])
    assert digests(tmp_path / "out" / "new") == made
    done = Counter(r["in"] for r in records(tmp_path / "out" / "new") if r.get("published"))
    assert set(done.values()) == {1}


def test_results_that_are_there_are_refused_left_or_replaced(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 6)
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--sigma", "20", "--model", str(weights)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "001.png").write_text("mine")
    assert command(words) == 2
    assert "001.png exists already" in capsys.readouterr().err
    assert set(digests(tmp_path / "out")) == {"001.png"}
    assert command([*words, "--skip-existing"]) == 0
    assert (tmp_path / "out" / "001.png").read_text() == "mine"
    assert len(digests(tmp_path / "out")) == 4  # without the folder below
    assert command([*words, "--overwrite"]) == 0
    made = digests(tmp_path / "out")
    assert read_image(tmp_path / "out" / "001.png").array.shape == (16, 18)
    assert command([*words, "--strength", "0.5"]) == 2
    assert "exist already" in capsys.readouterr().err
    assert digests(tmp_path / "out") == made  # other options are another work

    Image.new("L", (18, 16), 90).save(tmp_path / "in" / "001.png")  # another image under the old name
    for _ in range(2):  # a failure does not make the result another's, which would stop the whole folder
        assert command(words) == 1
        assert "has changed since" in capsys.readouterr().err
    assert command([*words, "--overwrite"]) == 0
    changed = digests(tmp_path / "out")
    assert {name for name in made if made[name] != changed[name]} == {"001.png"}


def test_upscale_takes_folders_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "sr.safetensors", random_model(task="sr", sigma_input=False), {})
    fill(tmp_path / "in", 5)
    words = ["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "sr.safetensors")]
    assert command([*words, "-s", "2", "--format", "png", "--suffix", "_x2"]) == 0
    assert "3 images restored" in capsys.readouterr().out
    assert read_image(tmp_path / "out" / "001_x2.png").array.shape == (32, 36)
    assert command([*words, "-s", "2", "--width", "9"]) == 2


def test_what_is_for_folders_or_for_images_is_said(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 3)
    one, out = str(tmp_path / "in" / "001.png"), ["--model", str(weights), "-o", str(tmp_path / "out.png")]
    for words in (["-r"], ["-j", "2"], ["--skip-existing"], ["--suffix", "x"], ["--format", "png"]):
        assert command(["denoise", one, *out, *words]) == 2
        assert "is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    folder = ["--model", str(weights), "-o", str(tmp_path / "out")]
    assert command(["denoise", str(tmp_path / "empty"), *folder]) == 3
    assert "there is no image" in capsys.readouterr().err
    assert command(["denoise", str(tmp_path / "in"), *folder, "-j", "999", "--memory", "999999999"]) == 2
    assert "fewer --jobs" in capsys.readouterr().err
    assert command(["denoise", str(tmp_path / "in"), *folder, "--sigma-map", one]) == 2
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_what_is_no_file_is_listed_and_never_opened(tmp_path: Path, weights: Path, workers: str) -> None:
    """A pipe would hang, a device would fill the memory; links that lead nowhere, names that are no text."""
    fill(tmp_path / "in", 2)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "in" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    long, odd = "a" * 251 + ".png", os.fsdecode(b"\xff\xfe.png")
    for name in (long, odd):
        shutil.copy(tmp_path / "in" / "001.png", tmp_path / "in" / name)
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(weights), "--sigma", "25"]
    assert command([*words, "-j", workers, "--memory", "256"]) == 1
    assert {r["in"] for r in records(tmp_path / "out") if "failed" in r} == {"pipe.png", "zero.png", "nowhere.png"}
    assert {f.name for f in (tmp_path / "out").glob("*.png")} == {"001.png", long, odd}


def test_an_input_that_can_no_longer_be_read_stops_no_other(tmp_path: Path, weights: Path) -> None:
    """On the second run, when its result is there."""
    fill(tmp_path / "in", 3)
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(weights), "--sigma", "25"]
    assert command([*words, "-r"]) == 0
    shutil.copy(tmp_path / "in" / "002.png", tmp_path / "in" / "003.png")
    (tmp_path / "in" / "001.png").unlink()
    (tmp_path / "in" / "001.png").symlink_to(tmp_path / "gone.png")
    assert command([*words, "-r"]) == 1
    assert [r["in"] for r in records(tmp_path / "out") if "failed" in r] == ["001.png"]
    assert (tmp_path / "out" / "003.png").exists()


def test_a_folder_that_cannot_be_read_is_refused_alone(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images were passed over in silence; the folder IN itself is an error."""
    fill(tmp_path / "in", 3)
    fill(tmp_path / "in" / "locked", 2)
    listed, locked = os.scandir, tmp_path / "in" / "locked"

    def scandir(path: Any) -> Any:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(weights), "--sigma", "25"]
    assert command([*words, "-r"]) == 1
    assert "locked: cannot read the folder: Permission denied" in capsys.readouterr().err
    results = {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*.[pj]*g")}
    assert results == {"001.png", "002.png", "deep/000.jpg"}
    locked = tmp_path / "in"
    assert command(words) == 1
    assert f"{locked}: cannot read the folder: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["image", "result"])
def test_an_image_that_cannot_be_published_is_refused_before_the_work(tmp_path: Path, changed: str) -> None:
    """Its result was computed and thrown away, at each repetition."""
    fill(tmp_path / "in", 3)
    jobs = plan(tmp_path / "in", tmp_path / "out")
    assert len(run(jobs, partial(give, same), tmp_path / "out", "work").done) == 2
    if changed == "image":
        shutil.copy(tmp_path / "in" / "001.png", tmp_path / "in" / "002.png")
    else:
        (tmp_path / "out" / "002.png").write_bytes(b"edited")
    outcome = run(jobs, _never, tmp_path / "out", "work")
    assert list(outcome.failed) == ["002.png"]
    assert "has changed since its result was made, or the result has: see --overwrite" in outcome.failed["002.png"]
    assert outcome.skipped == ["001.png"]
    assert run(jobs, partial(give, same), tmp_path / "out", "work", overwrite=True).done == ["002.png"]


def _never() -> Any:
    raise AssertionError("a model was loaded although nothing is to be done")


def test_a_reader_that_goes_away_refuses_no_image(tmp_path: Path) -> None:
    """The output is a pipe that is closed: what was published stays published in the manifest."""
    fill(tmp_path / "in", 3)

    def report(*_: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(plan(tmp_path / "in", tmp_path / "out"), partial(give, same), tmp_path / "out", "work", report=report)
    lines = records(tmp_path / "out")
    assert [line["in"] for line in lines if line.get("published")] == ["001.png"]
    assert not [line for line in lines if "failed" in line]


def test_two_results_of_an_image_are_two(tmp_path: Path, weights: Path) -> None:
    """In two formats in one folder; each is known again."""
    fill(tmp_path / "in", 3)
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(weights), "--sigma", "25"]
    for _ in range(2):
        for form in ("png", "tif"):
            assert command([*words, "--format", form]) == 0
    assert len([line for line in records(tmp_path / "out") if line.get("published")]) == 4


def test_a_file_that_is_no_result_is_not_listed_as_one(tmp_path: Path) -> None:
    """A run was killed before it published a result; then another file appears under that name."""
    fill(tmp_path / "in", 2)
    jobs = plan(tmp_path / "in", tmp_path / "out")
    run(jobs, partial(give, same), tmp_path / "out", "work")
    manifest = tmp_path / "out" / MANIFEST
    manifest.write_bytes(manifest.read_bytes().splitlines(keepends=True)[0])
    result = (tmp_path / "out" / "001.png").read_bytes()
    (tmp_path / "out" / "001.png").write_bytes(b"another")
    assert run(jobs, _never, tmp_path / "out", "work", skip_existing=True).skipped == ["001.png"]
    assert not [line for line in records(tmp_path / "out") if line.get("published")]
    (tmp_path / "out" / "001.png").write_bytes(result)
    assert run(jobs, _never, tmp_path / "out", "work", skip_existing=True).skipped == ["001.png"]
    assert len([line for line in records(tmp_path / "out") if line.get("published")]) == 1


def test_existing_results_are_skipped_whatever_made_them(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of an image that changed since, and those that were edited."""
    fill(tmp_path / "in", 3)
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(weights), "--sigma", "25"]
    assert command(words) == 0
    shutil.copy(tmp_path / "in" / "001.png", tmp_path / "in" / "002.png")
    (tmp_path / "out" / "001.png").write_bytes(b"edited")
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    capsys.readouterr()
    assert command([*words, "--skip-existing", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["done"], sorted(found["skipped"])) == ([], sorted(path.name for path in before))
    assert {path: path.read_bytes() for path in before} == before


def test_the_plan_has_bitmaps_and_no_result_among_the_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "raw"
    (folder / "raw").mkdir(parents=True)
    Image.new("1", (8, 8)).save(folder / "a.pbm")
    Image.new("RGB", (8, 8)).save(folder / "b.mpo", "JPEG")
    (folder / "c.btf").touch()
    assert [job.target.name for job in plan(folder, tmp_path / "out")] == ["a.png", "b.jpg", "c.tif"]
    Image.new("L", (8, 8)).save(folder / "raw" / "d.png")
    with pytest.raises(ConfigError, match=r"raw/d.png lies inside .*next run"):
        plan(folder, tmp_path / "photos", recursive=True)


def test_what_a_format_cannot_hold_is_found_before_the_work(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((20, 24), np.uint16)).save(tmp_path / "in" / "scan.tif")
    words = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(weights), "--format", "jpg"]

    def work(*_: object, **__: object) -> np.ndarray:
        raise AssertionError("the image was computed")

    with monkeypatch.context() as patched:
        patched.setattr(Restorer, "denoise", work)
        assert command([*words, "--sigma", "25"]) == 1
    assert "would cut the image's 16 bits" in capsys.readouterr().err
    assert command([*words, "--sigma", "25", "--depth", "8"]) == 0


def _odd(image: ImageData, form: str) -> ImageData:
    """Fails for an image that is white at a corner, in an unexpected way."""
    if image.array.flat[0] == 1:
        raise ZeroDivisionError("oh")
    if image.array.flat[0] == 0:
        raise ConfigError("of all of them")
    return image


def _tight(image: ImageData, form: str) -> ImageData:
    """Makes an image that is white at a corner in smaller tiles than planned."""
    return replace(image, tile=256) if image.array.flat[0] == 1 else image


def test_an_image_that_kills_its_process_is_found_and_the_rest_is_done(tmp_path: Path) -> None:
    fill(tmp_path / "in", 8)
    Image.new("L", (9, 9), 255).save(tmp_path / "in" / "005b.png")
    jobs = plan(tmp_path / "in", tmp_path / "out")
    outcome = run(jobs, partial(give, deadly), tmp_path / "out", "work", workers=2)
    assert list(outcome.failed) == ["005b.png"]
    assert "was killed" in outcome.failed["005b.png"]
    assert len(outcome.done) == len(jobs) - 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_tiles_that_a_result_was_made_in_after_all_are_recorded(tmp_path: Path, workers: int) -> None:
    fill(tmp_path / "in", 2)
    Image.new("L", (9, 9), 255).save(tmp_path / "in" / "large.png")
    jobs = plan(tmp_path / "in", tmp_path / "out")
    run(jobs, partial(give, _tight), tmp_path / "out", "work", workers=workers)
    assert {(r["in"], r.get("tile")) for r in records(tmp_path / "out")} == {("001.png", None), ("large.png", 256)}


@pytest.mark.parametrize("task", ["denoise", "upscale"])
def test_a_manifest_does_not_depend_on_who_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory is refused for more than 200 pixels a side: the tiles are recorded, with the logger silenced too."""
    sr = task == "upscale"
    save_model(tmp_path / "w.safetensors", random_model(task="sr", sigma_input=False) if sr else random_model(), {})
    (tmp_path / "in").mkdir()
    for name, side in (("large", 300), ("small", 90)):
        Image.fromarray(np.random.RandomState(side).randint(0, 256, (40, side), np.uint8)).save(
            tmp_path / "in" / f"{name}.png"
        )
    in_memory = Restorer._run

    def refused(self: Restorer, window: int | None, x: np.ndarray, *more: Any) -> np.ndarray:
        if max(x.shape) > 200:
            raise MemoryBudgetError("no memory")
        return in_memory(self, window, x, *more)

    monkeypatch.setattr(Restorer, "_run", refused)
    words = [task, str(tmp_path / "in"), "--model", str(tmp_path / "w.safetensors"), "--precision", "fp32"]
    words += ["-s", "2", "--keep-noise"] if sr else ["--sigma", "20"]
    found = []
    for name, level in (("heard", logging.NOTSET), ("silenced", logging.CRITICAL)):
        logging.disable(level)
        try:
            assert command([*words, "-o", str(tmp_path / name)]) == 0
        finally:
            logging.disable(logging.NOTSET)
        assert ("continuing with tiles of 128" in caplog.text) == (name == "heard")
        caplog.clear()
        found.append(records(tmp_path / name))
    assert found[0] == found[1]
    assert {(r["in"], r.get("tile")) for r in found[0]} == {("large.png", 128), ("small.png", None)}
    chosen = [*words, "-o", str(tmp_path / "chosen"), "--tile", "128", "--format", "png"]
    assert command(chosen) == 0
    assert digests(tmp_path / "chosen") == digests(tmp_path / "heard")  # the result is that of the smaller tiles


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_nobody_thought_of_is_the_images_and_one_of_the_settings_is_everybodys(
    tmp_path: Path, workers: int
) -> None:
    for name, grey in (("a", 90), ("b", 255), ("c", 90)):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("L", (9, 9), grey).save(tmp_path / "in" / f"{name}.png")
    jobs = plan(tmp_path / "in", tmp_path / "out")
    outcome = run(jobs, partial(give, _odd), tmp_path / "out", "work", workers=workers)
    assert outcome.failed == {"b.png": "ZeroDivisionError: oh"}
    assert outcome.done == ["a.png", "c.png"]
    Image.new("L", (9, 9), 0).save(tmp_path / "in" / "d.png")
    with pytest.raises(ConfigError, match="of all of them"):
        run(plan(tmp_path / "in", tmp_path / "out"), partial(give, _odd), tmp_path / "out", "work", workers=workers)


def test_one_run_holds_a_folder_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path / "in", 4)
    jobs = plan(tmp_path / "in", tmp_path / "out")
    with Manifest(_made(tmp_path / "out"), "work"), pytest.raises(ConfigError, match=f"process {os.getpid()} on "):
        run(jobs, partial(give, same), tmp_path / "out", "work")
    assert len(run(jobs, partial(give, same), tmp_path / "out", "work").done) == len(jobs)
    with (tmp_path / "out" / MANIFEST).open("ab") as file:
        file.write(b'{"in": "00')
    (tmp_path / "out" / ".nlrn-0123.part").touch()
    outcome = run(jobs, partial(give, same), tmp_path / "out", "work")
    assert len(outcome.skipped) == len(jobs)
    (tmp_path / "out" / jobs[0].target.name).unlink()
    assert run(jobs, partial(give, same), tmp_path / "out", "work").done == [jobs[0].name]
    assert run(jobs, partial(give, same), tmp_path / "out", "work").done == []
    assert not (tmp_path / "out" / ".nlrn-0123.part").exists()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_killed_runs_end_as_an_uninterrupted_one_and_nothing_is_done_twice(
    tmp_path: Path, weights: Path, count: Callable[[int], int], workers: str
) -> None:
    """300 images, a tenth of them bad, SIGKILL at random times, repeated to the end."""
    number = count(300)
    fill(tmp_path / "in", number, bad=10)
    before, chance = digests(tmp_path / "in"), random.Random(int(workers))
    words = ["denoise", str(tmp_path / "in"), "-r", "--sigma", "20", "--model", str(weights), "-q", "-j", workers]
    words += ["--memory", "512"]

    def start(output: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        arguments = [sys.executable, "-m", "nlrn", *words, "-o", str(tmp_path / output)]
        return subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)

    assert command([*words[:-4], "-j", "1", "--memory", "512", "-o", str(tmp_path / "whole")]) == 1
    manifest = tmp_path / "killed" / MANIFEST
    for _ in range(count(10)):
        had = manifest.stat().st_size if manifest.exists() else 0
        process = start("killed")
        while (manifest.stat().st_size if manifest.exists() else 0) <= had + chance.randrange(40 * number):
            assert process.poll() is None or process.returncode == 1
            if process.poll() == 1:
                break
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start("killed").wait(300) == 1
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert len(digests(tmp_path / "killed")) == number * 9 // 10
    done = Counter(r["in"] for r in records(tmp_path / "killed") if r.get("published"))
    assert len(done) >= number * 9 // 10 - count(
        10
    )  # of one published between its two lines, the second may be missing
    assert set(done.values()) == {1}
    assert digests(tmp_path / "in") == before
    assert not list((tmp_path / "killed").rglob(".nlrn-*.part"))
