"""The one inference path: tiles, patches, memory, precision and what is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from networks import FP32, random_image, random_model

from nlrn.errors import BackendError, ConfigError, InputError, MemoryBudgetError
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic
from nlrn.functional.levels import MAX_SIGMA, channels_of
from nlrn.functional.ranges import scale_beyond
from nlrn.functional.tiling import patch_size, patches
from nlrn.inference.restorer import Restorer, Settings
from nlrn.inference.super_resolution import enlarged, enlarged_size, passes_of
from nlrn.models.distances import CARRIED, DISTANCES
from nlrn.models.nlrn import NLRN


def direct(model: NLRN, image: np.ndarray, sigma: float) -> np.ndarray:
    """The network itself on an HW image."""
    with torch.no_grad():
        out: np.ndarray = model.eval()(torch.from_numpy(image)[None, None], sigma / 255)[0, 0].numpy()
    return out


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (37, 41)])
def test_a_whole_image_is_the_network_itself(shape: tuple[int, int]) -> None:
    model, image = random_model(), random_image(*shape)
    restored = Restorer(model, settings=FP32).denoise(image, 25, value_range="type")
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, direct(model, image, 25), atol=1e-6)


def test_tiles_with_a_wide_overlap_equal_the_whole_image_and_narrow_ones_come_near() -> None:
    model, image = random_model(), random_image(40, 160)
    assert model.receptive_radius == 10
    whole = Restorer(model, settings=FP32).denoise(image, 25)

    def error(overlap: int) -> np.ndarray:
        settings = Settings(precision="fp32", tile=64, overlap=overlap)
        return np.abs(Restorer(model, settings=settings).denoise(image, 25) - whole)

    assert error(28).max() <= 2e-6  # a quarter fades, 10 pixels and more on either side are context
    assert 1e-5 < error(16).max() < 0.01 * whole.std()  # 6 pixels of context: a cut that is seen, hardly


def test_a_map_of_one_level_is_that_level_and_halves_keep_to_themselves() -> None:
    model, image = random_model(), random_image(40, 64)
    restorer = Restorer(model, settings=FP32)
    np.testing.assert_allclose(restorer.denoise(image, np.full((40, 64), 30.0)), restorer.denoise(image, 30), atol=1e-6)
    halves = np.repeat([[15.0, 50.0]], 40, axis=0).repeat(32, axis=1)
    restored, radius = restorer.denoise(image, halves), model.receptive_radius
    assert radius is not None
    np.testing.assert_allclose(restored[:, : 32 - radius], restorer.denoise(image, 15)[:, : 32 - radius], atol=1e-5)
    np.testing.assert_allclose(restored[:, 32 + radius :], restorer.denoise(image, 50)[:, 32 + radius :], atol=1e-5)
    tiled = Restorer(model, settings=Settings(precision="fp32", tile=30, overlap=15)).denoise(image, halves)
    assert np.abs(tiled - restored).mean() < 0.05 * restored.std()


def test_a_grey_image_in_three_channels_is_run_once_and_stays_grey() -> None:
    image, ticks = random_image(40, 30), []
    restorer = Restorer(random_model(), settings=Settings(precision="fp32", tile=20))
    colour = np.repeat(image[..., None], 3, axis=2)
    found = restorer.denoise(colour, 25, progress=lambda done, total: ticks.append(total))
    np.testing.assert_array_equal(found, np.repeat(restorer.denoise(image, 25)[..., None], 3, axis=2))
    alone: list[int] = []
    restorer.denoise(image, 25, progress=lambda done, total: alone.append(total))
    assert ticks == alone
    assert [channels_of(x) for x in (image, image[..., None], colour)] == [1, 1, 1]
    colour[3, 4, 1] += 0.01
    assert channels_of(colour) == 3
    assert np.ptp(restorer.denoise(colour, 25), axis=2).max() > 0


@pytest.mark.parametrize("distance", sorted(set(DISTANCES) - {CARRIED}))
@pytest.mark.parametrize("window", [5, 45])
def test_the_other_distances_run_as_the_network_defines_them(distance: str, window: int) -> None:
    model, image = random_model(distance=distance, propagation=False, window=window), random_image(37, 41)
    restored = Restorer(model, settings=Settings(precision="bf16")).denoise(image, 25)  # there is no bf16 of these
    np.testing.assert_allclose(restored, direct(model, image, 25), atol=1e-5)
    patchwise = Restorer(model, settings=Settings(mode="patch", precision="fp32")).denoise(image[:20, :20], 25)
    seen = model.reconfigured(window=5 if window == 5 else None)
    np.testing.assert_allclose(patchwise, direct(seen, image[:20, :20], 25), atol=1e-5)


@pytest.mark.parametrize("mode", ["window", "patch"])
@pytest.mark.parametrize("shape", [(20, 33), (20, 33, 3)])
def test_views_are_the_mean_over_the_eight_symmetries_of_the_square(mode: str, shape: tuple[int, ...]) -> None:
    """Each written out; so the result turns and mirrors with the image and its map of levels."""
    model, image = random_model(), random_image(*shape)
    level = np.linspace(5, 70, 20 * 33).reshape(20, 33)
    plain = Restorer(model, settings=Settings(mode=mode, precision="fp32"))
    views = Restorer(model, settings=Settings(mode=mode, precision="fp32", tta=True))
    total = np.zeros(shape)
    for turns in range(4):
        turned = np.rot90(image, turns), np.rot90(level, turns)
        total += np.rot90(plain.denoise(*turned), -turns)
        mirrored = (np.ascontiguousarray(np.flip(x, 0)) for x in turned)
        total += np.rot90(np.flip(plain.denoise(*mirrored), 0), -turns)
    ticks: list[tuple[int, int]] = []
    found = views.denoise(image, level, progress=lambda done, total: ticks.append((done, total)))
    np.testing.assert_allclose(found, total / 8, atol=1e-5)
    assert np.abs(found - plain.denoise(image, level)).max() > 1e-3
    np.testing.assert_allclose(views.denoise(image.swapaxes(0, 1), level.T), found.swapaxes(0, 1), atol=1e-5)
    counted, totals = zip(*ticks, strict=True)
    assert list(counted) == sorted(set(counted))
    assert set(totals) == {counted[-1]}


@pytest.mark.parametrize("window", [5, 45, None])
@pytest.mark.parametrize("sigma", [25.0, "map"])
def test_patch_mode_is_the_average_of_overlapping_patches(window: int | None, sigma: object) -> None:
    """Written again with plain loops; a window of 45 or more becomes the whole patch (authors' protocol)."""
    model, image = random_model(window=window), random_image(50, 57)
    level = np.linspace(5, 70, image.size).reshape(image.shape) if sigma == "map" else np.full(image.shape, 25.0)
    total, count = np.zeros(image.shape), np.zeros(image.shape)
    rows, columns = patch_size(50, 57)
    inside = model if window == 5 else model.reconfigured(window=None)
    inside.eval()
    for y, x in patches(50, 57):
        part = (slice(y, y + rows), slice(x, x + columns))
        plane = torch.from_numpy(level[part].astype(np.float32) / 255)[None, None]
        with torch.no_grad():
            out = inside(torch.from_numpy(image[part])[None, None], plane)[0, 0].numpy()
        total[part] += out
        count[part] += 1
    assert count.max() == 6
    restorer = Restorer(model, settings=Settings(mode="patch", precision="fp32"))
    restored = restorer.denoise(image, level if sigma == "map" else 25.0)
    np.testing.assert_allclose(restored, total / count, atol=2e-6)


def test_colour_through_a_grey_model_is_every_channel_by_itself() -> None:
    image = random_image(20, 24, 3)
    for settings in (FP32, Settings(mode="patch", precision="fp32")):
        restorer = Restorer(random_model(), settings=settings)
        restored = restorer.denoise(image, 25)
        for c in range(3):
            np.testing.assert_allclose(restored[..., c], restorer.denoise(image[..., c], 25), atol=1e-6)


def test_a_colour_model_takes_colour_and_refuses_grey() -> None:
    model = random_model(in_channels=3).eval()
    restorer, image = Restorer(model, settings=FP32), random_image(20, 24, 3)
    with torch.no_grad():
        expected = model(torch.from_numpy(image).permute(2, 0, 1)[None], 25 / 255)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(restorer.denoise(image, 25), expected, atol=1e-6)
    with pytest.raises(InputError, match="grey"):
        restorer.denoise(image[..., 0], 25)


def test_bf16_stays_near_float32_and_what_is_not_finite_is_tried_again_in_float32() -> None:
    model, image = random_model(), random_image(32, 32)
    near = Restorer(model, settings=Settings(precision="bf16")).denoise(image, 25)
    exact = Restorer(model, settings=FP32).denoise(image, 25)
    assert 0 < np.abs(near - exact).max() < 0.05 * np.abs(exact).max()
    with torch.no_grad():  # 0 times a weight that is finite in 32 bits and rounded to infinity in 16
        model.tail_norm.weight[0] = model.tail_norm.bias[0] = 0
        model.tail.weight[0, 0] = 3.4e38
    assert bool(torch.tensor(3.4e38).bfloat16().isinf())
    exact = Restorer(model, settings=FP32).denoise(image, 25)
    np.testing.assert_array_equal(Restorer(model, settings=Settings(precision="bf16")).denoise(image, 25), exact)
    with torch.no_grad():
        model.tail.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        Restorer(model, settings=Settings(precision="bf16")).denoise(image, 25)


def test_the_callers_model_stays_as_it_is() -> None:
    model, image = random_model().double().train(), random_image(16, 16)
    restored = Restorer(model, settings=FP32).denoise(image, 25)
    assert model.training
    assert model.head.weight.dtype == torch.float64
    np.testing.assert_array_equal(restored, Restorer(random_model(), settings=FP32).denoise(image, 25))


def test_a_model_of_one_noise_level_takes_none() -> None:
    restorer, image = Restorer(random_model(sigma_input=False), settings=FP32), random_image(12, 12)
    assert restorer.noise_level(image, "auto") == 0  # too small an image to estimate: it is not tried
    np.testing.assert_array_equal(restorer.denoise(image, "auto"), restorer.denoise(image, 25))


def test_the_tile_follows_from_the_memory_allowed_and_nothing_else() -> None:
    model = random_model()
    for memory, expected in ((1 << 40, None), (130 << 20, 512), (110 << 20, 256), (20 << 20, 128)):
        restorer = Restorer(model, settings=Settings(precision="fp32", memory=memory))
        side = restorer.tile_for(600, 800)
        assert side == expected
        if side is not None:
            assert side * side * restorer.memory_per_pixel(side, side) <= memory
    with pytest.raises(MemoryBudgetError, match="MiB"):
        Restorer(model, settings=Settings(memory=1 << 20)).denoise(random_image(200, 200), 25)
    tiny = Restorer(model, settings=Settings(precision="fp32", memory=1 << 20))
    np.testing.assert_allclose(
        tiny.denoise(random_image(16, 16), 25), direct(model, random_image(16, 16), 25), atol=1e-6
    )


def test_progress_counts_to_its_end() -> None:
    for settings in (Settings(tile=32, overlap=8), Settings(mode="patch")):
        seen: list[tuple[int, int]] = []
        Restorer(random_model(), settings=settings).denoise(
            random_image(60, 60, 3),
            25,
            progress=lambda done, total: seen.append((done, total)),  # noqa: B023
        )
        assert seen[-1][0] == seen[-1][1] > 1
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_auto_is_the_estimate_held_to_the_models_range() -> None:
    restorer = Restorer(random_model())
    noise = np.random.RandomState(0).normal(0.5, 1, (64, 64))
    assert restorer.noise_level(noise * 0.1 + 0.45, "auto") == pytest.approx(25.5, rel=0.1)
    assert restorer.noise_level(noise, "auto") == MAX_SIGMA
    model = random_model()
    level = restorer.noise_level(random_image(32, 32), "auto")
    np.testing.assert_array_equal(
        Restorer(model).denoise(random_image(32, 32), "auto"), Restorer(model).denoise(random_image(32, 32), level)
    )


def test_each_channel_that_goes_by_itself_has_its_own_estimate() -> None:
    """A sensor's blue is noisier; a colour model receives one level for all."""
    random = np.random.RandomState(0)
    image = (0.5 + random.normal(0, 1, (64, 70, 3)) * np.array([8, 20, 50]) / 255).astype(np.float32)
    grey = Restorer(random_model(), settings=FP32)
    levels = grey.noise_level(image, "auto", value_range="type")
    np.testing.assert_allclose(levels, [8, 20, 50], rtol=0.1)
    found = grey.denoise(image, "auto", value_range="type")
    for c in range(3):
        np.testing.assert_array_equal(found[..., c], grey.denoise(image[..., c], float(levels[c]), value_range="type"))
    np.testing.assert_array_equal(found, grey.denoise(image, levels, value_range="type"))
    colour = Restorer(random_model(in_channels=3), settings=FP32)
    assert colour.noise_level(image, "auto") == pytest.approx(np.mean(levels), rel=0.01)
    with pytest.raises(InputError, match="a number or a map"):
        colour.denoise(image, levels)


def test_what_is_hidden_is_not_estimated_from() -> None:
    """Most of the image is; neither its colour nor what it is filled with counts."""
    noisy = 0.5 + np.random.RandomState(0).normal(0, 25 / 255, (64, 70, 3)).astype(np.float32)
    alpha = np.full((64, 70), 255, np.uint8)
    alpha[:, :40] = 0
    restorer = Restorer(random_model(in_channels=3), settings=FP32)
    for value in (0.0, 1.0, np.random.RandomState(1).rand(64, 40, 3)):
        noisy[:, :40] = value
        assert restorer.noise_level(noisy, "auto", alpha) == pytest.approx(25, rel=0.08)
        shown = restorer.denoise(noisy, restorer.noise_level(noisy, "auto", alpha), alpha=alpha)
        np.testing.assert_array_equal(restorer.denoise(noisy, alpha=alpha), shown)


@pytest.mark.parametrize(
    ("image", "sigma", "words"),
    [
        (np.zeros((4, 4, 2), np.float32), 25, "1 or 3 channels"),
        (np.zeros((0, 4), np.float32), 25, "shape"),
        (np.zeros((4, 4), np.int32), 25, "divide by 255"),
        (np.full((4, 4), np.nan), 25, "not finite"),
        (np.full((4, 4), 200.0), 25, "divide by 255"),
        (np.zeros((4, 4)), 76, "0..75"),
        (np.zeros((4, 4)), -1, "0..75"),
        (np.zeros((4, 4)), float("nan"), "0..75"),
        (np.zeros((4, 4)), "best", "auto"),
        (np.zeros((4, 4)), np.zeros((4, 5)), "shape"),
        (np.zeros((4, 4)), "auto", "too few"),
        (np.zeros((4, 4)), {"a": 1}, "a number, a map"),
        (np.zeros((4, 4)), [[1.0], [1.0, 2.0]], "a number, a map"),
    ],
)
def test_bad_input_gets_one_clear_error(image: np.ndarray, sigma: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Restorer(random_model()).denoise(image, sigma)  # type: ignore[arg-type]


def test_bad_settings_and_devices_are_refused() -> None:
    for change in (
        {"mode": "tile"},
        {"precision": "fp64"},
        {"tile": -1},
        {"overlap": -1},
        {"memory": 0},
        {"tile": 40, "overlap": 21},
    ):
        with pytest.raises(ConfigError):
            Settings(**change)  # type: ignore[arg-type]
    for device in ("tpu3", "meta", "cuda:77", "hpu", "privateuseone"):
        with pytest.raises(BackendError, match=f"{device}.* cannot be used here: "):
            Restorer(random_model(), device=device)


# ------------------------------------------------------------------------------------------ super-resolution
def sr_model(**changes: object) -> NLRN:
    return random_model(task="sr", sigma_input=False, **changes)


def network(model: NLRN, luma: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = model.eval()(torch.from_numpy(luma).float()[None, None])[0, 0].double().numpy()
    return out


def ycbcr(image: np.ndarray) -> np.ndarray:
    """BT.601 in studio range from the published formula, on the 0..1 scale."""
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
    return image @ matrix.T / 255 + np.array([16, 128, 128]) / 255


@pytest.mark.parametrize("size", [(40, 52), (45, 60), (80, 104)])
def test_enlarging_restores_the_luminance_and_leaves_the_colour_to_bicubic(size: tuple[int, int]) -> None:
    model, image = sr_model(), random_image(20, 26, 3)
    restorer = Restorer(model, settings=FP32)
    found = restorer.upscale(image, *size)
    assert found.dtype == np.float32
    bicubic = resize_bicubic(image.astype(np.float64), *size)
    luma, *colour = np.moveaxis(ycbcr(found.astype(np.float64)), -1, 0)
    np.testing.assert_allclose(luma, network(model, ycbcr(bicubic)[..., 0]), atol=2e-5)
    np.testing.assert_allclose(np.stack(colour, -1), ycbcr(bicubic)[..., 1:], atol=2e-6)
    grey = restorer.upscale(image[..., 0], *size)  # its own luminance, of full range
    np.testing.assert_allclose(grey, network(model, resize_bicubic(image[..., 0].astype(np.float64), *size)), atol=2e-5)
    np.testing.assert_array_equal(restorer.upscale(image[..., :1], *size)[..., 0], grey)


@pytest.mark.parametrize("size", [(30, 39), (31, 78), (60, 45)])
def test_factors_below_two_run_at_two_and_are_made_smaller(size: tuple[int, int]) -> None:
    """The network has not seen them: on Set5 at 1.5 it was 2 dB below bicubic, and so it is 3 dB above."""
    restorer, image = Restorer(sr_model(), settings=FP32), random_image(20, 26, 3)
    at_two = restorer.upscale(image, max(40, size[0]), max(52, size[1]))
    expected = resize_bicubic(at_two.astype(np.float64), *size)
    np.testing.assert_allclose(restorer.upscale(image, *size), expected, atol=1e-6)


def test_large_factors_take_two_equal_steps() -> None:
    restorer, image = Restorer(sr_model(), settings=FP32), random_image(10, 12)
    ticks: list[tuple[int, int]] = []
    found = restorer.upscale(image, 90, 60, progress=lambda done, total: ticks.append((done, total)))
    assert passes_of((10, 12), (90, 60)) == 2
    np.testing.assert_array_equal(found, restorer.upscale(restorer.upscale(image, 30, 27), 90, 60))
    assert ticks[-1][0] == ticks[-1][1]
    assert passes_of((10, 12), (40, 48)) == 1


def test_values_beyond_0_to_1_are_restored_on_their_own_scale() -> None:
    """A float image may span -1..4; noise alone, however far it goes, changes no scale."""
    restorer = Restorer(random_model(), settings=FP32)
    image = random_image(20, 24)
    for low, spread in ((0.0, 4.0), (-1.0, 3.5)):
        wide = low + spread * image
        scale = scale_beyond(wide, 20)
        assert scale.low <= 0
        assert 0.7 * np.ptp(wide) < scale.spread < np.ptp(wide)
        expected = scale.low + scale.spread * restorer.denoise(scale.unit(wide), 20 / scale.spread, value_range="type")
        np.testing.assert_allclose(restorer.denoise(wide, 20), expected, atol=1e-5)
    noisy = add_gaussian_noise(np.round(image.astype(np.float64)), 50).astype(np.float32)
    assert noisy.max() > 1.4
    x, shown = torch.from_numpy(noisy)[None, None], 50 / 255
    np.testing.assert_allclose(restorer.denoise(noisy, 50), network_of(restorer, x, shown), atol=2e-5)


def network_of(restorer: Restorer, x: torch.Tensor, sigma: float) -> np.ndarray:
    with torch.no_grad():
        return restorer.model(x, sigma)[0, 0].numpy()


def test_every_offered_scale_is_taken_on_every_side() -> None:
    for scale, passes in ((1.5, 1), (2, 1), (2.5, 1), (3.5, 1), (4, 1), (16, 2)):
        for side in (*range(1, 40), 427, 1023):
            wanted = enlarged_size((side, side + 1, 3), scale)
            assert all(abs(m - scale * n) <= 0.5 for n, m in zip((side, side + 1), wanted, strict=True))
            assert passes_of((side, side + 1), wanted) == passes
    assert enlarged_size((43, 39), 1.5) == (65, 59)


def test_a_large_result_takes_little_beside_the_network() -> None:
    image = np.random.RandomState(0).random((400, 500, 3)).astype(np.float32)
    tracemalloc.start()
    enlarged(image, 1200, 1500, lambda luma: luma * np.float32(0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / (1200 * 1500) < 32  # 12 the result, 8 the luminance before and after, the rest while it is made


@pytest.mark.parametrize("size", [(14, 40), (161, 100), (10, 12), (0, 0), (-20, 24)])
def test_factors_that_are_not_offered_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"grow by 1\.5 to 16"):
        Restorer(sr_model(), settings=FP32).upscale(random_image(10, 12), *size)


def test_a_model_of_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="is for denoise, not for sr"):
        Restorer(random_model(), settings=FP32).upscale(random_image(10, 12), 20, 24)
    with pytest.raises(ConfigError, match="is for sr, not for denoise"):
        Restorer(sr_model(), settings=FP32).denoise(random_image(10, 12), 25)
