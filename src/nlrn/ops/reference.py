"""The definition of neighbourhood attention in plain torch: the oracle every faster path is held against.

The correlation here is the meaning itself: S [B, H, W, q, q], entry (b, y, x, dy, dx) being the summed logit
of the query (y, x) towards the pixel (y + dy - r, x + dx - r), r = q // 2, and 0 outside the image. With
window=None it is [B, H, W, H, W], entry (b, y, x, y', x') pointing at the pixel (y', x').
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrn.ops.interface import MASKED


def unsupported(q: Tensor, window: int | None) -> str | None:
    """The definition runs everywhere: always None."""
    return None


def valid_offsets(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Bool [H, W, q, q]: does offset (dy, dx) from pixel (y, x) stay inside the image?"""
    rows, columns = (offsets_inside(n, window, device) for n in (height, width))
    return rows[:, None, :, None] & columns[None, :, None, :]


def offsets_inside(length: int, window: int, device: torch.device) -> Tensor:
    """Bool [length, q]: does an offset from a place on a side of that length stay on it?"""
    place = torch.arange(length, device=device)[:, None] + torch.arange(window, device=device) - window // 2
    return (place >= 0) & (place < length)


def _neighbours(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] -> [B, H, W, C, q, q], zeros outside the image."""
    r = window // 2
    return F.pad(x, (0, 0, r, r, r, r)).unfold(1, window, 1).unfold(2, window, 1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, correlation: Tensor | None, return_correlation: bool
) -> tuple[Tensor, Tensor | None]:
    """q, k [B, H, W, Cm], v [B, H, W, C] -> out [B, H, W, C] and, when asked for, the correlation S."""
    if window is None:
        logits = torch.einsum("bhwc,byxc->bhwyx", q, k)
        logits = logits if correlation is None else logits + correlation
        out = torch.einsum("bhwyx,byxc->bhwc", logits.flatten(3).softmax(-1).view_as(logits), v)
        return out, logits if return_correlation else None
    valid = valid_offsets(q.shape[1], q.shape[2], window, q.device)
    logits = torch.einsum("bhwc,bhwcij->bhwij", q, _neighbours(k, window))
    logits = logits if correlation is None else logits + correlation
    logits = logits.masked_fill(~valid, 0)
    p = logits.masked_fill(~valid, -torch.inf).flatten(3).softmax(-1).view_as(logits)
    out = torch.einsum("bhwij,bhwcij->bhwc", p, _neighbours(v, window))
    return out, logits if return_correlation else None


def to_dense(correlation: Tensor, batch: int, height: int, width: int, window: int | None) -> Tensor:
    """The correlation of this backend is dense already."""
    return correlation


def of_pixel(
    correlation: Tensor, batch: int, height: int, width: int, window: int | None, pixel: tuple[int, int, int]
) -> Tensor:
    """The correlations of one query (b, y, x): [q, q], or [H, W] for window=None."""
    return correlation[pixel]


def rows(
    correlation: Tensor, batch: int, height: int, width: int, window: int | None
) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
    """One block: ((batch, rows, columns), logits [B, H * W, keys] with MASKED at keys outside the image)."""
    logits = correlation
    if window is not None:
        logits = logits.masked_fill(~valid_offsets(height, width, window, correlation.device), MASKED)
    block = (slice(0, batch), slice(0, height), slice(0, width))
    yield block, logits.reshape(batch, height * width, -1)


def state_elements(batch: int, height: int, width: int, window: int | None) -> int:
    """Numbers of a correlation."""
    return batch * height * width * (height * width if window is None else window * window)
