"""The range that an image is restored on: laws of the choice, and that every entry makes the same one."""

from __future__ import annotations

import json
import re
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import nlrn
from nlrn.cli import run
from nlrn.errors import ConfigError, InputError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.degradations import resize_bicubic
from nlrn.functional.ranges import LARGE, SMALL, Scale, parsed, robust_range, scale_of
from nlrn.inference.restorer import Restorer, Settings
from nlrn.io.image import ImageData, read_image, write_image

CAMERA = np.asarray(Image.open(Path(__file__).parents[1] / "examples/camera.png")).astype(np.float64) / 255
CLEAN = CAMERA[160:224, 128:192]
NOISE = np.random.default_rng(1).normal(0, 1, CLEAN.shape)


@pytest.fixture(scope="module")
def denoiser() -> Restorer:
    return Restorer(settings=Settings(precision="fp32"))


@pytest.fixture(scope="module")
def enlarger() -> Restorer:
    return Restorer("sr-small", settings=Settings(precision="fp32"))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(1 / np.mean((a.astype(np.float64) - b) ** 2)))


# -- the law: restoring a x + b with sigma a is a times what x gives, plus b ------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.floats(-4, 0), st.floats(0, 0.9), st.sampled_from([5.0, 25.0, 60.0]))
@example(-4.0, 0.5, 25.0)
@example(-4.0, 0.0, 5.0)
def test_the_result_follows_the_scale_of_the_image(
    denoiser: Restorer, exponent: float, offset: float, sigma: float
) -> None:
    x = 0.1 * (CLEAN + sigma / 255 * NOISE)
    assert np.ptp(x) < SMALL
    a = 10.0**exponent
    first, second = denoiser.denoise(x, 0.1 * sigma), denoiser.denoise(a * x + offset, 0.1 * sigma * a)
    assert np.abs((second - offset) / a - first).max() < 2e-5 * 0.1


@settings(max_examples=6, deadline=None)
@given(st.floats(-4, 0), st.floats(0, 0.9))
def test_the_estimate_follows_the_scale_of_the_image(denoiser: Restorer, exponent: float, offset: float) -> None:
    x, a = 0.1 * (CLEAN + 20 / 255 * NOISE), 10.0**exponent
    first, second = denoiser.noise_level(x, "auto"), denoiser.noise_level(a * x + offset, "auto")
    assert second / a == pytest.approx(first, rel=1e-3)
    assert np.abs((denoiser.denoise(a * x + offset) - offset) / a - denoiser.denoise(x)).max() < 1e-4


@settings(max_examples=6, deadline=None)
@given(st.floats(-4, 0), st.floats(0, 0.9), st.sampled_from([1.5, 2, 3, 5]))
def test_an_enlarged_image_follows_the_scale(enlarger: Restorer, exponent: float, offset: float, scale: float) -> None:
    x, a = 0.2 * CLEAN[:24, :24], 10.0**exponent
    side = round(24 * scale)
    first, second = enlarger.upscale(x, side, side), enlarger.upscale(a * x + offset, side, side)
    assert np.abs((second - offset) / a - first).max() < 1e-5


def test_float32_follows_the_scale_to_its_own_rounding(denoiser: Restorer) -> None:
    x = (0.1 * (CLEAN + 25 / 255 * NOISE)).astype(np.float32)
    for a, b in ((1e-2, 0.5), (1e-4, 0.0), (1e-3, 0.25)):
        got = (denoiser.denoise(np.float32(a) * x + np.float32(b), 2.5 * a).astype(np.float64) - b) / a
        assert np.abs(got - denoiser.denoise(x, 2.5)).max() < 2e-5 + 4 * 6e-8 * b / a


# -- where it takes over ----------------------------------------------------------------------------------------------


def test_it_takes_over_continuously(denoiser: Restorer) -> None:
    x = CLEAN + 15 / 255 * NOISE
    low, high = robust_range(x)
    parts = np.linspace(SMALL - 0.02, LARGE + 0.02, 60) / (high - low)
    steps = [denoiser.denoise(0.1 + p * x, 15 * p) for p in parts]
    jumps = [np.abs(b - a).max() for a, b in pairwise(steps)]
    assert max(jumps) < 3 * np.median(jumps)  # each is about as far as the image itself moves


