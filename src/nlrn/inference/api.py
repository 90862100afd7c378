"""The calls everyone starts with: an image in, the restored image out, of the same kind, dtype and size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nlrn.errors import InputError
from nlrn.functional.alpha import enlarged_alpha
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.levels import scale_hint
from nlrn.functional.ranges import Range, checked_image, on_unit_scale
from nlrn.inference.pipeline import Denoising, denoised_array, restorer_of, upscaled_array
from nlrn.inference.restorer import Restorer, Settings
from nlrn.inference.super_resolution import enlarged_size
from nlrn.io.image import rounded
from nlrn.models.checkpoint import default_model
from nlrn.models.nlrn import NLRN

ImageT = TypeVar("ImageT", np.ndarray, Tensor, Image.Image)
# float HW or HWC, its alpha, the range that was asked for on its scale -> the result
Restore = Callable[[np.ndarray, np.ndarray | None, Range], np.ndarray]
_LOG = logging.getLogger("nlrn")
_TENSORS = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LEVELS = {"uint8": 255, "uint16": 65535}
_PIL_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L")


def load(
    model: NLRN | str | Path | None = None,
    *,
    device: str = "auto",
    mode: str = "window",
    precision: str = "auto",
    level: float = 1.0,
) -> Restorer:
    """A Restorer of a shipped name, a weights file or a model: load once, restore many images.

    level: of a model for photographs, how much of the noise that it finds is removed, 0..2.
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
    the image has; "gaussian", white noise; "photo", the noise of cameras, removed by the model for photographs, which
    finds it by itself. level: of what that model finds, how much is removed, 0..2. value_range: the values that the
    network sees as black and white: "type" (0 and 255, 0 and 65535, 0 and 1 of floats), "image" (those of the image
    itself), two numbers on the image's own scale, or "auto", the image's own where they are a small part of the
    type's (12 bits in 16; nlrn.functional.ranges says which part). sigma stays in 1/255 of the type's range, whatever
    is chosen.

    >>> import numpy, nlrn
    >>> noisy = numpy.random.default_rng(0).normal(0.5, 25 / 255, (32, 32))
    >>> restored = nlrn.denoise(noisy, sigma=25)
    >>> bool(restored.std() < noisy.std() / 4)
    True

    Raises InputError for an image or sigma that is refused, ModelError for the model.
    """

    if not isinstance(sigma, str | PoissonNoise) and (hint := scale_hint(sigma)) is not None:
        _LOG.warning("%s", hint)
    settings = Settings(mode=mode, level=level)

    def restorer_for(channels: int, photo: bool) -> Restorer:
        if isinstance(model, NLRN):
            return Restorer(model, settings=settings)
        return restorer_of(str(model or default_model("denoise", channels, photo=photo)), "auto", settings)

    def restore(array: np.ndarray, alpha: np.ndarray | None, chosen: Range) -> np.ndarray:
        asked = Denoising(sigma, strength, noise, named=model is not None, value_range=chosen)
        return denoised_array(array, alpha, restorer_for, asked).array

    return _of_the_same_kind(image, restore, value_range)


def upscale(
    image: ImageT,
    scale: float = 2,
    model: NLRN | str | Path | None = None,
    mode: str = "window",
    value_range: Range = "auto",
) -> ImageT:
    """The image enlarged `scale` times (1.5 to 16), of the same kind, dtype and device as the one given.

    image: as for `denoise`, as is what happens to its numbers; alpha is enlarged by bicubic. The sides are rounded
    to whole pixels, halves up. The network restores the luminance, whatever the scale: it was trained for 2, 3 and 4;
    below 2 it runs at 2, beyond 4 twice. model: a shipped name, a weights file or an NLRN; None takes the best one.
    mode, value_range: as for `denoise`.

    Raises InputError for an image or scale that is refused, ModelError for the model.
    """

    settings = Settings(mode=mode)
    restorer = (
        Restorer(model, settings=settings)
        if isinstance(model, NLRN)
        else restorer_of(str(model or default_model("sr", 1)), "auto", settings)
    )

    def restore(array: np.ndarray, alpha: np.ndarray | None, chosen: Range) -> np.ndarray:
        height, width = enlarged_size(array.shape, scale)
        return upscaled_array(array, alpha, restorer, height, width, value_range=chosen).array

    return _of_the_same_kind(image, restore, value_range)


def _of_the_same_kind(image: ImageT, restore: Restore, value_range: Range) -> ImageT:
    if isinstance(image, Image.Image):
        return _pil(image, restore, value_range)
    if isinstance(image, Tensor):
        return _tensor(image, restore, value_range)
    if isinstance(image, np.ndarray):
        return _array(image, restore, value_range)
    raise InputError(
        f"expected a PIL image, a NumPy array or a torch tensor, not {type(image).__name__}"
        + ("; pass its array, .to_numpy()" if hasattr(image, "to_numpy") else "")
    )


def _array(image: np.ndarray, restore: Restore, value_range: Range, alpha: np.ndarray | None = None) -> np.ndarray:
    levels = _LEVELS.get(image.dtype.name, 1)
    chosen = on_unit_scale(value_range, levels)
    if isinstance(image, np.ma.MaskedArray) and not np.ma.is_masked(image):
        return np.ma.MaskedArray(_array(image.data, restore, value_range, alpha))
    restored = restore(checked_image(image / np.float32(levels) if levels > 1 else image, chosen), alpha, chosen)
    return rounded(restored, 8 * image.dtype.itemsize) if levels > 1 else restored.astype(image.dtype)


def _tensor(image: Tensor, restore: Restore, value_range: Range) -> Tensor:
    shape = tuple(image.shape)
    if 0 in shape:
        raise InputError(f"the tensor is empty: {shape}")
    if len(shape) not in (2, 3, 4) or (len(shape) > 2 and shape[-3] not in (1, 3)):
        hint = f"; this looks like {'HWC' if len(shape) == 3 else 'BHWC'}" if shape[-1:] in ((1,), (3,)) else ""
        raise InputError(f"expected a tensor HW, CHW or BCHW with 1 or 3 channels; got shape {shape}{hint}")
    if image.dtype not in _TENSORS:
        raise InputError(f"expected a tensor of floats on the 0..1 scale, uint8 or uint16; got {image.dtype}")
    if image.dim() == 4:
        return torch.stack([_tensor(p, restore, value_range) for p in image])
    array = image.detach().cpu()
    array = array if image.dim() == 2 else array.movedim(0, -1)
    array = array if array.dtype != torch.bfloat16 else array.float()  # NumPy has no bfloat16
    restored = torch.from_numpy(_array(array.numpy(), restore, value_range)).to(image)
    return restored if image.dim() == 2 else restored.movedim(-1, 0)


def _pil(image: Image.Image, restore: Restore, value_range: Range) -> Image.Image:
    if image.mode not in _PIL_MODES:
        modes = ", ".join(_PIL_MODES)
        raise InputError(f"images of mode {image.mode} are not taken, only {modes}: convert it first")
    if "transparency" in image.info:
        raise InputError("one of the image's colours is transparent: convert it to RGBA or LA first")
    array = np.asarray(image)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if image.mode.endswith("A"):
        colour, alpha = (array[..., 0] if image.mode == "LA" else array[..., :3]), array[..., -1]
        restored = Image.fromarray(_array(colour, restore, value_range, alpha))
        restored.putalpha(Image.fromarray(enlarged_alpha(alpha, *restored.size[::-1])))
    else:
        restored = Image.fromarray(_array(array, restore, value_range))
    restored.info = dict(image.info)  # the colour profile and EXIF that Pillow writes again
    return restored
