"""An image made larger the paper's way: bicubic, its luminance restored, the colour differences unchanged.

Everything is in float32 and, where float64 is needed, in strips of rows, so that a large result takes about 24 bytes a
pixel in addition to the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import SupportsFloat

import numpy as np

from nlrn.errors import InputError
from nlrn.functional.degradations import resize_bicubic
from nlrn.functional.metrics import studio_luma

LEAST, MOST = 1.5, 4.0  # factors of one pass; the network was trained for 2, 3 and 4
_ROWS = 256  # of a strip


def enlarged_size(size: Sequence[int], scale: SupportsFloat) -> tuple[int, int]:
    """(rows, columns) of an image `scale` times as large, halves rounded up. Raises InputError outside 1.5..16."""
    if not isinstance(scale, Real):
        raise InputError(f"scale must be a number, not {scale!r}")
    factor = float(scale)
    if not LEAST <= factor <= MOST**2:
        raise InputError(f"scale must lie in {LEAST:g}..{MOST**2:g}, not be {factor:g}")
    height, width = (math.floor(n * factor + 0.5) for n in size[:2])
    return height, width


def passes_of(size: Sequence[int], wanted: Sequence[int]) -> int:
    """How often an image is enlarged on the way from one size (rows, columns) to another: once or twice.

    Raises InputError for a factor outside 1.5..16; sides are whole, so half a pixel more or less is accepted.
    """
    pairs = list(zip(size, wanted, strict=True))
    if any(m + 0.5 < LEAST * n or m - 0.5 > MOST**2 * n for n, m in pairs):
        found = " and ".join(f"{m / n:.3g}" for n, m in pairs)
        raise InputError(f"sides can grow by {LEAST:g} to {MOST**2:g} times, not by {found}")
    return 1 if all(m - 0.5 <= MOST * n for n, m in pairs) else 2


def seen_size(size: Sequence[int], wanted: Sequence[float]) -> tuple[int, int]:
    """(rows, columns) that the network sees on the way from one size to another, halves rounded up.

    At least twice the first size: below it would sharpen too much, since it was trained for 2, 3 and 4.
    """
    rows, columns = (max(2 * n, math.floor(m + 0.5)) for n, m in zip(size, wanted, strict=True))
    return rows, columns


def enlarged(image: np.ndarray, height: int, width: int, restore: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """One pass: float32 [height, width(, C)] of image HW or HWC (C = 1 or 3) on the 0..1 scale, not clipped.

    restore: of the enlarged image's luminance, float32 [1, 1, height, width], the restored one.
    """
    larger = resized_bicubic(image, height, width)
    colour = image.shape[2:] == (3,)
    luma = np.empty((1, 1, height, width), np.float32)
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        luma[0, 0, rows] = studio_luma(larger[rows]) if colour else larger[rows].reshape(-1, width)
    detail = restore(luma)[0, 0]
    detail -= luma[0, 0]
    if colour:
        detail *= 255 / 219  # the same in every channel keeps the colour differences
        larger += detail[..., None]
    else:
        larger += detail.reshape(larger.shape)
    return larger


def resized_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 HW or HWC in another size by bicubic, not clipped; one channel of it is in float64 at a time."""
    channels = image.shape[2:]
    result = np.empty((height, width, *channels), np.float32)
    for channel in range(math.prod(channels)):
        result.reshape(height, width, -1)[..., channel] = resize_bicubic(
            image.reshape(*image.shape[:2], -1)[..., channel].astype(np.float64), height, width
        )
    return result
