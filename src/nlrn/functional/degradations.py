"""The degradations that the networks undo: Gaussian noise and MATLAB's bicubic resizing.

Pure functions of a float array HW or HWC; every result is float64 and neither clipped nor rounded, save
where documented.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from nlrn.errors import InputError

Border = Literal["replicate", "symmetric"]
_STRIP = 256  # rows


def add_gaussian_noise(image: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """`image` + normal noise of standard deviation sigma / 255, float64, not clipped (docs/reproduce.md).

    image: HW or HWC in [0, 1]; sigma in 0-255 units. NumPy's legacy RandomState(seed) starts anew at every
    call, so images of equal shape get equal noise: this is the field's protocol for scoring.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise InputError(f"sigma is {sigma}; expected a number >= 0 in 0-255 units")
    image = _float_image(image)
    return image + np.random.RandomState(seed).normal(0, sigma / 255, image.shape)


def resize_bicubic(
    image: np.ndarray, height: int, width: int, *, antialias: bool = True, border: Border = "replicate"
) -> np.ndarray:
    """`image` resized like MATLAB's imresize(..., "bicubic"): Keys' cubic (1981) with a = -0.5.

    image: HW or HWC of any range; the result is float64 [height, width(, C)] and may overshoot the range.
    antialias widens the kernel when shrinking. Outside the image the pixels are repeated ("replicate", as
    in the MATLAB that made the usual test sets) or mirrored with the edge ("symmetric", newer MATLAB).
    """
    image = _float_image(image)
    down, across = _taps(image.shape[0], height, antialias, border), _taps(image.shape[1], width, antialias, border)
    result = np.empty((height, width, *image.shape[2:]))
    for top in range(0, height, _STRIP):  # what lies between the two passes is never there as a whole
        strip = slice(top, top + _STRIP)
        rows = _resampled(image, *(x[strip] for x in down))
        result[strip] = _resampled(rows.swapaxes(0, 1), *across).swapaxes(0, 1)
    return result


def resize_matrix(length: int, size: int, *, antialias: bool = True, border: Border = "replicate") -> np.ndarray:
    """`resize_bicubic` along one axis as a matrix [size, length], float64."""
    return resize_bicubic(np.eye(length), size, length, antialias=antialias, border=border)


def half_size(x: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 over the last two axes; an odd side is repeated at its end."""
    odd = [(0, 0)] * (x.ndim - 2) + [(0, n % 2) for n in x.shape[-2:]]
    x = np.pad(x, odd, mode="edge")
    return np.asarray((x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / x.dtype.type(4))


def resize_bicubic8(image: np.ndarray, height: int, width: int, *, border: Border = "replicate") -> np.ndarray:
    """A uint8 image resized to uint8 exactly as MATLAB does it, which made the field's LR images.

    The vertical axis goes first; after each axis the values are rounded, half up, and clipped to 8 bits.
    """
    if image.dtype != np.uint8:
        raise InputError(f"expected a uint8 image; got {image.dtype}")
    image = _float_image(image.astype(np.float64))
    rows = _round8(_resampled(image, *_taps(image.shape[0], height, True, border)))
    columns = _resampled(rows.swapaxes(0, 1), *_taps(image.shape[1], width, True, border))
    return _round8(columns).swapaxes(0, 1).astype(np.uint8)


def _float_image(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(f"expected an image HW or HWC; got shape {image.shape}")
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"expected a float image in [0, 1]; got {image.dtype}; divide by 255 or 65535")
    return image.astype(np.float64, copy=False)


def _round8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255)


def _resampled(image: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The first axis resampled; one pass over the image for each of the kernel's few taps."""
    result = np.zeros((len(index), *image.shape[1:]))
    shape = (-1,) + (1,) * (image.ndim - 1)
    for tap in range(index.shape[1]):
        result += weight[:, tap].reshape(shape) * image[index[:, tap]]
    return result


def _taps(length: int, size: int, antialias: bool, border: Border) -> tuple[np.ndarray, np.ndarray]:
    """Source rows and normalised weights of every output row: two arrays [size, taps]."""
    if min(length, size) < 1:
        raise InputError(f"sides of {length} and {size} pixels; expected at least 1")
    scale = size / length
    squeeze = min(scale, 1.0) if antialias else 1.0  # a shrinking kernel is stretched by 1 / scale
    centre = (np.arange(size) + 0.5) / scale - 0.5
    reach = 2 / squeeze
    index = np.floor(centre - reach).astype(np.int64)[:, None] + np.arange(math.ceil(2 * reach) + 2)
    weight = _cubic((centre[:, None] - index) * squeeze)
    weight /= weight.sum(axis=1, keepdims=True)
    return _inside(index, length, border), weight


def _inside(index: np.ndarray, length: int, border: Border) -> np.ndarray:
    """Row numbers beyond the image brought into it."""
    if border == "replicate":
        return np.clip(index, 0, length - 1)
    if border == "symmetric":
        turn = index % (2 * length)
        return np.minimum(turn, 2 * length - 1 - turn)
    raise InputError(f"border is {border!r}; expected 'replicate' or 'symmetric'")


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' interpolation kernel with a = -0.5, zero beyond |x| = 2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
