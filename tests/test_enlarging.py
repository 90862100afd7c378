"""Training of super-resolution: batches against MATLAB's bicubic of whole images, validation, a run that learns."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import CPU, make

from nlrn import cli
from nlrn.errors import ConfigError
from nlrn.functional.degradations import resize_bicubic, resize_bicubic8, resize_matrix
from nlrn.functional.metrics import luma8, psnr, quantize8, studio_luma
from nlrn.io.datasets import read_folder
from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.training.config import DataConfig, ResizeConfig, Stage, TrainConfig, read_recipe
from nlrn.training.data import Batches
from nlrn.training.distributed import Processes
from nlrn.training.logging import read_log
from nlrn.training.trainer import train
from nlrn.training.validation import Validation

RECIPES = Path(__file__).parents[1] / "recipes"


def sr_recipe(root: Path, **changes: object) -> TrainConfig:
    """The toy recipe for super-resolution, on colour textures."""
    recipe = read_recipe(make(root))
    for path in (root / "images").iterdir():
        pixels = np.random.RandomState(int(path.stem)).randint(0, 256, (100, 104, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    model = dataclasses.replace(recipe.model, task="sr", sigma_input=False)
    return dataclasses.replace(recipe, model=model, stages=(Stage(0, 12, 8),), **changes)  # type: ignore[arg-type]


def around(image: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The image turned so that `part` lies in it, and where."""
    for turns, mirrored in product(range(4), (False, True)):
        turned = np.rot90(image[:, ::-1] if mirrored else image, turns)
        windows = np.lib.stride_tricks.sliding_window_view(turned, part.shape)
        found = np.argwhere((windows == part).all((2, 3)))
        if len(found):
            return turned, int(found[0][0]), int(found[0][1])
    raise AssertionError("the patch is not of this image")


