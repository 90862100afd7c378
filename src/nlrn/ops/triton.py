"""Neighbourhood attention on a GPU in Triton: the raw passes, without autograd. Programs: triton_kernels.py.

The correlation is the dense S of reference.py, [B, H, W, q, q] and contiguous, in float16 or float32. Its gradient
has the same layout in float32 or bfloat16, never float16: with a mean loss most of its entries are below 1e-8.

The logits cross the memory only where they are carried: S is read once and written once a state, its gradient
likewise and read once more by the key pass. Everything else is proportional to the pixels, not to q * q.

Importing this module does not import Triton; calling a pass does.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from nlrn.errors import InputError
from nlrn.ops.reference import of_pixel as of_pixel
from nlrn.ops.reference import rows as rows
from nlrn.ops.reference import state_elements as state_elements
from nlrn.ops.reference import to_dense as to_dense

_CHANNELS_LIMIT = 512  # more of them do not fit a program's registers and shared memory
_COLUMNS_LIMIT = 32_000  # of a window, else the numbers of a halo's pixels are not taken apart exactly
_NARROW = 1 << 31  # entries of one image's state that a program can number with 32 bits
_INSTALLED = importlib.util.find_spec("triton") is not None
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Blocks:
    """How the pixels are cut: rows and columns of a program's tile, and the pixels streamed past it at a time.

    warps, stages: of the program, and of its pipeline.
    """

    tall: int
    wide: int
    streamed: int
    warps: int
    stages: int


# Bytes of an element, then the channels of q and v together, padded, up to which a line holds: 96 are the small
# network, 192 the base one. The largest blocks that hardly spill a register. A square tile has the smallest halo; a
# tile of keys is wide, because along its rows the states lie together. The key pass does not prefetch: copying
# float32 states to shared memory ahead of time costs it half as many instructions again. float32 inputs have no tensor
# cores and their operands are held in registers: above 192 channels their query pass does spill.
_QUERY_BLOCKS = {
    2: {192: Blocks(8, 8, 32, 4, 2), 512: Blocks(8, 8, 16, 8, 1), 1024: Blocks(4, 8, 16, 8, 1)},
    4: {192: Blocks(8, 8, 16, 8, 1), 512: Blocks(4, 8, 16, 8, 1), 1024: Blocks(4, 4, 16, 8, 1)},
}
_KEY_BLOCKS = {
    2: {192: Blocks(4, 16, 32, 4, 1), 512: Blocks(4, 16, 16, 8, 1), 1024: Blocks(2, 16, 16, 8, 1)},
    4: {192: Blocks(4, 16, 16, 8, 1), 512: Blocks(2, 16, 16, 8, 1), 1024: Blocks(2, 8, 16, 8, 1)},
}
_BLOCKS = {"forward": _QUERY_BLOCKS, "query": _QUERY_BLOCKS, "key": _KEY_BLOCKS}


def unsupported(q: Tensor, window: int | None) -> str | None:
    """Why queries like q [B, H, W, Cm] with this window cannot be handled here; None when they can."""
    reasons = (
        (window is None, "it attends over a window, not over the whole image"),
        (q.dtype not in _DTYPES, f"it computes in float32, float16 or bfloat16, not in {q.dtype}"),
        (q.shape[-1] > _CHANNELS_LIMIT, f"it takes up to {_CHANNELS_LIMIT} channels, not {q.shape[-1]}"),
        (min(q.shape[2], window or 0) > _COLUMNS_LIMIT, f"its windows show up to {_COLUMNS_LIMIT} columns"),
        (not _INSTALLED, "Triton is not installed (pip install triton)"),
        (not q.is_cuda, f"it needs a CUDA device, and these tensors are on {q.device}"),
        (q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0), "it needs compute capability 8.0"),
    )
    return next((reason for applies, reason in reasons if applies), None)


# ---------------------------------------------------------------------------------------------- the launches
def _padded(channels: int) -> int:
    """The power of two, at least 16, that a matrix product of so many channels takes."""
    return max(16, 1 << (channels - 1).bit_length())


def _adjoining(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """x [B, H, W, C], copied if its channels do not adjoin in memory, and its strides of B, H, W."""
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    return x, (x.stride(0), x.stride(1), x.stride(2))


def _blocks(kind: str, embedded: int, channels: int, itemsize: int) -> Blocks:
    """The line of the table for these channels of q and v."""
    together = _padded(embedded) + _padded(channels)
    for limit, blocks in _BLOCKS[kind][itemsize].items():
        if together <= limit:
            return blocks
    sizes = f"q and v have {embedded} and {channels} channels"
    raise InputError(f"{sizes}; padded to powers of two, up to {limit} together fit a program")


def _launch(kind: str, q: Tensor, v: Tensor, window: int, *arguments: object, **more: bool) -> None:
    """Run a pass over all tiles of q [B, H, W, Cm] and v [B, H, W, C]."""
    batch, height, width, embedded = q.shape
    channels = v.shape[-1]
    blocks = _blocks(kind, embedded, channels, q.element_size())
    tall, wide = blocks.tall, blocks.wide
    program = getattr(importlib.import_module("nlrn.ops.triton_kernels"), f"{kind}_pass")
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        program[(batch * -(-height // tall) * -(-width // wide),)](
            *arguments,
            height=height,
            width=width,
            window=window,
            embedded=embedded,
            embedded_padded=_padded(embedded),
            channels=channels,
            channels_padded=_padded(channels),
            tall=tall,
            wide=wide,
            streamed=blocks.streamed,
            precision="ieee" if q.dtype == torch.float32 else "tf32",
            narrow=(tall + window) * (width + wide) * window * window < _NARROW,  # of a halo
            num_warps=blocks.warps,
            num_stages=blocks.stages,
            **more,
        )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    before: Tensor | None,
    after: Tensor | None,
    norms: Tensor | None = None,
    exact: Tensor | None = None,
) -> Tensor:
    """softmax_j(q_i.k_j + before) v_j over the clipped window; writes S into after.

    Args:
        q: queries [B, H, W, Cm], float32, float16 or bfloat16; adjoining channels, otherwise any strides.
        k: keys [B, H, W, Cm].
        v: values [B, H, W, C].
        window: odd side length of the neighbourhood.
        before: the state carried so far, as forward filled it, or None.
        after: the state to fill, every entry of it, or None. It may be ``before``. float16 saturates at 65504.
            The softmax is that of the logits as stored.
        norms: float32 [2, B, H, W], contiguous, to fill with M_i = max_j S_ij and sum_j exp(S_ij - M_i), or None.
        exact: float32 [B, H, W, C], contiguous, to fill with out before it is rounded, or None.

    Returns:
        out [B, H, W, C] in v's dtype.

    Raises:
        InputError: q and v have too many channels.
    """
    assert window is not None
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    most, whole = (None, None) if norms is None else norms
    (q, q_strides), (k, k_strides), (v, v_strides) = (_adjoining(x) for x in (q, k, v))
    new = after is not None and (before is None or after.data_ptr() != before.data_ptr())
    _launch(
        "forward", q, v, window, q, k, v, before, after, out, most, whole, exact, q_strides, k_strides, v_strides,
        clear=new,  # its entries outside the image have yet to be zeroed
    )  # fmt: skip
    return out


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    norms: Tensor,
    window: int | None,
    after: Tensor | None,
    grad_after: Tensor | None,
    grad_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of a step of forward, by two gathers: over the keys of every query, then the queries of every key.

    Args:
        q: as forward had it, and so k, v and window.
        k: keys [B, H, W, Cm].
        v: values [B, H, W, C].
        out: what forward returned; with 16-bit inputs its `exact`: dS is a difference of two sums, and where attention
            is narrow the rounding of out is most of its error.
        dout: gradient of out, [B, H, W, C].
        norms: as forward filled them.
        window: odd side length of the neighbourhood.
        after: the state that forward filled. None only if it neither read nor filled one: the logits are q.k then.
        grad_after: gradient of that state from the states after, [B, H, W, q, q] float32 or bfloat16, or None; None
            where there is no such state.
        grad_dtype: of the gradient returned: float32 or bfloat16.

    Returns:
        dq, dk, dv in the dtypes of q, k, v, and the gradient of the state before, 0 outside the image:
        dS = p * (dout.v - sum(out * dout)) + grad_after, which is also the gradient of the logits; None without one.

    Raises:
        InputError: grad_dtype is not one of the two.
    """
    assert window is not None
    if grad_dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"the gradient of a state is kept in float32 or bfloat16, not in {grad_dtype}")
    grad_after = None if grad_after is None else grad_after.contiguous()
    grad_before = None if after is None else torch.empty(after.shape, dtype=grad_dtype, device=q.device)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    most, whole = norms
    delta = torch.empty_like(most)
    tensors = [_adjoining(x) for x in (q, k, v, out, dout.to(v.dtype))]
    (q, k, v, out, dout), (q_strides, k_strides, v_strides, out_strides, dout_strides) = zip(*tensors, strict=True)
    _launch(
        "query", q, v, window, q, k, v, out, dout, most, whole, after, grad_after, grad_before, dq, delta,
        q_strides, k_strides, v_strides, out_strides, dout_strides, clear=after is not None,
    )  # fmt: skip
    _launch(
        "key", q, v, window, q, k, v, dout, most, whole, delta, after, grad_before, dk, dv,
        q_strides, k_strides, v_strides, dout_strides,
    )  # fmt: skip
    return dq, dk, dv, grad_before
