"""The batches of a training run: each a pure function of the recipe, the seed and the step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlrn.functional.camera import add_camera_noise, draw_camera, target_at
from nlrn.functional.degradations import resize_bicubic, resize_matrix
from nlrn.functional.metrics import luma8
from nlrn.io.datasets import PatchSet, training_images
from nlrn.training.config import TrainConfig
from nlrn.training.distributed import Processes

NOISE_STREAM = 1  # keep the counters of noise and scales apart from the patches'
SCALE_STREAM = 2
CAMERA_STREAM = 3
JPEG_GRID = 16  # pixels after which the blocks of a JPEG repeat, chroma subsampled
LEVEL_ONE = 0.75  # share of patches of level 1, the default in use
HIGHEST_LEVEL = 2.0


class Batch(NamedTuple):
    """Images of a step, [B, C, P, P] in 0..image_range: degraded, clean, and sigma / 255 [B] or None."""

    degraded: Tensor
    clean: Tensor
    sigma: Tensor | None


class Batches:
    """The batches of one of several processes, by step; those of all processes together are those of a single one.

    Raises InputError and ConfigError as `training_images` for data that cannot be used.
    """

    def __init__(self, config: TrainConfig, data: Path, processes: Processes) -> None:
        self.config, self.processes = config, processes
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.enlarges = config.model.task == "sr"
        channels = None if self.enlarges else config.model.in_channels
        images = [image for f in config.data.folders for _, image in training_images(data, f, channels=channels)]
        images = [luma8(image) for image in images] if self.enlarges else images
        sides = [self._side(stage.patch) for stage in config.stages]
        self.patches = PatchSet(images, max(sides), device=processes.device).with_patch(sides[0])  # all fit, or none

    def __call__(self, step: int, part: int = 0, *, whole: bool = False) -> Batch:
        """The Batch of a step: of this process, or (`whole`) of all together.

        part: of those in which the batch is accumulated; each is shared by all processes. Shares may differ by one.
        """
        stage = self.config.stage(step)
        places = range(stage.batch)
        if not whole:
            places = _share(_share(places, part, stage.accumulate), self.processes.rank, self.processes.world)
        first, size = places.start, len(places)
        side = self._side(stage.patch)
        if self.patches.patch != side:
            self.patches = self.patches.with_patch(side)
        clean = self.patches.batch(self.config.seed, step, size, first).float()
        clean = clean.contiguous(memory_format=torch.channels_last)
        if self.enlarges:
            return self._enlarged(step, first, clean, stage.patch)
        if self.config.noise.kind == "camera":
            return self._photographed(step, first, clean, stage.patch)
        sigma, noise = self._noise(step, first, clean.shape)
        largest = self.config.image_range
        return Batch(
            largest * (clean / 255 + noise),
            largest * (clean / 255),
            sigma if self.config.model.sigma_input else None,
        )

    # -- noise ---------------------------------------------------------------------------------------------

    def _noise(self, step: int, first: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """(sigma / 255 [B], noise [B, C, H, W]): an independent stream for every place in the global batch."""
        low, high = self.config.noise.low, self.config.noise.high
        device = self.processes.device
        sigmas, noise = np.empty(shape[0], np.float32), []
        for i in range(shape[0]):
            random = self._random(step, first + i, NOISE_STREAM)
            sigmas[i] = random.uniform(low, high) / 255
            if device.type == "cpu":
                noise.append(torch.from_numpy(random.standard_normal(shape[1:], dtype=np.float32)))
            else:
                generator = torch.Generator(device).manual_seed(int(random.integers(2**63)))
                noise.append(torch.randn(shape[1:], generator=generator, device=device))
        sigma = torch.from_numpy(sigmas).to(device)
        return sigma, sigma.view(-1, 1, 1, 1) * torch.stack(noise)

    # -- camera noise ----------------------------------------------------------------------------------------

    def _photographed(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """(noisy, target, level * level_one / 255 [B] or None): another camera for every place in the batch.

        clean [B, 3, side, side], 0..255: a part of each is used, anywhere on the JPEG's grid and away from
        the border, where demosaicing has fewer neighbours.
        """
        config, noisy, targets = self.config.model, [], []
        levels = np.ones(len(clean), np.float32)
        for i, image in enumerate(clean.permute(0, 2, 3, 1).cpu().numpy() / np.float32(255)):
            random = self._random(step, first + i, CAMERA_STREAM)
            if self.config.noise.enlarge > 1:
                image = enlarged_part(image, self.config.noise.enlarge, random)
            down, right = random.integers(0, image.shape[0] - patch + 1, 2)
            part = np.s_[down : down + patch, right : right + patch]
            if config.sigma_input and random.random() >= LEVEL_ONE:
                levels[i] = random.uniform(0, HIGHEST_LEVEL)
            photograph = add_camera_noise(image, draw_camera(random), random)[part]
            noisy.append(photograph)
            targets.append(target_at(image[part], photograph, float(levels[i])))
        seen, target = (self._planes(np.stack(x)) for x in (noisy, targets))
        plane = torch.from_numpy(levels * np.float32(config.level_one / 255)).to(self.processes.device)
        return Batch(seen, target, plane if config.sigma_input else None)

    def _planes(self, images: np.ndarray) -> Tensor:
        """[B, H, W, C] -> [B, C, H, W], channels last in memory."""
        return torch.from_numpy(images).to(self.processes.device).permute(0, 3, 1, 2)

    def _random(self, step: int, place: int, stream: int) -> np.random.Generator:
        """The generator of a place in the global batch of a step; Philox increments only the first word."""
        return np.random.Generator(np.random.Philox(key=[self.config.seed, step], counter=[0, place, stream, 0]))

    # -- a smaller image, enlarged -------------------------------------------------------------------------

    @property
    def _margin(self) -> int:
        """How far one of the two bicubic kernels reaches, and the other beyond it, at the largest scale."""
        return 4 * max(self.config.resize.scales)

    def _side(self, patch: int) -> int:
        """Side of the square that is cut out of an image for a patch.

        With a margin and room for every position on the grids, a multiple of every scale.
        """
        if self.config.noise.kind == "camera":
            return patch + JPEG_GRID
        if not self.enlarges:
            return patch
        scales = self.config.resize.scales
        step = math.lcm(*scales)
        return -(-(patch + 2 * self._margin + max(scales) - 1) // step) * step

    def _enlarged(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """Every image of clean [B, 1, side, side] made smaller and larger again, and a part within the margin.

        The part lies anywhere, so that the grid of the small image lies under it in every way.
        """
        resize, side = self.config.resize, clean.shape[-1]
        pairs = []
        for i, image in enumerate(clean[:, 0]):
            random = self._random(step, first + i, SCALE_STREAM)
            scale = resize.scales[random.integers(len(resize.scales))]
            rounded = bool(random.random() < resize.rounded)
            down, right = random.integers(self._margin, side - self._margin - patch + 1, 2)
            part = (slice(down, down + patch), slice(right, right + patch))
            pairs.append((self._through(image, scale, rounded)[part], image[part]))
        degraded, whole = (torch.stack(x)[:, None] / 255 for x in zip(*pairs, strict=True))
        return Batch(degraded, whole, None)

    def _through(self, image: Tensor, scale: int, rounded: bool) -> Tensor:
        """HW, 0..255, after the small image; rounded: half up and clipped after each axis, as MATLAB's uint8 is."""
        smaller, larger = self._matrices(image.shape[-1], scale)
        rows = smaller @ image
        small = _round8(_round8(rows) @ smaller.mT) if rounded else rows @ smaller.mT
        return larger @ small @ larger.mT

    def _matrices(self, side: int, scale: int) -> tuple[Tensor, Tensor]:
        """Of one axis, to the small image and back."""
        if (side, scale) not in self._kept:
            both = resize_matrix(side, side // scale), resize_matrix(side // scale, side)
            smaller, larger = (torch.from_numpy(x).to(self.processes.device, torch.float32) for x in both)
            self._kept[side, scale] = smaller, larger
        return self._kept[side, scale]


def _round8(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)


def enlarged_part(image: np.ndarray, most: float, random: np.random.Generator) -> np.ndarray:
    """A square part of a square image HWC in [0, 1], anywhere in it, enlarged by bicubic to the image's size."""
    side = len(image)
    part = math.ceil(side / most ** max(0.0, random.uniform(-0.5, 1)))
    down, right = random.integers(0, side - part + 1, 2)
    image = image[down : down + part, right : right + part]
    return image if part == side else resize_bicubic(image, side, side).clip(0, 1).astype(np.float32)


def _share(places: range, i: int, n: int) -> range:
    """The i-th of n consecutive shares."""
    return places[len(places) * i // n : len(places) * (i + 1) // n]
