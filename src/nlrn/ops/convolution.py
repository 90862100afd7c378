"""A 3 x 3 convolution whose kernel gets its gradient from csrc/weights.h, where that is faster than torch's.

oneDNN's own reaches half of the matrix products' rate in float32 without AVX-512, and in bfloat16 it is fast: so this
is for float32 on a CPU. Everything else, and every call without gradients, is ``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from nlrn.ops import cpu
from nlrn.ops.custom_ops import LIBRARY, operator


def weight_gradient(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own: gradients of the kernel [out, in, 3, 3] and the bias [out] of a 3 x 3 convolution, padded by 1.

    x [B, in, H, W], floating: the input. gradient [B, out, H, W]: that of the output.
    """
    sizes = (gradient.shape[1], x.shape[1], 3, 3)
    return conv2d_weight(x, sizes, gradient, padding=1), gradient.sum((0, 2, 3))  # type: ignore[no-untyped-call]


def pays(x: Tensor, weight: Tensor) -> str | None:
    """Why the kernel's gradient is left to torch, or None where the fused kernel is faster.

    The shapes were measured on Zen 5 (docs/training.md).
    """
    inputs, lanes = weight.shape[1], cpu.lanes()
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return "the fused kernel is for float32 on a CPU only"
    if torch.is_autocast_enabled("cpu"):
        return "autocast decides the type"
    if cpu.instruction_set() == "none":
        return "the fused CPU kernel is missing"
    if inputs < 4 * lanes:
        return "too few channels fill no vectors"
    if lanes == 16 and x.shape[3] < 40 and weight.shape[0] > 4:
        return "oneDNN is as fast with AVX-512 on small patches"
    return None


def convolve3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d of x [B, in, H, W] with weight [out, in, 3, 3] and bias [out], padded by 1 -> [B, out, H, W]."""
    wanted = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
    if not wanted or pays(x, weight) is not None:
        return F.conv2d(x, weight, bias, padding=1)
    found: Tensor = torch.ops.nlrn.convolution(x, weight, bias)
    return found


@operator()
def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As convolve3, for any floating type, and for tensors without numbers."""
    return F.conv2d(x, weight, bias, padding=1)


@operator()
def convolution_weights(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """As weight_gradient; in float32 by the fused kernel where it is there."""
    if x.dtype != torch.float32 or cpu.instruction_set() == "none":
        return weight_gradient(x, gradient)
    return cpu.weight_gradient(x, gradient)


@torch.library.register_fake("nlrn::convolution_weights", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    inputs, outputs = x.shape[1], gradient.shape[1]
    return x.new_empty(outputs, 3, 3, inputs).permute(0, 3, 1, 2), x.new_empty(outputs)


def _keep_both(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_again(ctx: Any, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a kernel and a bias are linear in the input and in the gradient of the output."""
    x, gradient = ctx.saved_tensors
    return conv2d_input(x.shape, weights, gradient, padding=1), F.conv2d(x, weights, bias, padding=1)  # type: ignore[no-untyped-call]


torch.library.register_autograd(
    "nlrn::convolution_weights", _differentiate_again, setup_context=_keep_both, lib=LIBRARY
)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    weights, bias = torch.ops.nlrn.convolution_weights(x, gradient)
    before = None
    if ctx.needs_input_grad[0]:
        one, none, sizes = [1, 1], [0, 0], [len(weight)]
        before, _, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, sizes, one, one, one, False, none, 1, [True, False, False]
        )
    return before, weights, bias


torch.library.register_autograd("nlrn::convolution", _differentiate, setup_context=_keep, lib=LIBRARY)
