"""A stack restored plane by plane: what is found over all its planes, then each plane through the one pipeline.

The planes of a channel have one range of values and, where it is estimated, one noise level; a plane is restored as an
image is with that sigma and that range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nlrn.errors import ConfigError
from nlrn.functional.alpha import fill_hidden
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.levels import channels_of, check_auto, plain
from nlrn.functional.limits import MAX_SIGMA
from nlrn.functional.noise import NoiseEstimate
from nlrn.functional.ranges import Range, Scale, checked, on_unit_scale
from nlrn.inference.beside import Beside, check_neighbors
from nlrn.inference.pipeline import Denoising, RestorerFor, for_photographs, photons_text, sample_range, with_photons
from nlrn.inference.self_ensemble import planes_of
from nlrn.io.axes import Lines

PER_PLANE = "per-plane"
_MOST_PIXELS = 1 << 21  # of a channel, that its range is found from; of more than _FEW channels as many as of these
_FEW, _LEAST_OF_MANY = 4, 1 << 16  # channels; pixels of one of many
_LEAST_PIXELS = 256  # of a plane
_MOST_PLANES = 32  # of a channel, evenly chosen, that its noise is estimated from
Plane = tuple[np.ndarray, np.ndarray | None]  # float HW or HWC in sample values / levels; alpha or None


class Planes(Protocol):
    """Planes that are read one at a time."""

    def __len__(self) -> int: ...

    def channel(self, index: int) -> int:
        """The number of the channel of a plane."""

    def read(self, index: int) -> Plane:
        """One plane."""


@dataclass(frozen=True)
class Channel:
    """How the planes of a channel are restored.

    asked: with a sigma and a range as numbers, sample values. found: the noise in its planes, the median, where it was
    estimated. planes: how many it has.
    """

    asked: Denoising
    planes: int
    found: NoiseEstimate | None = None
    levels: float = 1.0

    def record(self) -> dict[str, Any]:
        """As journals, manifests and --json have it: `Channel.of` makes the same of it, but for what was found."""
        sigma: Any = self.asked.sigma
        if isinstance(sigma, PoissonNoise):
            sigma = dataclasses.asdict(sigma)
        if isinstance(sigma, np.ndarray):
            sigma = None  # a map, which is given again
        return {
            "sigma": sigma,
            "noise": self.asked.noise,
            "range": self.asked.value_range,
            "planes": self.planes,
            "levels": self.levels,
            "found": None if self.found is None else self.found.record(),
        }

    @classmethod
    def of(cls, record: dict[str, Any], asked: Denoising) -> Channel:
        """What `record` was made of, and of the same request."""
        sigma = record["sigma"]
        sigma = PoissonNoise(**sigma) if isinstance(sigma, dict) else asked.sigma if sigma is None else sigma
        asked = dataclasses.replace(asked, sigma="auto", noise="auto", value_range=checked(record["range"]))
        asked = dataclasses.replace(asked, sigma=sigma, noise=record["noise"])
        return cls(asked, record["planes"], levels=record["levels"])

    def __str__(self) -> str:
        sigma = self.asked.sigma
        if self.asked.noise == "photo":
            what = "the model for photographs"
        elif isinstance(sigma, PoissonNoise):
            what = f"photons, {photons_text(sigma, self.levels)}"
        elif isinstance(sigma, np.ndarray):
            what = "a map of sigma"
        else:
            what = f"sigma {'of each plane' if sigma == 'auto' else sigma}"
        if self.found is not None and self.found.kind != "white":
            what = f"found {self.found}: restored as {what}"
        return line_of(self.planes, what, self.asked.value_range)


def line_of(planes: int, what: str, chosen: Range) -> str:
    """What is done with so many planes of a channel, and on which range."""
    where = "the type's range" if isinstance(chosen, str) else f"range {chosen[0]:g},{chosen[1]:g}"
    return f"{planes} {'plane' if planes == 1 else 'planes'}: {what}, {where}"


def samples_of(planes: Planes, tick: Callable[[int], None] = lambda done: None) -> list[np.ndarray]:
    """Of each channel an even choice of its pixels, float32 [N] or [N, C]; every plane is read once."""
    members = members_of(planes)
    found: list[list[np.ndarray]] = [[] for _ in members]
    for index in range(len(planes)):
        channel = planes.channel(index)
        found[channel].append(sample_of(fill_hidden(*planes.read(index)), len(members[channel]), len(members)))
        tick(index + 1)
    return [np.concatenate(parts) for parts in found]


def sample_of(plane: np.ndarray, planes: int, channels: int) -> np.ndarray:
    """An even choice of the pixels of one of so many planes of its channel, float32 [N] or [N, C]."""
    most = max(_LEAST_OF_MANY, _MOST_PIXELS * _FEW // max(_FEW, channels))
    most = max(_LEAST_PIXELS, most // planes)
    step = math.ceil(math.sqrt(plane.shape[0] * plane.shape[1] / most))
    return plane[::step, ::step].reshape(-1, *plane.shape[2:]).astype(np.float32)


def channels_for(
    planes: Planes, samples: Sequence[np.ndarray], restorer_for: RestorerFor, asked: Denoising, levels: float
) -> list[Channel]:
    """How each channel of a stack is restored. samples: of `samples_of`; levels: the sample value of 1.

    asked.sigma may be "per-plane": each plane's own estimate. Raises what the pipeline raises.
    """
    return [
        _channel(planes, members, samples[number], restorer_for, asked, levels)
        for number, members in enumerate(members_of(planes))
    ]


def members_of(planes: Planes) -> list[list[int]]:
    """The planes of each channel."""
    found: dict[int, list[int]] = {}
    for index in range(len(planes)):
        found.setdefault(planes.channel(index), []).append(index)
    return [found[channel] for channel in sorted(found)]


def _channel(
    planes: Planes, members: list[int], sample: np.ndarray, restorer_for: RestorerFor, asked: Denoising, levels: float
) -> Channel:
    image = sample[:, None] if sample.ndim == 1 else sample[:, None, :]
    colours = channels_of(image)
    restorer = restorer_for(colours, asked.noise == "photo")
    restorer.require("denoise")
    config = restorer.model.config
    if colours == 3 or asked.noise != "photo":  # for which grey planes are repeated
        planes_of(image[:1], config.in_channels)  # the refusal that each plane would meet
    if restorer.settings.neighbors and isinstance(asked.sigma, str) and asked.sigma == PER_PLANE:
        raise ConfigError("neighbors are restored with one sigma: give it, or auto, not per-plane")
    chosen = on_unit_scale(asked.value_range, levels)
    if asked.noise == "poisson" and asked.sigma != PER_PLANE:
        asked = with_photons(asked, (fill_hidden(*planes.read(i)) for i in chosen_planes(members)), levels)
    if isinstance(asked.sigma, PoissonNoise):
        return Channel(asked, len(members), levels=levels)
    found, sigma = None, asked.sigma
    if isinstance(sigma, str) and sigma == PER_PLANE:
        asked, sigma = dataclasses.replace(asked, sigma="auto"), "auto"
    elif isinstance(sigma, str) and config.sigma_input:
        check_auto(sigma)
        scale = restorer.scale(image, value_range=chosen)
        noise = "auto" if asked.noise == "photo" else asked.noise
        limits: Range = scale.limits if scale != Scale() else "type"
        found = median_over(planes, members, restorer.found_noise, noise, limits)
        assert found is not None  # for a model that receives a level
        if colours == 3 and not asked.named and for_photographs((found,), scale.spread):
            restorer = restorer_for(colours, True)
            asked = dataclasses.replace(asked, noise="photo")
        check_neighbors(restorer.settings, restorer.model.config)
        sigma = _rounded_down(float(np.max(restorer.level_for((found,), scale.spread))))
    level = 0.0 if isinstance(sigma, str) else float(np.max(plain(sigma)))
    scale = restorer.scale(image, level, value_range=chosen)
    if scale.limits == (0.0, 1.0):
        return Channel(dataclasses.replace(asked, sigma=sigma, value_range="type"), len(members), found)
    low, high = sample_range(scale, levels, 0.0 if found is not None else level)
    if found is not None and not isinstance(sigma, str):  # the range may be smaller by its rounding
        sigma = _rounded_down(min(float(np.max(plain(sigma))), MAX_SIGMA * (high - low) / levels))
    return Channel(dataclasses.replace(asked, sigma=sigma, value_range=(low, high)), len(members), found)


def beside(planes: Planes, lines: Lines, index: int, neighbors: int) -> Beside:
    """The planes beside one, up to `neighbors` before and after it."""
    before, after = lines.beside(index, neighbors)
    return Beside(tuple(fill_hidden(*planes.read(other)) for other in (*before, *after)), len(before))


def check_lines(lines: Lines, neighbors: int) -> None:
    """Raises ConfigError where neighbours are asked for and no plane has any."""
    if neighbors and not lines.any:
        raise ConfigError("neighbors: no plane of this stack has another one of its channel beside it")


def _rounded_down(level: float) -> float:
    """To four digits, as it is printed and can be given again; never more."""
    if level <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(level)) - 3)
    return float(f"{math.floor(level / unit) * unit:.4g}")


def chosen_planes(members: list[int]) -> list[int]:
    """An even choice of the planes of a channel."""
    return members[:: max(1, math.ceil(len(members) / _MOST_PLANES))]


def median_over(
    planes: Planes, members: list[int], found: Callable[..., tuple[NoiseEstimate, ...]], *more: Any
) -> NoiseEstimate | None:
    """The median of found(plane, alpha, *more) over an even choice of the planes of a channel, those that hold noise.

    It is of the kind that more of them have; None where nothing is found.
    """
    every = [one for index in chosen_planes(members) for one in found(*planes.read(index), *more)]
    if not every:
        return None
    held = [one for one in every if one.sigma > 0] or every
    camera = [one for one in held if one.kind != "white"]
    kind = camera if 2 * len(camera) > len(held) else [one for one in held if one.kind == "white"]
    those = kind or held
    level, correlation, sigma = (
        float(np.median([getattr(one, name) for one in those])) for name in ("level", "correlation", "sigma")
    )
    return NoiseEstimate(level, those[0].kind, correlation, sigma)
