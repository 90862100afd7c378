"""The six distances of the non-local module (paper, section 3): how much a pixel counts for another.

A distance is one entry of ``DISTANCES``: which embeddings it has, how their products become logits, and how logits
become weights. `NonLocal2d`, recipes, weights files and studies go by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nlrn.ops import neighborhood_attention, reference, tiled

Logits = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
Weighting = Callable[[Tensor, Tensor, Tensor, int | None, str], Tensor]


def products(q: Tensor, k: Tensor, log_h: Tensor | None) -> tuple[Tensor, Tensor]:
    """q and k unchanged: the logits are their products."""
    return q, k


def negative_squares(q: Tensor, k: Tensor, log_h: Tensor | None) -> tuple[Tensor, Tensor]:
    """q and k [B, H, W, C] with one channel more, whose products are -|q - k|^2 / h^2 up to a term in q only.

    -|a - b|^2 / h^2 = (2 a.b - |b|^2) / h^2 - |a|^2 / h^2, whose last term a softmax over b cancels. What all features
    have in common is taken off before: it changes no difference, and its square would cost their digits.
    """
    assert log_h is not None
    common = k.detach().mean((1, 2), keepdim=True)
    q, k = q - common, k - common
    scale = torch.exp(-2 * log_h).to(q.dtype)
    q = torch.cat([2 * scale * q, -scale.expand(*q.shape[:3], 1)], -1)
    return q, torch.cat([k, k.square().sum(-1, keepdim=True)], -1)


def softmax(q: Tensor, k: Tensor, v: Tensor, window: int | None, backend: str) -> Tensor:
    """sum_j softmax_j(q_i . k_j) v_j over the window, [B, H, W, C]."""
    found = neighborhood_attention(q, k, v, window=window, backend=backend)
    assert isinstance(found, Tensor)
    return found


def average(q: Tensor, k: Tensor, v: Tensor, window: int | None, backend: str) -> Tensor:
    """sum_j (q_i . k_j) v_j / number of neighbours, [B, H, W, C]: of the whole image linear in q, so summed first."""
    if window is not None:
        return (reference if backend == "reference" else tiled).average(q, k, v, window)
    _, height, width, _ = q.shape
    return torch.einsum("bhwm,bmc->bhwc", q, torch.einsum("byxm,byxc->bmc", k, v)) / (height * width)


@dataclass(frozen=True)
class Distance:
    """One distance measure Phi, with its normalisation delta.

    embeddings: of "theta" and "phi", 1 x 1 convolutions, those it learns; with theta only, phi is theta. bandwidth:
    whether it learns h. logits: q, k, log h -> q, k whose products are the logits. weighting: q, k, v, window, backend
    -> what the module adds to X. wide: at least float32, for differences of large numbers. carries: whether the
    recurrent network can carry its logits from state to state (paper, section 4).
    """

    embeddings: tuple[str, ...] = ()
    bandwidth: bool = False
    logits: Logits = products
    weighting: Weighting = softmax
    wide: bool = False
    carries: bool = False


DISTANCES: dict[str, Distance] = {
    "euclidean": Distance(bandwidth=True, logits=negative_squares, wide=True),
    "dot_product": Distance(weighting=average, wide=True),
    "embedded_dot_product": Distance(("theta", "phi"), weighting=average, wide=True),
    "gaussian": Distance(),
    "symmetric_embedded_gaussian": Distance(("theta",)),
    "embedded_gaussian": Distance(("theta", "phi"), carries=True),
}
CARRIED = next(name for name, distance in DISTANCES.items() if distance.carries)
