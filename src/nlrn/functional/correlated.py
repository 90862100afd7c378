"""Noise that a camera correlated, read from blocks of an image: measurements, and a small network that judges them.

A block of noise and a block of fine texture can have the same deviation. What distinguishes them is how the deviation
falls from scale to scale, how far a pixel resembles its neighbours, and how alike the flattest blocks of the image are:
noise is the same in all of them, texture is not. `measurements` are logarithms and correlations of this kind, in blocks
less a fitted plane; a network of one hidden layer, fitted by scripts/fit_noise.py to photographs with simulated camera
noise, with white noise and with none, makes the level of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from nlrn.functional.degradations import half_size

WINDOW = 64  # side of the parts of an image that are looked at, in pixels
NUMBERS = Path(__file__).with_name("correlated.json")
_MOST_WINDOWS = 1024
_LEAST_BLOCKS = 8
_LUMA = np.array([0.299, 0.587, 0.114])
_QUANTILES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
_LAGS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 2), (0, 3), (3, 0), (0, 4), (4, 0))
_FLATTEST = ((0.0, 0.1), (0.1, 0.3))  # shares of the blocks, by their deviation
_FLOOR = 0.2  # added to a deviation, 0-255 units, before its logarithm is taken
_LEAST_VARIANCE = 1e-4  # of a block; below it the block has one value
# Means of blocks, and their share: of the first range that holds it the others are left out, those that a tone curve
# may have compressed, then those that may be clipped
_RANGES = ((15, 200, 0.1), (3, 252, 0.0))
OUTLIER = 3.5  # standard deviations; what lies farther than the network has seen counts as this


@dataclass(frozen=True)
class Judgement:
    """The estimate for one image.

    level: standard deviation of the noise, 0-255 units, mean square over channels; of a camera's noise that of flat
    areas (`camera.Camera.even`). sigma: the level of white noise at which a denoiser for white noise scores best on
    this image. white: probability that the noise is white.
    correlation: of neighbouring pixels in the flattest blocks.
    """

    level: float
    sigma: float
    white: float
    correlation: float


def judged(image: np.ndarray, white_sigma: float) -> Judgement | None:
    """What the network makes of an image, float HW or HWC on the 0..1 scale; None where there is too little to see.

    white_sigma: the noise of this image if it is white, 0-255 units.
    """
    found = measurements(image, white_sigma)
    if found is None:
        return None
    values, correlation = found
    n = _numbers()
    x = np.nan_to_num(np.clip((values - n["mean"]) / n["scale"], -OUTLIER, OUTLIER))
    level, sigma, white = np.tanh(x @ n["first"] + n["first_bias"]) @ n["second"] + n["second_bias"]
    levels = [max(0.0, math.exp(min(float(v), 5.0)) - _FLOOR) for v in (level, sigma)]
    return Judgement(levels[0], levels[1], 1 / (1 + math.exp(-float(np.clip(white, -30, 30)))), correlation)


@lru_cache
def _numbers() -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in json.loads(NUMBERS.read_text())["network"].items()}


def measurements(image: np.ndarray, white_sigma: float) -> tuple[np.ndarray, float] | None:
    """(float64 [76], correlation of neighbouring pixels in the flattest blocks) of an image as for `judged`.

    None for an image with fewer than 8 blocks of 32 x 32 pixels that vary. A grey image has no chroma: NaN stands
    there, which the network takes for the mean.
    """
    windows = _windows(image)
    if windows is None:
        return None
    luma = windows @ _LUMA if windows.ndim == 4 else windows
    half = half_size(luma)
    parts = [_of_scale(luma, 16), _of_scale(half, 16), _deviations(half_size(half), 8), _deviations(luma, 8)]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    chroma = np.full(4, np.nan)
    if windows.ndim == 4:
        chroma = np.concatenate([_chroma(windows[..., c] - windows[..., 1]) for c in (0, 2)])
    rest = np.array([math.log(white_sigma + _FLOOR), float(windows.ndim == 3)])
    return np.concatenate([*whole, chroma, rest]), float(whole[0][len(_QUANTILES)])


def _windows(image: np.ndarray) -> np.ndarray | None:
    """[N, 64, 64] or [N, 64, 64, 3] on the 0..255 scale, float64: an even choice of the parts of an image."""
    image = image[..., 0] if image.shape[2:] == (1,) else image
    rows, columns = (n // WINDOW for n in image.shape[:2])
    if rows * columns == 0:
        return None
    count = min(rows * columns, _MOST_WINDOWS)
    places = np.linspace(0, rows * columns - 1, count).round().astype(int)
    parts = [image[r : r + WINDOW, c : c + WINDOW] for r, c in (np.array(divmod(p, columns)) * WINDOW for p in places)]
    return np.stack(parts).astype(np.float64) * 255


def _residuals(
    planes: np.ndarray, side: int, ranges: tuple[tuple[float, float, float], ...] = _RANGES
) -> tuple[np.ndarray, np.ndarray]:
    """(blocks [M, side, side] less their fitted planes, their variances [M]), of those that vary, by `ranges`."""
    n, height, width = planes.shape
    blocks = planes.reshape(n, height // side, side, width // side, side).swapaxes(2, 3).reshape(-1, side * side)
    basis = _plane(side)
    residuals = blocks - (blocks @ basis) @ basis.T
    variances = np.mean(residuals**2, axis=1)
    varies, means = variances > _LEAST_VARIANCE, blocks.mean(axis=1)
    chosen = varies
    for low, high, share in ranges:
        inside = varies & (means > low) & (means < high)
        if np.count_nonzero(inside) >= max(_LEAST_BLOCKS, share * len(blocks)):
            chosen = inside
            break
    return residuals[chosen].reshape(-1, side, side), variances[chosen]


@lru_cache
def _plane(side: int) -> np.ndarray:
    """Orthonormal basis [side * side, 3] of planes over a block."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    basis = np.stack([np.ones(side * side), rows.ravel(), columns.ravel()], axis=1)
    return np.asarray(basis / np.linalg.norm(basis, axis=0))


