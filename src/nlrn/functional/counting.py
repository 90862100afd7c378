"""The gain and the read noise of counted photons, estimated from an image or from the planes of a stack.

The variance of such noise is a straight line of the brightness: gain x mean + a constant. At every pixel the residual
of a 3 x 3 filter that passes over whatever is linear in one of its directions (Immerkaer, "Fast noise variance
estimation", 1996) has the noise's variance, and the mean of the pixels under the square of that filter is the mean that
belongs to it: for independent noise the line holds of both exactly. Both are averaged over blocks; a line is fitted to
the blocks, each weighted by the variance that the line gives it, and blocks that lie far off, mostly above it where the
image has detail, are left out until the line stays (after Foi, Trimeche, Katkovnik, Egiazarian, "Practical
Poissonian-Gaussian noise modeling and fitting for single-image raw-data", 2008, which segments instead).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from nlrn.errors import InputError
from nlrn.functional.anscombe import PoissonNoise

LEAST_SIDE = 32
_BLOCK = 8  # pixels of a side
_MOST_BLOCKS = 1 << 18
_ROUNDS = 30
_FAR = 3.0  # deviations of a block's variance: farther off it is left out
_LIKE = (
    2.75  # relative deviation of a block's variance, times the root of its pixels: sqrt(2 x 3.78), as neighbours add
)
_FILTER = (1.0, -2.0, 1.0)


def estimate_photons(planes: Iterable[np.ndarray], black: float | None = None) -> PoissonNoise:
    """The noise of counted photons in one image, or in all planes of a stack.

    planes: float HW or HWC on the 0-255 scale, at least 32 pixels on each side; channels are taken together. black: the
    value without light where it is known; else it is 0, or what explains a constant part below 0.
    Raises InputError for smaller planes, where nothing varies, and where the noise does not grow with the brightness.
    """
    found = [_blocks(channel) for plane in planes for channel in _channels(np.asarray(plane))]
    mean, variance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if len(mean) > _MOST_BLOCKS:
        step = math.ceil(len(mean) / _MOST_BLOCKS)
        mean, variance = mean[::step], variance[::step]
    if not len(mean) or not (variance > 0).any():
        raise InputError("nothing varies in the image, so that no noise is found: give gain and read noise")
    gain, constant = _line(mean, variance)
    if not gain > 0:
        raise InputError(
            "the noise does not grow with the brightness, so that no photons are found: give the gain, or take"
            " the noise to be Gaussian"
        )
    if black is None:
        black = max(0.0, -constant / gain)
    return PoissonNoise(gain, math.sqrt(max(0.0, constant + gain * black)), black)


def _channels(plane: np.ndarray) -> list[np.ndarray]:
    if plane.ndim not in (2, 3) or min(plane.shape[:2]) < LEAST_SIDE:
        size = " x ".join(map(str, plane.shape))
        raise InputError(f"{size}: at least {LEAST_SIDE} x {LEAST_SIDE} pixels to estimate photons from: give the gain")
    return [plane] if plane.ndim == 2 else [plane[..., c] for c in range(plane.shape[2])]


def _blocks(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each block in which not all is black or at the upper limit."""
    plane = plane.astype(np.float64)
    row = np.array(_FILTER)
    residual = _filtered(plane, row)
    squares = row**2 / (row**2).sum()
    mean = _filtered(plane, squares)
    means, variances = _averages(mean), _averages(residual**2) / (row**2).sum() ** 2
    largest, kept = plane == plane.max(), variances > 0
    if np.count_nonzero(largest) > max(4, plane.size // 1000):  # so many that it is a limit
        kept &= _averages(largest[1:-1, 1:-1]) == 0
    return means[kept], variances[kept]


def _filtered(plane: np.ndarray, row: np.ndarray) -> np.ndarray:
    """By row x row', without the edges."""
    across = row[0] * plane[:, :-2] + row[1] * plane[:, 1:-1] + row[2] * plane[:, 2:]
    down: np.ndarray = row[0] * across[:-2] + row[1] * across[1:-1] + row[2] * across[2:]
    return down


def _averages(values: np.ndarray) -> np.ndarray:
    """Of blocks, a grid of them."""
    rows, columns = (n // _BLOCK for n in values.shape)
    whole = values[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    return whole.mean(axis=(1, 3)).reshape(-1)


def _line(mean: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """(slope, constant) of the variance, by weights that it gives itself; detail lies above it."""
    deviation = _LIKE / _BLOCK
    gain, constant = _first(mean, variance)
    for _ in range(_ROUNDS):
        expected = np.maximum(gain * mean + constant, 1e-12 * variance.max())
        ratio = variance / expected - 1
        kept = np.abs(ratio) <= _FAR * deviation
        if np.count_nonzero(kept) < 16:
            break
        before = gain, constant
        gain, constant = _weighted(mean[kept], variance[kept], 1 / expected[kept])
        if np.allclose(before, (gain, constant), rtol=1e-4, atol=0):
            break
    return gain, constant


def _first(mean: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """A line through low variances of blocks of like brightness, where the least detail is."""
    order = np.argsort(mean)
    groups = np.array_split(order, max(1, min(24, len(order) // 24)))
    points = [(float(mean[group].mean()), float(np.quantile(variance[group], 0.3))) for group in groups]
    x, y = (np.array(part) for part in zip(*points, strict=True))
    return _weighted(x, y, 1 / np.maximum(y, 1e-12 * y.max()))


def _weighted(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Least squares of y = a x + b by weights on the residuals; a line through 0 where x hardly varies."""
    square = weight**2
    centre, height = np.average(x, weights=square), np.average(y, weights=square)
    spread = np.average((x - centre) ** 2, weights=square)
    noise = max(float(height), 0.0) / _BLOCK**2  # of a block's mean
    if spread <= 3 * noise:
        return (float(height / centre), 0.0) if centre > 0 else (0.0, float(height))
    slope = float(np.average((x - centre) * (y - height), weights=square) / (spread - noise))
    return slope, float(height - slope * centre)
