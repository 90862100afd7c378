"""The range of values that an image is restored on: its type's, its own where that is a small part, or given numbers.

The networks were trained on images that use most of 0..1. On an image that uses a small part of its type (12 bits in a
16-bit file, a dark frame, floats from 0.45 to 0.55) they lose 0.4 to 0.8 dB at a quarter of the type's range,
1.3 to 1.8 at an eighth and more below, and at most 0.15 at a half (denoising, sigma 10 and 25, six images of BSDS500's
training part). So an image's own range is used up to a quarter of the type's, the type's from a half on, and in
between a mean of both whose weight goes with the part: the result is a continuous function of the image.

The image's range is that of its values without the thousandth of the pixels at either end. What lies farther out than
half of the range, a hot pixel or a star, is limited to that for the network and added to the result as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrn.errors import ConfigError, InputError
from nlrn.functional.limits import MAX_SIGMA

RANGES = ("auto", "type", "image")
Range = str | tuple[float, float]  # one of RANGES, or (black, white)
SMALL, LARGE = 0.25, 0.5  # parts of the type's range: up to here the image's own, from there on the type's
_APART = 1000  # one in so many pixels may lie beyond either end of an image's range
_AT_LEAST = 4  # pixels of an image of 256 and more
_BEYOND = 0.5  # of the range: how far values beyond it are shown to the network
_LEAST = 1e-30  # spread of an image of a single value
_SLACK, _DEVIATIONS = 0.05, 4.0  # how far a noisy image may exceed 0..1
_ROUNDING = 1 + 1e-6  # of a range that was made so that it allows a sigma
_MOST_PIXELS = 1 << 21  # that are looked at, an even grid of them


@dataclass(frozen=True)
class Scale:
    """low, spread: the network sees (x - low) / spread, limited to least..most; values beyond bypass it."""

    low: float = 0.0
    spread: float = 1.0
    least: float = -math.inf
    most: float = math.inf

    @property
    def limits(self) -> tuple[float, float]:
        """What the network sees as 0 and 1."""
        return self.low, self.low + self.spread

    def unit(self, image: np.ndarray) -> np.ndarray:
        """The image as the network sees it, float32 of the same shape."""
        if self == Scale():
            return image.astype(np.float32, copy=False)
        unit = (image - image.dtype.type(self.low)) / image.dtype.type(self.spread)
        return np.clip(unit, self.least, self.most, out=unit).astype(np.float32, copy=False)

    def back(self, unit: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Values as the network gives them, on the image's own scale."""
        if (self.low, self.spread) == (0.0, 1.0):
            return unit.astype(dtype, copy=False)
        return unit.astype(dtype, copy=False) * dtype.type(self.spread) + dtype.type(self.low)

    def beyond(self, image: np.ndarray) -> np.ndarray | int:
        """What `unit` cuts off, on the image's own scale and of its shape; 0 for nothing."""
        low, high = self.low + self.spread * self.least, self.low + self.spread * self.most
        outside = (image < low) | (image > high)
        if not outside.any():
            return 0
        return np.where(outside, image - np.clip(image, low, high), 0).astype(image.dtype)


def scale_of(image: np.ndarray, chosen: Range = "auto", sigma: float | np.ndarray = 0.0) -> Scale:
    """The scale for an image, float HW or HWC, its type's range being 0..1.

    chosen: "auto" as described above, "type", "image" (its own range whatever its part), or (black, white).
    sigma: the level, or the levels, of the noise where they are known, 0-255 units of the type's range. An image's
    range is taken so large that none exceeds 75 on it. Raises InputError where it does on a range that was given.
    """
    chosen = checked(chosen)
    if chosen == "type":
        return Scale()
    low, high = robust_range(image)
    strongest = float(np.max(sigma)) / MAX_SIGMA
    if isinstance(chosen, tuple):
        if strongest > (spread := chosen[1] - chosen[0]) * _ROUNDING and spread < 1:
            raise InputError(
                f"sigma {np.max(sigma):g} is more than {MAX_SIGMA:g} on the range {chosen[0]:g}..{chosen[1]:g}, where"
                f" it is {np.max(sigma) / spread:g}: sigma counts in 1/255 of the type's range, whatever is chosen"
            )
        return _limited(chosen[0], spread, low, high)
    part = high - low
    spread = max(part, strongest, _LEAST)
    weight = 1.0 if chosen == "image" else min(max((LARGE - spread) / (LARGE - SMALL), 0.0), 1.0)
    return _limited(weight * (low - (spread - part) / 2), 1 - weight + weight * spread, low, high)


