"""The noise of photographs that is coarser than a network sees: a second pass over the image at half its size."""

from __future__ import annotations

from functools import partial

import numpy as np

from nlrn.functional.degradations import half_size, resize_bicubic
from nlrn.inference.self_ensemble import Progress, Run, tick_of_part

LEAST_SIDE = 32  # pixels; a smaller image has no second pass
REMAINS = 0.5  # level at half size after the first pass, as a share of the level at full size


def with_half_size(run: Run, planes: np.ndarray, noise: float | np.ndarray, progress: Progress | None) -> np.ndarray:
    """What `run` makes of planes [B, C, H, W], and what it then removes at half size, enlarged by bicubic.

    Camera noise, and what a camera's own denoising leaves of it, has blotches that are wider than the neighbourhood in
    which the network looks. Means of 2 x 2 pixels bring them nearer. noise: a level or a map [H, W], in the unit of
    `run`; the second pass receives half of it.
    """
    height, width = planes.shape[-2:]
    if min(height, width) < LEAST_SIDE:
        return run(planes, noise, progress)
    fine = run(planes, noise, progress and partial(tick_of_part, progress, 0, 2))
    small = half_size(fine)
    level = noise * REMAINS if isinstance(noise, float) else half_size(noise) * np.float32(REMAINS)
    removed = run(small, level, progress and partial(tick_of_part, progress, 1, 2)) - small
    even = 2 * small.shape[-2], 2 * small.shape[-1]
    for found, change in zip(fine, removed, strict=True):
        coarse = resize_bicubic(change.transpose(1, 2, 0), *even)[:height, :width]
        found += coarse.transpose(2, 0, 1).astype(found.dtype)
    return fine
