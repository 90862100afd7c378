"""Noise that grows with the light: photons counted (Poisson) and read out with Gaussian noise.

The generalised Anscombe transform makes its standard deviation 1 whatever the brightness, so that a denoiser for
Gaussian noise can work on it; the inverse undoes the transform of the mean, not of the value, and is so unbiased.
Sources: Murtagh, Starck, Bijaoui, "Image restoration with noise suppression using a multiresolution support" (1995);
Makitalo, Foi, "A closed-form approximation of the exact unbiased inverse of the Anscombe variance-stabilizing
transformation" (2011) and "Optimal inversion of the generalized Anscombe transformation for Poisson-Gaussian noise"
(2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nlrn.errors import ConfigError
from nlrn.functional.ranges import scale_of

_ROOT = math.sqrt(1.5)


@dataclass(frozen=True)
class PoissonNoise:
    """z = black + gain * Poisson((x - black) / gain) + normal noise of read_noise, all on the 0-255 scale.

    gain: what one photon adds, above 0; read_noise: standard deviation, 0 or more; black: the value without light.
    Raises ConfigError.
    """

    gain: float
    read_noise: float = 0.0
    black: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gain) and self.gain > 0):
            raise ConfigError(f"the gain must be a number above 0, not {self.gain}")
        if not (math.isfinite(self.read_noise) and self.read_noise >= 0):
            raise ConfigError(f"the read noise must be a number of at least 0, not {self.read_noise}")

        if not math.isfinite(self.black):
            raise ConfigError(f"the black level must be a number, not {self.black}")

    def times(self, factor: float) -> PoissonNoise:
        """The noise of the same image with its values multiplied."""
        return PoissonNoise(self.gain * factor, self.read_noise * factor, self.black * factor)

    def stabilized(self, image: np.ndarray) -> np.ndarray:
        """The transform of a noisy image on the 0-255 scale: float64, noise of standard deviation 1.

        Below about 3 photons a pixel the deviation falls short of 1, down to 0.35 at a tenth of a photon.
        """
        inside = self.gain * (np.asarray(image, np.float64) - self.black) + 3 / 8 * self.gain**2 + self.read_noise**2
        return 2 / self.gain * np.sqrt(np.maximum(inside, 0))

    def mean_of(self, stabilized: np.ndarray) -> np.ndarray:
        """The x on the 0-255 scale whose noisy values have this mean after the transform (float64, at least black).

        A closed form, within 0.03 of a photon without read noise and within 0.2 with it, where x is below 1.
        """
        read = (self.read_noise / self.gain) ** 2
        d = np.maximum(stabilized, 2 * math.sqrt(3 / 8 + read))  # the transform of 0
        photons = d**2 / 4 + _ROOT / 4 / d - 11 / 8 / d**2 + 5 / 8 * _ROOT / d**3 - 1 / 8 - read
        return self.gain * np.maximum(photons, 0) + self.black

    def removed(
        self, image: np.ndarray, denoise: Callable[..., np.ndarray], beside: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        """The restored image, float32 on the 0..1 scale as `image` is, by a denoiser for Gaussian noise.

        denoise(image, sigma, *beside): of float32 on the 0..1 scale, sigma in 0-255 units. What it sees is the
        transform on the image's own range, as of `nlrn.functional.ranges.scale_of`. beside: further images with this
        noise, which it sees on the same range.
        """
        noisy = self.stabilized(np.asarray(image, np.float64) * 255)
        scale = scale_of(noisy, "image", 255.0)  # whose noise has the deviation 1
        others = (scale.unit(self.stabilized(np.asarray(other, np.float64) * 255)) for other in beside)
        unit = denoise(scale.unit(noisy), 255 / scale.spread, *others)
        restored = scale.back(unit, noisy.dtype) + scale.beyond(noisy)
        return (self.mean_of(restored) / 255).astype(np.float32)

    def add(self, image: np.ndarray, seed: int = 0) -> np.ndarray:
        """An image on the 0-255 scale with this noise, float64, from numpy's RandomState(seed)."""
        random = np.random.RandomState(seed)
        counts = random.poisson(np.maximum(np.asarray(image) - self.black, 0) / self.gain)
        return self.black + self.gain * counts + self.read_noise * random.standard_normal(np.shape(image))
