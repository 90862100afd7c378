"""The same image and the same plan give the same bytes, and another plan nearly the same (docs/seams.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from imagefiles import file_of, samples
from networks import random_model
from PIL import Image

import nlrn
from nlrn import cli

Count = Callable[[int], int]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def agree(found: np.ndarray, whole: np.ndarray) -> None:
    """Line 9 of what is promised: at most 2e-4 and at least 80 dB apart, a level at most on 0.1 % of the pixels."""
    error = found.astype(np.float64) - whole
    assert np.abs(error).max() <= 2e-4
    assert -10 * np.log10(max(np.mean(error**2), 1e-30)) >= 80
    steps = np.abs(np.rint(np.clip(found, 0, 1) * 255) - np.rint(np.clip(whole, 0, 1) * 255))
    assert steps.max() <= 1
    assert (steps > 0).mean() <= 1e-3


def test_tiles_batches_and_threads_agree_with_the_whole_image(count: Count, threads: Callable[[int], None]) -> None:
    random = np.random.default_rng(0)
    for case in range(count(150)):
        states, window = int(random.integers(1, 4)), int(random.choice([3, 5]))
        model = random_model(states=states, window=window, seed=case)
        assert model.receptive_radius is not None
        overlap = -(-8 * model.receptive_radius // 3)
        height, width = (int(n) for n in random.integers(2 * overlap + 1, 3 * overlap + 9, 2))
        image = random.normal(0.5, 0.3, (height, width, 3)[: random.integers(2, 4)]).astype(np.float32)
        sigma = float(random.uniform(0, 75))
        threads(1)
        whole = nlrn.Restorer(model, settings=nlrn.Settings(tile=0, precision="fp32")).denoise(image, sigma)
        threads(2)
        again = nlrn.Restorer(model, settings=nlrn.Settings(tile=0, precision="fp32")).denoise(image, sigma)
        agree(again, whole)
        settings = nlrn.Settings(tile=2 * overlap, overlap=overlap, precision="fp32")
        tiled = nlrn.Restorer(model, settings=settings).denoise(image, sigma)
        agree(tiled, whole)
        several = np.stack([np.atleast_3d(image), np.atleast_3d(image)[::-1]]).transpose(0, 3, 1, 2)
        together = nlrn.denoise(torch.from_numpy(several), sigma, model)[0].movedim(0, -1).numpy()
        np.testing.assert_array_equal(together, np.atleast_3d(nlrn.denoise(image, sigma, model)))


def test_the_command_the_call_and_a_folder_give_the_same_bytes(tmp_path: Path, count: Count) -> None:
    random = np.random.default_rng(0)
    for case in range(count(120) // 3):
        form, suffix = [("PNG", ".png"), ("TIFF", ".tif"), ("WEBP", ".webp")][case % 3]
        shape = tuple(int(n) for n in random.integers(17, 40, 2)) + ((3,) if form == "WEBP" or case % 2 else ())
        folder = tmp_path / f"in-{case}"
        folder.mkdir()
        file = folder / f"a{suffix}"
        options = {"lossless": True} if form == "WEBP" else {}
        file.write_bytes(file_of(Image.fromarray(samples(shape, case)), form, **options))
        shown = float(random.uniform(1, 75))
        words = ["--sigma", f"{shown}", "-q"]
        assert cli.run(["denoise", str(file), "-o", str(tmp_path / f"one-{case}{suffix}"), *words]) == 0
        assert cli.run(["denoise", str(folder), "-o", str(tmp_path / f"many-{case}"), *words]) == 0
        one = (tmp_path / f"one-{case}{suffix}").read_bytes()
        assert one == (tmp_path / f"many-{case}" / file.name).read_bytes()
        with Image.open(file) as image:
            restored = nlrn.denoise(image.copy(), shown)
        with Image.open(tmp_path / f"one-{case}{suffix}") as written:
            np.testing.assert_array_equal(np.asarray(written), np.asarray(restored))
