"""One image enlarged, with messages about it: every entry (Python, command line, service) comes through here.

The network takes noise for detail and makes it stronger. So the noise is estimated first, and white noise, which is
distinguished from texture with certainty, is removed before; a camera's noise, which texture may pass for, is reported
(docs/upscaling.md has the measurements behind both).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from functools import partial

import numpy as np

from nlrn.errors import InputError, ModelNotFoundError
from nlrn.functional.alpha import enlarged_alpha, fill_hidden
from nlrn.functional.levels import channels_of
from nlrn.functional.noise import NoiseEstimate
from nlrn.functional.ranges import Range, Scale, on_unit_scale
from nlrn.inference.memory import backing_off
from nlrn.inference.pipeline import (
    Denoising,
    Report,
    RestorerFor,
    Result,
    denoised_array,
    sample_range,
    say_plan,
    say_range,
)
from nlrn.inference.restorer import Restorer
from nlrn.inference.self_ensemble import Progress, tick_of_part
from nlrn.inference.super_resolution import enlarged_size, passes_of, seen_size
from nlrn.io.image import MAX_RESULT_PIXELS, ImageData

# Levels, 0-255 units, from which on noise is removed before (white), or reported (a camera's)
WHITE, CAMERA = 3.0, 3.0


@dataclasses.dataclass(frozen=True)
class NoiseFirst:
    """Whether the noise is removed before an image is enlarged.

    denoiser: gives the Restorer that removes it, as for `denoised_array`. remove: True, False, or None where white
    noise of WHITE or more is found. how, how_not: what a person writes to have it removed, and kept, for messages.
    Raises InputError for another value of remove.
    """

    denoiser: RestorerFor
    remove: bool | None = None
    how: str = "denoise_first=True"
    how_not: str = "denoise_first=False"

    def __post_init__(self) -> None:
        if not isinstance(self.remove, bool | None):
            raise InputError(f"denoise_first must be True, False or None, not {self.remove!r}")

    def found(self, image: np.ndarray, alpha: np.ndarray | None, value_range: Range) -> tuple[NoiseEstimate, ...]:
        """The noise of an image HW or HWC, its hidden colour filled; nothing without an estimate or a denoiser."""
        with contextlib.suppress(InputError, ModelNotFoundError):
            return self.denoiser(channels_of(image), False).found_noise(image, alpha, "auto", value_range)
        return ()

    def decided(self, found: tuple[NoiseEstimate, ...], say: Report, scale: Scale) -> bool:
        """Whether it is removed; a line about noise that stays.

        Levels count on the scale that the image is restored on: of 12 bits in 16 they are small on that of the type.
        """
        if self.remove is not None or not found:
            return bool(self.remove)
        strongest = max(found, key=lambda one: one.level)
        level = strongest.level / scale.spread
        if strongest.kind == "white":
            return level >= WHITE
        if level >= CAMERA:
            say(f"found {strongest}, or texture like it, which is enlarged, too; to remove it first: {self.how}")
        return False


def upscaled(
    image: ImageData,
    restorer: Restorer,
    height: int,
    width: int,
    *,
    first: NoiseFirst | None = None,
    value_range: Range = "auto",
    say: Report = lambda line: None,
    progress: Progress | None = None,
) -> ImageData:
    """The image in a larger size, its alpha by bicubic; the rest as for `upscaled_array`."""
    restorer.require("sr")
    for note in image.notes:
        say(note)
    result = upscaled_array(
        image.array, image.alpha, restorer, height, width,
        first=first, value_range=value_range, levels=image.levels, say=say, progress=progress,
    )  # fmt: skip
    larger = image.of_size(height, width)
    for note in larger.notes[len(image.notes) :]:
        say(note)
    return result.recorded(dataclasses.replace(larger, array=result.array, alpha=result.alpha))


def upscaled_array(
    image: np.ndarray,
    alpha: np.ndarray | None,
    restorer: Restorer,
    height: int,
    width: int,
    *,
    first: NoiseFirst | None = None,
    value_range: Range = "auto",
    levels: float = 1.0,
    say: Report = lambda line: None,
    progress: Progress | None = None,
) -> Result:
    """An image HW or HWC in [0, 1] in a larger size, and its alpha: every entry comes through here.

    first: whether noise is removed before; None: it is not looked for. value_range: as of Restorer.upscale, numbers
    being sample values; levels, say, and what is raised: as for `denoised_array`, and what Restorer.upscale raises.
    """
    restorer.require("sr")
    if passes_of(image.shape[:2], (height, width)) > 1:
        say("beyond 4 times: two equal steps, the second on the result of the first")
    chosen = on_unit_scale(value_range, levels)
    seen = fill_hidden(image, alpha)
    found = () if first is None or first.remove is False else first.found(seen, alpha, chosen)
    if first is not None and first.decided(found, say, restorer.scale(seen, value_range=chosen)):
        part = progress and partial(tick_of_part, progress, 0, 2)
        asked = Denoising(value_range=value_range)
        result = denoised_array(seen, alpha, first.denoiser, asked, levels=levels, say=say, progress=part)
        say(f"noise removed before enlarging; to keep it: {first.how_not}")
        seen = result.array.clip(seen.min(), seen.max())
        progress = progress and partial(tick_of_part, progress, 1, 2)
    largest = seen_size(image.shape[:2], (height, width))  # in the last pass
    say_plan(restorer, say, *largest)
    scale = restorer.scale(seen, value_range=chosen)
    say_range(say, scale, levels, value_range)
    array, tile = backing_off(
        restorer,
        largest,
        lambda tried: tried.upscale(seen, height, width, value_range=chosen, progress=progress),
    )
    larger = None if alpha is None else enlarged_alpha(alpha, height, width)
    return Result(array, larger, sample_range(scale, levels), found, tile)


def result_size(
    height: int,
    width: int,
    *,
    scale: float | None = None,
    to_height: int | None = None,
    to_width: int | None = None,
    most: int = MAX_RESULT_PIXELS,
) -> tuple[int, int]:
    """(height, width) of an enlarged image: by a scale (default 2), or by a side or both.

    One side sets the other, halves rounded up. Raises InputError for a scale together with a side, and for a size that
    is not offered, or that has more pixels than `most`.
    """
    if scale is not None and (to_width or to_height):
        raise InputError("give a scale, or a width and a height, not both")
    if to_width is None and to_height is None:
        size = enlarged_size((height, width), scale or 2.0)
    else:
        size = (
            to_height or max(1, math.floor(height * (to_width or 0) / width + 0.5)),
            to_width or max(1, math.floor(width * (to_height or 0) / height + 0.5)),
        )
    passes_of((height, width), size)
    if size[0] * size[1] > most:
        raise InputError(f"a result of {size[1]} x {size[0]} pixels is beyond the limit of {most:,}", limit="result")
    return size
