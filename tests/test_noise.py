"""The noise estimate: exact on pure noise, within measured bounds on photographs, in bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from nlrn.datasets import scoring_set
from nlrn.degradations import add_gaussian_noise
from nlrn.errors import InputError
from nlrn.noise import estimate_sigma

# Mean and worst absolute error on Set12, one noise seed a picture: measured 1.92/4.99, 1.21/3.11, 0.84/2.13,
# 0.53/1.10, 0.41/0.98, 0.29/0.60.
BOUNDS = {5: (2.1, 5.3), 10: (1.4, 3.4), 15: (1.0, 2.4), 25: (0.7, 1.4), 50: (0.6, 1.3), 75: (0.5, 1.0)}


@pytest.mark.parametrize("sigma", BOUNDS)
def test_photographs_are_estimated_within_the_measured_bounds(data_root: Path, sigma: int) -> None:
    errors = [
        abs(estimate_sigma(add_gaussian_noise(image / 255, sigma, seed)) - sigma)
        for seed, (_, image) in enumerate(scoring_set(data_root, "set12"))
    ]
    mean, worst = BOUNDS[sigma]
    assert np.mean(errors) <= mean
    assert max(errors) <= worst


@pytest.mark.parametrize("shape", [(256, 256), (100, 300, 3), (1500, 1400)])
@pytest.mark.parametrize("sigma", [2, 25])
def test_noise_on_a_smooth_picture_is_estimated_within_3_percent(shape: tuple[int, ...], sigma: float) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]] / 100
    smooth = (0.5 + 0.2 * np.sin(rows + columns)).reshape(*shape[:2], *(1,) * (len(shape) - 2))
    noisy = add_gaussian_noise(np.broadcast_to(smooth, shape).copy(), sigma)
    assert estimate_sigma(noisy) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("side", [16, 20, 32, 48])
def test_small_pictures_of_noise_are_estimated_within_30_percent(side: int) -> None:
    for seed in range(10):
        noise = np.random.RandomState(seed).normal(0.5, 25 / 255, (side, side))
        assert estimate_sigma(noise) == pytest.approx(25, rel=0.3)


def test_colour_is_the_mean_over_the_channels() -> None:
    noisy = np.random.RandomState(0).normal(0.5, [0.02, 0.05, 0.11], (64, 80, 3))
    channels = [estimate_sigma(noisy[..., c]) for c in range(3)]
    assert estimate_sigma(noisy) == pytest.approx(np.mean(channels))
    assert estimate_sigma(noisy[..., :1]) == pytest.approx(channels[0])


def test_estimate_ignores_offset_and_follows_the_scale() -> None:
    noisy = np.random.RandomState(0).normal(0.5, 0.1, (64, 64))
    estimate = estimate_sigma(noisy)
    assert estimate_sigma(noisy + 3) == pytest.approx(estimate, rel=1e-6)
    assert estimate_sigma(noisy * 0.25) == pytest.approx(estimate / 4, rel=1e-6)
    assert estimate_sigma(noisy.astype(np.float32)) == pytest.approx(estimate, rel=1e-4)


def test_a_flat_picture_has_no_noise() -> None:
    assert estimate_sigma(np.full((32, 32), 0.3)) == pytest.approx(0, abs=1e-4)


def test_time_does_not_grow_with_the_square_of_the_pixels() -> None:
    """Guards against quadratic growth: as it is, 512 x 512 pixels take a small part of these 5 seconds."""
    noisy = np.random.RandomState(0).rand(512, 512)
    start = time.process_time()
    estimate_sigma(noisy)
    assert time.process_time() - start <= 5


def test_pictures_that_cannot_be_estimated_are_refused() -> None:
    good = np.random.RandomState(0).rand(32, 32)
    for bad in (good[:15], good[:, :15], good[0], (good * 255).astype(np.uint8), np.full((32, 32), np.nan)):
        with pytest.raises(InputError):
            estimate_sigma(bad)
