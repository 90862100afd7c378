"""The noise level of an image, estimated from the image only.

Method: Liu, Tanaka, Okutomi, "Single-Image Noise Level Estimation for Blind Denoising", IEEE TIP 2013. Where an image
is smooth, the covariance of its patches is that of the noise: its small eigenvalues are the noise's variance. Patches
are kept whose gradients are no larger than noise of the level found so far would make them; from those the level is
found anew, until it stays. They take the smallest eigenvalue; we take the mean of the smallest quarter, corrected for
the number of patches, which strays less.

That is the level of white noise. What a camera wrote has noise that demosaicing and JPEG correlated, whose small
eigenvalues are nearly zero; `estimate_noise` recognises it and finds its level by other means
(nlrn.functional.correlated).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nlrn.errors import InputError
from nlrn.functional.correlated import judged
from nlrn.functional.margins import without_margins

NOISES = ("auto", "gaussian")  # what noise an image may be taken to have where its level is estimated
LEAST_SIDE = 16
_PATCH = 7
_MOST_ROUNDS = 10
_LEAST_PATCHES = 4  # for every pixel of a patch; with fewer the smallest eigenvalues are unreliable
_FAR = 1e6  # whatever lies beyond is no image on the 0..1 scale
_SCATTER = 0.5  # by experiment on BSDS500's training part; pure noise would need 0.65
_NORMAL_999 = 3.0902  # what 999 of 1,000 normal numbers do not exceed
_MOST_PATCHES = 2**20  # more of them cost time and change the third digit
_CHUNK = 2**14  # patches held at once: 8 MiB


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise that was found in one image, or in one channel of it.

    kind: "white" (Gaussian, independent from pixel to pixel) or "camera" (correlated). level: standard deviation,
    0-255 units; of a camera's noise on flat areas, since a camera leaves more of it in detail. correlation: of
    neighbouring pixels, 0 for white noise. sigma: what a denoiser for white noise is given, 0-255 units, not limited:
    the level of white noise, and more than the level of correlated noise, which such a denoiser takes for texture at
    the level itself. margin: the level of margins, bars or paper around the image, that have less than half of its
    noise and were left out of the estimate; None for none.
    """

    level: float
    kind: str = "white"
    correlation: float = 0.0
    sigma: float = 0.0
    margin: float | None = None

    def __str__(self) -> str:
        if self.kind == "white":
            return f"sigma {level_text(self.sigma)}"
        return f"camera-like noise, level {level_text(self.level)}, correlated ({self.correlation:.2f})"

    def times(self, factor: float) -> NoiseEstimate:
        """The noise of the same image with its values multiplied."""
        margin = None if self.margin is None else self.margin * factor
        return replace(self, level=self.level * factor, sigma=self.sigma * factor, margin=margin)

    def record(self) -> dict[str, Any]:
        """As manifests list it."""
        numbers = {name: getattr(self, name) for name in ("level", "correlation", "sigma")}
        numbers |= {} if self.margin is None else {"margin": self.margin}
        return {"kind": self.kind} | {k: round(v, 2) if v >= 1 else float(f"{v:.2g}") for k, v in numbers.items()}


def level_text(level: float) -> str:
    """A noise level for messages: one decimal, and of a small one two digits."""
    return f"{level:.1f}" if level >= 1 or level == 0 else f"{level:.2g}"


def estimate_noise(image: np.ndarray, noise: str = "auto") -> NoiseEstimate:
    """The noise of an image: its level, and whether it is white or, as a camera leaves it, correlated.

    image: as for `estimate_sigma`; correlated noise is found in images of at least 64 x 128 pixels, smaller ones are
    taken to have white noise. noise: "auto", or "gaussian" where it is known to be white.
    Raises InputError as `estimate_sigma` does, and for another noise.
    """
    if noise not in NOISES:
        raise InputError(f"noise must be {' or '.join(NOISES)}, not {noise!r}")
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] > 1 and np.array_equal(image, np.broadcast_to(image[..., :1], image.shape)):
        image = image[..., 0]  # grey in several channels has no chroma to estimate noise from
    seen, margin = _seen(image, lambda planes: _estimate(planes, noise).level / 255)
    return replace(_estimate(seen, noise), margin=margin)


def _estimate(planes: np.ndarray, noise: str) -> NoiseEstimate:
    sigma = 255 * _planes_sigma(planes)
    found = judged(planes, sigma) if noise == "auto" else None
    if found is None or found.white > 0.5 or found.sigma <= sigma:
        return NoiseEstimate(sigma, "white", 0.0, sigma)
    return NoiseEstimate(found.level, "camera", found.correlation, found.sigma)


def estimate_sigma(image: np.ndarray) -> float:
    """Standard deviation of additive white Gaussian noise in `image`, in 0-255 units, mean over channels.

    Areas of one single value, such as a border, are ignored, and so are margins of a fainter noise
    (functional.margins).

    image: float HW or HWC on the 0..1 scale, not clipped, at least 16 pixels on each side. On photographs
    it is mostly within 0.5, and at worst 2 too high, where nothing in the image is smooth (docs/sigma.md has the
    figures); a clean one gives about 0.5. Pixels that were clipped at black and white lower the estimate.
    The value is neither rounded nor limited.
    Raises InputError for smaller, non-float or non-finite images.
    """
    return 255 * _planes_sigma(_seen(np.asarray(image), _planes_sigma)[0])