def test_from_half_of_the_type_on_nothing_changes(denoiser: Restorer) -> None:
    for image in (CLEAN + 25 / 255 * NOISE, 0.7 * CLEAN + 0.1, CAMERA[128:192, 32:96]):
        low, high = robust_range(image)
        assert high - low > LARGE
        assert np.array_equal(denoiser.denoise(image, 25), denoiser.denoise(image, 25, value_range="type"))


def test_the_ends_are_set_apart_by_count() -> None:
    for shape in ((1, 1), (1, 7), (8, 8), (16, 16), (64, 64, 3), (200, 300), (2000, 1500)):
        image = np.random.default_rng(0).uniform(0.4, 0.6, shape)
        low, high = robust_range(image)
        assert image.min() <= low <= high <= image.max()
        hot = image.copy()
        hot[0, 0] = 5.0
        assert robust_range(hot)[1] <= image.max() or image.shape[0] * image.shape[1] < 3


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 0.24), st.floats(-1, 2), st.floats(0, 75))
def test_no_noise_exceeds_what_the_networks_know(part: float, offset: float, sigma: float) -> None:
    image = offset + part * np.linspace(0, 1, 400).reshape(20, 20)
    scale = scale_of(image, "auto", sigma)
    assert sigma / scale.spread <= 75 * (1 + 1e-12)


def test_one_single_value_comes_back() -> None:
    for value in (0.0, 0.3, 1.0):
        image = np.full((24, 24), value, np.float32)
        assert np.abs(nlrn.denoise(image) - value).max() < 1e-6
        assert np.abs(nlrn.denoise(image, 25) - value).max() < 0.02
        assert np.abs(nlrn.upscale(image) - value).max() < 1e-6


# -- what it is for: kinds of narrow images ---------------------------------------------------------------------------


def _ten_bits(x: np.ndarray) -> tuple[np.ndarray, float]:
    return np.clip(np.rint(np.dstack([x * 1023, x * 900, x * 700])), 0, 65535).astype(np.uint16), 1023 / 65535


def _dark_bytes(x: np.ndarray) -> tuple[np.ndarray, float]:
    return np.clip(np.rint(3 + 40 * x), 0, 255).astype(np.uint8), 40 / 255


def _floats(x: np.ndarray) -> tuple[np.ndarray, float]:
    return 0.45 + 0.1 * x, 0.1


def _bright(x: np.ndarray) -> tuple[np.ndarray, float]:
    return (60000 + 3000 * x).round().astype(np.uint16), 3000 / 65535


@pytest.mark.parametrize("make", [_ten_bits, _dark_bytes, _floats, _bright])
def test_a_narrow_image_is_restored_as_a_wide_one(make: object) -> None:
    noisy, part = make(CLEAN + 25 / 255 * NOISE)  # type: ignore[operator]
    clean = make(CLEAN)[0].astype(np.float64)  # type: ignore[operator]
    top = np.iinfo(noisy.dtype).max if noisy.dtype.kind == "u" else 1
    before, after = (psnr(x / top / part, clean / top / part) for x in (noisy, nlrn.denoise(noisy, 25 * part)))
    wide = psnr(nlrn.denoise((CLEAN + 25 / 255 * NOISE).astype(np.float32), 25, value_range=(0.0, 1.0)), CLEAN)
    assert after > before + 5
    assert noisy.ndim == 3 or noisy.dtype == np.uint8 or abs(after - wide) < 0.2  # bytes: rounded to 40 values


def test_narrow_images_are_enlarged_better_than_by_bicubic() -> None:
    low = resize_bicubic(CLEAN, 32, 32)
    for top in (0.05, 0.01, 0.001):
        image = (0.3 + top * low).astype(np.float64)
        up = (nlrn.upscale(image, 2) - 0.3) / top
        assert psnr(up, CLEAN) > psnr(resize_bicubic(low, 64, 64), CLEAN) + 0.5


