"""Training on noise that stands in the user's own files: pairs, two noisy images of a scene, or noisy images alone.

The model receives no level (model.sigma_input = false): that of such noise is not known. Images of any depth are read,
each on the range that it would be restored on (nlrn.functional.ranges), an image's target on that of its input.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import ConfigError, InputError
from nlrn.functional.ranges import scale_of
from nlrn.io.datasets import exact_images
from nlrn.training.pairs import Batch, Degradation, Degrade, HalvedBatch, Halves, check_unit_range, random_of

if TYPE_CHECKING:
    from nlrn.training.config import TrainConfig

ORDER_STREAM, CELL_STREAM = 4, 5  # keep the counters apart from the other degradations'
MOST_BEYOND = 0.05  # of a target: more is another exposure, no noise
# Two neighbours of the four pixels of a cell, numbered row by row, in either order
NEIGHBORS = np.array([(0, 1), (1, 0), (2, 3), (3, 2), (0, 2), (2, 0), (1, 3), (3, 1)])


class PairedImages(Degradation):
    """A noisy and a clean image of each scene: data.noisy names a folder for each of data.folders, files by name.

    validation_noisy and validation are such a pair of folders.
    """

    target = "a clean image"

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Raises ConfigError for a model that receives a level, and for folders that are not in pairs."""
        _check_recorded(config)
        kind, its = config.noise.kind, config.data
        if len(its.noisy) != len(its.folders) or not its.validation_noisy:
            raise ConfigError(
                f'noise.kind = "{kind}" requires a folder in data.noisy for each of data.folders ({cls.target} under'
                " the same file name), and data.validation_noisy for data.validation"
            )

    def images(self, data: Path) -> list[np.ndarray]:
        """Input and target in one array, HWC with the channels of both."""
        its = self.config.data
        return [both for names in zip(its.noisy, its.folders, strict=True) for both in self._pairs(data, *names)]

    def held_out(self, data: Path) -> list[np.ndarray]:
        """The same of the validation."""
        return self._pairs(data, self.config.data.validation_noisy, self.config.data.validation)

    def _pairs(self, data: Path, noisy: str, target: str) -> list[np.ndarray]:
        inputs, targets = (self._by_name(data / folder) for folder in (noisy, target))
        for alone in sorted(inputs.keys() ^ targets.keys()):
            raise InputError(f"{alone} is in only one of {data / noisy} and {data / target}: files are paired by name")
        for name, image in inputs.items():
            if image.shape != targets[name].shape:
                raise InputError(f"{name} is {image.shape} in {data / noisy}, but {targets[name].shape} in {target}")
        return [_on_range_of_the_first(image, targets[name], name) for name, image in inputs.items()]

    def _by_name(self, folder: Path) -> dict[str, np.ndarray]:
        found = exact_images(folder, channels=self.config.model.in_channels)
        if len(images := dict(found)) < len(found):
            twice = next(name for i, (name, _) in enumerate(found) if name in dict(found[:i]))
            raise InputError(
                f"{folder} has two files of the name {twice}, with different endings: which is of the pair?"
            )
        return images

    def pairs(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """(noisy, clean, None), in 0..1; `clean` holds both."""
        noisy, target = (clean / 255).chunk(2, dim=1)
        return Batch(noisy, target, None)

    def conditions(self) -> dict[str, tuple[float | None, Degrade]]:
        """The pairs as they are."""
        return {self.config.noise.kind: (None, _halves_of_channels)}


class Noise2Noise(PairedImages):
    """Two noisy images of each scene, with noise of mean zero: either is the target of the other, as drawn.

    Source: Lehtinen et al., Noise2Noise, ICML 2018. The mean squared error alone has the clean image as its minimum.
    """

    target = "another noisy image"

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Raises ConfigError as `PairedImages.check`, and for another loss than the mean squared error."""
        super().check(config)
        _check_loss(config)

    def pairs(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """(noisy, other, None), in 0..1."""
        one, other, _ = super().pairs(step, first, clean, patch)
        drawn = [random_of(self.config, step, first + i, ORDER_STREAM).random() < 0.5 for i in range(len(clean))]
        swap = torch.tensor(drawn, device=self.device).view(-1, 1, 1, 1)
        return Batch(torch.where(swap, other, one), torch.where(swap, one, other), None)


class Neighbor2Neighbor(Degradation):
    """Noisy images alone, with noise that is independent from pixel to pixel.

    Of each cell of 2 x 2 pixels two neighbours are drawn; one makes the input, one the target. What differs between
    them without noise is taken off by a second term, with the weight noise.regularization
    (nlrn.training.optim.batch_loss). Source: Huang et al., Neighbor2Neighbor, CVPR 2021, section 4. Validated on
    data.validation against clean images where data.validation_noisy names the noisy ones, else half against half.
    """

    @staticmethod
    def check(config: TrainConfig) -> None:
        """Raises ConfigError for a model that receives a level, another loss, and folders of pairs."""
        _check_recorded(config)
        _check_loss(config)
        if config.data.noisy:
            raise ConfigError('noise.kind = "neighbor2neighbor" has noisy images in data.folders, and no data.noisy')

    @property
    def _paired(self) -> bool:
        return bool(self.config.data.validation_noisy)

    @property
    def _how(self) -> dict[str, Any]:
        return {"channels": self.config.model.in_channels, "depth": 16}

    def held_out(self, data: Path) -> list[np.ndarray]:
        """The pairs of the validation, or its noisy images."""
        if self._paired:
            return PairedImages(self.config, self.device).held_out(data)
        return super().held_out(data)

    def side(self, patch: int) -> int:
        """Twice the patch."""
        return 2 * patch

    def pairs(self, step: int, first: int, clean: Tensor, patch: int) -> Batch:
        """(a half, the other half, None, both), in 0..1."""
        drawn = [
            random_of(self.config, step, first + i, CELL_STREAM).integers(len(NEIGHBORS), size=(patch, patch))
            for i in range(len(clean))
        ]
        cells = torch.from_numpy(NEIGHBORS[np.stack(drawn)]).to(self.device)
        return HalvedBatch.made_of(Halves(clean / 255, cells[..., 0], cells[..., 1]))

    def conditions(self) -> dict[str, tuple[float | None, Degrade]]:
        """The pairs as they are, or halves, drawn by the image's number."""
        return {self.config.noise.kind: (None, _halves_of_channels if self._paired else _halves_of_cells)}


def _halves_of_channels(both: np.ndarray, _: int) -> tuple[np.ndarray, np.ndarray]:
    """HWC with the channels of two images -> both, HW where they have one."""
    first, second = np.split(both, 2, axis=2)
    return (first[..., 0], second[..., 0]) if first.shape[2] == 1 else (first, second)


def _halves_of_cells(image: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Two images of half the size, the pixels drawn by the number of the image."""
    height, width = (n // 2 for n in image.shape[:2])
    cells = NEIGHBORS[np.random.default_rng(number).integers(len(NEIGHBORS), size=(height, width))]
    rows, columns = np.mgrid[: 2 * height : 2, : 2 * width : 2]
    first, second = (image[rows + cells[..., i] // 2, columns + cells[..., i] % 2] for i in (0, 1))
    return first, second


def _on_range_of_the_first(image: np.ndarray, target: np.ndarray, name: str) -> np.ndarray:
    """Both, HWC with the channels of both. Raises InputError where much of the target lies beyond the input's range."""
    scale = scale_of(image)
    beyond = np.mean(scale.beyond(target) != 0)
    if beyond > MOST_BEYOND:
        raise InputError(
            f"{100 * beyond:.0f} % of the target of {name} lies far beyond the range of its input: the two images of a"
            " pair must be equally bright"
        )
    both = [np.atleast_3d(scale.unit(x)) for x in (image, target)]
    return np.float32(255) * np.concatenate(both, axis=2)


def _check_recorded(config: TrainConfig) -> None:
    check_unit_range(config)
    its = config.noise
    if (its.low, its.high) != (type(its).low, type(its).high):
        raise ConfigError(f'noise.kind = "{its.kind}" has its own levels: leave noise.low and noise.high out')
    if config.model.sigma_input or config.model.noise != "white":
        raise ConfigError(
            f'noise.kind = "{its.kind}" has no level that a model could receive: model.sigma_input = false,'
            " and no model.noise"
        )


def _check_loss(config: TrainConfig) -> None:
    if config.loss != "mse":
        raise ConfigError(f'noise.kind = "{config.noise.kind}" requires loss = "mse": its targets are noisy')
