"""Neighborhood attention, the operator that NLRN spends its time in: every pixel over its clipped q x q window."""

from __future__ import annotations

from nlrn.ops.convolution import convolve3 as convolve3
from nlrn.ops.custom_ops import KERNELS as KERNELS
from nlrn.ops.flops import FLOP_FORMULAS as FLOP_FORMULAS
from nlrn.ops.functional import BACKENDS as BACKENDS
from nlrn.ops.functional import correlation_of_pixel as correlation_of_pixel
from nlrn.ops.functional import correlation_statistics as correlation_statistics
from nlrn.ops.functional import correlation_to_dense as correlation_to_dense
from nlrn.ops.functional import neighborhood_attention as neighborhood_attention
from nlrn.ops.functional import select_backend as select_backend
from nlrn.ops.functional import state_bytes as state_bytes
from nlrn.ops.functional import unsupported as unsupported
from nlrn.ops.planes import attention_over_planes as attention_over_planes
from nlrn.ops.planes import pairs as pairs
