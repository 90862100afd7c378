"""What is said and recorded of a stack, and the options that meet one: in JSON, in manifests, in refusals."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_stacks import noisy, stack_file, stop_at

import nlrn
from nlrn import cli
from nlrn.cli import run
from nlrn.errors import InputError

__all__ = ["stack_file"]


def of_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_was_found_is_in_json_and_in_the_manifest(
    tmp_path: Path, stack_file: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Axes, and of each channel sigma and range: those with which a plane alone gives the same."""
    found = of_json(capsys, "denoise", stack_file, "-o", tmp_path / "out.tif", "--model", weights)
    assert (found["planes"], found["axes"], found["sizes"]) == (12, "TZC", [2, 3, 2])
    assert found["said"][0] == "OME-TIFF: 12 planes (T 2 x Z 3 x C 2)"
    channel = found["channels"][1]
    assert channel["planes"] == 6
    assert channel["found"]["kind"] == "white"
    given, got = tifffile.imread(stack_file), tifffile.imread(tmp_path / "out.tif")
    alone = nlrn.denoise(given[1, 2, 1], sigma=channel["sigma"], model=weights, value_range=tuple(channel["range"]))
    np.testing.assert_array_equal(got[1, 2, 1], alone)
    folder = tmp_path / "in"
    folder.mkdir()
    stack_file.rename(folder / "stack.tif")
    of_json(capsys, "denoise", folder, "-o", tmp_path / "results", "--model", weights)
    lines = map(json.loads, (tmp_path / "results" / "nlrn-manifest.jsonl").read_text().splitlines())
    assert [line["channels"] for line in lines] == [found["channels"]] * 2  # before it has its name, and after
    larger = of_json(capsys, "upscale", folder / "stack.tif", "-o", tmp_path / "large.tif", "--keep-noise")
    assert [channel["remove"] for channel in larger["channels"]] == [False, False]


