"""The definition of neighbourhood attention in plain torch: the oracle every faster path is held against.

The correlation here is the meaning itself: S [B, H, W, q, q], entry (b, y, x, dy, dx) being the summed logit
of the query (y, x) towards the pixel (y + dy - r, x + dx - r), r = q // 2, and 0 outside the image. With
window=None it is [B, H, W, H, W], entry (b, y, x, y', x') pointing at the pixel (y', x').
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrn.ops.interface import MASKED, Block, Queries

ROWS_BLOCK = 1 << 24  # logits that `rows` yields at once: 64 MiB in float32


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


def average(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """sum_j (q_i . k_j) v_j / number of the keys j inside the window and the image, [B, H, W, C]."""
    count = valid_offsets(q.shape[1], q.shape[2], window, q.device).sum((2, 3))
    logits = torch.einsum("bhwc,bhwcij->bhwij", q, _neighbours(k, window))  # 0 outside the image
    return torch.einsum("bhwij,bhwcij->bhwc", logits, _neighbours(v, window)) / count[..., None]


def state_elements(at: Queries) -> int:
    """Numbers of a correlation."""
    return at.batch * at.height * at.width * math.prod(at.keys)


def to_dense(correlation: Tensor, at: Queries) -> Tensor:
    """The correlation, which is dense already, in its shape."""
    return correlation.reshape(*at[:3], *at.keys)


def of_pixel(correlation: Tensor, at: Queries, pixel: tuple[int, int, int]) -> Tensor:
    """The correlations of one query (b, y, x): [q, q], or [H, W] for window=None."""
    return to_dense(correlation, at)[pixel]


def rows(correlation: Tensor, at: Queries) -> Iterator[tuple[Block, Tensor]]:
    """Blocks ((batch, rows, columns), logits [1, Q, keys], at least float32, with MASKED at keys outside the image)."""
    batch, height, width, window = at
    dense, keys = to_dense(correlation, at), math.prod(at.keys)
    tall = max(1, ROWS_BLOCK // (width * keys))
    inside = [] if window is None else [offsets_inside(n, window, dense.device) for n in (height, width)]
    for b in range(batch):
        for y in range(0, height, tall):
            block = (slice(b, b + 1), slice(y, min(height, y + tall)), slice(0, width))
            logits = dense[block].to(torch.promote_types(dense.dtype, torch.float32))
            if inside:
                logits = logits.masked_fill(~(inside[0][block[1], None, :, None] & inside[1][:, None, :]), MASKED)
            yield block, logits.reshape(1, -1, keys)