@pytest.mark.parametrize("hot", [[(10, 10)], [(10, 10), (50, 20), (33, 60)], [(0, 0), (63, 63)]])
@pytest.mark.parametrize("value", [4.9, -3.5])
def test_hot_pixels_do_not_decide(denoiser: Restorer, hot: list[tuple[int, int]], value: float) -> None:
    x = 0.1 * (CLEAN + 10 / 255 * NOISE) + 0.3
    spoilt = x.copy()
    for at in hot:
        spoilt[at] = value
    got, right = denoiser.denoise(spoilt, 1.0), denoiser.denoise(x, 1.0)
    far = np.ones(x.shape, bool)
    for y, c in hot:
        far[max(0, y - 4) : y + 5, max(0, c - 4) : c + 5] = False
    assert psnr(got[far] / 0.1, right[far] / 0.1) > 40
    assert all(abs(got[at] - value) < 0.3 for at in hot)  # as it was, but for what lies within the range


def test_photons_on_a_dark_background(denoiser: Restorer) -> None:
    noise = PoissonNoise(2.0, 1.0)
    clean = 40 * CLEAN + 5
    noisy = noise.add(clean, 3) / 255
    hot = noisy.copy()
    hot[20, 20] = 4.0
    wide, spoilt = (denoiser.denoise(x, noise) for x in (noisy, hot))
    assert psnr(wide, clean / 255) > psnr(noisy, clean / 255) + 3
    keep = np.ones(wide.shape, bool)
    keep[14:27, 14:27] = False
    assert psnr(spoilt[keep], clean[keep] / 255) > psnr(wide[keep], clean[keep] / 255) - 0.3


# -- the option -------------------------------------------------------------------------------------------------------


def test_given_numbers_are_those_of_the_image() -> None:
    x = np.clip(np.rint((CLEAN + 10 / 255 * NOISE) * 4095), 0, 4095).astype(np.uint16)
    by_hand = nlrn.denoise((x / 4095).astype(np.float64), 10) * 4095
    given = nlrn.denoise(x, 10 * 4095 / 65535, value_range=(0, 4095))
    assert np.abs(given - np.clip(by_hand, 0, 65535)).max() <= 2
    counts = x.astype(np.float64)  # floats in counts are refused without a range, and taken with it
    with pytest.raises(InputError, match=r"far from 0\.\.1"):
        nlrn.denoise(counts, "auto")
    found = nlrn.denoise(counts, value_range=(0, 4095))
    assert psnr(found / 4095, CLEAN) > psnr(x / 4095, CLEAN) + 2
    with pytest.raises(InputError, match="more than 75 on the range"):
        nlrn.denoise(x, 25, value_range=(0, 4095))


@pytest.mark.parametrize("wrong", ["wide", (1, 0), (0, float("nan")), (0, 1, 2), 3, ("a", "b")])
def test_wrong_ranges_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="range"):
        nlrn.denoise(CLEAN, 25, value_range=wrong)  # type: ignore[arg-type]


def test_ranges_as_words() -> None:
    assert (parsed("auto"), parsed("0,4095"), parsed("-1e-3,0.5")) == ("auto", (0.0, 4095.0), (-0.001, 0.5))
    for wrong in ("0", "1,0", "a,b", "0,1,2", "", "inf,1"):
        with pytest.raises(ConfigError):
            parsed(wrong)


def test_the_command_line_says_and_records_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.clip(np.rint((CLEAN + 10 / 255 * NOISE) * 4095), 0, 65535).astype(np.uint16)
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/a.png", ImageData((x / 65535).astype(np.float32), depth=16))
    expected = {choice: nlrn.denoise(x, 0.6, value_range=choice) for choice in ("auto", "type", "image")} | {
        "0,4095": nlrn.denoise(x, 0.6, value_range=(0, 4095))
    }
    for choice, result in expected.items():
        out = tmp_path / f"{choice}.png"
        assert run(["denoise", str(tmp_path / "in/a.png"), "-o", str(out), "--sigma", "0.6", "--range", choice]) == 0
        assert np.array_equal(np.asarray(Image.open(out)), result), choice
        assert ("restored on the range" in capsys.readouterr().out) == (choice != "type")
    args = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--sigma", "0.6", "--range", "0,4095"]
    assert run(args) == 0
    lines = (tmp_path / "out/nlrn-manifest.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["range"] == [0, 4095]
    assert run(["upscale", str(tmp_path / "in/a.png"), "-o", str(tmp_path / "up.png")]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "up.png")), nlrn.upscale(x))
    assert run(["denoise", str(tmp_path / "in/a.png"), "-o", str(tmp_path / "x.png"), "--range", "5,1"]) == 2


