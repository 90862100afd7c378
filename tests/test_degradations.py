"""Noise and bicubic resizing: the check values of the field's protocols (docs/reproduce.md) and oracles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nlrn.errors import InputError
from nlrn.functional.degradations import Border, add_gaussian_noise, resize_bicubic, resize_bicubic8
from nlrn.functional.metrics import psnr, quantize8, ssim, studio_luma
from nlrn.io.datasets import scoring_set

BICUBIC_OF_PILLOW = Image.Resampling.BICUBIC
NOISY_PSNR = {
    "set12": (24.638, 20.201, 14.181),
    "bsd68": (24.631, 20.194, 14.173),
    "cbsd68": (24.619, 20.182, 14.161),
}
BICUBIC = {
    "set5": ((33.66, 0.9299), (30.39, 0.8682), (28.42, 0.8104)),
    "set14": ((30.23, 0.8687), (27.54, 0.7736), (26.00, 0.7019)),
    "bsd100": ((29.56, 0.8431), (27.21, 0.7384), (25.96, 0.6674)),
}


def sample(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).rand(*shape)


def crop(image: np.ndarray, scale: int) -> np.ndarray:
    """Top left part whose sides are multiples of `scale`."""
    return image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "cbsd68")) for n in NOISY_PSNR])
def test_psnr_of_the_noisy_input_meets_the_check_values(data_root: Path, name: str) -> None:
    """The noisy input is scored neither clipped nor rounded."""
    clean = [image / 255 for _, image in scoring_set(data_root, name)]
    for sigma, expected in zip((15, 25, 50), NOISY_PSNR[name], strict=True):
        scores = [psnr(image, add_gaussian_noise(image, sigma)) for image in clean]
        assert np.mean(scores) == pytest.approx(expected, abs=1e-3)


def test_noise_is_the_legacy_generator_restarted_for_every_image() -> None:
    image = sample((7, 9, 3))
    np.random.seed(5)
    expected = image + np.random.normal(0, 30 / 255, image.shape)
    for _ in range(2):
        np.testing.assert_array_equal(add_gaussian_noise(image, 30, seed=5), expected)
    np.testing.assert_array_equal(add_gaussian_noise(image, 0), image)


@pytest.mark.parametrize("sigma", [-1, float("nan"), float("inf")])
def test_impossible_noise_levels_are_refused(sigma: float) -> None:
    with pytest.raises(InputError, match="sigma"):
        add_gaussian_noise(sample((4, 4)), sigma)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "bsd100")) for n in BICUBIC])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_meets_the_published_scores_under_float_lr(data_root: Path, name: str, scale: int) -> None:
    scores = []
    for _, image in scoring_set(data_root, name):
        grey = image / 255 if image.ndim == 2 else quantize8(studio_luma(image / 255))
        high = crop(grey, scale)
        height, width = high.shape
        low = resize_bicubic(high, height // scale, width // scale)
        output = quantize8(resize_bicubic(low, height, width))
        scores.append((psnr(high, output, border=scale), ssim(high, output, border=scale)))
    expected_psnr, expected_ssim = BICUBIC[name][scale - 2]
    assert np.mean([s[0] for s in scores]) == pytest.approx(expected_psnr, abs=0.006)
    assert np.mean([s[1] for s in scores]) == pytest.approx(expected_ssim, abs=6e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["set5", "set14", "bsd100"])
def test_low_resolution_images_made_by_matlab_are_reproduced_exactly(
    data_root: Path, name: str, scale: int, count: Callable[[int], int]
) -> None:
    images = scoring_set(data_root, name)
    for stem, image in images[: count(100) if name == "bsd100" else None]:
        expected = np.array(Image.open(data_root / name / f"lr_x{scale}" / f"{stem}.png"))
        made = resize_bicubic8(crop(image, scale), *expected.shape[:2])
        np.testing.assert_array_equal(made, expected)


def bicubic_psnr(images: list[np.ndarray], plane: Callable[[np.ndarray], np.ndarray]) -> float:
    """Of a plane, or of all channels, of images made two times smaller and larger again, float in between."""
    scores = []
    for image in images:
        high = plane(crop(image, 2) / 255)
        height, width = high.shape[:2]
        low = resize_bicubic(high, height // 2, width // 2)
        scores.append(psnr(high, np.clip(resize_bicubic(low, height, width), 0, 1), border=2))
    return float(np.mean(scores))


def test_traps_of_the_protocol_cost_what_they_are_known_to_cost(data_root: Path) -> None:
    """Another luminance, colour, or Pillow's bicubic: numbers that look like the field's and are not."""
    images = [image for _, image in scoring_set(data_root, "set5")]
    right = bicubic_psnr(images, studio_luma)
    assert right - bicubic_psnr(images, lambda x: x @ [0.299, 0.587, 0.114]) == pytest.approx(1.32, abs=0.01)
    assert 1.3 < right - bicubic_psnr(images, lambda x: x) < 1.9
    pillow = []
    for image in images:
        high = crop(quantize8(studio_luma(image / 255)), 2)
        height, width = high.shape
        small = Image.fromarray(np.rint(high * 255).astype(np.uint8)).resize(
            (width // 2, height // 2), BICUBIC_OF_PILLOW
        )
        large = np.asarray(small.resize((width, height), BICUBIC_OF_PILLOW)) / 255
        pillow.append(psnr(high, large, border=2))
    assert 33.66 - np.mean(pillow) > 0.02  # of an image, up to 0.05
    assert dict(scoring_set(data_root, "set14"))["bridge"].ndim == 2  # grey, and stays so


@pytest.mark.parametrize("factor", [1 / 4, 1 / 3, 1 / 2, 2, 3, 4])
@pytest.mark.parametrize(("border", "mode"), [("replicate", "edge"), ("symmetric", "symmetric")])
def test_resizing_agrees_with_torch_on_a_padded_image(factor: float, border: Border, mode: str) -> None:
    image = sample((24, 36))
    pad = 12  # a multiple of every divisor, beyond the reach of the kernel
    padded = torch.from_numpy(np.pad(image, pad, mode=mode))[None, None]
    wide = torch.nn.functional.interpolate(padded, scale_factor=factor, mode="bicubic", antialias=True)
    height, width, skip = round(24 * factor), round(36 * factor), round(pad * factor)
    expected = wide[0, 0, skip : skip + height, skip : skip + width].numpy()
    np.testing.assert_allclose(resize_bicubic(image, height, width, border=border), expected, atol=1e-12)


def test_borders_differ_at_the_border_only() -> None:
    image = sample((40, 40))
    difference = np.abs(resize_bicubic(image, 20, 20) - resize_bicubic(image, 20, 20, border="symmetric"))
    assert difference.max() > 1e-3
    assert difference[2:-2, 2:-2].max() < 1e-12


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (13, 7), (29, 50)])
def test_resizing_keeps_constants_channels_and_the_identity(size: tuple[int, int]) -> None:
    image = sample((13, 7, 3))
    np.testing.assert_allclose(resize_bicubic(image, 13, 7), image, atol=1e-12)
    np.testing.assert_allclose(resize_bicubic(np.full((13, 7), 0.3), *size), 0.3, atol=1e-12)
    whole = resize_bicubic(image, *size)
    assert whole.shape == (*size, 3)
    for channel in range(3):
        np.testing.assert_allclose(whole[..., channel], resize_bicubic(image[..., channel], *size), atol=1e-12)


def test_without_antialiasing_every_other_pixel_is_a_plain_cubic() -> None:
    image = sample((8, 8))
    thin = resize_bicubic(image, 4, 4, antialias=False)
    weights = np.array([-1, 9, 9, -1]) / 16  # Keys' cubic halfway between two pixels
    assert thin[1, 1] == pytest.approx(weights @ image[1:5, 1:5] @ weights)


def test_images_that_cannot_be_resized_are_refused() -> None:
    image = sample((8, 8))
    with pytest.raises(InputError, match="border"):
        resize_bicubic(image, 4, 4, border="wrap")  # type: ignore[arg-type]
    for bad in (image[0], image.astype(np.uint8), image[:0]):
        with pytest.raises(InputError):
            resize_bicubic(bad, 4, 4)
    with pytest.raises(InputError, match="at least 1"):
        resize_bicubic(image, 0, 4)
    with pytest.raises(InputError, match="uint8"):
        resize_bicubic8(image, 4, 4)
