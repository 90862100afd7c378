"""What a backend of neighborhood attention provides, as types: ``BACKENDS`` in functional.py lists those that do.

A backend is a module, or any object, with the functions of ``DirectBackend`` or of ``KernelBackend``; mypy checks each
against them. Both begin with ``Backend``: whether it runs here, and what its carried correlation means.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MASKED = -1e30  # the logit of a key outside the image or the window; adding logits to it does not change it
BELOW_ALL_LOGITS = -1e29  # a logit below it is MASKED, possibly with something added
Block = tuple[slice, slice, slice]  # images of the batch, rows, columns


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context without autocast; of the device "meta" there is none to leave."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


class Queries(NamedTuple):
    """Whose correlation it is: the pixels of images, each with a window around it, None for the whole image."""

    batch: int
    height: int
    width: int
    window: int | None

    @classmethod
    def of(cls, x: Tensor, window: int | None) -> Queries:
        """Those of maps [B, H, W, C]."""
        return cls(x.shape[0], x.shape[1], x.shape[2], window)

    @property
    def keys(self) -> tuple[int, int]:
        """Rows and columns that a query sees, those outside the image included."""
        return (self.height, self.width) if self.window is None else (self.window, self.window)


class Backend(Protocol):
    """The functions of every backend."""

    def unsupported(self, q: Tensor, window: int | None, /) -> str | None:
        """Why queries like q [B, H, W, Cm] cannot be handled here; None when they can."""

    def state_elements(self, at: Queries, /) -> int:
        """Numbers of the correlation carried from state to state, which may be laid out in any way."""

    def to_dense(self, correlation: Tensor, at: Queries, /) -> Tensor:
        """The correlation as [B, H, W, q, q], or [B, H, W, H, W] without a window, 0 outside the image."""

    def of_pixel(self, correlation: Tensor, at: Queries, pixel: tuple[int, int, int], /) -> Tensor:
        """The entry (b, y, x) of `to_dense`, [q, q] or [H, W], without making the rest dense."""

    def rows(self, correlation: Tensor, at: Queries, /) -> Iterator[tuple[Block, Tensor]]:
        """All queries, block by block: (block, logits [B, Q, K], MASKED at keys that a query does not see)."""


class DirectBackend(Backend, Protocol):
    """A backend in torch, which differentiates it: reference.py, tiled.py."""

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int | None,
        correlation: Tensor | None,
        return_correlation: bool,
        /,
    ) -> tuple[Tensor, Tensor | None]:
        """q, k [B, H, W, Cm], v [B, H, W, C], float32 or wider -> out [B, H, W, C] and, when asked for, S."""


class KernelBackend(Backend, Protocol):
    """A fused kernel that computes its own gradient: cpu.py, triton.py. custom_ops.py makes PyTorch operators of it."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int | None,
        before: Tensor | None,
        after: Tensor | None,
        norms: Tensor | None = None,
        exact: Tensor | None = None,
        /,
    ) -> Tensor:
        """One pass: out [B, H, W, C] of v's dtype.

        It fills `after`, which may be `before`, and, for the gradient, norms and exact. norms: float32 [2, B, H, W],
        M_i = max_j S_ij and sum_j exp(S_ij - M_i). exact: out before it is rounded, float32.
        """

    def backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        exact: Tensor,
        out_gradient: Tensor,
        norms: Tensor,
        window: int | None,
        after: Tensor | None,
        after_gradient: Tensor | None,
        grad_dtype: torch.dtype = torch.float32,
        /,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Gradients of q, k, v in their dtype and, where `after` was kept, of `before` in grad_dtype."""