def test_the_depth_of_the_result_does_not_move_the_range(tmp_path: Path) -> None:
    x = np.clip(np.rint((CLEAN + 10 / 255 * NOISE) * 4095), 0, 65535).astype(np.uint16)
    write_image(tmp_path / "a.png", ImageData((x / 65535).astype(np.float32), depth=16))
    arguments = ["denoise", str(tmp_path / "a.png"), "--sigma", "0.6", "--range", "0,4095", "-o"]
    assert run([*arguments, str(tmp_path / "b.tif"), "--depth", "32"]) == 0
    floats = read_image(tmp_path / "b.tif").array
    expected = nlrn.denoise(x, 0.6, value_range=(0, 4095))
    assert np.abs(np.rint(floats * 65535) - expected).max() <= 1


def test_hidden_pixels_do_not_decide() -> None:
    x = (0.2 * CLEAN + 0.3 + 5 / 255 * 0.2 * NOISE).astype(np.float32)
    alpha = np.full(x.shape, 255, np.uint8)
    alpha[:20] = 0
    spoilt = x.copy()
    spoilt[:20] = np.linspace(0, 1, 64)
    restorer = Restorer(settings=Settings(precision="fp32"))
    a, b = (restorer.denoise(i, 1.0, alpha=alpha) for i in (x, spoilt))
    assert np.abs(a - b)[20:].max() < 1e-6


def test_the_default_scale_changes_nothing() -> None:
    x = CLEAN.astype(np.float32)
    assert Scale().unit(x) is x
    assert Scale().beyond(x) == 0


# -- arrays that mean something ---------------------------------------------------------------------------------------


def test_array_subclasses() -> None:
    masked = np.ma.MaskedArray(CLEAN, CLEAN > 0.9)
    with pytest.raises(InputError, match="mask"):
        nlrn.denoise(masked, 25)
    with pytest.raises(InputError, match="mask"):
        nlrn.upscale(np.ma.MaskedArray((CLEAN * 255).astype(np.uint8), CLEAN < 0.1))
    plain = nlrn.denoise(CLEAN, 25)
    unmasked = nlrn.denoise(np.ma.MaskedArray(CLEAN), 25)
    assert isinstance(unmasked, np.ma.MaskedArray)
    assert np.array_equal(unmasked.data, plain)


def test_a_file_mapped_into_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CLEAN.astype(np.float32))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for choice in ("auto", "type"):
            got = nlrn.denoise(mapped, 25, value_range=choice)
            assert np.array_equal(got, nlrn.denoise(CLEAN.astype(np.float32), 25, value_range=choice))
            assert type(got) is np.ndarray


class _Frame:
    """As pandas and xarray have it."""

    def to_numpy(self) -> np.ndarray:
        return CLEAN

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return CLEAN


def test_tables_are_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"to_numpy"):
        nlrn.denoise(_Frame(), 25)  # type: ignore[type-var]


@pytest.mark.parametrize("shape", [(32, 40, 3), (2, 32, 40, 1), (5,), (1, 1, 1, 4, 4), (2, 4, 16, 16)])
def test_a_tensor_of_another_shape_is_named_as_it_is(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="BCHW.*" + re.escape(f"got shape {shape}")):
        nlrn.denoise(torch.zeros(shape), 25)


def test_a_sigma_of_the_wrong_scale_gets_a_hint() -> None:
    with pytest.raises(InputError, match="0-255"):
        nlrn.denoise(CLEAN, 400)
