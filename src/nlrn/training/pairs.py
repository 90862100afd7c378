"""What every degradation of a training has: its images, and its pairs as pure functions of seed, step and place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import ConfigError
from nlrn.functional.metrics import luma8
from nlrn.io.datasets import training_images, validation_images

if TYPE_CHECKING:
    from nlrn.training.config import TrainConfig

IMAGE_RANGE = "image_range = 255 is for Gaussian noise of one level, without compile"
# A validation image HW or HWC in 0..1 and its number -> (what the model receives, what it should make of it)
Degrade = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class Batch(NamedTuple):
    """Images of a step, [B, C, P, P] in 0..image_range: degraded, clean, and sigma / 255 [B] or None."""

    degraded: Tensor
    clean: Tensor
    sigma: Tensor | None


class Halves(NamedTuple):
    """Images [B, C, 2 P, 2 P] and, for each cell of 2 x 2 pixels, two of its four: int64 [B, P, P] each, 0 to 3."""

    whole: Tensor
    first: Tensor
    second: Tensor

    def of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images shaped as `whole` the chosen pixels of each cell: two [B, C, P, P]."""
        batch, channels, height, width = images.shape
        cells = images.reshape(batch, channels, height // 2, 2, width // 2, 2).transpose(3, 4).flatten(4)
        first, second = (
            cells.gather(4, chosen[:, None, :, :, None].expand(-1, channels, -1, -1, 1))[..., 0]
            for chosen in (self.first, self.second)
        )
        return first, second


class HalvedBatch(Batch):
    """A batch whose images are halves of noisy ones: degraded the first, clean the second."""

    halves: Halves

    @classmethod
    def made_of(cls, halves: Halves) -> HalvedBatch:
        """The batch, without a level."""
        made = cls(*halves.of(halves.whole), None)
        made.halves = halves
        return made


class Degradation(ABC):
    """One kind of degradation, made of a recipe and the device of the batches.

    luminance: whether only the luminance of images is used.
    """

    luminance = False

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device

    @staticmethod
    @abstractmethod
    def check(config: TrainConfig) -> None:
        """Raises ConfigError where the recipe does not fit this degradation."""

    def images(self, data: Path) -> list[np.ndarray]:
        """What is trained on: uint8 or float32, 0..255, all HW or all HWC. Raises InputError as `training_images`."""
        its = self.config.data
        return [self._seen(im) for f in its.folders for _, im in training_images(data, f, **self._how)]

    def held_out(self, data: Path) -> list[np.ndarray]:
        """What is validated on, as `images`. Raises InputError as `validation_images`."""
        its = self.config.data
        return [self._seen(im) for _, im in validation_images(data, its.validation, its.folders, **self._how)]

    @property
    def _how(self) -> dict[str, Any]:
        channels = None if self.luminance else self.config.model.in_channels
        return {"channels": channels, "depth": self.config.data.depth}

    def _seen(self, image: np.ndarray) -> np.ndarray:
        return luma8(image) if self.luminance else image

    def side(self, patch: int) -> int:
        """Side of the square that is cut out of an image for a patch, with what the degradation needs around it."""
        return patch

    @abstractmethod
    def pairs(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """The batch of clean [B, C, side, side], 0..255, whose places in the global batch begin with `first`."""

    @abstractmethod
    def conditions(self) -> dict[str, tuple[float | None, Degrade]]:
        """Of the validation, by name: the sigma / 255 that the model receives, and the degradation of an image."""


def check_unit_range(config: TrainConfig) -> None:
    """Raises ConfigError for image_range = 255."""
    if config.image_range != 1:
        raise ConfigError(IMAGE_RANGE)


def random_of(config: TrainConfig, step: int, place: int, stream: int) -> np.random.Generator:
    """The generator of a place in the global batch of a step; Philox increments only the first word."""
    return np.random.Generator(np.random.Philox(key=[config.seed, step], counter=[0, place, stream, 0]))
