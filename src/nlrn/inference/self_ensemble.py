"""A picture and its 7 other views, turned by quarters and mirrored: what one network makes of all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

Progress = Callable[[int, int], None]
Run = Callable[[np.ndarray, "float | np.ndarray", Progress | None], np.ndarray]


def over_views(run: Run, planes: np.ndarray, noise: float | np.ndarray, progress: Progress | None) -> np.ndarray:
    """The mean of what `run` makes of planes [B, C, H, W] turned and mirrored in 8 ways, each turned back."""
    total = np.zeros_like(planes, dtype=np.float32)
    for view in range(8):
        tick = progress and partial(tick_of_part, progress, view, 8)
        level = noise if isinstance(noise, float) else _turned(noise, view)
        total += _turned_back(run(_turned(planes, view), level, tick), view)
    return total / 8


def tick_of_part(progress: Progress, part: int, parts: int, done: int, total: int) -> None:
    """Progress of one of several equal parts of the work, told as progress of the whole."""
    progress(part * total + done, parts * total)


def _turned(x: np.ndarray, view: int) -> np.ndarray:
    """The last two axes turned by view % 4 quarters, and mirrored from the fourth view on."""
    return np.rot90(x[..., ::-1] if view >= 4 else x, view % 4, (-2, -1))


def _turned_back(x: np.ndarray, view: int) -> np.ndarray:
    back = np.rot90(x, -view % 4, (-2, -1))
    return back[..., ::-1] if view >= 4 else back