def _logarithms(variances: np.ndarray, quantiles: tuple[float, ...]) -> np.ndarray:
    return np.asarray(np.log(np.sqrt(np.quantile(variances, quantiles)) + _FLOOR))


def _deviations(planes: np.ndarray, side: int) -> np.ndarray | None:
    variances = _residuals(planes, side)[1]
    return _logarithms(variances, _QUANTILES) if len(variances) >= _LEAST_BLOCKS else None


def _chroma(planes: np.ndarray) -> np.ndarray:
    variances = _residuals(planes, 16, _RANGES[1:])[1]  # differences of colours, whose means no tone curve concerns
    return _logarithms(variances if len(variances) else np.zeros(1), (0.1, 0.5))


def _of_scale(planes: np.ndarray, side: int) -> np.ndarray | None:
    """The features of one scale, or None with too few blocks.

    Deviations of the blocks; of the flattest the correlations at several lags, and how much they differ from block to
    block; deviations of the second difference across both diagonals, which smooth content has none of.
    """
    residuals, variances = _residuals(planes, side)
    if len(variances) < _LEAST_BLOCKS:
        return None
    found = [_logarithms(variances, _QUANTILES)]
    order = np.argsort(variances, kind="stable")
    for low, high in _FLATTEST:
        start = int(low * len(order))
        chosen = order[start : max(start + _LEAST_BLOCKS // 2, math.ceil(high * len(order)))]
        blocks, variance = residuals[chosen], variances[chosen]
        lagged = [_covariance(blocks, *lag) for lag in _LAGS]
        right, down, diagonal, right2, down2, diagonal2, right3, down3, right4, down4 = (
            covariance.sum() / variance.sum() for covariance in lagged
        )
        spread = [np.std((lagged[a] + lagged[b]) / 2 / variance) for a, b in ((0, 1), (3, 4))]
        near = [(right + down) / 2, right - down, diagonal]
        far = [(right2 + down2) / 2, diagonal2, (right3 + down3) / 2, (right4 + down4) / 2]
        found.append(np.array([*near, *far, *spread]))
    across = residuals[:, :-1, :-1] - residuals[:, 1:, :-1] - residuals[:, :-1, 1:] + residuals[:, 1:, 1:]
    found.append(_logarithms(np.mean(across**2, axis=(1, 2)) / 4, (0.05, 0.2, 0.5)))
    return np.concatenate(found)


def _covariance(blocks: np.ndarray, down: int, right: int) -> np.ndarray:
    """Of each block with itself, shifted: [M]."""
    height, width = blocks.shape[1] - down, blocks.shape[2] - right
    return np.asarray(np.mean(blocks[:, down:, right:] * blocks[:, :height, :width], axis=(1, 2)))
