"""The command line: what a person types, what comes back, and with which exit code."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import random_model
from PIL import ExifTags, Image

import nlrn
from nlrn.cli import run
from nlrn.cli.interrupts import InterruptHandler, check_interrupt
from nlrn.cli.shared import print_table
from nlrn.errors import InputError
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera
from nlrn.functional.degradations import add_gaussian_noise
from nlrn.inference.restorer import Restorer, Settings
from nlrn.io.image import ImageData, read_image, write_image
from nlrn.models.checkpoint import save_model


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    image = np.clip(add_gaussian_noise(np.full((40, 50), 0.5), 20), 0, 1)
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(tmp_path / "noisy.png")
    return tmp_path / "noisy.png"


def restored(path: Path, weights: Path, sigma: float | str, **settings: object) -> np.ndarray:
    restorer = Restorer(weights, settings=Settings(**settings))  # type: ignore[arg-type]
    image = np.asarray(Image.open(path)) / np.float32(255)
    return np.rint(np.clip(restorer.denoise(image, sigma), 0, 1) * 255)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((), {}),
        (("--mode", "patch"), {"mode": "patch"}),
        (("-t", "32", "--overlap", "8"), {"tile": 32, "overlap": 8}),
        (("--precision", "fp32"), {"precision": "fp32"}),
    ],
)
def test_denoise_writes_what_the_restorer_gives(
    noisy: Path, weights: Path, arguments: tuple[str, ...], settings: dict[str, object]
) -> None:
    out = noisy.with_name("clean.png")
    assert run(["denoise", str(noisy), "-o", str(out), "--sigma", "20", "--model", str(weights), *arguments]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out)), restored(noisy, weights, 20.0, **settings))


def test_sigma_is_estimated_by_default_and_said(noisy: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = noisy.with_name("clean.png")
    assert run(["denoise", str(noisy), "-o", str(out), "--model", str(weights)]) == 0
    printed = capsys.readouterr().out
    level = float(printed.split("sigma ")[1].split()[0])
    assert level == pytest.approx(20, rel=0.2)
    assert f"wrote {out}" in printed
    np.testing.assert_array_equal(np.asarray(Image.open(out)), restored(noisy, weights, "auto"))
    assert run(["denoise", str(noisy), "-o", str(out), "--model", str(weights), "-q", "--overwrite"]) == 0
    assert capsys.readouterr().out == ""


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A colour photograph with the noise of a camera, as a JPEG of the camera's."""
    with Image.open(Path(__file__).parents[1] / "examples" / "camera.png") as file:
        grey = np.asarray(file.convert("L").resize((256, 256), Image.Resampling.BICUBIC)) / 255
    clean = grey[..., None] * np.array([0.9, 0.8, 0.7]) + 0.02
    random = np.random.default_rng(1)
    noisy = add_camera_noise(clean, at_level(draw_camera(random), 8.0), random)
    Image.fromarray(np.rint(noisy * 255).astype(np.uint8)).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def test_every_entry_finds_the_same_camera_noise(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line prints it, a folder's manifest records it, Python restores by it; gaussian is as it was."""
    weights, out = tmp_path / "colour.safetensors", tmp_path / "clean.png"
    save_model(weights, random_model(in_channels=3), {"steps": "0"})
    image = np.asarray(Image.open(photograph))
    found = nlrn.estimate_noise(image / np.float32(255))
    assert found.kind == "camera"
    assert run(["denoise", str(photograph), "-o", str(out), "--model", str(weights)]) == 0
    assert f"found {found}: restored as sigma {found.sigma:.1f}" in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(Image.open(out)), nlrn.denoise(image, model=weights))
    np.testing.assert_array_equal(np.asarray(Image.open(out)), nlrn.denoise(image, found.sigma, weights))
    (tmp_path / "in").mkdir()
    shutil.copy(photograph, tmp_path / "in")
    assert run(["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(weights)]) == 0
    lines = (tmp_path / "out" / "nlrn-manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["noise"] for line in lines] == [[found.record()]] * 2
    assert (tmp_path / "out" / "photograph.png").read_bytes() == out.read_bytes()
    plain = tmp_path / "plain.png"
    command = ["denoise", str(photograph), "-o", str(plain), "--model", str(weights), "--noise", "gaussian"]
    assert run(command) == 0
    sigma = nlrn.estimate_sigma(image / np.float32(255))
    assert f"estimated noise: sigma {sigma:.1f}" in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(Image.open(plain)), nlrn.denoise(image, model=weights, noise="gaussian"))
    assert plain.read_bytes() != out.read_bytes()


def test_colour_and_tiles_are_said(noisy: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = np.array(Image.open(noisy).convert("RGB"))
    Image.fromarray(colour).save(noisy)
    out = noisy.with_name("clean.png")
    assert run(["denoise", str(noisy), "-o", str(out), "--sigma", "20", "--model", str(weights)]) == 0
    assert "channel by channel" not in capsys.readouterr().out  # grey in three channels
    colour[0, 0, 0] ^= 128
    Image.fromarray(colour).save(noisy)
    out = noisy.with_name("coloured.png")
    command = ["denoise", str(noisy), "-o", str(out), "--sigma", "20", "--model", str(weights), "-t", "32"]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "channel by channel" in printed
    assert "tiles of 32" in printed
    with Image.open(out) as written:
        assert written.mode == "RGB"


@pytest.mark.parametrize("command", [["denoise", "--sigma", "20"], ["explain", "--at", "25,20", "--sigma", "20"]])
def test_hidden_colour_does_not_show(noisy: Path, weights: Path, command: list[str]) -> None:
    """Two images that differ where they are transparent alone: what is seen of them comes out the same."""
    grey = np.asarray(Image.open(noisy))
    alpha = np.full_like(grey, 255)
    alpha[:, 30:] = 0
    seen = []
    for hidden in (0, 255):
        pixels = np.where(alpha == 0, hidden, grey).astype(np.uint8)
        source, out = noisy.with_name(f"{hidden}.png"), noisy.with_name(f"out{hidden}.png")
        Image.fromarray(np.dstack([pixels, alpha])).save(source)
        assert run([command[0], str(source), "-o", str(out), *command[1:], "--model", str(weights)]) == 0
        with Image.open(out) as written:
            array = np.asarray(written)
        seen.append(array[alpha > 0] if command[0] == "denoise" else array)
    np.testing.assert_array_equal(*seen)


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("enlarger") / "enlarger.safetensors"
    save_model(path, random_model(task="sr", sigma_input=False), {"steps": "0"})
    return path


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ((), (80, 100)),
        (("-s", "3"), (120, 150)),
        (("-s", "2.5", "--mode", "patch"), (100, 125)),
        (("--width", "90"), (72, 90)),
        (("--height", "61"), (61, 76)),
        (("--width", "90", "--height", "61", "-t", "40"), (61, 90)),
    ],
)
def test_upscale_writes_what_the_restorer_gives(
    noisy: Path, enlarger: Path, arguments: tuple[str, ...], size: tuple[int, int]
) -> None:
    out = noisy.with_name("large.png")
    command = ["upscale", str(noisy), "-o", str(out), "--model", str(enlarger), "--keep-noise", *arguments]
    assert run(command) == 0
    settings = Settings(mode="patch" if "patch" in arguments else "window", tile=40 if "-t" in arguments else None)
    exact = Restorer(enlarger, settings=settings).upscale(np.asarray(Image.open(noisy)) / np.float32(255), *size)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.rint(np.clip(exact, 0, 1) * 255))


