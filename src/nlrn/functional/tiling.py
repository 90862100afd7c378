"""Where a large image is cut, and how the results are put together again: integers and blending only.

Tiles (`plan`, `weight`, `Blend`) are large, overlap a little, and are faded into each other. Patches
(`patches`, `Average`) are the authors' protocol: small, heavily overlapping, and averaged with equal weight.
It is independent of any model; a tile's result has the size of the region that was read.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrn.errors import ConfigError, InputError

PATCH = 45  # the authors' patch and stride (paper section 4)
STRIDE = 7

_Cut = tuple[int, int, int, int]  # start, end, core start, core end along one side


@dataclass(frozen=True)
class Tile:
    """One region [y0, y1) x [x0, x1) that is read, and the core inside it that no other tile has.

    The cores of a plan partition the image. What lies between core and region is context (halo). `ramp` is
    the width in pixels, centred on a border between two cores, over which the two tiles fade into each other.
    """

    y0: int
    y1: int
    x0: int
    x1: int
    core_y0: int
    core_y1: int
    core_x0: int
    core_x1: int
    ramp: int = 0

    @property
    def height(self) -> int:
        """Rows of the region."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns of the region."""
        return self.x1 - self.x0

    @property
    def region(self) -> tuple[slice, slice]:
        """Index of the region read, for an array [H, W, ...]."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def plan(height: int, width: int, tile: int, overlap: int, *, ramp: int | None = None) -> tuple[Tile, ...]:
    """The fewest tiles of at most `tile` x `tile` pixels that cover an image, row by row.

    Neighbours share at least `overlap` pixels; tiles are spread evenly and are all of one size, the last ones
    flush with the border. An image that fits is one tile. The plan depends on nothing but its arguments.

    ramp: pixels over which neighbours fade, 0 .. overlap; None fades over the whole overlap. To make tiled
    results exact for a model that sees `halo` pixels far, take overlap = 2 * halo + ramp.
    Raises ConfigError for sizes below 1, an overlap outside 0 .. tile - 1, or a ramp outside 0 .. overlap.
    """
    ramp = overlap if ramp is None else ramp
    _positive(height=height, width=width, tile=tile)
    if not 0 <= overlap < tile:
        raise ConfigError(f"overlap is {overlap}; expected 0 to {tile - 1} for tiles of {tile} pixels")
    if not 0 <= ramp <= overlap:
        raise ConfigError(f"ramp is {ramp}; expected 0 to the overlap of {overlap} pixels")
    rows, columns = _cut(height, tile, overlap), _cut(width, tile, overlap)
    return tuple(
        Tile(y0, y1, x0, x1, core_y0, core_y1, core_x0, core_x1, ramp)
        for y0, y1, core_y0, core_y1 in rows
        for x0, x1, core_x0, core_x1 in columns
    )


def patches(height: int, width: int, patch: int = PATCH, stride: int = STRIDE) -> tuple[tuple[int, int], ...]:
    """Top left corners (y, x) of the authors' patch protocol, row by row, without repetition.

    Along each side: every `stride` pixels while a patch fits, then one flush with the border. A patch is
    `patch_size(height, width, patch)` pixels. Raises ConfigError for a value below 1 and for a stride above
    the patch, which would leave gaps.
    """
    _positive(height=height, width=width, patch=patch, stride=stride)
    if stride > patch:
        raise ConfigError(f"stride is {stride}; above the patch of {patch} pixels it would leave gaps")
    rows, columns = patch_size(height, width, patch)
    lefts = _corners(width, columns, stride)
    return tuple((y, x) for y in _corners(height, rows, stride) for x in lefts)


def patch_size(height: int, width: int, patch: int = PATCH) -> tuple[int, int]:
    """Height and width of every patch: the nominal size, or the side of the image where that is smaller."""
    return min(patch, height), min(patch, width)


def weight(tile: Tile) -> np.ndarray:
    """How much of each pixel of a tile's result counts: float64 [height, width] in [0, 1].

    1 in the core, a linear ramp across each border to a neighbour, 0 beyond it, separable. Over all tiles of
    a plan the weights of every pixel sum to 1 (to rounding).
    """
    down = _profile(tile.y0, tile.y1, tile.core_y0, tile.core_y1, tile.ramp)
    right = _profile(tile.x0, tile.x1, tile.core_x0, tile.core_x1, tile.ramp)
    return np.outer(down, right)


class Blend:
    """Puts the results of the tiles of one plan together, in any order; holds one image of memory."""

    def __init__(self, height: int, width: int, channels: int, *, dtype: type[np.floating[Any]] = np.float32) -> None:
        self._sum = _canvas(height, width, channels, dtype)
        self._done: set[Tile] = set()

    def add(self, tile: Tile, array: np.ndarray) -> None:
        """Add the result of one tile: [tile.height, tile.width, channels], every tile of the plan once."""
        target = self._sum[tile.region]
        if tile in self._done or array.shape != (tile.height, tile.width, self._sum.shape[2]):
            repeated = "a second time" if tile in self._done else f"of shape {array.shape}"
            raise InputError(f"{tile} given {repeated}; expected once, {target.shape}")
        target += weight(tile).astype(self._sum.dtype)[..., None] * array
        self._done.add(tile)

    def result(self) -> np.ndarray:
        """The image [height, width, channels]; raises InputError when tiles are missing."""
        height, width, _ = self._sum.shape
        covered = sum((t.core_y1 - t.core_y0) * (t.core_x1 - t.core_x0) for t in self._done)
        if covered != height * width:
            raise InputError(f"{len(self._done)} tiles cover {covered} of {height * width} pixels")
        return self._sum


class Average:
    """Puts overlapping patches together with equal weights: the mean of all patches at every pixel."""

    def __init__(self, height: int, width: int, channels: int, *, dtype: type[np.floating[Any]] = np.float32) -> None:
        self._sum = _canvas(height, width, channels, dtype)
        self._count = np.zeros((height, width, 1), dtype=np.int32)

    def add(self, y: int, x: int, array: np.ndarray) -> None:
        """Add one patch [rows, columns, channels] whose top left corner is at (y, x)."""
        height, width, channels = self._sum.shape
        if array.ndim != 3 or array.shape[2] != channels:
            raise InputError(f"a patch of shape {array.shape}; expected [rows, columns, {channels}]")
        rows, columns = array.shape[:2]
        if y < 0 or x < 0 or y + rows > height or x + columns > width:
            raise InputError(f"a patch of {rows} x {columns} at ({y}, {x}) leaves the {height} x {width} image")
        inside = (slice(y, y + rows), slice(x, x + columns))
        self._sum[inside] += array
        self._count[inside] += 1

    def result(self) -> np.ndarray:
        """The mean [height, width, channels]; raises InputError when a pixel has no patch."""
        if not self._count.all():
            raise InputError(f"{int(np.sum(self._count == 0))} pixels are in no patch")
        mean: np.ndarray = np.divide(self._sum, self._count, dtype=self._sum.dtype)
        return mean


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")


def _canvas(height: int, width: int, channels: int, dtype: type[np.floating[Any]]) -> np.ndarray:
    _positive(height=height, width=width, channels=channels)
    return np.zeros((height, width, channels), dtype=dtype)


def _cut(length: int, tile: int, overlap: int) -> list[_Cut]:
    """The tiles along one side; borders between cores lie in the middle of what two neighbours share."""
    if length <= tile:
        return [(0, length, 0, length)]
    steps = -(-(length - tile) // (tile - overlap))
    starts = [k * (length - tile) // steps for k in range(steps + 1)]
    borders = [(start + before + tile) // 2 for before, start in itertools.pairwise(starts)]
    edges = [0, *borders, length]
    return [(s, s + tile, a, b) for s, (a, b) in zip(starts, itertools.pairwise(edges), strict=True)]


def _corners(length: int, patch: int, stride: int) -> list[int]:
    last = length - patch
    return [*range(0, last, stride), last]


def _profile(start: int, end: int, core_start: int, core_end: int, ramp: int) -> np.ndarray:
    """Weights along one side: the rise at the core's start minus the rise at its end.

    The end of one core is the start of the next, so over a plan the rises cancel in pairs and the sum is 1,
    however many tiles overlap. A core that reaches the region's own border has no neighbour to fade into.
    """
    position = np.arange(start, end) + 0.5
    begin = _rise(position - core_start, ramp) if core_start > start else np.ones(len(position))
    return begin - _rise(position - core_end, ramp) if core_end < end else begin


def _rise(distance: np.ndarray, ramp: int) -> np.ndarray:
    """0 to 1, linear over `ramp` pixels around distance 0; distances are half-integers."""
    return np.clip(distance / max(ramp, 1) + 0.5, 0, 1)