def enlarged(image: np.ndarray, scale: int, phase: tuple[int, int], rounded: bool) -> np.ndarray:
    """The uint8 image from `phase` on, cut to a multiple of the scale, smaller and larger again, float64 0..255."""
    cut = image[phase[0] :, phase[1] :]
    height, width = (n // scale * scale for n in cut.shape)
    cut = cut[:height, :width]
    if rounded:
        small = resize_bicubic8(cut, height // scale, width // scale).astype(np.float64)
    else:
        small = resize_bicubic(cut.astype(np.float64), height // scale, width // scale)
    return resize_bicubic(small, height, width)


def test_a_patch_is_that_of_the_whole_image_made_smaller_and_larger(tmp_path: Path) -> None:
    """For every sample the one scale, grid and rounding that made it is found; all of them occur."""
    config = dataclasses.replace(sr_recipe(tmp_path), stages=(Stage(0, 16, 8),))
    batches = Batches(config, tmp_path, Processes(CPU))
    lumas = [luma8(image) for _, image in read_folder(tmp_path / "images")]
    seen, grids = set(), set()
    for step in range(8):
        degraded, clean, sigma = batches(step)
        assert sigma is None
        assert degraded.shape == clean.shape == (8, 1, 16, 16)
        for x, part in zip(degraded[:, 0].double().numpy() * 255, clean[:, 0].double().numpy() * 255, strict=True):
            for luma in lumas:
                try:
                    turned, y, left = around(luma, np.rint(part).astype(np.uint8))
                    break
                except AssertionError:
                    continue
            ways = [
                (scale, rounded, phase)
                for scale in (2, 3, 4)
                for phase in product(range(scale), repeat=2)
                for rounded in (False, True)
                if np.abs(
                    enlarged(turned, scale, phase, rounded)[y - phase[0] :, left - phase[1] :][:16, :16] - x
                ).max() < 2e-3
            ]  # fmt: skip
            assert len(ways) == 1
            scale, rounded, phase = ways[0]
            seen.add((scale, rounded))
            grids |= {
                (scale, axis, (start - first) % scale)
                for axis, start, first in zip("yx", (y, left), phase, strict=True)
            }
    assert seen == set(product((2, 3, 4), (False, True)))
    assert grids == {(scale, axis, at) for scale in (2, 3, 4) for axis in "yx" for at in range(scale)}


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_see_the_batch_of_one(tmp_path: Path, world: int) -> None:
    config = sr_recipe(tmp_path)
    whole = Batches(config, tmp_path, Processes(CPU))(3)
    parts = [Batches(config, tmp_path, Processes(CPU, rank, world))(3) for rank in range(world)]
    for i in range(2):
        assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])
    assert torch.equal(Batches(config, tmp_path, Processes(CPU, 1, world))(3, whole=True)[0], whole[0])


@pytest.mark.parametrize(("length", "size"), [(24, 12), (24, 8), (7, 21), (5, 5), (1, 3), (11, 4)])
def test_a_matrix_resizes_as_the_function_does(length: int, size: int) -> None:
    image = np.random.RandomState(0).rand(length, 6)
    for options in ({}, {"antialias": False}, {"border": "symmetric"}):
        expected = resize_bicubic(image, size, 6, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(resize_matrix(length, size, **options) @ image, expected, atol=1e-13)  # type: ignore[arg-type]


def test_luminance_in_8_bits() -> None:
    image = np.random.RandomState(0).randint(0, 256, (9, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(luma8(image), np.rint(255 * quantize8(studio_luma(image / 255))))
    np.testing.assert_array_equal(luma8(image[..., 0]), image[..., 0])  # grey is its own luminance, of full range


def test_validation_scores_what_bicubic_enlarging_left(tmp_path: Path) -> None:
    """A model that adds nothing has the PSNR of bicubic itself, at every scale."""
    config = sr_recipe(tmp_path)
    model = NLRN(config.model)
    torch.nn.init.zeros_(model.tail.weight)
    result = Validation(config, tmp_path, CPU)(model)
    crops = [luma8(image)[12:36, 8:32] / 255 for _, image in read_folder(tmp_path / "held")]
    for scale in (2, 3, 4):
        through = [np.clip(enlarged(255 * x, scale, (0, 0), False) / 255, 0, 1) for x in crops]
        expected = np.mean([psnr(x, y) for x, y in zip(crops, through, strict=True)])
        assert result[f"psnr_x{scale}"] == pytest.approx(expected, abs=1e-4)
        assert len(result[f"neighbours_x{scale}"]) == config.model.states


@pytest.mark.slow
def test_a_short_training_beats_bicubic(tmp_path: Path) -> None:
    """On discs, whose edges bicubic blurs."""
    config = sr_recipe(tmp_path, norm_batches=8)
    y, x = np.mgrid[:120, :120]
    for folder, number in (("images", 6), ("held", 2)):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
        for i in range(number):
            middle = np.random.RandomState(i).randint(30, 90, (12, 2))
            inside = np.logical_xor.reduce([np.hypot(y - a, x - b) < 20 for a, b in middle])
            Image.fromarray((40 + 180 * inside).astype(np.uint8)).save(tmp_path / folder / f"{i}.png")
    changes = {
        "schedule": dataclasses.replace(config.schedule, steps=300),
        "data": dataclasses.replace(config.data, validation_size=72),
        "optim": dataclasses.replace(config.optim, lr=1e-2),
    }
    config = dataclasses.replace(config, **changes)
    train(config, output=tmp_path / "run", data=tmp_path, quiet=True)
    found = [record for record in read_log(tmp_path / "run") if "psnr_x2" in record][-1]
    model = NLRN(config.model)
    torch.nn.init.zeros_(model.tail.weight)
    bicubic = Validation(config, tmp_path, CPU)(model)
    for scale in (2, 3, 4):
        assert found[f"psnr_x{scale}"] > bicubic[f"psnr_x{scale}"] + 0.3


def test_what_makes_no_sense_is_refused() -> None:
    for changes in ({"scales": ()}, {"scales": (1,)}, {"scales": (9,)}, {"rounded": 1.5}):
        with pytest.raises(ConfigError, match="resize"):
            ResizeConfig(**changes)
    with pytest.raises(ConfigError, match="every scale divides"):
        TrainConfig("x", NLRNConfig(task="sr"))
    for model in (NLRNConfig(task="sr", in_channels=3), NLRNConfig(task="sr", sigma_input=True)):
        with pytest.raises(ConfigError, match="luminance"):
            TrainConfig("x", model)


def test_noise_and_scales_each_belong_to_their_task() -> None:
    """A section that the task does not use changes no digest, so that released states can be resumed."""
    denoise, sr = (
        TrainConfig("x", NLRNConfig(sigma_input=True)),
        TrainConfig("x", NLRNConfig(task="sr"), data=DataConfig(validation_size=120)),
    )
    other = ResizeConfig((2,))
    assert dataclasses.replace(denoise, resize=other).digest() == denoise.digest()
    assert dataclasses.replace(sr, resize=other).digest() != sr.digest()
    assert "resize" not in denoise.header()
    assert "noise" not in sr.header()


@pytest.mark.parametrize("width", [3000, 8000, 1500, 40000])
@pytest.mark.parametrize("words", [("-s", "16"), ("-s", "15.5"), ("--width", "{16}"), ("--height", "{16}")])
def test_results_beyond_the_limit_are_refused_at_once(tmp_path: Path, width: int, words: tuple[str, str]) -> None:
    """400 million pixels, from small files; before any work, with little memory."""
    height = 3_000_000 // width
    Image.new("1", (width, height)).save(tmp_path / "in.png")
    number = words[1].replace("{16}", str(16 * (width if words[0] == "--width" else height)))
    command = ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), words[0], number]
    tracemalloc.start()
    before, started = tracemalloc.get_traced_memory()[0], time.process_time()
    assert cli.run(command) == 1
    assert time.process_time() - started < 1
    assert tracemalloc.get_traced_memory()[1] - before < 64 << 20
    tracemalloc.stop()
    assert not (tmp_path / "out.png").exists()
