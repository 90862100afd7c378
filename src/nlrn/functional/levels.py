"""The noise level that a denoiser is given for an image: a number or a map that was checked, or an estimate."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor, bfloat16, float16

from nlrn.errors import InputError
from nlrn.functional.alpha import hidden
from nlrn.functional.limits import MAX_SIGMA
from nlrn.functional.noise import NoiseEstimate, estimate_noise


def channels_of(image: np.ndarray) -> int:
    """1 for an image that is grey, HW or HWC, whatever its number of channels; 3 for one that has colour."""
    equal = image.ndim == 2 or all(np.array_equal(image[..., 0], image[..., c]) for c in range(1, image.shape[2]))
    return 1 if equal else 3


def found_noise(
    image: np.ndarray, in_channels: int, alpha: np.ndarray | None = None, noise: str = "auto"
) -> tuple[NoiseEstimate, ...]:
    """What `estimate_noise` finds in an image HW or HWC: once, or for each channel if the model takes one at a time.

    in_channels: of the model. alpha [H, W]: pixels where it is 0 are left out.
    """
    seen = image if alpha is None else np.where(hidden(image, alpha), 0, image)  # areas of one value are ignored
    if in_channels < channels_of(seen):
        return tuple(estimate_noise(seen[..., c], noise) for c in range(image.shape[2]))
    return (estimate_noise(seen, noise),)


def check_auto(word: str) -> None:
    """Raises InputError for a level that is a word other than "auto"."""
    if word != "auto":
        raise InputError(f"sigma must be a number, a map or 'auto', not {word!r}")


def scale_hint(sigma: object, spread: float = 1.0) -> str | None:
    """One line for a level that looks as if it were on the scale of the image, 0..1; None for others.

    spread: of the range that is restored, as a share of the type's; a level of 1/255 of that is not small.
    """
    try:
        level = float(np.max(plain(sigma)))
    except (TypeError, ValueError, RuntimeError):  # not a level at all, which is checked elsewhere
        return None
    if not 0 < level < min(1.0, spread):
        return None
    return f"sigma {level:g} removes nearly nothing: it is in 0-255 units, and {level:g} of 0..1 is {255 * level:.4g}"


def plain(sigma: Any) -> np.ndarray:
    """A level as a NumPy array of numbers, from a number, an array or a torch tensor. Raises TypeError for others."""
    if isinstance(sigma, Tensor):
        sigma = sigma.detach().cpu()
        sigma = sigma.float() if sigma.dtype in (bfloat16, float16) else sigma
    given = np.asarray(sigma)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"not {sigma!r}")
    return given


def level_of(found: tuple[NoiseEstimate, ...], spread: float = 1.0, camera: float | None = None) -> float | np.ndarray:
    """The level for a denoiser, a number, or one for each channel [C].

    It is at most MAX_SIGMA, times the spread of a range larger than the type's. camera: None for a denoiser of white
    noise; for one of camera noise, the factor on the level.
    """
    asked = [one.sigma if camera is None else camera * one.level for one in found]
    levels = [min(one, MAX_SIGMA * max(1.0, spread)) for one in asked]
    return levels[0] if len(levels) == 1 else np.array(levels)


def checked_level(
    image: np.ndarray, sigma: float | np.ndarray, in_channels: int, spread: float = 1.0
) -> float | np.ndarray:
    """A level in 0-255 units as given: a number, a map HW, or [C] for channels that go by themselves.

    Raises InputError for another shape, and outside 0..MAX_SIGMA times the spread of a range
    larger than the type's.
    """
    try:
        level = plain(sigma)
        level = level.astype(np.float64 if level.ndim < 2 else np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"sigma must be a number, a map or 'auto': {error}") from error
    single = image.ndim == 3 and image.shape[2] > in_channels == 1 and level.shape == image.shape[2:]
    if not single and (level.ndim not in (0, 2) or (level.ndim == 2 and level.shape != image.shape[:2])):
        raise InputError(f"sigma must be a number or a map of {image.shape[:2]}; this has shape {level.shape}")
    if not bool(np.all((level >= 0) & (level <= (most := MAX_SIGMA * max(1.0, spread))))):
        found = f"{float(level):g}" if level.ndim == 0 else f"{level.min():g}..{level.max():g}"
        hint = "; it counts in 1/255 of the range, also for floats on 0..1" if level.ndim == 0 else ""
        raise InputError(f"sigma must lie in 0..{most:g} (0-255 units); got {found}{hint}")
    return float(level) if level.ndim == 0 else level


def checked_strength(strength: object) -> float:
    """How much of the noise goes, 0..1. Raises InputError for anything else."""
    if not isinstance(strength, Real) or not 0 <= float(strength) <= 1:
        raise InputError(f"strength must be a number in 0..1, not {strength!r}")
    return float(strength)
