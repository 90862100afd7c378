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
from nlrn.ops.planes import attention_over_planes, pairs

__all__ = [
    "BACKENDS",
    "KERNELS",
    "attention_over_planes",
    "convolve3",
    "correlation_of_pixel",
    "correlation_statistics",
    "correlation_to_dense",
    "neighborhood_attention",
    "pairs",
    "select_backend",
    "state_bytes",
    "unsupported",
]
