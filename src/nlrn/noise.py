"""The noise level of a picture, estimated from the picture alone.

Method: Chen, Zhu, Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015.
Patches of a clean picture lie near a plane of few dimensions; white noise adds its variance to every
eigenvalue of their covariance. The eigenvalues that are noise alone scatter evenly about that variance, so
the largest eigenvalues are dropped until the mean of the rest is no larger than their median.
"""

from __future__ import annotations

import math

import numpy as np

from nlrn.errors import InputError

LEAST_SIDE = 16
_PATCH = 8
_MOST_PATCHES = 2**20  # more of them cost time and change the third digit
_CHUNK = 2**14  # patches held at once: 8 MiB


def estimate_sigma(image: np.ndarray) -> float:
    """Standard deviation of additive white Gaussian noise in `image`, in 0-255 units, mean over channels.

    image: float HW or HWC on the 0..1 scale, not clipped, at least 16 pixels on each side. Fine texture
    counts as noise: a clean photograph gives about 5, and an error of 1 to 2 is usual below sigma 15.
    Pixels that were clipped at black and white lower the estimate. The value is neither rounded nor limited.
    Raises InputError for smaller, non-float or non-finite pictures.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"expected a float picture HW or HWC in [0, 1]; got {image.dtype} {image.shape}")
    if min(image.shape[:2]) < LEAST_SIDE:
        height, width = image.shape[:2]
        raise InputError(
            f"{height} x {width} pixels are too few to estimate the noise from (at least {LEAST_SIDE} on "
            "each side): give sigma as a number"
        )
    if not np.isfinite(image).all():
        raise InputError("the picture has values that are not finite")
    planes = image[..., None] if image.ndim == 2 else image
    return float(np.mean([_plane_sigma(planes[..., c]) for c in range(planes.shape[2])])) * 255


def _plane_sigma(plane: np.ndarray) -> float:
    """Noise of one channel [H, W] on the plane's own scale."""
    # A covariance needs many more patches than a patch has pixels, so small pictures get smaller patches:
    # 8 x 8 in a 16 x 16 picture would estimate half the noise.
    patch = min(_PATCH, min(plane.shape) // 5)
    eigenvalues = np.linalg.eigvalsh(_patch_covariance(plane, patch))
    return math.sqrt(max(0.0, _noise_variance(eigenvalues)))


def _patch_covariance(plane: np.ndarray, patch: int) -> np.ndarray:
    """Covariance [patch**2, patch**2] of the patches, all of them or an even grid of about a million."""
    stride = max(1, math.ceil(math.sqrt(plane.size / _MOST_PATCHES)))
    centred = plane.astype(np.float64) - np.mean(plane, dtype=np.float64)
    views = np.lib.stride_tricks.sliding_window_view(centred, (patch, patch))[::stride, ::stride]
    rows, columns = views.shape[:2]
    area = patch * patch
    products, total = np.zeros((area, area)), np.zeros(area)
    step = max(1, _CHUNK // columns)
    for top in range(0, rows, step):
        vectors = views[top : top + step].reshape(-1, area)
        products += vectors.T @ vectors
        total += vectors.sum(axis=0)
    mean = total / (rows * columns)
    return products / (rows * columns) - np.outer(mean, mean)


def _noise_variance(eigenvalues: np.ndarray) -> float:
    """Mean of the most of the smallest eigenvalues whose mean is no larger than their median.

    eigenvalues: ascending. The paper asks for mean = median; with finitely many values the first count at
    which the mean comes down to the median is taken.
    """
    counts = np.arange(1, len(eigenvalues) + 1)
    means = np.cumsum(eigenvalues) / counts
    medians = (eigenvalues[(counts - 1) // 2] + eigenvalues[counts // 2]) / 2
    return float(means[np.flatnonzero(means <= medians)[-1]])
