"""The fused kernels as PyTorch operators: autograd, fake tensors, and one that works in place.

A kernel is a ``KernelBackend`` of interface.py. Two operators make it part of PyTorch: ``nlrn::attention``, which
computes gradients and keeps the correlation of every state, in float32, and ``nlrn::attention_``, which overwrites one
correlation from state to state, so that memory does not grow with them.

They are defined by ``torch.library.Library``. ``torch.library.custom_op`` wraps every kernel so that the first call
imports torch._dynamo and, with it, TorchInductor, which makes a folder of a predictable name in the shared temporary
folder: inference does not compile, and must not depend on that folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.autograd.graph import increment_version

from nlrn.ops import cpu, triton
from nlrn.ops.interface import KernelBackend, Queries

NORMS = 2  # numbers a query that a backward pass needs: a maximum of the logits, and a sum relative to it
KERNELS: dict[str, KernelBackend] = {"cpu": cpu, "gpu": triton}
LIBRARY = torch.library.Library("nlrn", "DEF")  # type: ignore[no-untyped-call]


def operator(mutates: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define the operator nlrn::<name of the function>, its schema from the annotations, for every device."""

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=mutates)
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        return function

    return define


def _state_size(kernel: str, q: Tensor, window: int | None) -> int:
    return KERNELS[kernel].state_elements(Queries.of(q, window))


def _kept(kernel: str, q: Tensor, v: Tensor, window: int | None, carried: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what `attention` returns in addition to out."""
    exact = v.new_empty((0,) if v.dtype == torch.float32 else v.shape, dtype=torch.float32)
    norms = q.new_empty((NORMS, *q.shape[:3]), dtype=torch.float32)
    return exact, norms, q.new_empty(_state_size(kernel, q, window) if carried else 0, dtype=torch.float32)


@operator()
def attention(
    q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, window: int | None, carry: bool, kernel: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One state: (out [B, H, W, C], out before it was rounded, norms for the backward pass, correlation).

    Empty are the second, where nothing was rounded, and the last, where nothing is carried.
    """
    if before is not None:
        before = before.contiguous()
    exact, norms, after = _kept(kernel, q, v, window, carry or before is not None)
    state, precise = (x if x.numel() else None for x in (after, exact))
    out = KERNELS[kernel].forward(q, k, v, window, before, state, norms, precise)
    return out, exact, norms, after


@torch.library.register_fake("nlrn::attention", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(
    q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, window: int | None, carry: bool, kernel: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return v.new_empty(v.shape), *_kept(kernel, q, v, window, carry or before is not None)


@operator()
def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    exact: Tensor,
    out_gradient: Tensor,
    norms: Tensor,
    after: Tensor,
    after_gradient: Tensor | None,
    window: int | None,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and, in float32, of the correlation before (empty where nothing is carried)."""
    state = after if after.numel() else None
    run = KERNELS[kernel].backward
    dq, dk, dv, before = run(q, k, v, exact, out_gradient, norms, window, state, after_gradient)
    return dq, dk, dv, q.new_empty(0, dtype=torch.float32) if before is None else before


@torch.library.register_fake("nlrn::attention_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(
    q: Tensor, k: Tensor, v: Tensor, exact: Tensor, out_gradient: Tensor, norms: Tensor, after: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), torch.empty_like(after)


def _refuse(*_: Any) -> None:
    """Without it autograd would fall through the operator, and second derivatives would be silently wrong."""
    raise RuntimeError('the fused kernels have no second derivatives: use backend="reference", which does')


torch.library.register_autograd("nlrn::attention_backward", _refuse, lib=LIBRARY)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    q, k, v, before, ctx.window, _, ctx.kernel = inputs
    out, exact, norms, after = output
    ctx.follows = before is not None
    ctx.save_for_backward(q, k, v, exact if exact.numel() else out, norms, after)
    ctx.mark_non_differentiable(exact, norms)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, out_gradient: Tensor | None, _exact: None, _norms: None, after_gradient: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, exact, norms, after = ctx.saved_tensors
    if out_gradient is None:
        out_gradient = torch.zeros_like(v)
    dq, dk, dv, before = torch.ops.nlrn.attention_backward(
        q, k, v, exact, out_gradient, norms, after, after_gradient, ctx.window, ctx.kernel
    )
    return dq, dk, dv, before if ctx.follows else None, None, None, None


torch.library.register_autograd("nlrn::attention", _differentiate, setup_context=_keep, lib=LIBRARY)


@operator(mutates=("state",))
def attention_(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, follows: bool, carry: bool, window: int | None, kernel: str
) -> Tensor:
    """One state in place: out [B, H, W, C].

    state: the correlation before, if this one `follows`; afterwards the new one, if it is to `carry`.
    """
    before, after = state if follows else None, state if carry else None
    return KERNELS[kernel].forward(q, k, v, window, before, after)


@torch.library.register_fake("nlrn::attention_", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(v.shape)


def attend(
    kernel: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    correlation: Tensor | None,
    return_correlation: bool,
    overwrite: bool,
) -> tuple[Tensor, Tensor | None]:
    """q, k [B, H, W, Cm], v [B, H, W, C] -> out [B, H, W, C] and, when asked for, the correlation.

    Where no gradient is needed, the correlation of 16-bit queries is float16, clamped to +-65504.
    """
    tensors = (q, k, v) if correlation is None else (q, k, v, correlation)
    if not torch.compiler.is_compiling() and any(unpack_dual(x).tangent is not None for x in tensors):  # type: ignore[no-untyped-call]
        raise RuntimeError('the fused kernels have no forward-mode derivatives: use backend="reference", which does')
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        if correlation is not None:
            correlation = correlation.float()
        out, _, _, after = torch.ops.nlrn.attention(q, k, v, correlation, window, return_correlation, kernel)
        return out, after if return_correlation else None
    follows = correlation is not None
    state = _state(kernel, q, window, correlation, return_correlation, overwrite)
    out = torch.ops.nlrn.attention_(q, k, v, state, follows, return_correlation, window, kernel)
    return out, state if return_correlation else None


def _state(
    kernel: str, q: Tensor, window: int | None, correlation: Tensor | None, return_correlation: bool, overwrite: bool
) -> Tensor:
    """What a pass without gradient works on in place: the correlation, or room for the one that begins."""
    if correlation is None:
        dtype = torch.float32 if q.dtype == torch.float32 else torch.float16
        state = q.new_empty(_state_size(kernel, q, window) if return_correlation else 0, dtype=dtype)
    elif return_correlation and not (overwrite and correlation.is_contiguous() and not correlation.requires_grad):
        state = correlation.clone(memory_format=torch.contiguous_format)
    else:
        state = correlation.contiguous()
    if return_correlation and not (torch.compiler.is_compiling() or state.is_inference()):  # it is written into
        increment_version(state)  # so that a gradient that needs the former values is refused, not wrong
    return state


def attend_with_log_sums(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, window: int | None, correlation: Tensor | None, carry: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `attend` without a gradient: out, float32 and not rounded; log sum_j exp(S_ij) [B, H, W], float32; and S."""
    state = _state(kernel, q, window, correlation, carry, True)
    before, after = state if correlation is not None else None, state if carry else None
    norms = q.new_empty((NORMS, *q.shape[:3]), dtype=torch.float32)
    exact = None if v.dtype == torch.float32 else v.new_empty(v.shape, dtype=torch.float32)
    out = KERNELS[kernel].forward(q, k, v, window, before, after, norms, exact)
    return out if exact is None else exact, norms[1].log_().add_(norms[0]), after