@pytest.mark.parametrize(("name", "side"), [("out.webp", 16400), ("out.jpg", 65600)])
def test_a_format_too_small_for_the_result_is_refused_before_the_work(
    enlarger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, side: int
) -> None:
    Image.new("L", (side // 16, 4)).save(tmp_path / "long.png")
    command = ["upscale", str(tmp_path / "long.png"), "-o", str(tmp_path / name), "--model", str(enlarger)]
    assert run([*command, "-s", "16", "--memory", "1"]) == 1  # with work, it would be the memory that is too small
    assert f"this would be {side} x 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "depth", "out"), [("a.png", 16, "b.tif"), ("a.tif", 16, "b.png"), ("a.tif", 32, "b.tif")]
)
def test_deep_images_stay_deep(weights: Path, enlarger: Path, tmp_path: Path, name: str, depth: int, out: str) -> None:
    """Colour of 16 bits with alpha, and floats: what is written is what the restorer gives, to their last bit."""
    random = np.random.RandomState(0)
    alpha = None if depth == 32 else random.randint(0, 65536, (20, 24)).astype(np.uint16)
    image = ImageData(random.random((20, 24, 3)).astype(np.float32), alpha, depth)
    write_image(tmp_path / name, image)
    given, model = read_image(tmp_path / name), str(weights)
    assert run(["denoise", str(tmp_path / name), "-o", str(tmp_path / out), "--sigma", "9", "--model", model]) == 0
    found = read_image(tmp_path / out)
    assert found.depth == depth
    np.testing.assert_equal(found.alpha, alpha)
    exact = Restorer(model).denoise(given.array, 9, alpha=given.alpha)
    expected = exact if depth == 32 else np.clip(exact, 0, 1)
    np.testing.assert_allclose(found.array, expected, atol=0 if depth == 32 else 0.51 / 65535)
    larger = tmp_path / f"larger-{out}"
    assert run(["upscale", str(tmp_path / name), "-o", str(larger), "--model", str(enlarger)]) == 0
    assert read_image(larger).array.shape == (40, 48, 3)
    assert read_image(larger).depth == depth


def test_a_map_of_noise_levels_and_the_strength_reach_the_restorer(
    noisy: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.asarray(Image.open(noisy)) / np.float32(255)
    levels = np.linspace(0, 75, image.size).reshape(image.shape).astype(np.float32)
    Image.fromarray(np.rint(levels).astype(np.uint8)).save(tmp_path / "map.png")
    write_image(tmp_path / "map.tif", ImageData(levels, depth=32))
    command = ["denoise", str(noisy), "--model", str(weights), "-o", str(tmp_path / "out.tif"), "--depth", "32"]
    for name, shown in (("map.png", np.rint(levels)), ("map.tif", levels)):
        words = ["--overwrite", "--strength", "0.25", "--sigma-map", str(tmp_path / name)]
        assert run([*command, *words]) == 0
        whole = Restorer(weights).denoise(image, shown)
        np.testing.assert_allclose(read_image(tmp_path / "out.tif").array, image + 0.25 * (whole - image), atol=1e-5)
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    Image.new("RGB", (50, 40), (1, 2, 3)).save(tmp_path / "colour.png")
    for words, code, message in (
        (["--sigma-map", str(tmp_path / "small.png")], 1, "a map of"),
        (["--sigma-map", str(tmp_path / "colour.png")], 1, "grey image"),
        (["--sigma-map", str(tmp_path / "map.png"), "--sigma", "3"], 2, "takes neither --sigma"),
        (["--strength", "1.5"], 2, "0..1"),
    ):
        assert run([*command, "--overwrite", *words]) == code
        assert message in capsys.readouterr().err
    mine = tmp_path / "map.png"
    before = mine.read_bytes()
    words = ["denoise", str(noisy), "--model", str(weights), "-o", str(mine), "--sigma-map", str(mine), "--overwrite"]
    assert run(words) == 1
    assert mine.read_bytes() == before
    with pytest.raises(InputError, match="strength"):
        Restorer(weights).denoise(image, 5, strength=-1)
    np.testing.assert_array_equal(Restorer(weights).denoise(image, 5, strength=0), image)


def test_another_depth_is_written_when_asked_for(
    noisy: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["denoise", str(noisy), "--model", str(weights), "--sigma", "9", "-o"]
    for depth, name in ((16, "a.png"), (16, "a.tif"), (32, "b.tif")):
        assert run([*command, str(tmp_path / name), "--depth", str(depth)]) == 0
        assert read_image(tmp_path / name).depth == depth
    assert run([*command, str(tmp_path / "c.jpg"), "--depth", "16"]) == 1
    assert "would cut the image's 16 bits" in capsys.readouterr().err


def test_a_model_for_enlarging_neither_denoises_nor_explains(
    noisy: Path, enlarger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["denoise", str(noisy)], ["explain", str(noisy), "--at", "3,3"]):
        assert run([*words, "-o", str(tmp_path / "out.png"), "--model", str(enlarger)]) == 2
        shown = capsys.readouterr()
        assert "is for sr, not for denoise" in shown.err
        assert shown.out == ""


def test_tiles_are_planned_for_what_the_network_sees(
    noisy: Path, enlarger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below a factor of 2 the network sees twice the image: 120 x 120 pixels for 90 x 90."""
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(tmp_path / "in.png")
    command = ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--model", str(enlarger)]
    assert run([*command, "-s", "1.5", "--tile", "100", "--keep-noise"]) == 0
    assert "120 x 120 pixels in tiles of 100" in capsys.readouterr().out


def test_upscale_brings_exif_up_to_date(enlarger: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "me"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 24
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageHeight] = 20
    Image.new("RGB", (24, 20)).save(tmp_path / "in.jpg", exif=exif)
    command = ["upscale", str(tmp_path / "in.jpg"), "-o", str(tmp_path / "out.jpg"), "--model", str(enlarger)]
    assert run(command) == 0
    with Image.open(tmp_path / "out.jpg") as out:
        found = out.getexif()
        details = found.get_ifd(ExifTags.IFD.Exif)
        assert out.size == (48, 40)
    assert found[ExifTags.Base.Artist] == "me"
    assert (details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]) == (48, 40)


def test_a_result_beyond_the_limit_is_refused(
    enlarger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (1300, 1300)).save(tmp_path / "large.png")
    command = ["upscale", str(tmp_path / "large.png"), "-o", str(tmp_path / "out.png"), "--model", str(enlarger)]
    assert run([*command, "-s", "16"]) == 1
    assert "20800 x 20800 pixels is beyond the limit of 400,000,000" in capsys.readouterr().err


def test_upscale_keeps_the_kind_of_the_image(noisy: Path, enlarger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = np.asarray(Image.open(noisy))
    alpha = np.full_like(grey, 255)
    alpha[:20] = 0
    source, out = noisy.with_name("in.png"), noisy.with_name("large.png")
    seen = []
    for hidden in (0, 255):
        pixels = np.where(alpha == 0, hidden, grey).astype(np.uint8)
        Image.fromarray(np.dstack([pixels] * 3 + [alpha])).save(source)
        command = ["upscale", str(source), "-o", str(out), "--model", str(enlarger), "-s", "5", "--overwrite"]
        assert run(command) == 0
        with Image.open(out) as written:
            assert written.mode == "RGBA"
            array = np.asarray(written)
        seen.append(array[array[..., 3] > 0])
    np.testing.assert_array_equal(*seen)  # hidden colour does not bleed into what is seen
    assert "two equal steps" in capsys.readouterr().out
    Image.fromarray(grey.astype(np.uint16) * 257).save(source)
    assert run(["upscale", str(source), "-o", str(out), "--model", str(enlarger), "--overwrite"]) == 0
    with Image.open(out) as written:
        assert written.mode == "I;16"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["upscale", "{noisy}", "-o", "{out}", "--model", "{weights}"], 2, "is for denoise"),
        (["upscale", "{noisy}", "-o", "{noisy}", "--overwrite"], 1, "is an input"),
        (["upscale", "{noisy}", "-o", "{out}", "-s", "1"], 2, "1.5..16"),
        (["upscale", "{noisy}", "-o", "{out}", "-s", "2", "--width", "90"], 2, "not both"),
        (["upscale", "{noisy}", "-o", "{out}", "--width", "50"], 1, "grow by 1.5 to 16"),
        (["upscale", "{noisy}", "-o", "{out}", "--width", "0"], 2, "at least 1"),
        (["evaluate", "--data", "{folder}", "--model", "{weights}", "--task", "sr"], 2, "is for denoise"),
        (["denoise", "{missing}", "-o", "{out}"], 1, "no file or folder"),
        (["denoise", "{folder}/missing", "-o", "{folder}/results"], 1, "no file or folder"),
        (["denoise", "{noisy}", "-o", "{noisy}", "--overwrite"], 1, "noisy.png"),
        (["denoise", "{noisy}", "-o", "{noisy}.xyz"], 1, "xyz"),
        (["denoise", "{noisy}", "-o", "{out}", "--sigma", "76"], 2, "0..75"),
        (["denoise", "{noisy}", "-o", "{out}", "--sigma", "much"], 2, "not a noise level"),
        (["denoise", "{noisy}", "-o", "{out}", "--tile", "-3"], 2, "tile"),
        (["denoise", "{noisy}", "-o", "{out}", "--tile", "31"], 2, "at least 32 pixels"),
        (["denoise", "", "-o", "{out}"], 2, "IN is empty"),
        (["denoise", "{folder}", "-o", "{noisy}"], 2, "is a file"),
        (["denoise", "{folder}", "-o", "{out}"], 2, "is the name of an image"),
        (["denoise", "{noisy}", "-o", "{out}", "--max-pixels", "99"], 1, "the limit is 99, raised by --max-pixels"),
        (["denoise", "{noisy}", "-o", "{out}", "--model", "denoise-grey"], 3, "denoise-grey"),
        (["denoise", "{noisy}", "-o", "{out}", "--model", "{noisy}"], 3, "safetensors"),
        (["denoise", "{noisy}", "-o", "{out}", "--model", "{weights}", "-d", "tpu3"], 3, "tpu3"),
        (["{missing}"], 1, "no file or folder"),
        (["./nothing/at/all"], 1, "no command of that name"),
        (["denoise", "{noisy}", "{noisy}", "-o", "{out}"], 2, "one input at a time"),
        (["denoise", "{noisy}", "-o", "{out}", "--sigmas", "25"], 2, "unrecognized arguments: --sigmas 25; see"),
        (["denoize", "{noisy}"], 2, "denoize"),
        (["train", "{missing}"], 2, "missing.png"),
        (["denoise", "{noisy}", "-o", "{out}", "--model", "{weights}", "-d", "meta"], 3, "meta"),
        (["denoise", "{noisy}", "-o", "{out}", "--model", "{weights}", "-t", "40", "--overlap", "21"], 2, "overlap"),
        (["evaluate", "--data", "{missing}", "--model", "{weights}"], 1, "missing.png"),
        (["evaluate", "--data", "{folder}", "--model", "{weights}", "--json", "{missing}/x.json"], 1, "no folder"),
        (["evaluate", "--data", "{folder}", "--model", "{weights}", "--sigma", "80"], 2, "0..75"),
        (["evaluate", "--data", "{folder}", "--model", "{weights}", "--json", "{noisy}"], 1, "must end in .json"),
        (["evaluate", "--data", "{folder}", "--model", "{weights}", "--json", "/proc/x.json"], 1, "cannot write"),
        (["denoise", "{noisy}", "-o", "{out}", "--mode", "patch", "-t", "32"], 2, "window mode"),
        (["denoise", "{noisy}", "-o", "{out}", "--model", ""], 3, "no model"),
        (["explain", "{noisy}", "--at", "1,1", "-o", "{folder}/map.jpg"], 1, "must end in .png"),
    ],
)
def test_mistakes_get_one_sentence_a_code_and_no_output(
    noisy: Path, weights: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = noisy.read_bytes()
    names = {"noisy": noisy, "out": noisy.with_name("out.png"), "weights": weights}
    names["folder"] = noisy.parent
    names["missing"] = noisy.with_name("missing.png")
    assert run([a.format(**names) for a in arguments]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("nlrn")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(p.name for p in noisy.parent.iterdir()) == ["noisy.png"]
    assert noisy.read_bytes() == before


def test_evaluate_scores_a_folder_with_a_table_and_json(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        pixels = np.random.RandomState(i).randint(0, 256, (20, 24)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    out = tmp_path / "scores.json"
    command = ["evaluate", "--data", str(tmp_path), "--task", "denoise", "--sigma", "15", "50", "--attention"]
    assert run([*command, "--model", str(weights), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["model"] == "random"
    assert result["run"]["precision"] == "fp32"
    scores = result["scores"][tmp_path.name]
    assert list(scores) == ["15", "50"]
    assert len(result["attention"]["50"]["neighbours"]) == 2
    printed = capsys.readouterr().out
    assert f"{scores['15']['psnr']:.2f}" in printed
    assert "propagation off" in printed
    assert run([*command, "--model", str(weights), "--json", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert json.loads(out.read_text()) == result
    own = tmp_path / "weights.json"  # whatever it is called
    shutil.copy(weights, own)
    assert run([*command, "--model", str(own), "--json", str(own), "--overwrite"]) == 1
    assert own.read_bytes() == weights.read_bytes()
    shutil.copy(tmp_path / "0.png", tmp_path / "1.bmp")
    assert run([*command, "--model", str(weights)]) == 1
    assert "two images called 1" in capsys.readouterr().err


def test_numbers_are_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table("a [red] title", [f"[{i}]" for i in range(8)], [[f"12.3{i}" for i in range(8)]])
    printed = "".join(capsys.readouterr().out.split())
    assert "[red]" in printed
    assert "…" not in printed
    assert sum(printed.count(digit) for digit in "12") >= 16


def test_out_of_memory_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(options: object) -> int:
        raise MemoryError

    monkeypatch.setattr("nlrn.cli.models._models", refuse)
    assert run(["models"]) == 3
    assert "out of memory" in capsys.readouterr().err


def test_models_lists_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    assert "denoise-gray-small: denoise, grey" in capsys.readouterr().out
    assert run(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(len(row["sha256"]) == 64 for row in rows)


def test_without_a_model_for_it_upscale_says_how_to_name_one(
    noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nlrn.models.checkpoint.WEIGHTS", tmp_path / "none")
    assert run(["upscale", str(noisy), "-o", str(tmp_path / "large.png")]) == 3
    assert "--model" in capsys.readouterr().err


def test_alone_it_helps_and_version_and_module_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "nlrn denoise noisy.png -o clean.png" in capsys.readouterr().out
    done = subprocess.run([sys.executable, "-m", "nlrn", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("nlrn 0.")


def test_ctrl_c_stops_with_130_and_leaves_nothing(tmp_path: Path, weights: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (2000, 2000)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    command = [sys.executable, "-m", "nlrn", "denoise", "large.png", "-o", "out.png", "--sigma", "20"]
    process = subprocess.Popen(
        [*command, "--model", str(weights), "-t", "64"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    assert process.stdout is not None
    process.stdout.readline()  # it has begun: the tiles are announced
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    # Python 3.11.2 ends itself by the signal even when the exception was caught: for a shell that is 130 as well
    assert process.returncode in (130, -signal.SIGINT), errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert [p.name for p in tmp_path.iterdir()] == ["large.png"]


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_ctrl_c_is_not_lost_where_compiled_code_drops_the_exception(
    tmp_path: Path, weights: Path, quiet: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network of the second of many tiles is interrupted, and what it raises goes nowhere."""
    usual, passes = Restorer._run, []

    def drops(self: Restorer, *arguments: Any) -> np.ndarray:
        passes.append(1)
        if len(passes) == 2:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return usual(self, *arguments)

    monkeypatch.setattr(Restorer, "_run", drops)
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (200, 200)).astype(np.uint8)).save(tmp_path / "in.png")
    words = ["denoise", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--sigma", "20", "-t", "64", *quiet]
    before = signal.getsignal(signal.SIGINT)
    assert run([*words, "--model", str(weights)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(passes) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptHandler():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            check_interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
