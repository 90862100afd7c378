"""Tile plans, blend weights and the authors' patches: laws over generated sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrn.errors import ConfigError, InputError
from nlrn.functional.tiling import Average, Blend, Tile, patch_size, patches, plan, weight

Size = tuple[int, int]
Count = Callable[[int], int]


@st.composite
def plans(draw: st.DrawFn, largest: int = 120) -> tuple[Size, int, int, tuple[Tile, ...]]:
    """An image size, a tile size, an overlap, and the plan with a ramp of any allowed width."""
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    tile = draw(st.integers(8, 60))
    overlap = draw(st.integers(0, tile - 3))
    ramp = draw(st.integers(0, overlap))
    return (height, width), tile, overlap, plan(height, width, tile, overlap, ramp=ramp)


def image_of(size: Size, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(size[0] * 1000 + size[1]).random((*size, channels))


def along(tiles: tuple[Tile, ...], side: str) -> list[tuple[int, int, int, int]]:
    """The distinct (start, end, core start, core end) along one side, in order."""
    names = (f"{side}0", f"{side}1", f"core_{side}0", f"core_{side}1")
    return sorted({tuple(getattr(tile, name) for name in names) for tile in tiles})


def test_the_laws_of_a_plan(count: Count) -> None:
    @settings(max_examples=count(1500))
    @given(plans())
    def law(case: tuple[Size, int, int, tuple[Tile, ...]]) -> None:
        size, tile, overlap, tiles = case
        for length, side in zip(size, "yx", strict=True):
            parts = along(tiles, side)
            assert {end - start for start, end, _, _ in parts} == {min(tile, length)}
            assert parts[0][0] == 0
            assert parts[-1][1] == length
            shared = [a[1] - b[0] for a, b in itertools.pairwise(parts)]
            assert all(s >= overlap for s in shared)
            assert not shared or max(shared) - min(shared) <= 1  # evenly spread
            assert not shared or (len(parts) - 1) * (tile - overlap) + overlap < length  # no fewer would do
        rows, columns = len(along(tiles, "y")), len(along(tiles, "x"))
        assert len(set(tiles)) == len(tiles) == rows * columns

    law()


def test_the_cores_partition_the_image_with_half_the_overlap_around_them(count: Count) -> None:
    @settings(max_examples=count(1000))
    @given(plans())
    def law(case: tuple[Size, int, int, tuple[Tile, ...]]) -> None:
        size, _, overlap, tiles = case
        covered = np.zeros(size, dtype=int)
        for tile in tiles:
            covered[tile.core_y0 : tile.core_y1, tile.core_x0 : tile.core_x1] += 1
        assert (covered == 1).all()
        for length, side in zip(size, "yx", strict=True):
            for start, end, core_start, core_end in along(tiles, side):
                assert start == core_start == 0 or core_start - start >= overlap // 2
                assert end == core_end == length or end - core_end >= overlap // 2

    law()


def test_the_weights_of_every_pixel_sum_to_one(count: Count) -> None:
    @settings(max_examples=count(1000))
    @given(plans())
    def law(case: tuple[Size, int, int, tuple[Tile, ...]]) -> None:
        size, _, _, tiles = case
        total = np.zeros(size)
        for tile in tiles:
            weights = weight(tile)
            assert weights.shape == (tile.height, tile.width)
            assert weights.min() >= 0
            assert weights.max() <= 1
            total[tile.region] += weights
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)

    law()


def test_blending_what_was_cut_gives_the_image_back_in_any_order(count: Count) -> None:
    @settings(max_examples=count(300))
    @given(plans(largest=80), st.sampled_from([(np.float64, 1e-12), (np.float32, 1e-6)]), st.randoms())
    def law(case: tuple, kind: tuple[type, float], random: object) -> None:
        size, _, _, tiles = case
        image = image_of(size)
        image[..., 1] = 0.7
        blend = Blend(*size, 2, dtype=kind[0])
        for tile in random.sample(tiles, len(tiles)):
            blend.add(tile, image[tile.region])
        result = blend.result()
        assert result.dtype == kind[0]
        np.testing.assert_allclose(result, image, rtol=0, atol=kind[1])

    law()


def test_with_an_overlap_of_two_halos_and_the_ramp_tiles_are_exact(count: Count) -> None:
    """A pixel whose surroundings were cut off counts nothing: poison it and nothing changes."""

    @settings(max_examples=count(300))
    @given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 6), st.integers(0, 7), st.integers(1, 20))
    def law(height: int, width: int, halo: int, ramp: int, more: int) -> None:
        overlap = 2 * halo + ramp
        image = image_of((height, width), 1)
        blend = Blend(height, width, 1, dtype=np.float64)
        for tile in plan(height, width, overlap + more, overlap, ramp=ramp):
            part = np.full((tile.height, tile.width, 1), 1e9)
            top, left = (halo if start > 0 else 0 for start in (tile.y0, tile.x0))
            bottom = tile.height - (halo if tile.y1 < height else 0)
            right = tile.width - (halo if tile.x1 < width else 0)
            part[top:bottom, left:right] = image[tile.region][top:bottom, left:right]
            blend.add(tile, part)
        np.testing.assert_allclose(blend.result(), image, rtol=0, atol=1e-12)

    law()


def test_a_ramp_fades_and_none_cuts() -> None:
    left, right = plan(4, 16, 10, 4)
    np.testing.assert_allclose(weight(left)[0], [1] * 6 + [0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(weight(right)[0], [0.125, 0.375, 0.625, 0.875] + [1] * 6)
    left, right = plan(4, 16, 10, 4, ramp=0)
    np.testing.assert_array_equal(weight(left)[0], [1] * 8 + [0] * 2)
    np.testing.assert_array_equal(weight(right)[0], [0] * 2 + [1] * 8)


def test_an_image_that_fits_is_one_tile() -> None:
    assert plan(30, 40, 40, 8) == (Tile(0, 30, 0, 40, 0, 30, 0, 40, 8),)
    assert (weight(plan(30, 40, 40, 8)[0]) == 1).all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((0, 9, 4, 1), "height"),
        ((9, -1, 4, 1), "width"),
        ((9, 9, 0, 0), "tile"),
        ((9, 9, 4, 4), "overlap"),
        ((9, 9, 4, -1), "overlap"),
    ],
)
def test_plans_that_make_no_sense_are_refused(arguments: tuple[int, int, int, int], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        plan(*arguments)


@pytest.mark.parametrize("ramp", [-1, 3])
def test_a_ramp_wider_than_the_overlap_is_refused(ramp: int) -> None:
    with pytest.raises(ConfigError, match="ramp"):
        plan(9, 9, 4, 2, ramp=ramp)


def test_a_blend_wants_every_tile_once_in_its_shape() -> None:
    tiles = plan(20, 20, 12, 4)
    blend = Blend(20, 20, 1)
    blend.add(tiles[0], np.ones((12, 12, 1)))
    with pytest.raises(InputError, match="second time"):
        blend.add(tiles[0], np.ones((12, 12, 1)))
    for shape in ((12, 12), (12, 11, 1), (12, 12, 3)):
        with pytest.raises(InputError, match="shape"):
            blend.add(tiles[1], np.ones(shape))
    with pytest.raises(InputError, match="1 tiles cover 100 of 400"):
        blend.result()


def test_the_laws_of_patches(count: Count) -> None:
    @settings(max_examples=count(1500))
    @given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50), st.data())
    def law(height: int, width: int, patch: int, data: st.DataObject) -> None:
        stride = data.draw(st.integers(1, patch))
        places = patches(height, width, patch, stride)
        rows, columns = patch_size(height, width, patch)
        assert (rows, columns) == (min(patch, height), min(patch, width))
        assert len(set(places)) == len(places)
        for side, length, size in ((0, height, rows), (1, width, columns)):
            starts = sorted({place[side] for place in places})
            assert starts[0] == 0
            assert starts[-1] + size == length  # flush
            steps = [b - a for a, b in itertools.pairwise(starts)]
            assert all(step == stride for step in steps[:-1])
            assert all(0 < step <= stride for step in steps)

    law()


def test_averaged_patches_give_the_image_back(count: Count) -> None:
    @settings(max_examples=count(200))
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.data())
    def law(height: int, width: int, patch: int, data: st.DataObject) -> None:
        image = image_of((height, width))
        average = Average(height, width, 2, dtype=np.float64)
        rows, columns = patch_size(height, width, patch)
        for y, x in patches(height, width, patch, data.draw(st.integers(1, patch))):
            average.add(y, x, image[y : y + rows, x : x + columns])
        np.testing.assert_allclose(average.result(), image, rtol=0, atol=1e-12)

    law()


def test_the_average_is_the_mean_of_all_patches_at_a_pixel() -> None:
    average = Average(1, 3, 1)
    average.add(0, 0, np.full((1, 2, 1), 1.0))
    average.add(0, 1, np.full((1, 2, 1), 2.0))
    np.testing.assert_array_equal(average.result()[0, :, 0], np.float32([1, 1.5, 2]))


def test_the_authors_protocol() -> None:
    starts = sorted({x for _, x in patches(321, 481)})
    assert starts == [*range(0, 436, 7), 436]
    assert patches(45, 45) == ((0, 0),)
    assert patches(20, 46) == ((0, 0), (0, 1))


def test_patches_that_make_no_sense_are_refused() -> None:
    for arguments in ((0, 9), (9, 0), (9, 9, 0), (9, 9, 5, 0), (9, 9, 5, 6)):
        with pytest.raises(ConfigError):
            patches(*arguments)
    average = Average(9, 9, 1)
    for y, x, shape in ((6, 0, (4, 4, 1)), (0, -1, (4, 4, 1)), (0, 0, (4, 4)), (0, 0, (4, 4, 3))):
        with pytest.raises(InputError):
            average.add(y, x, np.ones(shape))
    with pytest.raises(InputError, match="81 pixels"):
        average.result()
    with pytest.raises(ConfigError, match="channels"):
        Blend(9, 9, 0)