def _limited(low: float, spread: float, least: float, most: float) -> Scale:
    """With room beyond what is seen as 0..1, and beyond the range of the values."""
    least, most = (least - low) / spread, (most - low) / spread
    return Scale(low, spread, min(0.0, least) - _BEYOND, max(1.0, most) + _BEYOND)


def scale_beyond(image: np.ndarray, sigma: float | np.ndarray) -> Scale:
    """For an image whose values exceed 0..1 by more than noise of this level does: a scale with more room."""
    low, high = robust_range(image)
    margin = _DEVIATIONS * float(np.max(sigma)) / 255 + _SLACK
    low, high = min(0.0, low + margin), max(1.0, high - margin)
    return Scale(low, high - low)


def robust_range(image: np.ndarray) -> tuple[float, float]:
    """The least and the largest value of a float image HW or HWC, but for one pixel in a thousand at either end."""
    step = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / _MOST_PIXELS))
    values = image[::step, ::step]
    pixels = values.shape[0] * values.shape[1]
    values = values.reshape(-1)
    apart = min(max(math.ceil(pixels / _APART), min(_AT_LEAST, pixels // 64)), (pixels - 1) // 2)
    apart *= values.size // pixels  # samples of each
    ends = np.partition(values, (apart, values.size - 1 - apart))
    return float(ends[apart]), float(ends[values.size - 1 - apart])


def checked_image(image: np.ndarray, value_range: Range = "auto") -> np.ndarray:
    """The image as float HW or HWC, float64 where it is and else float32.

    Raises InputError naming what was found and what is expected: values near 0..1, or near the range that is given.
    """
    if isinstance(image, np.ma.MaskedArray):
        raise InputError("a masked array: nothing is restored under a mask; fill it (.filled) or leave it out (.data)")
    image = np.asarray(image)
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise InputError(
            f"expected an image HW or HWC with 1 or 3 channels; got shape {tuple(image.shape)}"
            + ("; of a stack give nlrn.denoise its axes, such as axes='ZYX'" if image.ndim > 2 else "")
        )
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"expected a float image on the 0..1 scale; got {image.dtype}; divide by 255 or 65535")
    if not np.isfinite(image).all():
        raise InputError("the image holds numbers that are not finite (NaN or infinity)")
    chosen = checked(value_range)
    low, high = (float(image.min()), float(image.max())) if isinstance(chosen, str) else robust_range(image)
    black, white = (0.0, 1.0) if isinstance(chosen, str) else chosen
    if low < black - 4 * (white - black) or high > black + 5 * (white - black):
        advice = "divide by 255 or 65535, or give axes='YX', by which floats may be counts"
        advice = advice if isinstance(chosen, str) else "give the values of black and white"
        raise InputError(f"the image's values span {low:g}..{high:g}, far from {black:g}..{white:g}; {advice}")
    return image.astype(np.float64 if image.dtype == np.float64 else np.float32, copy=False)


def checked(chosen: Any) -> Range:
    """Raises ConfigError for what is neither one of RANGES nor two numbers, the smaller one first."""
    if isinstance(chosen, str) and chosen in RANGES:
        return chosen
    try:
        low, high = (float(number) for number in (() if isinstance(chosen, str) else chosen))
    except (TypeError, ValueError):
        raise ConfigError(f"a range is {', '.join(RANGES)}, or two numbers, black and white; not {chosen!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"a range begins with the smaller of two finite numbers, not {low:g},{high:g}")
    return low, high


def parsed(text: str) -> Range:
    """A range as the command line and forms have it: a word, or LO,HI. Raises ConfigError."""
    return checked(tuple(text.split(",")) if "," in text else text)


def on_unit_scale(chosen: Range | Sequence[float], levels: float) -> Range:
    """A range in sample values, of samples up to `levels`, on the scale where those end at 1."""
    found = checked(chosen)
    return found if isinstance(found, str) else (found[0] / levels, found[1] / levels)
