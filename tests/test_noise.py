"""The noise estimate: exact on pure noise, within measured bounds on photographs, in bounded time; and its kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nlrn.errors import InputError
from nlrn.functional.camera import Camera, add_camera_noise, at_level, draw_camera
from nlrn.functional.correlated import measurements
from nlrn.functional.degradations import add_gaussian_noise
from nlrn.functional.noise import NoiseEstimate, _texture, _texture_of_noise, estimate_noise, estimate_sigma
from nlrn.io.datasets import scoring_set

Count = Callable[[int], int]

# Mean and worst absolute error, one noise seed an image. Measured on Set12 0.28/0.54, 0.20/0.34, 0.19/0.38, 0.16/0.38,
# 0.14/0.26, 0.17/0.50; on CBSD68 0.17/0.91, 0.28/1.69, 0.36/1.76, 0.43/2.13, 0.46/1.82, 0.42/1.90.
BOUNDS = {
    "set12": {
        0: (1.1, 2.2),
        5: (0.35, 0.7),
        10: (0.3, 0.5),
        15: (0.3, 0.5),
        25: (0.3, 0.6),
        50: (0.3, 0.6),
        75: (0.3, 0.7),
    },
    "cbsd68": {
        0: (0.6, 2.4),
        5: (0.25, 1.0),
        10: (0.35, 1.8),
        15: (0.45, 1.9),
        25: (0.5, 2.3),
        50: (0.6, 2.0),
        75: (0.6, 2.1),
    },
}


USUAL = [("set12", 0), ("set12", 15), ("cbsd68", 25)]


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        pytest.param(name, sigma, marks=[pytest.mark.slow] * ((name, sigma) not in USUAL))
        for name, bounds in BOUNDS.items()
        for sigma in bounds
    ],
)
def test_photographs_are_estimated_within_the_measured_bounds(
    data_root: Path, count: Count, name: str, sigma: int
) -> None:
    images = scoring_set(data_root, name)[: count(68) if name == "cbsd68" else None]
    errors = [
        abs(estimate_sigma(add_gaussian_noise(image / 255, sigma, seed)) - sigma)
        for seed, (_, image) in enumerate(images)
    ]
    mean, worst = BOUNDS[name][sigma]
    assert max(errors) <= worst
    if len(images) > 6:
        assert np.mean(errors) <= mean


def test_the_limit_of_texture_is_that_of_noise() -> None:
    """The quantile that is computed, against the same of drawn patches."""
    for patch in range(3, 8):
        drawn = np.random.RandomState(0).normal(size=(100_000, patch, patch))
        assert np.mean(_texture(drawn) > _texture_of_noise(patch)) == pytest.approx(1e-3, abs=7e-4)


@pytest.mark.parametrize("shape", [(256, 256), (100, 300, 3), (1500, 1400)])
@pytest.mark.parametrize("sigma", [2, 25])
def test_noise_on_a_smooth_image_is_estimated_within_3_percent(shape: tuple[int, ...], sigma: float) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]] / 100
    smooth = (0.5 + 0.2 * np.sin(rows + columns)).reshape(*shape[:2], *(1,) * (len(shape) - 2))
    noisy = add_gaussian_noise(np.broadcast_to(smooth, shape).copy(), sigma)
    assert estimate_sigma(noisy) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("side", [16, 20, 32, 48])
def test_small_images_of_noise_are_estimated_within_30_percent(side: int) -> None:
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


def test_a_flat_image_has_no_noise() -> None:
    assert estimate_sigma(np.full((32, 32), 0.3)) == pytest.approx(0, abs=1e-4)


def test_time_does_not_grow_with_the_square_of_the_pixels() -> None:
    """Guards against quadratic growth: as it is, 512 x 512 pixels take a small part of these 5 seconds."""
    noisy = np.random.RandomState(0).rand(512, 512)
    start = time.process_time()
    estimate_sigma(noisy)
    assert time.process_time() - start <= 5


def test_images_that_cannot_be_estimated_are_refused() -> None:
    good = np.random.RandomState(0).rand(32, 32)
    for bad in (
        good[:15],
        good[:, :15],
        good[0],
        (good * 255).astype(np.uint8),
        np.full((32, 32), np.nan),
        good * 1e200,
        np.zeros((20, 20, 0)),
    ):
        with pytest.raises(InputError):
            estimate_sigma(bad)


@pytest.mark.parametrize("share", [0.1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.2, 0.3)), 0.5])
def test_areas_of_one_value_are_passed_over(share: float) -> None:
    """Borders, margins, clipped sky: black, white, on either side."""
    clean = np.asarray(Image.open(Path(__file__).parents[1] / "examples" / "camera.png")) / 255
    noisy = np.rint(np.clip(add_gaussian_noise(clean, 25), 0, 1) * 255) / 255
    width = int(share * 512)
    for where in (np.s_[:, :width], np.s_[512 - width :], np.s_[:, 512 - width :]):
        for value in (0.0, 1.0):
            bordered = noisy.copy()
            bordered[where] = value
            assert estimate_sigma(bordered) == pytest.approx(25, abs=2.5)


def camera_noise(level: float, seed: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """(noisy, clean): part of a photograph that ships with the package, as a camera of that seed would store it."""
    with Image.open(Path(__file__).parents[1] / "examples" / "camera.png") as file:
        grey = file.convert("L").resize((size, size), Image.Resampling.BICUBIC)
    clean = np.repeat(np.asarray(grey)[..., None] / 255, 3, axis=2) * np.array([0.95, 0.9, 0.8]) + 0.02
    random = np.random.default_rng(seed)
    return add_camera_noise(clean, at_level(draw_camera(random), level), random), clean


@pytest.mark.parametrize("level", [5.0, pytest.param(10.0, marks=pytest.mark.slow)])
def test_camera_noise_is_recognised_and_its_level_found_within_a_factor_of_two(level: float) -> None:
    """Where the estimate for white noise finds a fraction of it; the truth is the simulated noise itself."""
    ratios, white_ratios = [], []
    for seed in range(8):
        noisy, clean = camera_noise(level, seed)
        truth = float(np.std(noisy - clean) * 255)
        found = estimate_noise(noisy)
        ratios.append((found.kind, found.level / truth))
        white_ratios.append(estimate_noise(noisy, "gaussian").level / truth)
    assert sum(kind == "camera" and 0.5 < ratio < 2 for kind, ratio in ratios) >= 7, ratios
    assert np.median(white_ratios) < 0.5


def test_white_noise_is_estimated_as_ever_and_called_white() -> None:
    with Image.open(Path(__file__).parents[1] / "examples" / "camera.png") as file:
        clean = np.asarray(file.convert("L")) / 255
    for sigma in (5, 25, 75):
        noisy = add_gaussian_noise(clean, sigma)
        found = estimate_noise(noisy)
        assert (found.kind, found.correlation) == ("white", 0)
        assert found.level == found.sigma == estimate_sigma(noisy)
        assert found == estimate_noise(noisy, "gaussian")


def test_an_image_that_grows_or_has_equal_channels_is_judged_alike() -> None:
    noisy, _ = camera_noise(8.0, 1)
    grey = noisy[..., 1]
    assert estimate_noise(np.repeat(grey[..., None], 3, axis=2)) == estimate_noise(grey)
    once, tiled = estimate_noise(noisy), estimate_noise(np.tile(noisy, (2, 2, 1)))
    assert tiled.kind == once.kind == "camera"
    assert tiled.level == pytest.approx(once.level, rel=0.25)


@pytest.mark.parametrize("background", [0.03, 0.96])
def test_a_background_where_the_tone_curve_compresses_the_noise_hides_none_of_it(background: float) -> None:
    """Half of the image is nearly black or white, where the noise is much weaker than elsewhere."""
    rows, columns = np.mgrid[:256, :512] / 255
    scene = np.repeat((0.45 + 0.15 * np.sin(3 * rows + 2 * columns))[..., None], 3, axis=2)
    scene[:, 256:] = background
    camera = at_level(Camera(tone=1.0, quality=92, luma_blur=0.5, subsampling="4:4:4"), 4.0)
    noisy = add_camera_noise(scene, camera, np.random.default_rng(1))
    whole, alone = estimate_noise(noisy), estimate_noise(noisy[:, :256])
    assert whole.kind == alone.kind == "camera"
    assert whole.level >= 0.8 * alone.level


def test_images_that_show_too_little_are_taken_to_have_white_noise() -> None:
    for image in (np.full((32, 32), 0.3), np.full((300, 300, 3), 0.3), camera_noise(8.0, 1, 96)[0][:60, :60]):
        found = estimate_noise(image)
        assert (found.kind, found.sigma) == ("white", estimate_sigma(image))
        assert np.isfinite(found.level)
    with pytest.raises(InputError, match="noise must be auto or gaussian"):
        estimate_noise(np.random.RandomState(0).rand(32, 32), "photo")


def test_correlations_are_those_of_the_noise() -> None:
    """Of white noise convolved with a kernel they are the kernel's autocorrelation, less what a block's plane takes."""
    kernel = np.array([0.5, 1.0, 0.5])
    noise = np.random.RandomState(0).normal(0, 0.03, (512, 512))
    noise = sum(w * np.roll(noise, i, 0) for i, w in enumerate(kernel))
    noise = sum(w * np.roll(noise, i, 1) for i, w in enumerate(kernel))
    found = measurements(0.5 + noise, 1.0)
    assert found is not None
    assert found[1] == pytest.approx(np.convolve(kernel, kernel)[1] / np.convolve(kernel, kernel)[2], abs=0.1)


def test_what_was_found_is_told_in_words_and_in_numbers() -> None:
    found = NoiseEstimate(6.24, "camera", 0.618, 12.3)
    assert str(found) == "camera-like noise, level 6.2, correlated (0.62)"
    assert found.record() == {"kind": "camera", "level": 6.24, "correlation": 0.62, "sigma": 12.3}
    assert str(NoiseEstimate(22.52, "white", 0.0, 22.52)) == "sigma 22.5"


def test_an_image_of_24_megapixels_is_judged_by_a_part_of_it() -> None:
    start = time.process_time()
    measurements(np.random.RandomState(0).rand(4000, 6000).astype(np.float32), 10.0)
    assert time.process_time() - start <= 5
