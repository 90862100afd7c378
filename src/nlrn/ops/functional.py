"""neighborhood_attention: the checks, the choice of a backend, and what a carried correlation shows."""

from __future__ import annotations

import torch
from torch import Tensor

from nlrn.errors import BackendError, InputError
from nlrn.ops import cpu, custom_ops, reference, tiled
from nlrn.ops.forking import note_computation
from nlrn.ops.interface import BELOW_ALL_LOGITS, Backend, DirectBackend, Queries, no_autocast

DIRECT: dict[str, DirectBackend] = {"tiled": tiled, "reference": reference}
BACKENDS: dict[str, Backend] = {**custom_ops.KERNELS, **DIRECT}  # in the order in which "auto" tries them


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    correlation: Tensor | None = None,
    return_correlation: bool = False,
    overwrite: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of every pixel over the window x window pixels around it, with carried correlation.

    ``S[i, j] = q_i . k_j + correlation[i, j]`` and ``out_i = sum_j softmax_j(S[i, :]) v_j``, j running over
    the neighbours of i inside the image: the window is clipped at the border. There is no scale factor.

    Args:
        q: queries [B, H, W, Cm], floating point.
        k: keys [B, H, W, Cm].
        v: values [B, H, W, C].
        window: odd side length of the neighbourhood, or None for the whole image.
        correlation: the summed logits of the states before, as a call with the same shape, window and backend
            returned them. Opaque; ``correlation_to_dense`` unpacks it.
        return_correlation: return S as well, to be carried into the next state.
        overwrite: the new S may take the place of ``correlation``, where the backend can do so and no gradient
            is needed: one S is held instead of two.
        backend: a key of ``BACKENDS``, or "auto".

    Returns:
        out [B, H, W, C], or (out, S).

    Raises:
        InputError: shapes, dtypes, the window or the correlation do not fit.
        BackendError: the backend does not exist or cannot run these tensors.

    Source: paper, section 3 (embedded Gaussian, confined neighbourhood) and 4 (correlation propagation).
    """
    name = _chosen(q, k, v, window, correlation, backend)
    after: Tensor | None
    if name in custom_ops.KERNELS:
        out, after = custom_ops.attend(name, q, k, v, window, correlation, return_correlation, overwrite)
    else:
        out, after = _directly(name, q, k, v, window, correlation, return_correlation)
    out = out.to(v.dtype)
    return out if after is None else (out, after)


@torch.no_grad()
def attention_and_log_sums(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, correlation: Tensor | None, carry: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`neighborhood_attention` and the logarithms of its sums, by which attentions over several windows become one.

    Arguments and errors as there, carry being return_correlation; the correlation may be overwritten, and there is no
    gradient. Returns out [B, H, W, C], float32 or
    wider, log sum_j exp(S[i, j]) [B, H, W] of the same type, and S, None where it is not asked for.
    """
    name = _chosen(q, k, v, window, correlation, backend)
    if name in custom_ops.KERNELS:
        return custom_ops.attend_with_log_sums(name, q, k, v, window, correlation, carry)
    out, after = _directly(name, q, k, v, window, correlation, True)
    assert after is not None
    log_sums = out.new_empty(out.shape[:3])
    for (b, y, x), logits in BACKENDS[name].rows(after, Queries.of(out, window)):
        block = log_sums[b, y, x]
        block.copy_(logits.logsumexp(-1).view(block.shape))
    return out, log_sums, after if carry else None


def _chosen(q: Tensor, k: Tensor, v: Tensor, window: int | None, correlation: Tensor | None, backend: str) -> str:
    """The backend for these tensors, which are checked."""
    _check(q, k, v, window)
    if not torch.compiler.is_compiling():
        note_computation()
    name = select_backend(q, window, backend)
    if correlation is not None:
        _carrier(name, correlation, Queries.of(q, window))
        _check_carried(name, correlation, q)
    return name


def _directly(
    name: str, q: Tensor, k: Tensor, v: Tensor, window: int | None, correlation: Tensor | None, carry: bool
) -> tuple[Tensor, Tensor | None]:
    """By a backend of torch, in float32 or wider."""
    with no_autocast(q.device.type):  # logits are summed over the states: never in 16 bits
        wide = torch.promote_types(q.dtype, torch.float32)
        qw, kw, vw = (x.to(wide) for x in (q, k, v))
        return DIRECT[name].attend(qw, kw, vw, window, correlation, carry)


