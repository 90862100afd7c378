"""What a training undoes: each kind of degradation with its checks, its training pairs and its validation.

A kind is one class, listed in ``NOISES`` by its name in a recipe (noise.kind), or that of super-resolution. Those whose
noise stands in the user's files are in recorded.py.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import ConfigError
from nlrn.functional.camera import CAMERA_LEVELS, draw_camera, noisy_at, with_even_noise
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic, resize_matrix
from nlrn.functional.limits import MAX_SIGMA
from nlrn.training.pairs import IMAGE_RANGE, Batch, Degradation, Degrade, check_unit_range, random_of
from nlrn.training.recorded import Neighbor2Neighbor, Noise2Noise, PairedImages

if TYPE_CHECKING:
    from nlrn.training.config import TrainConfig

NOISE_STREAM = 1  # keep the counters of noise and scales apart from the patches'
SCALE_STREAM = 2
CAMERA_STREAM = 3
JPEG_GRID = 16  # pixels after which the blocks of a JPEG repeat, chroma subsampled
LEVEL_ERROR = 0.45  # standard deviation of the logarithm of an estimated level over the true one


class GaussianNoise(Degradation):
    """White noise of a level drawn for each patch, noise.low to noise.high."""

    @staticmethod
    def check(config: TrainConfig) -> None:
        """Raises ConfigError where the model does not fit the levels."""
        if config.image_range != 1 and (config.model.sigma_input or config.compile):
            raise ConfigError(IMAGE_RANGE)
        if config.model.noise != "white":
            raise ConfigError('model.noise = "camera" requires noise.kind = "camera"')
        if not config.model.sigma_input and config.noise.low != config.noise.high:
            raise ConfigError("a range of noise levels requires a model with sigma_input = true")

    def pairs(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """(noisy, clean, sigma / 255), in 0..image_range."""
        sigma, noise = self._noise(step, first, clean.shape)
        largest = self.config.image_range
        given = sigma if self.config.model.sigma_input else None
        return Batch(largest * (clean / 255 + noise), largest * (clean / 255), given)

    def _noise(self, step: int, first: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """(sigma / 255 [B], noise [B, C, H, W]): an independent stream for every place in the global batch."""
        low, high = self.config.noise.low, self.config.noise.high
        sigmas, noise = np.empty(shape[0], np.float32), []
        for i in range(shape[0]):
            random = random_of(self.config, step, first + i, NOISE_STREAM)
            sigmas[i] = random.uniform(low, high) / 255
            if self.device.type == "cpu":
                noise.append(torch.from_numpy(random.standard_normal(shape[1:], dtype=np.float32)))
            else:
                generator = torch.Generator(self.device).manual_seed(int(random.integers(2**63)))
                noise.append(torch.randn(shape[1:], generator=generator, device=self.device))
        sigma = torch.from_numpy(sigmas).to(self.device)
        return sigma, sigma.view(-1, 1, 1, 1) * torch.stack(noise)

    def conditions(self) -> dict[str, tuple[float | None, Degrade]]:
        """The one level, or those of 15, 25 and 50 in the range, else its highest."""
        low, high = self.config.noise.low, self.config.noise.high
        levels = [low] if low == high else [s for s in (15.0, 25.0, 50.0) if low <= s <= high] or [high]
        given = self.config.model.sigma_input
        return {f"{s:g}": (s / 255 if given else None, partial(_noisy, s)) for s in levels}


class CameraNoise(Degradation):
    """The noise of a camera drawn for each patch (nlrn.functional.camera)."""

    @staticmethod
    def check(config: TrainConfig) -> None:
        """Raises ConfigError for a model that is not one of colour, or receives the level of other noise."""
        check_unit_range(config)
        if config.model.in_channels != 3:
            raise ConfigError('camera noise is for models of the task "denoise" with in_channels = 3')
        if config.model.sigma_input and config.model.noise != "camera":
            raise ConfigError('a model that receives the level of camera noise requires model.noise = "camera"')

    def side(self, patch: int) -> int:
        """With room for every position on the JPEG's grid."""
        return patch + JPEG_GRID

    def pairs(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """(noisy, clean, level / 255 [B] or None): another camera for every place in the batch.

        The level is the standard deviation of the noise in the patch, as its file holds it, with an error as estimates
        have. What no estimate could see is no part of it: the detail that a JPEG alone loses, and the noise that the
        camera leaves in detail beyond what it leaves on flat areas.
        clean [B, 3, side, side], 0..255: a part of each is used, anywhere on the JPEG's grid.
        """
        noisy, targets = [], []
        levels = np.empty(len(clean), np.float32)
        unit = (clean.permute(0, 2, 3, 1).cpu().numpy() / np.float32(255)).clip(0, 1)  # of 16 bits some lie beyond
        for i, image in enumerate(unit):
            random = random_of(self.config, step, first + i, CAMERA_STREAM)
            if self.config.noise.enlarge > 1:
                image = enlarged_part(image, self.config.noise.enlarge, random)
            down, right = random.integers(0, image.shape[0] - patch + 1, 2)
            part = np.s_[down : down + patch, right : right + patch]
            camera = draw_camera(random, self.config.noise.denoising, self.config.noise.coarse)
            taken, noise = with_even_noise(image, camera, random)
            noisy.append(taken[part])
            targets.append(image[part])
            levels[i] = noise[part].std() * math.exp(random.normal(0, LEVEL_ERROR))
        seen, target = (
            torch.from_numpy(np.stack(x)).to(self.device).permute(0, 3, 1, 2)  # channels last in memory
            for x in (noisy, targets)
        )
        plane = torch.from_numpy(levels.clip(max=MAX_SIGMA / 255)).to(self.device)
        return Batch(seen, target, plane if self.config.model.sigma_input else None)

    def conditions(self) -> dict[str, tuple[float | None, Degrade]]:
        """CAMERA_LEVELS, which the model receives."""
        given = self.config.model.sigma_input
        return {f"camera_{s:g}": (s / 255 if given else None, partial(_photographed, s)) for s in CAMERA_LEVELS}


class Reduction(Degradation):
    """Super-resolution: luminance made smaller by MATLAB's bicubic and enlarged again, by a scale drawn a patch."""

    luminance = True

    @staticmethod
    def check(config: TrainConfig) -> None:
        """Raises ConfigError for a model of colour or with a sigma, and for validation images that do not fit."""
        check_unit_range(config)
        if config.model.noise != "white":
            raise ConfigError('model.noise = "camera" requires noise.kind = "camera"')
        if config.model.in_channels != 1 or config.model.sigma_input:
            raise ConfigError("super-resolution restores luminance: in_channels = 1 and sigma_input = false")
        if any(config.data.validation_size % scale for scale in config.resize.scales):
            raise ConfigError("super-resolution requires a validation_size that every scale divides")

    @property
    def _margin(self) -> int:
        """How far one of the two bicubic kernels reaches, and the other beyond it, at the largest scale."""
        return 4 * max(self.config.resize.scales)

    def side(self, patch: int) -> int:
        """With a margin and room for every position on the grids, a multiple of every scale."""
        scales = self.config.resize.scales
        step = math.lcm(*scales)
        return -(-(patch + 2 * self._margin + max(scales) - 1) // step) * step

    def pairs(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """Every image of clean [B, 1, side, side] made smaller and larger again, and a part within the margin.

        The part lies anywhere, so that the grid of the small image lies under it in every way.
        """
        resize, side = self.config.resize, clean.shape[-1]
        pairs = []
        for i, image in enumerate(clean[:, 0]):
            random = random_of(self.config, step, first + i, SCALE_STREAM)
            scale = resize.scales[random.integers(len(resize.scales))]
            rounded = bool(random.random() < resize.rounded)
            down, right = random.integers(self._margin, side - self._margin - patch + 1, 2)
            part = (slice(down, down + patch), slice(right, right + patch))
            pairs.append((self._through(image, scale, rounded)[part], image[part]))
        degraded, whole = (torch.stack(x)[:, None] / 255 for x in zip(*pairs, strict=True))
        return Batch(degraded, whole, None)

    def _through(self, image: Tensor, scale: int, rounded: bool) -> Tensor:
        """HW, 0..255, after the small image; rounded: half up and clipped after each axis, as MATLAB's uint8 is."""
        smaller, larger = _matrices(image.shape[-1], scale, self.device)
        rows = smaller @ image
        small = _round8(_round8(rows) @ smaller.mT) if rounded else rows @ smaller.mT
        return larger @ small @ larger.mT

    def conditions(self) -> dict[str, tuple[float | None, Degrade]]:
        """Every scale of the recipe."""
        return {f"x{s}": (None, partial(_reduced, s)) for s in self.config.resize.scales}


NOISES: dict[str, type[Degradation]] = {
    "gaussian": GaussianNoise,
    "camera": CameraNoise,
    "pairs": PairedImages,
    "noise2noise": Noise2Noise,
    "neighbor2neighbor": Neighbor2Neighbor,
}


def degradation_of(config: TrainConfig) -> type[Degradation]:
    """The class of what a recipe's model undoes."""
    return Reduction if config.model.task == "sr" else NOISES[config.noise.kind]


@lru_cache
def _matrices(side: int, scale: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of one axis, to the small image and back."""
    both = resize_matrix(side, side // scale), resize_matrix(side // scale, side)
    smaller, larger = (torch.from_numpy(x).to(device, torch.float32) for x in both)
    return smaller, larger


def _round8(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)


def enlarged_part(image: np.ndarray, most: float, random: np.random.Generator) -> np.ndarray:
    """A square part of a square image HWC in [0, 1], anywhere in it, enlarged by bicubic to the image's size."""
    side = len(image)
    part = math.ceil(side / most ** max(0.0, random.uniform(-0.5, 1)))
    down, right = random.integers(0, side - part + 1, 2)
    image = image[down : down + part, right : right + part]
    return image if part == side else resize_bicubic(image, side, side).clip(0, 1).astype(np.float32)


def _noisy(sigma: float, clean: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    return add_gaussian_noise(clean, sigma, seed=number), clean


def _photographed(level: float, clean: np.ndarray, _: int) -> tuple[np.ndarray, np.ndarray]:
    clean = clean.clip(0, 1)
    return noisy_at(clean, level), clean


def _reduced(scale: int, clean: np.ndarray, _: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = clean.shape
    return resize_bicubic(resize_bicubic(clean, height // scale, width // scale), height, width), clean
