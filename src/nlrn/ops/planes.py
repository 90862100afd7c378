"""Attention over several planes of a stack: every pixel over its window in its own plane and in those beside it.

The window of each plane is an attention of its own, by any backend: queries of one plane, keys and values of another,
and a correlation of that pair of planes, carried from state to state. By the logarithms of their sums the outputs of
one plane become those of one softmax over q x q x (2 reach + 1) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nlrn.errors import InputError
from nlrn.ops.functional import attention_and_log_sums


def pairs(planes: int, reach: int) -> list[tuple[int, int]]:
    """(plane of the queries, plane of the keys) of every attention over so many planes, in the order of their work."""
    return [(z, other) for z in range(planes) for other in range(max(0, z - reach), min(planes, z + reach + 1))]


@torch.no_grad()
def attention_over_planes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    reach: int,
    correlations: Sequence[Tensor] | None = None,
    return_correlations: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, list[Tensor] | None]:
    """Softmax attention over the window in a pixel's own plane and in `reach` planes before and after it.

    ``out_i = sum_j softmax_j(S[i, :]) v_j``, S as of `neighborhood_attention`, j running over the neighbours of i in
    every plane that it sees; at the ends of the planes there are fewer.

    Args:
        q: queries [P, H, W, Cm], the planes in their order.
        k: keys [P, H, W, Cm].
        v: values [P, H, W, C].
        window: odd side length of the neighbourhood, or None for whole planes.
        reach: planes that a pixel sees in either direction, 0 or more.
        correlations: as a call with the same shape, window, reach and backend returned them, one for each of
            ``pairs``; they may be overwritten.
        return_correlations: return them, to be carried into the next state.
        backend: as of `neighborhood_attention`.

    Returns:
        (out [P, H, W, C] of v's dtype, correlations or None). There is no gradient.

    Raises:
        InputError: as `neighborhood_attention`, and for another number of correlations.
    """
    every = pairs(len(q), reach)
    if correlations is not None and len(correlations) != len(every):
        raise InputError(f"{len(correlations)} correlations for {len(every)} pairs of planes")
    out = v.new_empty(v.shape)
    kept: list[Tensor] = []
    total = log_sum = q.new_empty(0)
    for number, (z, other) in enumerate(every):
        own, keys = slice(z, z + 1), slice(other, other + 1)
        before = None if correlations is None else correlations[number]
        found, log_found, after = attention_and_log_sums(
            q[own], k[keys], v[keys], window, before, return_correlations, backend
        )
        if after is not None:
            kept.append(after)
        if other == max(0, z - reach):
            total, log_sum = found, log_found
        else:
            both = torch.logaddexp(log_sum, log_found)
            total *= (log_sum - both).exp_()[..., None]
            total.addcmul_(found, (log_found - both).exp_()[..., None])
            log_sum = both
        if number + 1 == len(every) or every[number + 1][0] != z:
            out[z : z + 1] = total
    return out, kept if return_correlations else None
