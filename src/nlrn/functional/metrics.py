"""PSNR and SSIM as the field scores them (docs/reproduce.md): pure functions of two arrays in [0, 1].

Nothing is rounded or clipped unless asked: score `psnr(clean, quantize8(output))` for a restored image;
a noisy input is scored unchanged, neither clipped nor rounded.
"""

from __future__ import annotations

import math

import numpy as np

from nlrn.errors import InputError

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
_C1, _C2 = 0.01**2, 0.03**2  # (K L)^2 with L = 1: the same ratio as K L at [0, 255]
_STUDIO_LUMA = np.array([65.481, 128.553, 24.966]) / 255  # ITU-R BT.601, 16..235


def quantize8(image: np.ndarray) -> np.ndarray:
    """`image` clipped to [0, 1] and rounded to the nearest of 256 levels, as float64 in [0, 1]."""
    return np.rint(np.clip(np.asarray(image, dtype=np.float64), 0, 1) * 255) / 255


def studio_luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 in studio range (MATLAB's rgb2ycbcr), float64 HW in [16/255, 235/255].

    image: RGB HWC in [0, 1]. The super-resolution scores of the field are taken on this plane; the
    full-range luma would cost exactly 20 log10(255 / 219) = 1.32 dB.
    """
    image = np.asarray(image, dtype=np.float64)
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"luma needs an HWC image with 3 channels; got shape {image.shape}")
    return image @ _STUDIO_LUMA + 16 / 255


def luma8(image: np.ndarray) -> np.ndarray:
    """The luminance that super-resolution restores, uint8 HW: an image HW itself, or the studio luma of HWC."""
    return image if image.ndim == 2 else np.rint(255 * studio_luma(image / 255)).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray, *, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1, over all pixels and channels at once.

    a, b: HW or HWC, equal shapes, nominally in [0, 1]; `border` pixels are left out on each side.
    Equal images give inf. Raises InputError for shapes that differ or that the border uses up.
    """
    a, b = _pair(a, b, border, least=1)
    error = float(np.mean(np.square(a - b)))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: np.ndarray, b: np.ndarray, *, border: int = 0) -> float:
    """Structural similarity of Wang, Bovik, Sheikh, Simoncelli (IEEE TIP 2004), mean over the channels.

    An 11 x 11 Gaussian window of sigma 1.5, K = (0.01, 0.03), population covariance, mean over the valid
    area (the window lies wholly inside the image). Arguments as for `psnr`; at least 11 x 11 pixels must
    remain inside the border.
    """
    a, b = _pair(a, b, border, least=2 * SSIM_RADIUS + 1)
    mean_a, mean_b = _blur(a), _blur(b)
    variances = _blur(a * a) - mean_a**2 + _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return float(np.mean(luminance * structure))


def _pair(a: np.ndarray, b: np.ndarray, border: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both images as float64 without their border."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim not in (2, 3):
        raise InputError(f"expected two HW or HWC images of one shape; got {a.shape} and {b.shape}")
    if not all(np.issubdtype(x.dtype, np.floating) for x in (a, b)):
        raise InputError(f"expected float images in [0, 1]; got {a.dtype} and {b.dtype}; divide by 255")
    height, width = a.shape[:2]
    if border < 0 or min(height, width) - 2 * border < least:
        raise InputError(f"{height} x {width} pixels with a border of {border}: fewer than {least} are left")
    inside = (slice(border, height - border), slice(border, width - border))
    return a[inside].astype(np.float64), b[inside].astype(np.float64)


def _blur(image: np.ndarray) -> np.ndarray:
    """Gaussian mean over the valid area, [H, W, ...] -> [H - 10, W - 10, ...]."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    rows, columns = (size - 2 * SSIM_RADIUS for size in image.shape[:2])
    image = sum(w * image[k : k + rows] for k, w in enumerate(weights))
    return sum(w * image[:, k : k + columns] for k, w in enumerate(weights))