def _seen(image: np.ndarray, level: Callable[[np.ndarray], float]) -> tuple[np.ndarray, float | None]:
    """[H, W, C] without margins of a fainter noise, and that noise, 0-255 units. Raises InputError.

    level: of planes [H, W, C], the noise on their scale.
    """
    if image.ndim not in (2, 3) or 0 in image.shape or not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"expected a float image HW or HWC in [0, 1]; got {image.dtype} {image.shape}")
    if min(image.shape[:2]) < LEAST_SIDE:
        height, width = image.shape[:2]
        raise InputError(
            f"{height} x {width} pixels are too few to estimate the noise from (at least {LEAST_SIDE} on "
            "each side): give sigma as a number"
        )
    if not np.isfinite(image).all() or np.abs(image).max() > _FAR:
        raise InputError("the image has values that are not finite, or far from 0..1")
    seen, margin = without_margins(image[..., None] if image.ndim == 2 else image, level)
    return seen, None if margin is None else 255 * margin


def _planes_sigma(planes: np.ndarray) -> float:
    return float(np.mean([_plane_sigma(planes[..., c]) for c in range(planes.shape[2])]))


def _plane_sigma(plane: np.ndarray) -> float:
    """Noise of one channel [H, W] on the plane's own scale."""
    # A covariance needs many more patches than a patch has pixels, so small images get smaller patches:
    # 7 x 7 in a 16 x 16 image would estimate half the noise.
    patch = min(_PATCH, min(plane.shape) // 5)
    texture = np.concatenate([_texture(patches) for patches in _patches(plane, patch)])
    some = texture > 0  # borders and margins carry no information about noise
    if not some.any():
        return 0.0
    limit = _texture_of_noise(patch)
    variance = float(_eigenvalues(plane, patch, some)[0])
    for _ in range(_MOST_ROUNDS):
        chosen = some & (texture <= limit * variance)
        if np.count_nonzero(chosen) < _LEAST_PATCHES * patch * patch:
            break
        before, variance = variance, _variance(_eigenvalues(plane, patch, chosen), int(chosen.sum()))
        if abs(variance - before) <= 1e-3 * before:
            break
    return math.sqrt(max(0.0, variance))


def _patches(plane: np.ndarray, patch: int) -> Iterator[np.ndarray]:
    """All patches, or an even grid of about a million, less the plane's mean: float64 [some, patch, patch], in turn."""
    stride = max(1, math.ceil(math.sqrt(plane.size / _MOST_PATCHES)))
    views = sliding_window_view(plane, (patch, patch))[::stride, ::stride]
    mean = np.mean(plane, dtype=np.float64)
    step = max(1, _CHUNK // views.shape[1])
    for top in range(0, len(views), step):
        yield views[top : top + step].reshape(-1, patch, patch) - mean


def _texture(patches: np.ndarray) -> np.ndarray:
    """Of each patch [some, patch, patch] the sum of its squared gradients, central differences."""
    across, down = patches[:, :, 2:] - patches[:, :, :-2], patches[:, 2:] - patches[:, :-2]
    texture: np.ndarray = (np.einsum("nij,nij->n", across, across) + np.einsum("nij,nij->n", down, down)) / 4
    return texture


@lru_cache
def _texture_of_noise(patch: int) -> float:
    """What 999 of 1,000 patches of noise of variance 1 do not exceed in texture.

    It is a quadratic form x' A x of a normal vector, near a scaled chi-squared distribution of the same mean (trace of
    A) and variance (2 trace of A A), the quantile of which is Wilson and Hilferty's.
    """
    difference = np.zeros((patch - 2, patch))
    inner = np.arange(patch - 2)
    difference[inner, inner], difference[inner, inner + 2] = -0.5, 0.5
    one = difference.T @ difference
    form = np.kron(np.eye(patch), one) + np.kron(one, np.eye(patch))
    mean, freedom = np.trace(form), np.trace(form) ** 2 / np.trace(form @ form)
    spread = 2 / (9 * freedom)
    return float(mean * (1 - spread + _NORMAL_999 * math.sqrt(spread)) ** 3)


def _eigenvalues(plane: np.ndarray, patch: int, chosen: np.ndarray) -> np.ndarray:
    """Of the covariance of the chosen patches, ascending. chosen: a flag for each of `_patches`, in their order."""
    area, at = patch * patch, 0
    products, total = np.zeros((area, area)), np.zeros(area)
    for patches in _patches(plane, patch):
        vectors = patches[chosen[at : at + len(patches)]].reshape(-1, area)
        products += vectors.T @ vectors
        total += vectors.sum(axis=0)
        at += len(patches)
    count = np.count_nonzero(chosen)
    mean = total / count
    eigenvalues: np.ndarray = np.linalg.eigvalsh(products / count - np.outer(mean, mean))
    return eigenvalues


def _variance(eigenvalues: np.ndarray, patches: int) -> float:
    """Of the noise: the mean of the smallest quarter of the eigenvalues of the covariance of so many patches.

    They scatter about the variance, and the smallest lie below it by a part that shrinks with the patches.
    """
    area = len(eigenvalues)
    return float(np.mean(eigenvalues[: area // 4])) / (1 - _SCATTER * math.sqrt(area / patches)) ** 2