def _check_carried(name: str, correlation: Tensor, q: Tensor) -> None:
    """The fused kernels carry float32, or float16 where they chose so; the others float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    allowed = (wide, torch.float16) if name in custom_ops.KERNELS else (wide,)
    if correlation.dtype not in allowed or correlation.device != q.device:
        given, needed = f"{correlation.dtype} on {correlation.device}", f"{wide} on {q.device}"
        raise InputError(f"this correlation is {given}; these tensors carry {needed}")


def unsupported(backend: str, q: Tensor, window: int | None) -> str | None:
    """Why ``backend`` cannot run queries like q [B, H, W, Cm] with this window; None when it can."""
    if backend not in BACKENDS:
        return f"no backend is called {backend!r}; there are {', '.join(sorted(BACKENDS))}"
    return BACKENDS[backend].unsupported(q, window)


def select_backend(q: Tensor, window: int | None, backend: str = "auto") -> str:
    """The backend that will run: the one named, or the first of the preferred ones that can.

    Raises BackendError for one that cannot, and where NLRN_INSTRUCTION_SET names what this processor lacks.
    """
    if cpu.MISNAMED and q.device.type == "cpu" and backend in ("auto", "cpu"):
        raise BackendError(cpu.MISNAMED)
    if backend == "auto":
        return next(name for name in BACKENDS if unsupported(name, q, window) is None)
    reason = unsupported(backend, q, window)
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot run: {reason}")
    return backend


def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise BackendError(f"no backend is called {name!r}; there are {', '.join(sorted(BACKENDS))}")
    return BACKENDS[name]


def _carrier(backend: str, correlation: Tensor, at: Queries) -> Backend:
    """The backend of that name, for a correlation of the size that it carries."""
    chosen = _backend(backend)
    if correlation.numel() != (expected := chosen.state_elements(at)):
        raise InputError(f"this correlation has {correlation.numel()} entries, these tensors need {expected}")
    return chosen


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or min(x.shape) < 1:
            raise InputError(f"{name} must be a filled [B, H, W, C] tensor, not of shape {tuple(x.shape)}")
        if not x.is_floating_point() or x.dtype != q.dtype or x.device != q.device:
            raise InputError(f"{name} is {x.dtype} on {x.device}; q, k, v must share one floating dtype and device")
    if q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise InputError(f"q and k must have one shape and v the same B, H, W; they are {shapes}")
    if window is not None and (not isinstance(window, int) or window < 1 or window % 2 == 0):
        raise InputError(f"window must be odd and positive, or None for the whole image, not {window}")


def correlation_to_dense(
    correlation: Tensor, *, batch: int, height: int, width: int, window: int | None, backend: str
) -> Tensor:
    """A carried correlation as [B, H, W, q, q] (window None: [B, H, W, H, W]), 0 outside the image.

    Entry (b, y, x, dy, dx) is the summed logit of pixel (y, x) towards (y + dy - q // 2, x + dx - q // 2).
    """
    at = Queries(batch, height, width, window)
    return _carrier(backend, correlation, at).to_dense(correlation, at)


def correlation_of_pixel(
    correlation: Tensor,
    pixel: tuple[int, int, int],
    *,
    batch: int,
    height: int,
    width: int,
    window: int | None,
    backend: str,
) -> Tensor:
    """The entry (b, y, x) of ``correlation_to_dense``, [q, q] or [H, W], without making the rest dense.

    Raises InputError when the pixel lies outside.
    """
    at = Queries(batch, height, width, window)
    chosen = _carrier(backend, correlation, at)
    if any(not 0 <= i < n for i, n in zip(pixel, (batch, height, width), strict=True)):
        raise InputError(f"the pixel {pixel} lies outside {(batch, height, width)}")
    return chosen.of_pixel(correlation, at, pixel)


@torch.no_grad()
def correlation_statistics(
    correlation: Tensor, *, batch: int, height: int, width: int, window: int | None, backend: str
) -> tuple[Tensor, float]:
    """How widely a state looks: the effective number of neighbours exp(entropy) [B, H, W], and max |S|."""
    at = Queries(batch, height, width, window)
    effective = correlation.new_empty(batch, height, width)
    largest = 0.0
    for (b, y, x), logits in _carrier(backend, correlation, at).rows(correlation, at):
        logits = logits.float()
        p = logits.softmax(-1)
        entropy = logits.logsumexp(-1) - (p * logits).sum(-1)
        block = effective[b, y, x]
        block.copy_(entropy.exp().view(block.shape))
        largest = max(largest, float(logits.masked_fill(logits < BELOW_ALL_LOGITS, 0).abs().max()))
    return effective, largest


def state_bytes(
    *, batch: int, height: int, width: int, window: int | None, backend: str = "tiled", itemsize: int = 4
) -> int:
    """Bytes of the correlation a backend carries from state to state."""
    return _backend(backend).state_elements(Queries(batch, height, width, window)) * itemsize
