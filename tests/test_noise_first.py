"""Noise is removed before an image is enlarged where it is certain, reported where it is not, kept where asked."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from networks import random_model
from PIL import Image

import nlrn
from nlrn.cli import run
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic
from nlrn.functional.metrics import psnr

ROOT = Path(__file__).resolve().parents[1]


def photograph() -> np.ndarray:
    """[128, 160] of a photograph with smooth and textured parts."""
    with Image.open(ROOT / "examples" / "camera.png") as file:
        return np.asarray(file)[100:356, 180:500] / np.float32(255)


CLEAN = photograph()
SMALL = resize_bicubic(CLEAN.astype(np.float64), 128, 160).clip(0, 1).astype(np.float32)
NOISY = add_gaussian_noise(SMALL, 10).astype(np.float32)
SR = random_model(task="sr", sigma_input=False)


def test_white_noise_is_removed_before_and_that_is_better() -> None:
    found, kept = nlrn.upscale(NOISY), nlrn.upscale(NOISY, denoise_first=False)
    clean = nlrn.denoise(NOISY).clip(NOISY.min(), NOISY.max())
    np.testing.assert_array_equal(found, nlrn.load("sr-small").upscale(clean, 256, 320))
    np.testing.assert_array_equal(found, nlrn.upscale(NOISY, denoise_first=True))
    np.testing.assert_array_equal(kept, nlrn.load("sr-small").upscale(NOISY, 256, 320))
    bicubic = psnr(CLEAN, resize_bicubic(NOISY.astype(np.float64), 256, 320))
    assert psnr(CLEAN, kept) < bicubic < psnr(CLEAN, found) - 1


def test_noise_counts_on_the_scale_that_the_image_is_restored_on() -> None:
    """10 bits in 16: noise of 10 on 0..255 is 0.16 there, of which nothing was removed."""
    counts = np.rint(300 + 1000 * NOISY.clip(0, 1)).astype(np.uint16)
    found = nlrn.upscale(counts)
    np.testing.assert_array_equal(found, nlrn.upscale(counts, denoise_first=True))
    truth = 300 + 1000 * CLEAN.astype(np.float64)
    errors = [np.mean((x - truth) ** 2) for x in (found, nlrn.upscale(counts, denoise_first=False))]
    assert errors[0] < 0.8 * errors[1]


def test_without_noise_nothing_is_removed() -> None:
    np.testing.assert_array_equal(nlrn.upscale(SMALL), nlrn.upscale(SMALL, denoise_first=False))
    tiny = NOISY[:12, :12]  # too small for an estimate
    np.testing.assert_array_equal(nlrn.upscale(tiny, 2, SR), nlrn.upscale(tiny, 2, SR, denoise_first=False))
    with pytest.raises(nlrn.InputError, match="too few to estimate"):
        nlrn.upscale(tiny, 2, SR, denoise_first=True)
    with pytest.raises(nlrn.InputError, match="denoise_first"):
        nlrn.upscale(SMALL, 2, SR, denoise_first="yes")  # type: ignore[arg-type]


def test_the_colour_below_transparency_is_no_noise() -> None:
    """Hidden pixels count neither for the estimate nor for the result."""
    alpha = np.full((128, 160), 255, np.uint8)
    alpha[:, 60:] = 0
    results = []
    for hidden in (0, 255):
        grey = np.rint(NOISY.clip(0, 1) * 255).astype(np.uint8)
        grey[alpha == 0] = hidden
        image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
        results.append(np.asarray(nlrn.upscale(image, 2, SR))[:, :100])
    np.testing.assert_array_equal(*results)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.rint(NOISY.clip(0, 1) * 255).astype(np.uint8)).save("white.png")
    colour = np.dstack([CLEAN] * 3) * np.float32([1, 0.9, 0.8])
    random = np.random.default_rng(3)
    camera = add_camera_noise(colour, at_level(draw_camera(random), 10.0), random)
    Image.fromarray(np.rint(camera * 255).astype(np.uint8)).save("a camera's.png")
    return tmp_path


def test_the_command_says_what_was_found_and_the_very_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upscale", "white.png"]) == 0
    assert "noise removed before enlarging; to keep it: --keep-noise" in capsys.readouterr().out
    assert run(["upscale", "white.png", "--keep-noise", "-o", "kept.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["said"] == []
    assert run(["upscale", "a camera's.png", "-o", "x.png", "-s", "1.5", "--depth", "8", "--range", "type"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "camera-like noise" in line)
    words = shlex.split(line.partition("to remove it first: ")[2])
    assert words[1:4] == ["upscale", "--denoise-first", "--overwrite"]
    assert words[4:] == ["a camera's.png", "-o", "x.png", "-s", "1.5", "--depth", "8", "--range", "type"]
    before = np.asarray(Image.open("x.png"))
    assert run(words[1:]) == 0
    assert "by the model for photographs" in capsys.readouterr().out
    after = np.asarray(Image.open("x.png"))
    assert after.shape == before.shape
    assert after[..., 1].astype(float).std() < before[..., 1].astype(float).std()
    assert run(["upscale", "white.png", "--keep-noise", "--denoise-first", "-o", "y.png"]) == 2


def test_a_folder_is_decided_image_by_image(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    Path("white.png").rename("in/white.png")
    Image.fromarray(np.rint(SMALL * 255).astype(np.uint8)).save("in/clean.png")
    assert run(["upscale", "in", "-s", "1.5"]) == 0
    lines = {re.split("[:;]", line)[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "noise removed before" in lines["white.png"]
    assert "noise" not in lines["clean.png"]
    records = [json.loads(line) for line in Path("in-enlarged/nlrn-manifest.jsonl").read_text().splitlines()]
    assert {r["in"]: r["noise"][0]["level"] > 3 for r in records} == {"white.png": True, "clean.png": False}
    assert run(["upscale", "in", "-s", "1.5"]) == 0
    assert "2 already done" in capsys.readouterr().out
