"""Invisible colour: under alpha = 0 it must not bleed into the neighbouring pixels."""

from __future__ import annotations

import numpy as np

from nlrn.errors import InputError
from nlrn.functional.degradations import resize_bicubic, resize_bicubic8


def hidden(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Bool, HW for an image HW and HW1 for HWC: where alpha [H, W] is 0. Raises InputError for another shape."""
    alpha = np.asarray(alpha)
    if alpha.shape != image.shape[:2]:
        raise InputError(f"alpha of shape {alpha.shape} does not fit an image of {image.shape[:2]}")
    return (alpha == 0).reshape(alpha.shape + (1,) * (image.ndim - 2))


def fill_hidden(image: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """The image, float HW or HWC, with hidden colour replaced by the visible colour around it.

    Holes are filled from coarser and coarser means of the visible pixels (push-pull); visible pixels are kept. Without
    alpha nothing is hidden.
    """
    if alpha is None:
        return image
    holes = hidden(image, alpha)
    if not holes.any():
        return image
    weight = 1 - holes.reshape(*image.shape[:2], 1).astype(np.float32)
    filled = _fill(np.atleast_3d(image).astype(np.float32) * weight, weight).reshape(image.shape)
    return np.where(holes, filled, image)


def _fill(colour: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """colour [H, W, C] times weight [H, W, 1] in 0..1: the colour, and where the weight is 0 the coarser one."""
    height, width = weight.shape[:2]
    known = colour / np.maximum(weight, 1e-6)
    if weight.min() > 0 or max(height, width) == 1:
        return known
    total = _halve(weight)
    bounded = np.minimum(total, 1)
    coarse = _fill(_halve(colour) * (bounded / np.maximum(total, 1e-6)), bounded)
    wide = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(weight > 0, known, wide)


def _halve(x: np.ndarray) -> np.ndarray:
    """Sums of 2 x 2 pixels, the image made even by zeros."""
    x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)))
    return x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]


def enlarged_alpha(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """Alpha, uint8 or uint16 [H, W], resized by bicubic to height x width, of the same type.

    It is returned unchanged where it has that size.
    """
    if alpha.shape == (height, width):
        return alpha
    if alpha.dtype == np.uint8:
        return resize_bicubic8(alpha, height, width)
    larger = resize_bicubic(alpha.astype(np.float64), height, width)
    return np.rint(np.clip(larger, 0, np.iinfo(alpha.dtype).max)).astype(alpha.dtype)
