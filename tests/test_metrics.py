"""PSNR and SSIM against scikit-image, and the field's rounding rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nlrn.errors import InputError
from nlrn.functional.metrics import psnr, quantize8, ssim, studio_luma


def image_pair(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image in [0, 1] and the same with noise."""
    random = np.random.RandomState(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = 0.5 + 0.4 * np.sin(rows / 5 + seed) * np.cos(columns / 7)
    clean = smooth if len(shape) == 2 else np.stack([smooth, smooth**2, 1 - smooth], axis=-1)
    return clean, clean + random.normal(0, random.uniform(0.01, 0.2), shape)


@pytest.mark.parametrize("border", [0, 3])
@pytest.mark.parametrize("shape", [(11 + 6, 40), (33, 28), (30, 31, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_metrics_agree_with_scikit_image(seed: int, shape: tuple[int, ...], border: int) -> None:
    a, b = image_pair(seed, shape)
    inside = (slice(border, shape[0] - border), slice(border, shape[1] - border))
    expected = structural_similarity(
        a[inside], b[inside], gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=1, channel_axis=2 if len(shape) == 3 else None,
    )  # fmt: skip
    assert ssim(a, b, border=border) == pytest.approx(expected, abs=1e-6)
    expected = peak_signal_noise_ratio(a[inside], b[inside], data_range=1)
    assert psnr(a, b, border=border) == pytest.approx(expected, abs=1e-9)


def test_ssim_on_the_0_255_scale_is_the_same_number() -> None:
    a, b = (quantize8(x) for x in image_pair(4, (40, 50)))
    expected = structural_similarity(
        a * 255, b * 255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_equal_images() -> None:
    a, _ = image_pair(0, (20, 20))
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1)


def test_a_known_psnr_and_symmetry() -> None:
    a, b = image_pair(1, (20, 20))
    assert psnr(np.zeros((4, 4)), np.full((4, 4), 0.1)) == pytest.approx(20)
    assert psnr(a, b) == psnr(b, a)
    assert ssim(a, b) == pytest.approx(ssim(b, a))


def test_float32_is_scored_in_float64() -> None:
    a, b = (x.astype(np.float32) for x in image_pair(2, (64, 64)))
    assert psnr(a, b) == psnr(a.astype(np.float64), b.astype(np.float64))


@settings(max_examples=50)
@given(st.floats(-3, 3))
def test_quantize8_gives_the_nearest_of_256_levels(value: float) -> None:
    level = float(quantize8(np.array([value]))[0]) * 255
    assert level == pytest.approx(round(level))
    assert 0 <= round(level) <= 255
    assert abs(level - min(max(value * 255, 0), 255)) <= 0.5 + 1e-9
    assert quantize8(np.array([level / 255]))[0] * 255 == pytest.approx(level)


def test_studio_luma_spans_16_to_235_and_costs_1_32_db_less() -> None:
    corners = np.array([[[0, 0, 0], [1, 1, 1], [1, 0, 0]]], dtype=np.float64)
    np.testing.assert_allclose(studio_luma(corners) * 255, [[16, 235, 16 + 65.481]])
    a, b = (np.repeat(x[..., None], 3, axis=2) for x in image_pair(3, (20, 20)))
    gain = psnr(studio_luma(a), studio_luma(b)) - psnr(a, b)
    assert gain == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)


def test_images_that_cannot_be_compared_are_refused() -> None:
    good = np.zeros((20, 20))
    for metric in (psnr, ssim):
        for other in (np.zeros((20, 21)), np.zeros((20, 20, 1)), good.astype(np.uint8)):
            with pytest.raises(InputError):
                metric(good, other)
        with pytest.raises(InputError):
            metric(good, good, border=10)
        with pytest.raises(InputError):
            metric(good, good, border=-1)
    with pytest.raises(InputError):
        ssim(good[:10], good[:10])
    with pytest.raises(InputError):
        studio_luma(good)
