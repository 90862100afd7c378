"""How widely every recurrent state attends, measured on the correlations it carries."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from nlrn.models.nlrn import NLRN
from nlrn.ops import correlation_statistics


class AttentionMeter:
    """An observer of NLRN.forward for images of x's shape [B, C, H, W].

    Afterwards `neighbours[t]` is the effective number of neighbours of every pixel in state t, exp(entropy of p),
    a CPU tensor [B, H, W], and `largest[t]` the largest |S_t|.
    """

    def __init__(self, model: NLRN, x: Tensor) -> None:
        batch, _, height, width = x.shape
        backend = model.backend(height, width)
        self._statistics = partial(
            correlation_statistics,
            batch=batch, height=height, width=width, window=model.config.window, backend=backend,
        )  # fmt: skip
        self.neighbours: list[Tensor] = []
        self.largest: list[float] = []

    def __call__(self, t: int, correlation: Tensor) -> None:
        """Measure state t, whose correlation is as the operator returns it."""
        effective, largest = self._statistics(correlation)
        self.neighbours.append(effective.cpu())
        self.largest.append(largest)

    def medians(self) -> list[float]:
        """The median effective number of neighbours of every state."""
        return [float(torch.median(n)) for n in self.neighbours]
