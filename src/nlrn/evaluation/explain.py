"""Which pixels a pixel attends to: the correlations of one query, state by state (paper, section 5: the maps)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import ConfigError, InputError
from nlrn.evaluation.plotting import new_figure, write_figure
from nlrn.functional.degradations import add_gaussian_noise
from nlrn.functional.limits import MAX_SIGMA
from nlrn.functional.ranges import checked_image
from nlrn.functional.tiling import PATCH
from nlrn.inference.memory import within_memory
from nlrn.inference.restorer import Restorer
from nlrn.inference.self_ensemble import planes_of
from nlrn.models.distances import CARRIED
from nlrn.models.nlrn import NLRN
from nlrn.ops import correlation_of_pixel
from nlrn.ops.reference import offsets_inside

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # full-range BT.601 luma, what a grey model was trained on


@dataclass(frozen=True)
class Maps:
    """The correlations of one pixel.

    image: float HW or HWC, the part that they cover, black outside of it. states: float32 [T, h, w], of every state how
    much each pixel of that part counts: the softmax of S_t, sum 1. centre: (row, column) of the query in that part.
    sigma: the noise level the image holds and the model received.
    """

    image: np.ndarray
    states: np.ndarray
    centre: tuple[int, int]
    sigma: float

    @property
    def neighbours(self) -> list[float]:
        """The effective number of neighbours of every state, exp(entropy)."""
        p = self.states.reshape(len(self.states), -1).astype(np.float64)
        return [float(np.exp(-(row * np.log(np.where(row > 0, row, 1))).sum())) for row in p]


def correlation_maps(restorer: Restorer, image: np.ndarray, at: tuple[int, int], sigma: float) -> Maps:
    """The maps of the pixel `at` (x, y), column and row from the top left, counted from 0.

    image: float HW or HWC on the 0..1 scale, as the model is to see it, with noise of `sigma` (0..75, in 0-255
    units) in it; a grey model sees the luma of a colour image. A part of the image that holds all the pixel
    depends on is run; a model that looks at the whole image sees the authors' patch around the pixel. Raises
    InputError for a pixel outside the image, and what Restorer.denoise raises.
    """
    image = checked_image(image)
    (x, y), config = at, restorer.model.config
    if not restorer.model.block.non_local.carries:
        raise ConfigError(f"there are maps of {CARRIED} only, and this model's distance is {config.distance}")
    height, width = image.shape[:2]
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(f"the pixel {x},{y} lies outside the image of {width} x {height} pixels")
    level = float(restorer.noise_level(image, float(sigma)))
    if config.in_channels == 1 and image.ndim == 3:
        image = image @ GREY if image.shape[2] == 3 else image[..., 0]
    reach = restorer.model.receptive_radius
    reach = PATCH // 2 if reach is None else reach
    rows, columns = (slice(max(0, c - reach), c + reach + 1) for c in (y, x))
    part = image[rows, columns]
    planes = planes_of(part, config.in_channels)
    centre = (y - rows.start, x - columns.start)
    seen = torch.from_numpy(np.ascontiguousarray(planes)).to(restorer.device, torch.float32)
    states = _states(restorer.model, seen, centre, level / 255 if config.sigma_input else None)
    if config.window is None:
        return Maps(part, states, centre, level)
    r = config.window // 2
    sides = [(r, r), (r, r)] + [(0, 0)] * (part.ndim - 2)
    around = np.pad(part, sides)[centre[0] : centre[0] + 2 * r + 1, centre[1] : centre[1] + 2 * r + 1]
    return Maps(around, states, (r, r), level)


@torch.inference_mode()
def _states(model: NLRN, x: Tensor, centre: tuple[int, int], sigma: float | None) -> np.ndarray:
    """[T, q, q] (window None: [T, H, W]): the softmax of every state's S at the pixel `centre`."""
    batch, _, height, width = x.shape
    window, backend = model.config.window, model.backend(height, width)
    found: list[Tensor] = []

    def observe(_: int, correlation: Tensor) -> None:
        row = correlation_of_pixel(
            correlation, (0, *centre), batch=batch, height=height, width=width, window=window, backend=backend
        ).float()
        if window is not None:
            rows, columns = (
                offsets_inside(n, window, row.device)[c] for n, c in zip((height, width), centre, strict=True)
            )
            row = row.masked_fill(~(rows[:, None] & columns), -torch.inf)
        found.append(row.flatten().softmax(0).view(row.shape).cpu())

    with within_memory(height, width):
        model(x, sigma, observer=observe)
    return torch.stack(found).numpy()


def explain(restorer: Restorer, clean: np.ndarray, at: tuple[int, int], sigma: float, seed: int = 0) -> list[Maps]:
    """The maps of an image taken for clean, and of the same with Gaussian noise of `sigma` added.

    Raises InputError for a sigma or an image that is refused, ConfigError for a model that does not denoise.
    """
    if not 0 < sigma <= MAX_SIGMA:
        raise InputError(f"sigma must lie above 0 and up to {MAX_SIGMA:g} (0-255 units), not {sigma:g}")
    restorer.require("denoise")
    clean = checked_image(clean)
    noisy = add_gaussian_noise(clean, sigma, seed).astype(np.float32)
    return [correlation_maps(restorer, clean, at, 0.0), correlation_maps(restorer, noisy, at, sigma)]


def draw(rows: list[Maps], path: Path, *, overwrite: bool = False) -> None:
    """The maps as a PNG: a row each, first what the model sees, then the states, each map on its own scale.

    Raises BackendError without matplotlib, InputError when the file cannot be written.
    """
    states = len(rows[0].states)
    figure = new_figure(1.5 * (states + 1), 1.8 * len(rows))
    axes: Any = figure.subplots(len(rows), states + 1, squeeze=False)
    for line, maps in zip(axes, rows, strict=True):
        title = "no noise" if maps.sigma == 0 else f"noise of sigma {maps.sigma:g}"
        line[0].imshow(np.clip(maps.image, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        line[0].set_title(title, fontsize=8)
        for t, (axis, p, effective) in enumerate(zip(line[1:], maps.states, maps.neighbours, strict=True)):
            axis.imshow(p, cmap="magma", vmin=0, vmax=p.max(), interpolation="nearest")
            axis.set_title(f"state {t + 1}: {effective:.0f} pixels", fontsize=8)
        for axis in line:
            axis.plot(maps.centre[1], maps.centre[0], "+", color="tab:cyan", markersize=8)
            axis.set(xticks=[], yticks=[])
    write_figure(figure, path, overwrite=overwrite)
