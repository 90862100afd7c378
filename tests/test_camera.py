"""Camera noise: every step against an independent definition, and the whole against the noise of a real camera."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import color
from skimage.color import colorconv

from nlrn.errors import ConfigError, InputError
from nlrn.functional.camera import (
    CAMERA_LEVELS,
    DEMOSAICING,
    DENOISING,
    SUBSAMPLING,
    Camera,
    add_camera_noise,
    at_level,
    camera_level,
    demosaic,
    denoised,
    draw_camera,
    from_raw,
    jpeg,
    mosaic,
    noisy_at,
    raw_noise,
    smoothed,
    to_linear,
    to_raw,
    to_srgb,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import measure_camera

INSIDE = np.s_[2:-2, 2:-2]  # where no kernel reaches over the border


def image(shape: tuple[int, ...] = (24, 32, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- tone and colour -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tone", [0, 1e-6, 0.3, 1])
def test_linear_light_and_back(tone: float) -> None:
    x = np.linspace(0, 1, 4097)
    np.testing.assert_allclose(to_srgb(to_linear(x, tone), tone), x, atol=1e-7 if tone == 1e-6 else 1e-9)
    assert (np.diff(to_linear(x, tone)) > 0).all()


def test_without_a_tone_curve_it_is_srgb() -> None:
    x = image()
    np.testing.assert_allclose(to_linear(x, 0) @ colorconv.xyz_from_rgb.T, color.rgb2xyz(x), atol=1e-12)
    assert to_linear(np.array(0.5), 0) == pytest.approx(0.21404114)


def test_the_tone_curve_is_the_smooth_step_of_the_source() -> None:
    x = image()
    plain = to_srgb(x, 0)
    np.testing.assert_allclose(to_srgb(x, 1), 3 * plain**2 - 2 * plain**3, atol=1e-12)
    inverse = 0.5 - np.sin(np.arcsin(1 - 2 * x) / 3)  # Brooks et al. 2019
    np.testing.assert_allclose(to_linear(x, 1), to_linear(inverse, 0), atol=1e-9)


def test_raw_colours() -> None:
    camera = draw_camera(generator(3))
    raw = 0.1 + 0.1 * image()
    linear = from_raw(raw, camera)
    np.testing.assert_allclose(to_raw(linear, camera), raw, atol=1e-12)
    red, blue = camera.gains
    np.testing.assert_allclose(linear[0, 0], np.reshape(camera.matrix, (3, 3)) @ (raw[0, 0] * [red, 1, blue]))
    np.testing.assert_allclose(to_raw(np.full((1, 1, 3), 0.7), camera)[0, 0], [0.7 / red, 0.7, 0.7 / blue])


# -- the sensor ----------------------------------------------------------------------------------------------------


def masks(shape: tuple[int, int], phase: int) -> np.ndarray:
    """HWC: 1 where a colour is sampled, pixel by pixel."""
    result = np.zeros((*shape, 3))
    for y, x in np.ndindex(shape):
        tile = (y % 2 - phase // 2) % 2, (x % 2 - phase % 2) % 2
        result[y, x, {(0, 0): 0, (1, 1): 2}.get(tile, 1)] = 1
    return result


@pytest.mark.parametrize("phase", range(4))
def test_a_mosaic_holds_one_colour_a_pixel(phase: int) -> None:
    x = image((7, 10, 3))
    np.testing.assert_array_equal(mosaic(x, phase), (x * masks((7, 10), phase)).sum(-1))


@pytest.mark.parametrize("phase", range(4))
@pytest.mark.parametrize("method", DEMOSAICING)
def test_demosaicing_is_exact_on_ramps_and_keeps_what_was_sampled(method: str, phase: int) -> None:
    down, right = np.mgrid[:13, :16] / 16.0
    ramp = np.stack([0.1 + 0.5 * right, 0.9 - 0.3 * down - 0.2 * right, 0.4 * down], -1)
    np.testing.assert_allclose(demosaic(mosaic(ramp, phase), phase, method)[INSIDE], ramp[INSIDE], atol=1e-12)
    flat = np.broadcast_to([0.2, 0.5, 0.7], (13, 16, 3))
    np.testing.assert_allclose(demosaic(mosaic(flat, phase), phase, method), flat, atol=1e-12)  # the border too
    x = image((12, 15, 3))
    sampled = masks((12, 15), phase)
    np.testing.assert_array_equal((demosaic(mosaic(x, phase), phase, method) * sampled), x * sampled)


@pytest.mark.parametrize("phase", range(4))
def test_bilinear_is_the_usual_convolution_of_each_sparse_plane(phase: int) -> None:
    raw = image((14, 12))
    tent = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    sparse = raw[..., None] * masks(raw.shape, phase)
    expected = [ndimage.convolve(sparse[..., i], k, mode="mirror") for i, k in enumerate((tent, cross, tent))]
    np.testing.assert_allclose(demosaic(raw, phase, "bilinear"), np.stack(expected, -1), atol=1e-12)


@pytest.mark.parametrize("phase", range(4))
def test_gradient_correction_is_the_laplacian_of_the_colour_that_is_there(phase: int) -> None:
    """Malvar, He and Cutler 2004, equations 2 to 5 with alpha = 1/2, beta = 5/8, gamma = 3/4."""
    raw = image((12, 14))
    expected = demosaic(raw, phase, "bilinear")
    sampled = masks(raw.shape, phase)
    for y, x in ((y, x) for y in range(2, 10) for x in range(2, 12)):
        laplacian = raw[y, x] - (raw[y - 2, x] + raw[y + 2, x] + raw[y, x - 2] + raw[y, x + 2]) / 4
        if sampled[y, x, 1]:
            across = raw[y - 1, x - 1] + raw[y - 1, x + 1] + raw[y + 1, x - 1] + raw[y + 1, x + 1]
            row, column = raw[y, x - 2] + raw[y, x + 2], raw[y - 2, x] + raw[y + 2, x]
            of_row, of_column = (across + row) / 5 - column / 10, (across + column) / 5 - row / 10
            red_beside = sampled[y, x - 1, 0]
            expected[y, x, 0] += 5 / 8 * (raw[y, x] - (of_row if red_beside else of_column))
            expected[y, x, 2] += 5 / 8 * (raw[y, x] - (of_column if red_beside else of_row))
        else:
            expected[y, x, 1] += laplacian / 2
            expected[y, x, 2 if sampled[y, x, 0] else 0] += 3 / 4 * laplacian
    np.testing.assert_allclose(demosaic(raw, phase, "gradient")[INSIDE], expected[INSIDE], atol=1e-12)


def test_variance_grows_with_the_mean() -> None:
    camera = Camera(shot=2e-3, read=0.02)
    for level in (0.0, 0.1, 0.4, 0.9):
        noise = raw_noise(np.full((400, 500), level), camera, generator())
        expected = 2e-3 * level + 0.02**2
        assert noise.mean() == pytest.approx(0, abs=5 * (expected / noise.size) ** 0.5)
        assert noise.var() == pytest.approx(expected, rel=0.02)


def test_shot_noise_counts_electrons() -> None:
    noisy = 0.3 + raw_noise(np.full((100, 100), 0.3), Camera(shot=0.01, read=0), generator())
    electrons = noisy / 0.01
    np.testing.assert_allclose(electrons, np.rint(electrons), atol=1e-9)
    assert electrons.var() == pytest.approx(electrons.mean(), rel=0.1)


def test_rows_and_columns_share_noise() -> None:
    noise = raw_noise(np.zeros((600, 500)), Camera(shot=0, read=0.01, row=0.05, column=0.02), generator())
    assert noise.mean(1).std() == pytest.approx(0.05, rel=0.15)
    assert noise.mean(0).std() == pytest.approx(0.02, rel=0.15)
    alone = noise - noise.mean(0) - noise.mean(1, keepdims=True)
    assert alone.std() == pytest.approx(0.01, rel=0.02)


# -- behind the sensor ---------------------------------------------------------------------------------------------


def test_noise_is_smoothed_by_gaussians_of_luma_and_chroma() -> None:
    noise = image() - 0.5
    jfif = color.rgb2ycbcr(noise) - [16, 128, 128]  # studio range: scaled differently, which a convolution passes
    for channel, sigma in enumerate((0.7, 2.1, 2.1)):
        jfif[..., channel] = ndimage.gaussian_filter(jfif[..., channel], sigma, mode="nearest")
    expected = color.ycbcr2rgb(np.add(jfif, [16, 128, 128]))
    np.testing.assert_allclose(smoothed(noise, 0.7, 2.1), expected, atol=1e-5)  # JFIF's constants have six digits
    grey = smoothed(noise, 0, 0, 0)
    np.testing.assert_allclose(grey, np.repeat(noise @ [[0.299], [0.587], [0.114]], 3, -1), atol=1e-5)
    assert smoothed(noise, 0, 0) is noise


def test_denoising_spares_detail_and_the_noise_there() -> None:
    """Against the local variance of the luma by scipy; smoothed and attenuated where the image is flat."""
    content = np.full((40, 60, 3), 0.4)
    content[:, 30:] = 0.6
    noise = 0.02 * (image(content.shape) - 0.5)
    camera = Camera(luma_blur=0.7, chroma_blur=2.1, chroma=0.5, flat=0.4, edge=2.0)
    weights = np.array([0.299, 0.587, 0.114])
    luma = content @ weights
    mean, square = (ndimage.gaussian_filter(x, 1.5, mode="nearest") for x in (luma, luma**2))
    variance = square - mean**2
    kept = (variance / (variance + 4 * np.mean((noise @ weights) ** 2)))[..., None]
    soft = smoothed(noise, 0.7, 2.1, 0.5)
    found = denoised(noise, content, camera)
    np.testing.assert_allclose(found, kept * noise + (1 - kept) * 0.4 * soft, atol=1e-9)
    np.testing.assert_allclose(found[:, :20], 0.4 * soft[:, :20], atol=1e-9)
    np.testing.assert_allclose(found[:, 29:31], noise[:, 29:31], atol=1e-3)
    everywhere = Camera(luma_blur=0.7, chroma_blur=2.1, chroma=0.5)
    np.testing.assert_array_equal(denoised(noise, content, everywhere), soft)


def test_a_share_of_cameras_spares_detail() -> None:
    plain, some, half, every = (
        [draw_camera(generator(seed), share) for seed in range(200)] for share in (0.0, DENOISING, 0.5, 1.0)
    )
    assert all(camera.flat == 1 for camera in plain)
    assert 80 < sum(camera.flat < 1 for camera in half) < 120
    assert all(camera.flat < 1 for camera in every)
    assert [x for x, y in zip(plain, some, strict=True) if y.flat == 1] == [y for y in some if y.flat == 1]
    assert 150 < sum(camera.flat < 1 for camera in some) < 190
    assert 0.1 < min(camera.flat for camera in some) < 0.15
    for x, y in zip(plain, some, strict=True):
        assert y.read == pytest.approx(x.read * y.flat**-0.5)


def test_a_share_of_cameras_has_coarse_noise() -> None:
    plain, none, some, every = (
        [draw_camera(generator(seed), *shares) for seed in range(200)] for shares in ((1.0,), (1, 0), (1, 0.4), (1, 1))
    )
    assert plain == none
    assert 60 < sum(x != y for x, y in zip(plain, some, strict=True)) < 100
    assert all(0.3 <= camera.luma_blur <= 1.6 and 1 <= camera.scale <= 1.8 for camera in every)
    for x, y in zip(plain, every, strict=True):
        assert (y.read, y.row) == pytest.approx((x.read * (1 + 2 * y.luma_blur), x.row * (1 + 2 * y.luma_blur)))
        assert (
            dataclasses.replace(
                y, luma_blur=x.luma_blur, scale=x.scale, shot=x.shot, read=x.read, row=x.row, column=x.column
            )
            == x
        )


def test_a_camera_that_spares_no_detail_has_the_noise_of_flat_areas_everywhere() -> None:
    camera = Camera(shot=1e-3, luma_blur=0.7, flat=0.4, edge=2.0, quality=None)
    content = np.full((64, 96, 3), 0.5)
    content[:, 48:] += 0.1 * np.where(np.arange(48) // 2 % 2, 1.0, -1.0)[:, None]  # detail at the right
    kept, even = (add_camera_noise(content, c, generator()) - content for c in (camera, camera.even()))
    np.testing.assert_allclose(kept[:, :40], even[:, :40], atol=1.5 / 255)
    assert kept[:, 52:].std() > 2 * even[:, 52:].std()
    assert even[:, 52:].std() == pytest.approx(even[:, :40].std(), rel=0.15)


@pytest.mark.parametrize("subsampling", SUBSAMPLING)
def test_jpeg_is_pillows(subsampling: str) -> None:
    x = np.clip(ndimage.gaussian_filter(image((40, 50, 3)), (2, 2, 0)) * 3 - 1, 0, 1)
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * x).astype(np.uint8)).save(file, "JPEG", quality=75, subsampling=subsampling)
    np.testing.assert_array_equal(np.rint(255 * jpeg(x, 75, subsampling)), np.asarray(Image.open(file)))
    assert np.abs(jpeg(x, 100, "4:4:4") - x).max() < 5 / 255


@pytest.mark.parametrize("seed", range(12))
def test_on_a_flat_area_it_is_the_whole_way_through_the_camera(seed: int) -> None:
    """Sensor, demosaicing, colour, tone, one after the other, without the splitting into image and noise."""
    drawn = draw_camera(generator(seed))
    camera = Camera(**{**vars(drawn), "luma_blur": 0, "chroma_blur": 0, "chroma": 1, "scale": 1, "quality": None})
    area = np.broadcast_to(0.2 + 0.5 * image((1, 1, 3), seed), (16, 18, 3)).astype(np.float64)
    raw = mosaic(to_raw(to_linear(area, camera.tone), camera), camera.phase)
    exposed = np.minimum(raw + raw_noise(raw, camera, generator(seed)), 1)
    linear = np.clip(from_raw(demosaic(exposed, camera.phase, camera.demosaic), camera), 0, 1)
    expected = np.rint(255 * to_srgb(linear, camera.tone)) / 255
    found = add_camera_noise(area, camera, generator(seed))
    assert np.mean(found != expected) < 0.01  # a half may be rounded either way
    np.testing.assert_allclose(found, expected, atol=1.01 / 255)


def test_without_noise_the_content_passes() -> None:
    x = np.rint(255 * image()) / 255
    for method in DEMOSAICING:
        camera = Camera(shot=0, read=0, demosaic=method, chroma_blur=2, scale=0.6, quality=None)
        np.testing.assert_allclose(add_camera_noise(x, camera, generator()), x, atol=1e-12)


def test_what_is_made_follows_from_image_camera_and_generator() -> None:
    for seed in range(8):
        camera, x = draw_camera(generator(seed)), image(seed=seed)
        assert camera == draw_camera(generator(seed))
        once, again = (add_camera_noise(x, camera, generator(5)) for _ in range(2))
        np.testing.assert_array_equal(once, again)
        assert once.shape == x.shape
        assert once.dtype == np.float64
        np.testing.assert_allclose(np.rint(255 * once), 255 * once, atol=1e-9)
        single = add_camera_noise(x.astype(np.float32), camera, generator(5))
        assert single.dtype == np.float32
        assert np.abs(single - once).mean() < 0.5 / 255


def test_a_level_is_reached() -> None:
    for seed in range(6):
        camera = draw_camera(generator(seed))
        for level in (2, 5, 10):
            assert camera_level(at_level(camera, level), seed=1) == pytest.approx(level, rel=0.12)
        assert camera_level(at_level(camera, 0)) == pytest.approx(0, abs=1e-9)
    camera = Camera()
    assert camera_level(camera.amplified(2)) == pytest.approx(2 * camera_level(camera), rel=0.05)


@pytest.mark.parametrize(
    "values",
    [
        {"tone": 2},
        {"gains": (0.0, 1.0)},
        {"matrix": (1.0,) * 9},
        {"matrix": (1.0,)},
        {"shot": -1.0},
        {"read": float("nan")},
        {"phase": 4},
        {"demosaic": "cubic"},
        {"scale": 0},
        {"flat": 1.5},
        {"edge": 0.0},
        {"quality": 0},
        {"subsampling": "4:1:1"},
    ],
)
def test_an_impossible_camera_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Camera(**values)  # type: ignore[arg-type]


def test_images_that_no_camera_makes_are_refused() -> None:
    good = image()
    nan = good.copy()
    nan[0, 0, 0] = np.nan
    for bad, named in (
        (good[..., 0], "of 3 channels"),
        (good[:4], "at least 8 x 8"),
        (np.zeros((9, 9, 3), np.uint8), "got uint8"),
        (good * 2, "its values are 0"),
        (good - 1, "its values are -"),
        (nan, "nan"),
    ):
        with pytest.raises(InputError, match=named):
            add_camera_noise(bad, Camera(), generator())
    with pytest.raises(ConfigError):
        demosaic(good[..., 0], 0, "nearest")
    with pytest.raises(ConfigError):
        jpeg(good, 80, "4:1:1")
    for level in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="level"):
            at_level(Camera(), level)


def test_drawn_cameras_span_the_noise_of_a_real_one(data_root: Path) -> None:
    """The medians over flat parts of a Canon 5D Mark II's photographs lie well inside the drawn cameras'."""
    photographs, colours = measure_camera.real(data_root / "polyu")
    cameras = measure_camera.modelled(colours, 300)
    assert len(photographs) == 29
    for key in photographs[0]:
        low, high = np.percentile([s[key] for s in cameras], (10, 90))
        assert low < np.median([s[key] for s in photographs]) < high, key


def test_noise_for_scores_follows_from_the_image_alone() -> None:
    x = np.rint(255 * image((48, 64, 3))) / 255
    y = np.rint(255 * image((48, 64, 3), 1)) / 255
    np.testing.assert_array_equal(noisy_at(x, 6), noisy_at(x.astype(np.float32), 6))
    levels = [float((255 * (noisy_at(0.25 + x / 2, level) - 0.25 - x / 2)).std()) for level in CAMERA_LEVELS]
    assert levels == sorted(levels)
    assert not np.array_equal(noisy_at(x, 6) - x, noisy_at(y, 6) - y)
