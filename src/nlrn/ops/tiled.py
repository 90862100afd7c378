"""Blocked dense torch: neighbourhood attention on any device, with no compiler and with bounded memory.

The image is cut into tiles of queries. A tile's keys are the tile grown by r on every side and clipped at
the image's border, so that a tile is three dense matrix products and a softmax under a mask, [Q, K]. Tiles of
one shape that lie side by side make a strip, and as many of them as fit a block are worked on together.

The correlation is one flat tensor: tile after tile, each [B, Q, K], with MASKED where a key lies
outside the query's window. Adding logits to MASKED leaves MASKED, so the mask is paid for once, at the first
state. The backward pass is written out and computes the probabilities again, block by block; the gradient of
the correlation has the correlation's own dtype, never a narrower one: its entries are too small for float16.

`average` uses the products divided by the number of neighbours as weights, where `attend` uses their softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from nlrn.ops.interface import MASKED, Block, Queries, no_autocast
from nlrn.ops.reference import unsupported as unsupported

BLOCK = 1 << 20  # logits worked on at once: 4 MiB in float32, some part of a last-level cache

_Spans = tuple[int, int, int, int, int, int]  # th, tw, kh, kw of a tile, and its first query minus its first key
_Cut = tuple[int, int, int, int]  # first query, end of the queries, first key, end of the keys along one side


@dataclass(frozen=True)
class Strip:
    """`count` tiles of th x tw queries side by side, the first at (y, x).

    Each sees kh x kw keys, the first of which for the first tile is (ky, kx). A tile further right, both move by tw.
    """

    count: int
    y: int
    x: int
    th: int
    tw: int
    ky: int
    kx: int
    kh: int
    kw: int
    offset: int  # logits before this strip, in one image's correlation

    @property
    def queries(self) -> int:
        """Queries of one tile."""
        return self.th * self.tw

    @property
    def keys(self) -> int:
        """Keys of one tile."""
        return self.kh * self.kw

    def part(self, start: int, count: int) -> Strip:
        """The strip of `count` of its tiles from number `start` on."""
        moved = {"x": self.x + start * self.tw, "kx": self.kx + start * self.tw}
        return replace(self, count=count, offset=self.offset + start * self.queries * self.keys, **moved)

    def cut_queries(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> a view [count, B, th, tw, C]."""
        rows = x[:, self.y : self.y + self.th, self.x : self.x + self.count * self.tw]
        return rows.view(*rows.shape[:2], self.count, self.tw, -1).permute(2, 0, 1, 3, 4)

    def cut_keys(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> an overlapping view [count, B, kh, kw, C]."""
        width = (self.count - 1) * self.tw + self.kw
        rows = x[:, self.ky : self.ky + self.kh, self.kx : self.kx + width]
        return rows.unfold(2, self.kw, self.tw).permute(2, 0, 1, 4, 3)

    def state(self, correlation: Tensor, batch: int) -> Tensor:
        """These tiles' part of the flat correlation, [count, B, Q, K]."""
        size = self.count * batch * self.queries * self.keys
        return correlation[batch * self.offset :][:size].view(self.count, batch, self.queries, self.keys)

    @property
    def _spans(self) -> _Spans:
        return self.th, self.tw, self.kh, self.kw, self.y - self.ky, self.x - self.kx

    def mask(self, window: int | None, like: Tensor) -> Tensor | None:
        """[Q, K], 0 inside the window and MASKED outside; None when every key is inside."""
        return None if window is None else _kept(_mask, self._spans, window // 2, like)

    def shares(self, window: int | None, like: Tensor) -> Tensor:
        """[Q, K], 1 / number of the query's keys inside the window and 0 outside."""
        assert window is not None
        return _kept(_shares, self._spans, window // 2, like)


def _kept(make: Any, spans: _Spans, r: int, like: Tensor) -> Tensor:
    """What `make` keeps for queries and keys of these spans; made anew for tensors without numbers, as of an export."""
    found: Tensor = (make if type(like) is Tensor else make.__wrapped__)(spans, r, like.dtype, like.device)
    return found


@lru_cache(maxsize=64)
def _mask(spans: _Spans, r: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    th, tw, kh, kw, sy, sx = spans

    def near(n: int, keys: int, shift: int) -> Tensor:
        query = torch.arange(n, device=device)[:, None] + shift
        return (query - torch.arange(keys, device=device)).abs() <= r

    inside = (near(th, kh, sy)[:, None, :, None] & near(tw, kw, sx)[None, :, None, :]).reshape(th * tw, kh * kw)
    return torch.zeros(inside.shape, dtype=dtype, device=device).masked_fill_(~inside, MASKED)


@lru_cache(maxsize=64)
def _shares(spans: _Spans, r: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    inside = _mask.__wrapped__(spans, r, dtype, device) == 0
    return inside.to(dtype) / inside.sum(1, keepdim=True)


def _cuts(height: int, width: int, window: int | None) -> tuple[list[_Cut], list[_Cut]]:
    """Rows and columns of the tiles: small enough to waste few keys, large enough for the matrix products."""
    if window is None:
        tall, wide, r = max(1, min(height, BLOCK // (height * width * width))), width, max(height, width)
    else:
        tall = wide = 8 if window <= 17 else 16
        r = window // 2

    def cut(length: int, edge: int) -> list[_Cut]:
        ends = [(a, min(length, a + edge)) for a in range(0, length, edge)]
        return [(a, b, max(0, a - r), min(length, b + r)) for a, b in ends]

    return cut(height, tall), cut(width, wide)


def strips(height: int, width: int, window: int | None) -> Iterator[Strip]:
    """The tiles of an image, row by row, those of one shape together."""
    rows, columns = _cuts(height, width, window)
    groups = [list(g) for _, g in groupby(columns, key=lambda c: (c[1] - c[0], c[3] - c[2], c[0] - c[2]))]
    offset = 0
    for y0, y1, ky0, ky1 in rows:
        for group in groups:
            x0, x1, kx0, kx1 = group[0]
            strip = Strip(len(group), y0, x0, y1 - y0, x1 - x0, ky0, kx0, ky1 - ky0, kx1 - kx0, offset)
            yield strip
            offset += strip.count * strip.queries * strip.keys


def state_elements(at: Queries) -> int:
    """Numbers of a correlation: a sum over the tiles of queries x keys, which is a product over the two sides."""
    rows, columns = (sum((b - a) * (kb - ka) for a, b, ka, kb in side) for side in _cuts(*at[1:]))
    return at.batch * rows * columns


def _blocks(at: Queries, *states: Tensor | None) -> Iterator[tuple[Strip, slice, list[Tensor | None]]]:
    """Every (tiles, images of the batch, the states' parts there [count * B, Q, K]): blocks near BLOCK."""
    batch = at.batch
    for strip in strips(*at[1:]):
        room = max(1, BLOCK // (strip.queries * strip.keys))
        together = max(1, min(strip.count, room // batch))
        images = min(batch, room)
        for start in range(0, strip.count, together):
            part = strip.part(start, min(together, strip.count - start))
            for b in range(0, batch, images):
                chosen = slice(b, min(batch, b + images))
                cut = [None if s is None else part.state(s, batch)[:, chosen].flatten(0, 1) for s in states]
                yield part, chosen, cut


def _flat(cut: Tensor) -> Tensor:
    """[count, B, rows, columns, C] -> [count * B, rows * columns, C], copied where the view is no matrix."""
    return cut.reshape(cut.shape[0] * cut.shape[1], -1, cut.shape[-1])


def _logits(
    tiles: Strip, q: Tensor, k: Tensor, window: int | None, before: Tensor | None, out: Tensor | None
) -> Tensor:
    """[count * B, Q, K], into `out` if given: q.k plus the carried logits, or the mask if nothing is carried."""
    qt, kt = _flat(tiles.cut_queries(q)), _flat(tiles.cut_keys(k))
    s = torch.bmm(qt, kt.transpose(1, 2), out=out) if out is not None else torch.bmm(qt, kt.transpose(1, 2))
    added = tiles.mask(window, s) if before is None else before
    return s if added is None else s.add_(added)


def _add_to_keys(tiles: Strip, target: Tensor, part: Tensor) -> None:
    """Add [count * B, K, C] to the overlapping keys of the tiles in target [B, H, W, C]."""
    parts = part.view(tiles.count, target.shape[0], tiles.kh, tiles.kw, -1)
    for i in range(tiles.count):
        tiles.part(i, 1).cut_keys(target)[0].add_(parts[i])


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, window: int | None, carry: bool, mean: bool
    ) -> tuple[Tensor, Tensor | None]:
        at = Queries.of(v, window)
        after = v.new_empty(state_elements(at)) if carry else None
        out = v.new_empty(v.shape)
        for tiles, b, (carried, kept) in _blocks(at, before, after):
            s = _logits(tiles, q[b], k[b], window, carried, kept)
            p = s.mul_(tiles.shares(window, s)) if mean else s.softmax(-1)
            block = tiles.cut_queries(out[b])
            block.copy_(torch.bmm(p, _flat(tiles.cut_keys(v[b]))).view(block.shape))
        ctx.at, ctx.mean = at, mean
        ctx.save_for_backward(q, k, v, before if after is None else None, after)
        ctx.set_materialize_grads(False)
        return out, after

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, later: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor | None, ...] = _TiledGradient.apply(  # type: ignore[no-untyped-call]
            dout, later, *ctx.saved_tensors, ctx.at, ctx.mean, ctx.needs_input_grad[3]
        )
        return *gradients, None, None, None


class _TiledGradient(torch.autograd.Function):
    """A function of its own, so that its derivative is refused wherever a graph reaches it, not left out."""

    @staticmethod
    def forward(
        ctx: Any, dout: Tensor | None, later: Tensor | None, q: Tensor, k: Tensor, v: Tensor, before: Tensor | None,
        after: Tensor | None, at: Queries, mean: bool, carried_on: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        window = at.window
        dout = torch.zeros_like(v) if dout is None else dout
        later = None if later is None else later.contiguous()
        earlier = v.new_empty(state_elements(at)) if carried_on else None
        dq, dk, dv = (x.new_zeros(x.shape) for x in (q, k, v))
        states = (before, after, later, earlier)
        with no_autocast(v.device.type):  # it may run inside the caller's
            for tiles, b, (carried, kept, ds_later, ds) in _blocks(at, *states):
                s = _logits(tiles, q[b], k[b], window, carried, None) if kept is None else kept
                qt, do = (_flat(tiles.cut_queries(x[b])) for x in (q, dout))
                kt, vt = (_flat(tiles.cut_keys(x[b])) for x in (k, v))
                shares = tiles.shares(window, s) if mean else None
                p = s.softmax(-1) if shares is None else s.mul_(shares)
                dp = torch.bmm(do, vt.transpose(1, 2))
                _add_to_keys(tiles, dv[b], torch.bmm(p.transpose(1, 2), do))
                # of a softmax p * (dp - sum(p * dp))
                ds_here = torch._softmax_backward_data(dp, p, -1, p.dtype) if shares is None else dp.mul_(shares)
                if ds_later is not None:
                    ds_here = ds_here.add_(ds_later)
                if ds is not None:
                    ds.copy_(ds_here)
                block = tiles.cut_queries(dq[b])
                block.copy_(torch.bmm(ds_here, kt).view(block.shape))
                _add_to_keys(tiles, dk[b], torch.bmm(ds_here.transpose(1, 2), qt))
        return dq, dk, dv, earlier

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> None:
        raise RuntimeError('this attention has no second derivatives: use backend="reference", which does')


def average(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """sum_j (q_i . k_j) v_j / number of the keys j inside the window and the image, [B, H, W, C].

    q, k [B, H, W, Cm], v [B, H, W, C], of one dtype, float32 or wider.
    """
    out: Tensor = _TiledAttention.apply(q, k, v, None, window, False, True)[0]  # type: ignore[no-untyped-call]
    return out


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, correlation: Tensor | None, return_correlation: bool
) -> tuple[Tensor, Tensor | None]:
    """q, k [B, H, W, Cm], v [B, H, W, C] -> out [B, H, W, C] and, when asked for, the flat correlation."""
    out, after = _TiledAttention.apply(q, k, v, correlation, window, return_correlation, False)  # type: ignore[no-untyped-call]
    return out, after


def _single(at: Queries) -> Iterator[Strip]:
    """Tile by tile."""
    for strip in strips(*at[1:]):
        for i in range(strip.count):
            yield strip.part(i, 1)


def rows(correlation: Tensor, at: Queries) -> Iterator[tuple[Block, Tensor]]:
    """Blocks ((batch, rows, columns), logits [B, Q, K] with MASKED at keys outside the window)."""
    for tile in _single(at):
        block = (slice(0, at.batch), slice(tile.y, tile.y + tile.th), slice(tile.x, tile.x + tile.tw))
        yield block, tile.state(correlation, at.batch)[0]


def _unpacked(tile: Strip, correlation: Tensor, at: Queries) -> Tensor:
    """Of one tile's queries, the correlation as reference.py defines it: [B, th, tw, q, q], or [B, th, tw, H, W]."""
    window = at.window
    part = tile.state(correlation, at.batch)[0].view(at.batch, tile.th, tile.tw, tile.kh, tile.kw)
    if window is None:  # every query sees all keys
        return part
    y, x, offset = (torch.arange(n, device=part.device) for n in (tile.th, tile.tw, window))
    ky = (y[:, None] + tile.y - tile.ky + offset - window // 2)[:, None, :, None]  # numbers of the tile's keys
    kx = (x[:, None] + tile.x - tile.kx + offset - window // 2)[None, :, None, :]
    inside = (ky >= 0) & (ky < tile.kh) & (kx >= 0) & (kx < tile.kw)
    y, x = y[:, None, None, None], x[None, :, None, None]
    return part[:, y, x, ky.clamp(0, tile.kh - 1), kx.clamp(0, tile.kw - 1)].masked_fill(~inside, 0)


def of_pixel(correlation: Tensor, at: Queries, pixel: tuple[int, int, int]) -> Tensor:
    """The correlations of one query (b, y, x): [q, q], or [H, W] for window=None."""
    b, y, x = pixel
    tile = next(t for t in _single(at) if y < t.y + t.th and x < t.x + t.tw)
    return _unpacked(tile, correlation, at)[b, y - tile.y, x - tile.x]


def to_dense(correlation: Tensor, at: Queries) -> Tensor:
    """The correlation as reference.py defines it: [B, H, W, q, q], or [B, H, W, H, W] for window=None."""
    dense = correlation.new_empty(*at[:3], *at.keys)
    for tile in _single(at):
        dense[:, tile.y : tile.y + tile.th, tile.x : tile.x + tile.tw] = _unpacked(tile, correlation, at)
    return dense