def test_a_map_of_levels_is_of_every_plane(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each plane as alone with the map; after a stop in the middle, too."""
    path, levels, alone = tmp_path / "stack.tif", tmp_path / "levels.tif", tmp_path / "alone.tif"
    stack = noisy((4, 48, 40))
    tifffile.imwrite(path, stack, metadata={"axes": "ZYX"}, photometric="minisblack")
    tifffile.imwrite(levels, np.random.default_rng(0).uniform(0.1, 0.4, (48, 40)).astype(np.float32))
    options = ["--sigma-map", str(levels), "--range", "400,2500", "--model", str(weights)]
    assert run(["denoise", str(path), "-o", str(tmp_path / "out.tif"), *options]) == 0
    assert "4 planes: a map of sigma, range 400,2500" in capsys.readouterr().out
    got = tifffile.imread(tmp_path / "out.tif")
    for plane, result in zip(stack, got, strict=True):
        tifffile.imwrite(tmp_path / "plane.tif", plane, metadata=None)
        assert run(["denoise", str(tmp_path / "plane.tif"), "-o", str(alone), "-q", "--overwrite", *options]) == 0
        np.testing.assert_array_equal(tifffile.imread(alone), result)
    with monkeypatch.context() as patched:
        stop_at(patched, 2)
        assert run(["denoise", str(path), "-o", str(tmp_path / "again.tif"), *options]) == 130
    assert run(["denoise", str(path), "-o", str(tmp_path / "again.tif"), *options]) == 0
    assert (tmp_path / "again.tif").read_bytes() == (tmp_path / "out.tif").read_bytes()


def test_axes_that_contradict_the_file_are_named(
    tmp_path: Path, stack_file: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "the file says T 2 x Z 3 x C 2: the axes that are given are taken instead"
    for axes, named in (("ZYX", True), ("TZ3C2YX", False)):
        options = ["--model", str(weights), "--sigma", "9", "--axes", axes, "-o", str(tmp_path / f"{axes}.tif")]
        assert run(["denoise", str(stack_file), *options]) == 0
        assert (line in capsys.readouterr().out) == named


def test_what_cannot_be_done_is_refused_before_anything_is_written(
    tmp_path: Path, stack_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["denoise", str(stack_file), "-o", str(tmp_path / "none" / "out.tif")]) == 1
    assert f"there is no folder {tmp_path / 'none'} to write out.tif into" in capsys.readouterr().err
    assert run(["denoise", str(stack_file), "-o", str(tmp_path / "out.tif"), "--model", "denoise-color-small"]) == 1
    assert "the image is grey" in capsys.readouterr().err
    assert run(["denoise", str(stack_file), "--noise", "poisson", "--gain-adu", "-4"]) == 2
    assert "-4 is outside" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [stack_file]


def test_numbered_files_say_what_they_lack(
    tmp_path: Path, stack_file: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["denoise", str(stack_file), "-o", str(tmp_path / "plane_%02d.tif"), "--model", str(weights)]) == 0
    assert "numbered files hold the planes alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("out.jpg", ["--compression", "lzw"], "--compression has no effect on JPEG"),
        ("out.png", ["--quality", "90"], "--quality has no effect on PNG"),
        ("out.jpg", ["--quality", "90"], None),
        ("out.tif", ["--compression", "lzw"], None),
    ],
)
def test_an_option_without_effect_is_named(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str], line: str | None
) -> None:
    Image.effect_noise((48, 40), 50).save(tmp_path / "in.png")
    command = ["denoise", str(tmp_path / "in.png"), "-o", str(tmp_path / name), "--model", str(weights), *options]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "no effect" not in printed if line is None else line in printed


def test_an_option_without_effect_on_a_stack_is_named(
    tmp_path: Path, stack_file: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["denoise", str(stack_file), "--model", str(weights), "--quality", "90"]
    assert run([*command, "-o", str(tmp_path / "out.tif")]) == 0
    assert "--quality has no effect on TIFF" in capsys.readouterr().out
    assert run([*command, "-o", str(tmp_path / "plane_%02d.tif"), "--json"]) == 0
    assert "--quality has no effect on TIFF" in json.loads(capsys.readouterr().out)["said"]


def test_a_small_sigma_on_a_small_range_is_no_mistake(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise of 60 values of 65,535 is a sigma of 0.23; on floats of 0..1 it would be one."""
    plane = noisy((1, 48, 40))[0]
    for image, hinted in ((plane, False), (plane / np.float32(65535), False), (np.float32(plane / plane.max()), True)):
        with caplog.at_level(logging.WARNING, "nlrn"):
            nlrn.denoise(image, sigma=0.2334, model=weights)
        assert ("removes nearly nothing" in caplog.text) == hinted
        caplog.clear()
    tifffile.imwrite(tmp_path / "plane.tif", plane)
    command = ["denoise", str(tmp_path / "plane.tif"), "-o", str(tmp_path / "out.tif"), "--sigma", "0.2334"]
    assert run([*command, "--model", str(weights)]) == 0
    assert "nearly nothing" not in capsys.readouterr().out


def test_letters_of_axes_may_be_small_and_a_stack_without_any_is_named(weights: Path) -> None:
    stack = noisy((3, 48, 40))
    np.testing.assert_array_equal(
        nlrn.denoise(stack, axes="zyx", sigma=1, model=weights), nlrn.denoise(stack, axes="ZYX", sigma=1, model=weights)
    )
    with pytest.raises(InputError, match="such as axes='ZYX'"):
        nlrn.denoise(stack, sigma=1, model=weights)
    with pytest.raises(InputError, match="expected letters"):
        nlrn.denoise(stack, axes=3, sigma=1, model=weights)  # type: ignore[call-overload,unused-ignore]


@pytest.mark.parametrize("command", [name.__name__.rpartition(".")[2] for name in cli.COMMANDS])
def test_no_help_shows_a_doubled_percent_sign(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "%%" not in capsys.readouterr().out
