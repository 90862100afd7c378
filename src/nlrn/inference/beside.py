"""The planes of a stack beside the one that is restored, which the attention of the network may see, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nlrn.errors import ConfigError, InputError
from nlrn.functional.ranges import Range, checked_image
from nlrn.inference.settings import Settings
from nlrn.models.distances import DISTANCES
from nlrn.models.nlrn import NLRNConfig


@dataclass(frozen=True)
class Beside:
    """Planes beside an image: the first `before` of them lie before it, the others after it, in their order.

    They are float arrays of the shape of the image, on its scale.
    """

    planes: tuple[np.ndarray, ...] = ()
    before: int = 0

    def seen(self, by: Callable[[np.ndarray], np.ndarray]) -> Beside:
        """What a function makes of each."""
        return Beside(tuple(map(by, self.planes)), self.before)

    def joined(self, image: np.ndarray, planes: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """[B, P * C, H, W] of all P planes, the image among them, `planes` making [B, C, H, W] of each."""
        if not self.planes:
            return planes(image)
        every = [*self.planes[: self.before], image, *self.planes[self.before :]]
        return np.concatenate([planes(one) for one in every], axis=1)

    def checked(self, image: np.ndarray, chosen: Range, neighbors: int) -> Beside:
        """As floats. Raises InputError for planes of another shape or values, ConfigError for more than `neighbors`."""
        if max(self.before, len(self.planes) - self.before) > neighbors:
            raise ConfigError(f"{len(self.planes)} planes beside an image, and neighbors is {neighbors}")
        for plane in self.planes:
            if np.shape(plane) != image.shape:
                raise InputError(f"a plane of shape {np.shape(plane)} beside one of {image.shape}")
        return self.seen(lambda plane: checked_image(plane, chosen))


ALONE = Beside()


def check_neighbors(settings: Settings, config: NLRNConfig) -> None:
    """Raises ConfigError where planes beside an image are asked for and the model cannot use them."""
    if settings.neighbors and config.noise == "camera":
        raise ConfigError(
            "neighbors are for white noise and photons: the model for photographs restores each plane by itself;"
            " leave them out, or give noise gaussian"
        )
    if settings.neighbors and not DISTANCES[config.distance].carries:
        raise ConfigError(f"neighbors are not for the distance {config.distance}: its weights are not combined")
