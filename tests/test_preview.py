"""`nlrn denoise --preview`: the middle of an image, by the noise and the range of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nlrn
from nlrn.cli import run as run_command
from nlrn.io.image import ImageData, middle, read_image, write_image


def noisy(height: int = 150, width: int = 171, seed: int = 0) -> np.ndarray:
    """Half dark and smooth, half bright with stripes: its middle alone has another noise level and range."""
    rows, columns = np.mgrid[:height, :width]
    clean = np.where(columns < width // 2, 60, 150 + 40 * np.sign(np.sin(rows / 3)))
    return np.clip(np.rint(clean + np.random.default_rng(seed).normal(0, 12, clean.shape)), 0, 255).astype(np.uint8)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert run_command([str(argument) for argument in arguments]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(("side", "rows", "columns"), [(64, (43, 107), (53, 117)), (160, (0, 150), (5, 165))])
def test_the_middle_as_the_whole_is_restored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: int, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image = noisy()
    path = tmp_path / "scan.png"
    Image.fromarray(image).save(path)
    run(capsys, "denoise", path, "--preview", side, "--json")
    found = nlrn.load("denoise-gray-small").found_noise(image / np.float32(255))[0]
    alone = nlrn.denoise(image[slice(*rows), slice(*columns)].copy(), sigma=found.sigma)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "scan-preview.png")), alone)


def test_a_preview_of_more_than_there_is_is_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noisy(80, 90)).save(tmp_path / "scan.png")
    run(capsys, "denoise", tmp_path / "scan.png", "--preview", "--json")
    run(capsys, "denoise", tmp_path / "scan.png", "--json")
    preview, whole = (Image.open(tmp_path / f"scan-{name}.png") for name in ("preview", "restored"))
    assert np.array_equal(np.asarray(preview), np.asarray(whole))


def test_range_alpha_and_map_are_those_of_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an image in a small part of 16 bits; the map of levels is cut as the image is, alpha kept as it was."""
    random = np.random.default_rng(1)
    array = np.float32((2000 + 8 * noisy().astype(np.int64)) / 65535)
    alpha = random.integers(0, 2, array.shape).astype(np.uint16) * 65535
    write_image(tmp_path / "dark.png", ImageData(array, alpha, depth=16))
    levels = random.integers(1, 3, array.shape).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "map.png")
    arguments = ("denoise", tmp_path / "dark.png", "--sigma-map", tmp_path / "map.png", "--json")
    limits = run(capsys, *arguments, "--preview", 64)["said"]
    result, place = read_image(tmp_path / "dark-preview.png"), middle(array.shape, 64)
    assert result.alpha is not None
    assert np.array_equal(result.alpha, alpha[place])
    shown = next(line for line in limits if "on the range" in line)  # type: ignore[attr-defined]
    low, high = (float(text) for text in shown.split("range ")[1].split(" ")[0].split(".."))
    write_image(tmp_path / "part.png", ImageData(array[place], alpha[place], depth=16))
    Image.fromarray(levels[place]).save(tmp_path / "part-map.png")
    part = ("denoise", tmp_path / "part.png", "--sigma-map", tmp_path / "part-map.png", "--json")
    run(capsys, *part, "--range", f"{low},{high}")
    alone = read_image(tmp_path / "part-restored.png").array
    assert np.abs(result.array - alone).max() <= 1.5 / 65535  # the range is printed with six digits


def test_a_level_of_each_channel_is_that_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a colour image, the channels of which a grey model takes one by one."""
    image = np.stack([noisy(96, 100, seed) // (seed + 1) for seed in range(3)], axis=2)
    Image.fromarray(image).save(tmp_path / "colour.png")
    run(capsys, "denoise", tmp_path / "colour.png", "--model", "denoise-gray-small", "--preview", 48, "--json")
    restorer = nlrn.load("denoise-gray-small")
    levels = restorer.noise_level(image / np.float32(255), "auto")
    part = image[middle(image.shape[:2], 48)] / np.float32(255)
    alone = restorer.denoise(part, levels, value_range="type")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "colour-preview.png")), np.rint(alone.clip(0, 1) * 255))


def test_the_largest_sigma_of_a_small_range_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images whose range is made as large as their sigma asks: as one image, and as a preview."""
    for first in (1, 60, 117, 121, 200):
        values = np.random.default_rng(first).integers(first, first + 3, (40, 40)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / "flat.png")
        for words in ((), ("--preview", 40)):
            run(capsys, "denoise", tmp_path / "flat.png", "--sigma", 2, *words, "--json", "--overwrite")
        preview, whole = (np.asarray(Image.open(tmp_path / f"flat-{name}.png")) for name in ("preview", "restored"))
        assert np.array_equal(preview, whole)


@pytest.mark.parametrize("what", ["folder", "stack"])
def test_a_folder_and_a_stack_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    else:
        frames = [Image.fromarray(noisy(40, 40, seed)) for seed in range(2)]
        path = path.with_suffix(".tif")
        frames[0].save(path, save_all=True, append_images=frames[1:])
    assert run_command(["denoise", str(path), "--preview"]) == 2
    assert f"is a {what}: --preview is for one image" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


def test_too_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["denoise", "any.png", "--preview", "31"]) == 2
    assert "at least 32 pixels" in capsys.readouterr().err
