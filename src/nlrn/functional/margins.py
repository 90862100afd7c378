"""Margins of an image with fainter noise than the rest: bars of a letterbox, paper around a scanned photograph.

An estimate of noise looks where an image is flat, and would take theirs for that of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_LEAST = 8  # rows of a margin, and more than a few of the rest
_FIRST = 4  # rows at the edge that define the margin
_ROUNDED = 0.5 / 255
_BLOCK = 16
_DIFFERS = 2.0  # times the noise of the margin, from which on the rest has another


def without_margins(image: np.ndarray, sigma: Callable[[np.ndarray], float]) -> tuple[np.ndarray, float | None]:
    """(the image without its margins, their noise) where the rest has more than twice their noise; else it, and None.

    image: float [H, W, C] on the 0..1 scale. sigma: of an image, its noise on that scale.
    """
    rest, found = image, list[float]()
    for _ in range(2):  # around an image in the middle of a page the sides are seen once the top is away
        plane = rest.mean(axis=2, dtype=np.float64)
        sides = [_margin(side) for side in (plane, plane[::-1], plane.T, plane.T[::-1])]
        faintest = min((noise for count, noise in sides if count), default=0.0)
        top, bottom, left, right = (count if noise <= 1.5 * faintest else 0 for count, noise in sides)
        inner = rest[top : len(rest) - bottom, left : rest.shape[1] - right]
        faintest *= math.sqrt(image.shape[2])  # of one channel, where it is independent of the others
        if not faintest or min(inner.shape[:2]) < 2 * _BLOCK or sigma(inner) <= _DIFFERS * faintest + _ROUNDED:
            break
        rest = inner
        found.append(faintest)
    return rest, max(found, default=None)


def _margin(plane: np.ndarray) -> tuple[int, float]:
    """How many rows from the first on are a margin, at most all but a few, and their noise; (0, 0) for none."""
    height, width = plane.shape
    if height < 3 * _LEAST or width < 2 * _BLOCK:
        return 0, 0.0
    means, deviations = plane.mean(axis=1), plane.std(axis=1)
    mean, noise = float(np.median(means[:_FIRST])), float(np.median(deviations[:_FIRST]))
    if not 0 < noise < np.median(deviations) / _DIFFERS and not 0 < noise < deviations.max() / (2 * _DIFFERS):
        return 0, 0.0
    like = (deviations <= 1.5 * noise) & (np.abs(means - mean) <= 6 * noise / math.sqrt(width) + _ROUNDED / 2)
    count = height if like.all() else int(np.argmin(like))
    if not _LEAST <= count <= height - 2 * _LEAST:
        return 0, 0.0
    rows, columns = count // _LEAST * _LEAST, width // _BLOCK * _BLOCK
    blocks = plane[:rows, :columns].reshape(rows // _LEAST, _LEAST, columns // _BLOCK, _BLOCK).mean(axis=(1, 3))
    flat = blocks.std() <= 2.5 * noise / math.sqrt(_LEAST * _BLOCK) + _ROUNDED / 4  # white noise only, no gradient
    return (count, noise) if flat else (0, 0.0)
