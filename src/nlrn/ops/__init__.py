"""Neighborhood attention, the operator that NLRN spends its time in: every pixel over its clipped q x q window."""

from __future__ import annotations

from nlrn.ops.convolution import convolve3
from nlrn.ops.custom_ops import KERNELS
from nlrn.ops.functional import (
    BACKENDS,
    correlation_of_pixel,
    correlation_statistics,
    correlation_to_dense,
    neighborhood_attention,
    select_backend,
    state_bytes,
    unsupported,
)

__all__ = [
    "BACKENDS",
    "KERNELS",
    "convolve3",
    "correlation_of_pixel",
    "correlation_statistics",
    "correlation_to_dense",
    "neighborhood_attention",
    "select_backend",
    "state_bytes",
    "unsupported",
]
