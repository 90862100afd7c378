"""The simplest calls: an image in, the restored image out, of the same kind, dtype and size."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np

from nlrn.errors import ConfigError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.levels import channels_of, scale_hint
from nlrn.functional.ranges import Range
from nlrn.inference.arrays import denoise_planes, is_labelled
from nlrn.inference.enlarging import NoiseFirst, upscaled_array
from nlrn.inference.kinds import ImageT, of_the_same_kind
from nlrn.inference.pipeline import Denoising, denoised_array, restorer_of
from nlrn.inference.restorer import Restorer, Settings
from nlrn.inference.super_resolution import enlarged_size
from nlrn.models.checkpoint import default_model
from nlrn.models.nlrn import NLRN

_LOG = logging.getLogger("nlrn")


def load(
    model: NLRN | str | Path | None = None,
    *,
    device: str = "auto",
    mode: str = "window",
    precision: str = "auto",
    level: float = 1.0,
) -> Restorer:
    """A Restorer of a shipped name, a weights file or a model: load once, restore many images.

    level: of a model for photographs, factor on the level that is estimated, 0..2.
    Raises ModelNotFoundError, CheckpointError, BackendError, ConfigError.
    """
    return Restorer(model, device=device, settings=Settings(mode=mode, precision=precision, level=level))


def denoise(
    image: ImageT,
    sigma: float | str | np.ndarray | PoissonNoise = "auto",
    model: NLRN | str | Path | None = None,
    mode: str = "window",
    strength: float = 1.0,
    noise: str = "auto",
    level: float = 1.0,
    value_range: Range = "auto",
    axes: str | None = None,
    neighbors: int = 0,
) -> ImageT:
    """The denoised image, of the same kind, dtype, shape and device as the one given.

    image: a PIL image (L, LA, RGB, RGBA, I;16; alpha is passed through), a NumPy array HW or HWC, or a torch
    tensor HW, CHW or BCHW, with 1 or 3 channels. Integers (uint8, uint16) are scaled by their own range and come
    back rounded and clipped; floats are on the 0..1 scale, may exceed it as noise does, and are not clipped.
    sigma: the noise's standard deviation in 0-255 units, 0..75, a number or an HW map, "auto", or a
    PoissonNoise (photons counted: microscopy, low light). model: a shipped
    name (`nlrn models` lists them), a weights file or an NLRN; None takes the best one for the image.
    mode: "window", or "patch" for the authors' slow test protocol. strength: how much of the noise goes, 0..1.
    noise: what a sigma of "auto" is estimated for: "auto", white noise or the correlated noise of cameras, whichever
    the image has; "gaussian", white noise; "photo", the noise of cameras, removed by the model for photographs, whose
    level sigma then is; "poisson", counted photons whose gain and read noise are estimated. level: factor on the level
    that is estimated for the model for photographs, 0..2. value_range: the values that the
    network sees as black and white: "type" (0 and 255, 0 and 65535, 0 and 1 of floats), "image" (those of the image
    itself), two numbers on the image's own scale, or "auto", the image's own where they are a small part of the
    type's (12 bits in 16; nlrn.functional.ranges defines which part). sigma stays in 1/255 of the type's range in any
    case. axes: a letter for each axis of an array of planes, such as "ZYX" or "TCYX": Y and X of a plane, S for three
    samples of colour, C for channels, any others. Each channel has one range and, for sigma "auto", one noise level
    over all its planes ("per-plane": one for each); floats may be counts. Then xarray (axes by its dimensions' letters)
    and dask arrays (lazily) are accepted, too. neighbors: of such an array, 1 or 2 restores each plane together with so
    many before and after it, along the innermost of the other axes, in 5 or 13 times the time (docs/microscopy.md).

    >>> import numpy, nlrn
    >>> noisy = numpy.random.default_rng(0).normal(0.5, 25 / 255, (32, 32))
    >>> restored = nlrn.denoise(noisy, sigma=25)
    >>> bool(restored.std() < noisy.std() / 4)
    True

    Raises InputError for an image or sigma that is refused, ModelError for the model.
    """
    small = None if isinstance(sigma, str | PoissonNoise) else scale_hint(sigma)
    settings = Settings(mode=mode, level=level, neighbors=neighbors)
    restorer_for = partial(_restorer, model, settings, "denoise")
    if axes is not None or is_labelled(image):
        if small is not None and isinstance(value_range, str):
            _LOG.warning("%s", small)
        everything = Denoising(sigma, strength, noise, named=model is not None, value_range=value_range)
        own = Restorer(model, settings=settings) if isinstance(model, NLRN) else None  # once for all planes
        planes: ImageT = denoise_planes(image, axes, lambda *kind: own or restorer_for(*kind), everything, neighbors)
        return planes
    if neighbors:
        raise ConfigError("neighbors are of a stack: give its axes, such as axes='ZYX'")

    def restore(array: np.ndarray, alpha: np.ndarray | None, chosen: Range) -> np.ndarray:
        asked = Denoising(sigma, strength, noise, named=model is not None, value_range=chosen)
        if small is not None:
            spread = restorer_for(channels_of(array)).scale(array, alpha=alpha, value_range=chosen).spread
            if (hint := scale_hint(sigma, spread)) is not None:
                _LOG.warning("%s", hint)
        return denoised_array(array, alpha, restorer_for, asked).array

    return of_the_same_kind(image, restore, value_range)


def upscale(
    image: ImageT,
    scale: float = 2,
    model: NLRN | str | Path | None = None,
    mode: str = "window",
    value_range: Range = "auto",
    denoise_first: bool | None = None,
) -> ImageT:
    """The image enlarged `scale` times (1.5 to 16), of the same kind, dtype and device as the one given.

    image: as for `denoise`, also in how its numbers are scaled; alpha is enlarged by bicubic. The sides are rounded
    to whole pixels, halves up. The network restores the luminance at any scale: it was trained for 2, 3 and 4;
    below 2 it runs at 2, beyond 4 twice. model: a shipped name, a weights file or an NLRN; None takes the best one.
    mode, value_range: as for `denoise`. denoise_first: whether noise is removed before by the shipped denoisers, since
    the network would enlarge it, too; None: where white noise of sigma 3 or more is found (docs/upscaling.md).

    Raises InputError for an image or scale that is refused, ModelError for the model.
    """
    settings = Settings(mode=mode)
    restorer = _restorer(model, settings, "sr", 1)
    first = NoiseFirst(partial(_restorer, None, settings, "denoise"), denoise_first)

    def restore(array: np.ndarray, alpha: np.ndarray | None, chosen: Range) -> np.ndarray:
        height, width = enlarged_size(array.shape, scale)
        return upscaled_array(
            array, alpha, restorer, height, width, first=first, value_range=chosen, say=_LOG.info
        ).array

    return of_the_same_kind(image, restore, value_range)


def _restorer(
    model: NLRN | str | Path | None, settings: Settings, task: str, channels: int, photo: bool = False
) -> Restorer:
    """Of a model that was given, else of the one that is shipped for the task and the image."""
    if isinstance(model, NLRN):
        return Restorer(model, settings=settings)
    return restorer_of(str(model or default_model(task, channels, photo=photo)), "auto", settings)
