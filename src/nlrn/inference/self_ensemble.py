"""Images as input of a network: as planes, in parts, and in 8 views, rotated by quarter turns and mirrored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from nlrn.errors import InputError

Progress = Callable[[int, int], None]
Run = Callable[[np.ndarray, "float | np.ndarray", Progress | None], np.ndarray]


def over_views(run: Run, planes: np.ndarray, noise: float | np.ndarray, progress: Progress | None) -> np.ndarray:
    """The mean of what `run` makes of planes [B, C, H, W] turned and mirrored in 8 ways, each turned back."""
    total: np.ndarray | None = None
    for view in range(8):
        tick = progress and partial(tick_of_part, progress, view, 8)
        level = noise if isinstance(noise, float) else _turned(noise, view)
        found = _turned_back(run(_turned(planes, view), level, tick), view)
        total = found.astype(np.float32) if total is None else np.add(total, found, out=total)
    assert total is not None
    return total / np.float32(8)


def tick_of_part(progress: Progress, part: int, parts: int, done: int, total: int) -> None:
    """Progress of one of several equal parts of the work, reported as progress of the whole."""
    progress(part * total + done, parts * total)


def _turned(x: np.ndarray, view: int) -> np.ndarray:
    """The last two axes turned by view % 4 quarters, and mirrored from the fourth view on."""
    return np.rot90(x[..., ::-1] if view >= 4 else x, view % 4, (-2, -1))


def _turned_back(x: np.ndarray, view: int) -> np.ndarray:
    back = np.rot90(x, -view % 4, (-2, -1))
    return back[..., ::-1] if view >= 4 else back


def planes_of(image: np.ndarray, channels: int) -> np.ndarray:
    """HW or HWC -> [B, channels, H, W]: a colour image becomes a batch of three for a grey model.

    Raises InputError for a grey image and a model of colour.
    """
    chw = np.atleast_3d(image).transpose(2, 0, 1)
    if channels == 1:
        return chw[:, None]
    if chw.shape[0] != channels:
        raise InputError("this model restores colour images; the image is grey: use a grey model")
    return chw[None]


def image_of(planes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `planes_of`: an image HW or HWC of this shape."""
    return np.ascontiguousarray(planes.reshape(-1, *shape[:2]).transpose(1, 2, 0).reshape(shape))
