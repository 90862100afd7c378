"""Floating-point operations of the fused operators, for torch.utils.flop_counter, which counts none of their own.

A multiplication and an addition count as two, and a pair of a query and a key only where both lie inside the image;
softmax, norms and sums are not counted, as PyTorch's own formulas do not.

    with FlopCounterMode(custom_mapping=FLOP_FORMULAS) as counter:
        model(image)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

PER_PAIR: dict[str, Callable[[int, int], int]] = {  # of a pair, by channels of q and of v
    "forward": lambda cm, c: 2 * (cm + c),
    "forward carried": lambda cm, c: 2 * (cm + c),
    "backward": lambda cm, c: 2 * (3 * cm + 2 * c),
    "backward carried": lambda cm, c: 2 * (2 * cm + 2 * c),  # the logits are read, not found again
}
Shape = Sequence[int]


def clipped_pairs(height: int, width: int, window: int | None) -> int:
    """(query, key) pairs inside an image: the logits of one state. window None: every pixel with every other."""
    if window is None:
        return (height * width) ** 2
    return _pairs(height, window // 2) * _pairs(width, window // 2)


def _pairs(length: int, radius: int) -> int:
    return sum(min(length, i + radius + 1) - max(0, i - radius) for i in range(length))


def _attention(work: str, q: Shape, v: Shape, window: int | None) -> int:
    batch, height, width, embed = q
    return batch * clipped_pairs(height, width, window) * PER_PAIR[work](embed, v[-1])


def _forward(q: Shape, _k: Shape, v: Shape, _before: Shape | None, window: int | None, *_: Any, **__: Any) -> int:
    return _attention("forward", q, v, window)


def _in_place(
    q: Shape, _k: Shape, v: Shape, _state: Shape, _follows: bool, _carry: bool, window: int | None, *_: Any, **__: Any
) -> int:
    return _attention("forward", q, v, window)


def _backward(
    q: Shape, _k: Shape, v: Shape, _exact: Shape, _gradient: Shape, _norms: Shape, after: Shape,
    _after_gradient: Shape | None, window: int | None, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return _attention("backward carried" if after[0] else "backward", q, v, window)


def _convolution(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    batch, inputs, height, width = x
    return 2 * batch * height * width * inputs * weight[0] * weight[2] * weight[3]


def _convolution_weights(x: Shape, gradient: Shape, *_: Any, **__: Any) -> int:
    return _convolution(x, (gradient[1], x[1], 3, 3))


FLOP_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.nlrn.attention: _forward,
    torch.ops.nlrn.attention_: _in_place,
    torch.ops.nlrn.attention_backward: _backward,
    torch.ops.nlrn.convolution: _convolution,
    torch.ops.nlrn.convolution_weights: _convolution_weights,
}
