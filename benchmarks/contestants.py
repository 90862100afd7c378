"""Who computes neighbourhood attention: this package's backends, and what one would take otherwise.

A contestant is called with q, k [B, H, W, Cm], v [B, H, W, C] and a window, and returns out [B, H, W, C]. All of them
clip the window at the border, except NATTEN, which shifts it inwards; the amount of work is the same or larger.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Cell
from nlrn.ops import neighborhood_attention, unsupported
from nlrn.ops.reference import valid_offsets

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Contestant:
    """attend: the call, None for a backend of this package, which also carries a correlation. backward: has it
    gradients? bytes_needed: of a call, to know beforehand what cannot fit."""

    name: str
    title: str
    attend: Attention | None = None
    backward: bool = True
    bytes_needed: Callable[[Cell], float] = lambda cell: 0.0


def unfold(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The usual port: every neighbourhood written out by im2col."""
    batch, height, width, channels = v.shape
    keys, values = (_neighbourhoods(x, window) for x in (k, v))  # [B, C, q * q, H * W]
    logits = (q.flatten(1, 2).transpose(1, 2)[:, :, None] * keys).sum(1)  # [B, q * q, H * W]
    inside = valid_offsets(height, width, window, q.device).view(height * width, -1).T
    p = logits.masked_fill(~inside, -torch.inf).softmax(1)
    return (p[:, None] * values).sum(2).view(batch, channels, height, width).permute(0, 2, 3, 1)


def _neighbourhoods(x: Tensor, window: int) -> Tensor:
    planes = x.permute(0, 3, 1, 2)
    return F.unfold(planes, window, padding=window // 2).view(*planes.shape[:2], window * window, -1)


def _unfold_bytes(cell: Cell) -> float:
    numbers = cell["size"] ** 2 * cell["window"] ** 2 * (cell["embed"] + cell["channels"])
    return float(numbers * (4 if cell["work"] == "backward" else 2) * _itemsize(cell))


def dense(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention over the whole image by torch's scaled_dot_product_attention, masked to the window."""
    _, height, width, channels = v.shape
    q, k = (F.pad(x, (0, channels - x.shape[-1])) for x in (q, k))  # its fast kernels want one number of channels
    mask = _dense_mask(height, width, window, q.device)
    queries, keys, values = (x.flatten(1, 2)[:, None] for x in (q, k, v))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0).view(v.shape)


@lru_cache(1)
def _dense_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    sides = [torch.arange(n, device=device) for n in (height, width)]
    down, right = ((place[:, None] - place).abs() <= window // 2 for place in sides)
    return (down[:, None, :, None] & right[None, :, None, :]).reshape(height * width, height * width)


def _dense_bytes(cell: Cell) -> float:
    return float(cell["size"] ** 4 * (1 + _itemsize(cell)))  # the mask, and once more as numbers


def flex(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """torch's flex_attention, compiled, with a block mask: blocks that no window reaches are left out."""
    _, height, width, _ = v.shape
    call, mask = _compiled_flex(height, width, window, q.device)
    flat = [x.flatten(1, 2)[:, None] for x in (q, k, v)]
    out: Tensor = call(*flat, block_mask=mask, scale=1.0)
    return out[:, 0].view(v.shape)


@lru_cache(1)
def _compiled_flex(height: int, width: int, window: int, device: torch.device) -> tuple[Any, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        down, right = i // width - j // width, i % width - j % width
        return (down.abs() <= window // 2) & (right.abs() <= window // 2)

    compile_mask = torch.compile(create_block_mask)
    mask = compile_mask(near, None, None, height * width, height * width, device=device)
    return torch.compile(flex_attention), mask


def natten(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """NATTEN's fused neighbourhood attention, one head."""
    na2d = importlib.import_module("natten").na2d
    channels = v.shape[-1]
    q, k = (F.pad(x, (0, channels - x.shape[-1])) for x in (q, k))
    out: Tensor = na2d(*(x[:, :, :, None] for x in (q, k, v)), kernel_size=window, scale=1.0)
    return out[:, :, :, 0]


def _itemsize(cell: Cell) -> int:
    return 2 if cell["dtype"] == "bf16" else 4


CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("cpu", "nlrn, C++ kernel"),
        Contestant("gpu", "nlrn, Triton kernel"),
        Contestant("tiled", "nlrn, blocked torch"),
        Contestant("unfold", "unfold", unfold, bytes_needed=_unfold_bytes),
        Contestant("dense", "dense masked SDPA", dense, bytes_needed=_dense_bytes),
        Contestant("flex", "flex_attention", flex, backward=False),
        Contestant("natten", "NATTEN", natten),
    )
}


def call_of(contestant: Contestant, window: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The contestant as a function of q, k and v."""
    if contestant.attend is not None:
        attend = contestant.attend
        return lambda q, k, v: attend(q, k, v, window)

    def backend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = neighborhood_attention(q, k, v, window=window, backend=contestant.name)
        assert isinstance(out, Tensor)
        return out

    return backend


def why_not(contestant: Contestant, cell: Cell, q: Tensor, available: int) -> str | None:
    """Why a contestant cannot be measured here, or None."""
    if contestant.attend is None:
        return unsupported(contestant.name, q, cell["window"])
    if cell["work"] == "backward" and not contestant.backward and q.device.type == "cpu":
        return "has no backward pass on CPUs"
    if contestant.name == "natten" and q.device.type == "cpu":
        return "has no CPU kernel of its own"
    if contestant.name == "natten" and importlib.util.find_spec("natten") is None:
        return "is not installed"
    need = contestant.bytes_needed(cell)
    if need > available:
        return f"needs {need / 2**30:,.0f} GiB, and {available / 2**30:,.0f} are free"
    return None
