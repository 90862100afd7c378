"""The noise of photographs that is coarser than a network sees: a second pass over the image at half its size."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from nlrn.functional.degradations import half_size, resize_bicubic
from nlrn.inference.self_ensemble import Progress, Run, tick_of_part

LEAST_SIDE = 32  # pixels; a smaller image has no second pass
REMAINS = 0.5  # level at half size after the first pass, as a share of the level at full size
_NEAR, _AROUND = 1, 6  # reach, in pixels at half size, of the mean that is subtracted, and of that of the energies
_REST = 0.02  # weight of the energy that a pass leaves against that which it removes
_LEAST_ENERGY = 1e-14  # in the unit of the image; nothing is removed below it


def with_half_size(run: Run, planes: np.ndarray, noise: float | np.ndarray, progress: Progress | None) -> np.ndarray:
    """What `run` makes of planes [B, C, H, W], and what it then removes at half size, enlarged by bicubic.

    Camera noise, and what a camera's own denoising leaves of it, has blotches that are wider than the neighbourhood in
    which the network looks. Means of 2 x 2 pixels bring them nearer. noise: a level or a map [H, W], in the unit of
    `run`; the second pass receives half of it. Of what it removes, the share `removal_share` is subtracted.
    """
    height, width = planes.shape[-2:]
    if min(height, width) < LEAST_SIDE:
        return run(planes, noise, progress)
    fine = run(planes, noise, progress and partial(tick_of_part, progress, 0, 2))
    small = half_size(fine)
    level = noise * REMAINS if isinstance(noise, float) else half_size(noise) * np.float32(REMAINS)
    removed = small - run(small, level, progress and partial(tick_of_part, progress, 1, 2))
    removed *= removal_share(small, removed)
    even = 2 * small.shape[-2], 2 * small.shape[-1]
    for found, change in zip(fine, removed, strict=True):
        coarse = resize_bicubic(change.transpose(1, 2, 0), *even)[:height, :width]
        found -= coarse.transpose(2, 0, 1).astype(found.dtype)
    return fine


def removal_share(planes: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """How much of what a pass removed from planes, both [B, C, H, W], was noise: [B, 1, H, W], 0 to 1.

    A network that is given more noise than there is invents texture in smooth areas, and takes fine texture away. Noise
    that was removed is a part of what the image has in the fine, h, which the rest does not resemble: the coefficient
    of the regression of h on r, the removed part in the fine, is 1. It is near 0 where r was invented. Where most of h
    remains, r was rather texture. The share is that coefficient f, limited to 0..1, times
    |r|^2 / (|r|^2 + 0.02 |h - f r|^2). Energies are means over 13 x 13 pixels; fine is what a mean of 3 x 3 removes.
    """
    h, r = _fine(planes), _fine(removed)
    together, energy = _around(h * r), _around(r * r)
    fits = np.clip(together / np.maximum(energy, _LEAST_ENERGY), 0, 1)
    h -= fits * r
    return np.asarray(fits * energy / np.maximum(energy + _REST * _around(h * h), _LEAST_ENERGY))


def _fine(x: np.ndarray) -> np.ndarray:
    return x - _mean(x, _NEAR)


def _around(x: np.ndarray) -> np.ndarray:
    """The mean around each pixel of a sum over channels: [B, 1, H, W]."""
    return _mean(x.sum(1, keepdims=True), _AROUND)


def _mean(x: np.ndarray, reach: int) -> np.ndarray:
    """The mean within `reach` pixels, of those that are in the image."""
    mean = avg_pool2d(torch.from_numpy(x), 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    return np.asarray(mean.numpy())
