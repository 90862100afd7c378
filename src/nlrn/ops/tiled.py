"""Blocked dense torch: neighbourhood attention on any device, with no compiler and with bounded memory.

The picture is cut into tiles of queries. A tile's keys are the tile grown by r on every side and clipped at
the picture's border, so that one tile is three dense matrix products and a softmax under a mask, [B, Q, K] at
a time.

The correlation is one flat tensor: tile after tile, each [B, Q, K], with MASKED (-1e30) where a key lies
outside the query's window. Adding logits to MASKED leaves MASKED, so the mask is paid for once, at the first
state. The backward pass is written out and computes the probabilities again, tile by tile; the gradient of
the correlation has the correlation's own dtype, never a narrower one: its entries are too small for float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MASKED = -1e30
BLOCK = 1 << 21  # logits worked on at once: 8 MiB in float32, about what a last-level cache holds


def unsupported(q: Tensor, window: int | None) -> str | None:
    """Why these tensors cannot be handled here: never, every device and floating dtype is."""
    return None


@dataclass(frozen=True)
class Tile:
    """A block of queries [y0:y1, x0:x1] and the clipped block of keys [ky0:ky1, kx0:kx1] they may look at."""

    y0: int
    y1: int
    x0: int
    x1: int
    ky0: int
    ky1: int
    kx0: int
    kx1: int
    offset: int  # logits before this tile, in one picture's correlation

    @property
    def queries(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    @property
    def keys(self) -> int:
        return (self.ky1 - self.ky0) * (self.kx1 - self.kx0)

    def cut_queries(self, x: Tensor) -> Tensor:
        return x[:, self.y0 : self.y1, self.x0 : self.x1]

    def cut_keys(self, x: Tensor) -> Tensor:
        return x[:, self.ky0 : self.ky1, self.kx0 : self.kx1]

    def state(self, correlation: Tensor, batch: int) -> Tensor:
        """This tile's part of the flat correlation, [B, Q, K]."""
        size = self.queries * self.keys
        return correlation[batch * self.offset :][: batch * size].view(batch, self.queries, self.keys)

    def mask(self, window: int | None, like: Tensor) -> Tensor | None:
        """[Q, K], 0 inside the window and MASKED outside; None when every key is inside."""
        if window is None:
            return None
        spans = (self.y1 - self.y0, self.x1 - self.x0, self.ky1 - self.ky0, self.kx1 - self.kx0)
        shift = (self.y0 - self.ky0, self.x0 - self.kx0)
        return _mask(*spans, *shift, window // 2, like.dtype, like.device)


@lru_cache(maxsize=64)
def _mask(
    th: int, tw: int, kh: int, kw: int, sy: int, sx: int, r: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    def near(n: int, keys: int, shift: int) -> Tensor:
        query = torch.arange(n, device=device)[:, None] + shift
        return (query - torch.arange(keys, device=device)).abs() <= r

    inside = near(th, kh, sy)[:, None, :, None] & near(tw, kw, sx)[None, :, None, :]
    mask = torch.zeros(th * tw, kh * kw, dtype=dtype, device=device)
    return mask.masked_fill_(~inside.reshape(th * tw, kh * kw), MASKED)


def _tile_shape(height: int, width: int, window: int | None) -> tuple[int, int]:
    """Queries a tile: small enough to waste few keys, large enough for the matrix products."""
    if window is None:
        return max(1, min(height, BLOCK // (height * width * width))), width
    edge = 8 if window <= 17 else 16
    return min(height, edge), min(width, edge)


@lru_cache(maxsize=64)
def tiles(height: int, width: int, window: int | None) -> tuple[Tile, ...]:
    """The tiles of a picture, row by row."""
    r = max(height, width) if window is None else window // 2
    th, tw = _tile_shape(height, width, window)
    found, offset = [], 0
    for y in range(0, height, th):
        for x in range(0, width, tw):
            y1, x1 = min(height, y + th), min(width, x + tw)
            keys = (max(0, y - r), min(height, y1 + r), max(0, x - r), min(width, x1 + r))
            tile = Tile(y, y1, x, x1, *keys, offset)
            found.append(tile)
            offset += tile.queries * tile.keys
    return tuple(found)


def _state_size(height: int, width: int, window: int | None) -> int:
    last = tiles(height, width, window)[-1]
    return last.offset + last.queries * last.keys


def state_bytes(batch: int, height: int, width: int, window: int | None, itemsize: int) -> int:
    """Bytes of the carried correlation."""
    return batch * _state_size(height, width, window) * itemsize


def _logits(tile: Tile, q: Tensor, k: Tensor, window: int | None, before: Tensor | None, out: Tensor | None) -> Tensor:
    """[B, Q, K], into `out` if given: q.k plus the carried logits, or plus the mask if nothing is carried."""
    n, cm = q.shape[0], q.shape[-1]
    qt, kt = tile.cut_queries(q).reshape(n, -1, cm), tile.cut_keys(k).reshape(n, -1, cm)
    s = torch.bmm(qt, kt.transpose(1, 2), out=out) if out is not None else torch.bmm(qt, kt.transpose(1, 2))
    added = tile.mask(window, s) if before is None else before
    return s if added is None else s.add_(added)


def _chunks(tile: Tile, batch: int) -> Iterator[slice]:
    """Pictures of the batch taken together, so that one block of logits stays near BLOCK."""
    step = max(1, BLOCK // (tile.queries * tile.keys))
    for start in range(0, batch, step):
        yield slice(start, min(batch, start + step))


def _blocks(
    batch: int, height: int, width: int, window: int | None, *states: Tensor | None
) -> Iterator[tuple[Tile, slice, list[Tensor | None]]]:
    """Every (tile, pictures of the batch, the states' parts there)."""
    for tile in tiles(height, width, window):
        parts = [None if s is None else tile.state(s, batch) for s in states]
        for b in _chunks(tile, batch):
            yield tile, b, [None if part is None else part[b] for part in parts]


def _add(block: Tensor, part: Tensor) -> None:
    block.add_(part.view(block.shape))


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, window: int | None, carry: bool
    ) -> tuple[Tensor, Tensor | None]:
        batch, height, width, channels = v.shape
        after = v.new_empty(batch * _state_size(height, width, window)) if carry else None
        out = v.new_empty(v.shape)
        for tile, b, (carried, kept) in _blocks(batch, height, width, window, before, after):
            p = _logits(tile, q[b], k[b], window, carried, kept).softmax(-1)
            block = tile.cut_queries(out[b])
            block.copy_(torch.bmm(p, tile.cut_keys(v[b]).reshape(p.shape[0], -1, channels)).view(block.shape))
        ctx.window = window
        ctx.save_for_backward(q, k, v, before if after is None else None, after)
        ctx.set_materialize_grads(False)
        return out, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, later: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # it may run inside the caller's
            return _TiledAttention._gradients(ctx, dout, later)

    @staticmethod
    def _gradients(ctx: Any, dout: Tensor | None, later: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, before, after = ctx.saved_tensors
        batch, height, width, _ = v.shape
        dout = torch.zeros_like(v) if dout is None else dout
        later = None if later is None else later.contiguous()
        earlier = v.new_empty(batch * _state_size(height, width, ctx.window)) if ctx.needs_input_grad[3] else None
        dq, dk, dv = (x.new_zeros(x.shape) for x in (q, k, v))
        states = (before, after, later, earlier)
        for tile, b, (carried, kept, ds_later, ds) in _blocks(batch, height, width, ctx.window, *states):
            s = _logits(tile, q[b], k[b], ctx.window, carried, None) if kept is None else kept
            qt, kt, vt, do = (
                x.reshape(s.shape[0], -1, x.shape[-1])
                for x in (
                    tile.cut_queries(q[b]),
                    tile.cut_keys(k[b]),
                    tile.cut_keys(v[b]),
                    tile.cut_queries(dout[b]),
                )
            )
            p = s.softmax(-1)
            dp = torch.bmm(do, vt.transpose(1, 2))
            _add(tile.cut_keys(dv[b]), torch.bmm(p.transpose(1, 2), do))
            ds_here = torch._softmax_backward_data(dp, p, -1, p.dtype)  # p * (dp - sum(p * dp))
            if ds_later is not None:
                ds_here = ds_here.add_(ds_later)
            if ds is not None:
                ds.copy_(ds_here)
            _add(tile.cut_queries(dq[b]), torch.bmm(ds_here, kt))
            _add(tile.cut_keys(dk[b]), torch.bmm(ds_here.transpose(1, 2), qt))
        return dq, dk, dv, earlier, None, None


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, correlation: Tensor | None, return_correlation: bool
) -> tuple[Tensor, Tensor | None]:
    """q, k [B, H, W, Cm], v [B, H, W, C] -> out [B, H, W, C] and, when asked for, the flat correlation."""
    out, after = _TiledAttention.apply(q, k, v, correlation, window, return_correlation)  # type: ignore[no-untyped-call]
    return out, after


def rows(
    correlation: Tensor, batch: int, height: int, width: int, window: int | None
) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
    """Blocks ((batch, rows, columns), logits [B, Q, K] with MASKED at keys outside the window)."""
    for tile in tiles(height, width, window):
        block = (slice(0, batch), slice(tile.y0, tile.y1), slice(tile.x0, tile.x1))
        yield block, tile.state(correlation, batch)


def to_dense(correlation: Tensor, batch: int, height: int, width: int, window: int | None) -> Tensor:
    """The correlation as reference.py defines it: [B, H, W, q, q], or [B, H, W, H, W] for window=None."""
    device = correlation.device
    ky, kx = (height, width) if window is None else (window, window)
    dense = correlation.new_zeros(batch, height, width, ky, kx)
    for tile in tiles(height, width, window):
        y, x = (torch.arange(a, b, device=device) for a, b in ((tile.y0, tile.y1), (tile.x0, tile.x1)))
        dy, dx = (torch.arange(a, b, device=device) for a, b in ((tile.ky0, tile.ky1), (tile.kx0, tile.kx1)))
        dy = dy.expand(len(y), -1) if window is None else dy - y[:, None] + window // 2  # [tile rows, key rows]
        dx = dx.expand(len(x), -1) if window is None else dx - x[:, None] + window // 2
        inside = ((dy >= 0) & (dy < ky))[:, None, :, None] & ((dx >= 0) & (dx < kx))[None, :, None, :]
        at = (y[:, None, None, None], x[None, :, None, None], dy[:, None, :, None], dx[None, :, None, :])
        to_y, to_x, to_dy, to_dx = (index.expand(inside.shape)[inside] for index in at)
        part = tile.state(correlation, batch).view(batch, *inside.shape)
        dense[:, to_y, to_x, to_dy, to_dx] = part[:, inside]
    return dense
