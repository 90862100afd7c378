"""Neighbourhood attention in ONNX: one operator for torch.export, and the nodes that replace it.

A window is worked on row by row. Queries go in blocks of BLOCK columns of an image row, and such a block meets, for
each of the window's q rows, the `pieces` * BLOCK columns that some query of it can see: one matrix product. What is
kept of a row are its logits, which are the correlation that the next state adds to; the softmax takes the maximum in
one pass over the rows and the weighted sum in a second, so that the weights exist for one row at a time. At the peak
that is 4 q pieces BLOCK bytes a pixel (1.9 KB for a window of 15, 11.5 KB for 45) in addition to feature maps and their
frames (6.6 KB in all for the small network, docs/integrations.md).

The values have a channel of ones, which sums the weights, and zeros outside the image. The query has one too, against
which a key outside has MASKED, so that the maximum is that of neighbours. Columns outside a query's window are masked
by what the first state adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnxscript import opset18
from torch import Tensor

from nlrn.errors import BackendError
from nlrn.ops.interface import MASKED

BLOCK = 16  # queries
op: Any = opset18
_END = 2**63 - 1  # as the end of a slice

_library = torch.library.Library("nlrn_onnx", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "row_attention(Tensor q, Tensor k, Tensor v, int window, Tensor[] correlation) -> Tensor[]"
)


def attention(q: Tensor, k: Tensor, v: Tensor, window: int, correlation: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """softmax(q k^T + S) v over the window, clipped at the border, and the new S. It can be exported, not run.

    q, k [B, Cm, H, W], v and the result [B, C, H, W], float32. S: the logits of each of the window's rows
    [B, H, blocks, BLOCK, keys]; an empty list where there is none yet.
    """
    out: list[Tensor] = torch.ops.nlrn_onnx.row_attention(q, k, v, window, correlation)
    return out[0], out[1:]


def pieces(window: int) -> int:
    """Blocks of columns that the queries of one block can see."""
    return 1 + math.ceil(2 * (window // 2) / BLOCK)


@torch.library.impl(_library, "row_attention", "CPU")
def _run(q: Tensor, k: Tensor, v: Tensor, window: int, correlation: list[Tensor]) -> list[Tensor]:
    raise BackendError("this operator is for ONNX files only; nlrn.neighborhood_attention runs in torch")


@torch.library.register_fake("nlrn_onnx::row_attention", lib=_library)  # type: ignore[untyped-decorator]
def _shapes(q: Tensor, k: Tensor, v: Tensor, window: int, correlation: list[Tensor]) -> list[Tensor]:
    batch, _, height, width = q.shape
    row = (batch, height, (width + BLOCK - 1) // BLOCK, BLOCK, pieces(window) * BLOCK)
    return [torch.empty_like(v, memory_format=torch.contiguous_format), *(q.new_empty(row) for _ in range(window))]


def translations() -> dict[Any, Any]:
    """The translation table of torch.onnx.export: the operator, and the function that makes its nodes."""
    return {torch.ops.nlrn_onnx.row_attention.default: _nodes}


def _nodes(q: Any, k: Any, v: Any, window: int, correlation: Sequence[Any]) -> list[Any]:
    """The operator in ONNX: values of the graph in and out, of the shapes that `attention` has."""
    r, seen = window // 2, pieces(window)
    width = op.Shape(q, start=3)
    ones = op.Expand(_floats(1), op.Concat(op.Shape(q, start=0, end=1), _ints(1), op.Shape(q, start=2), axis=0))
    queries = _in_blocks(_framed(op.Concat(q, ones, axis=1), 0, 1), width, 1)  # [B, Cm + 1, H, n, BLOCK]
    queries = op.Transpose(queries, perm=[0, 2, 3, 4, 1])  # [B, H, n, BLOCK, Cm + 1]
    inside = _framed(op.Sub(ones, _floats(1)), r, seen, MASKED)
    keys = _in_blocks(op.Concat(_framed(k, r, seen), inside, axis=1), width, seen)
    keys = op.Transpose(keys, perm=[0, 2, 3, 1, 4])  # [B, H + 2 r, n, Cm + 1, keys]
    values = _in_blocks(_framed(op.Concat(v, ones, axis=1), r, seen), width, seen)
    values = op.Transpose(values, perm=[0, 2, 3, 4, 1])  # [B, H + 2 r, n, keys, C + 1]

    added = correlation or [_floats(_band(window))] * window
    rows = [op.Add(op.MatMul(queries, _row(keys, dy, r)), added[dy]) for dy in range(window)]
    top = op.Max(*(op.ReduceMax(row, _ints(-1), keepdims=1) for row in rows))
    parts = [op.MatMul(op.Exp(op.Sub(row, top)), _row(values, dy, r)) for dy, row in enumerate(rows)]
    total = parts[0]  # sums come after all parts here, and one by one in ONNX Runtime, which goes from the end
    for part in parts[1:]:
        total = op.Add(total, part)
    z = op.Div(_slice(total, 4, 0, -1), _slice(total, 4, -1, _END))  # [B, H, n, BLOCK, C]
    z = op.Reshape(op.Transpose(z, perm=[0, 4, 1, 2, 3]), _ints(0, 0, 0, -1))
    return [op.Slice(z, _ints(0), width, _ints(3)), *rows]


def _framed(x: Any, r: int, seen: int, value: float = 0.0) -> Any:
    """[B, C, H, W] with r rows above and below, r columns before, and after as many as blocks can need."""
    return op.Pad(x, _ints(0, 0, r, r, 0, 0, r, seen * BLOCK), _floats(value))


def _in_blocks(x: Any, width: Any, seen: int) -> Any:
    """[B, C, H, framed W] -> [B, C, H, n, seen * BLOCK], n = ceil(W / BLOCK): what each block of queries sees."""
    blocks = op.Add(op.Div(op.Sub(width, _ints(1)), _ints(BLOCK)), _ints(seen))  # n + seen - 1
    x = op.Slice(x, _ints(0), op.Mul(blocks, _ints(BLOCK)), _ints(3))
    x = op.Reshape(x, _ints(0, 0, 0, -1, BLOCK))
    if seen == 1:
        return x
    return op.Concat(*(_slice(x, 3, i, i - seen + 1 or _END) for i in range(seen)), axis=4)


def _row(x: Any, dy: int, r: int) -> Any:
    """Of a framed map, the rows that row dy of the window meets."""
    return _slice(x, 1, dy, dy - 2 * r or _END)


def _slice(x: Any, axis: int, start: int, end: int) -> Any:
    return op.Slice(x, _ints(start), _ints(end), _ints(axis))


def _band(window: int) -> np.ndarray:
    """[BLOCK, keys]: 0 where a key's column lies in the window of the query, else MASKED."""
    offset = np.arange(pieces(window) * BLOCK) - np.arange(BLOCK)[:, None]
    return np.where((offset >= 0) & (offset < window), np.float32(0), np.float32(MASKED))


def _ints(*values: int) -> Any:
    return op.Constant(value=onnx_ir.tensor(np.array(values, np.int64)))


def _floats(values: float | np.ndarray) -> Any:
    return op.Constant(value=onnx_ir.tensor(np.asarray(values, np.float32)))
