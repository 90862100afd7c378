"""The calls everyone starts with: a picture in, the restored picture out, of the same kind, dtype and size."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nlrn.checkpoint import default_model
from nlrn.errors import InputError
from nlrn.model import NLRN
from nlrn.restore import Restorer, Settings

PictureT = TypeVar("PictureT", np.ndarray, Tensor, Image.Image)
_LEVELS = {"uint8": 255, "uint16": 65535}
_PIL_MODES = ("L", "LA", "RGB", "RGBA", "I;16")


def load(
    model: NLRN | str | Path | None = None, *, device: str = "auto", mode: str = "window", precision: str = "auto"
) -> Restorer:
    """A Restorer of a shipped name, a weights file or a model: load once, restore many pictures.

    Raises ModelNotFoundError, CheckpointError, BackendError, ConfigError.
    """
    return Restorer(model, device=device, settings=Settings(mode=mode, precision=precision))


def denoise(
    picture: PictureT,
    sigma: float | str | np.ndarray = "auto",
    model: NLRN | str | Path | None = None,
    mode: str = "window",
) -> PictureT:
    """The denoised picture, of the same kind, dtype, shape and device as the one given.

    picture: a PIL image (L, LA, RGB, RGBA, I;16; alpha is passed through), a NumPy array HW or HWC, or a torch
    tensor HW, CHW or BCHW, with 1 or 3 channels. Integers (uint8, uint16) are scaled by their own range and come
    back rounded and clipped; floats are on the 0..1 scale, may exceed it as noise does, and are not clipped.
    sigma: the noise's standard deviation in 0-255 units, 0..75, a number or an HW map, or "auto". model: a shipped
    name (`nlrn models` lists them), a weights file or an NLRN; None takes the best one for the picture.
    mode: "window", or "patch" for the authors' slow test protocol.

    >>> import numpy, nlrn
    >>> noisy = numpy.random.default_rng(0).normal(0.5, 25 / 255, (32, 32))
    >>> restored = nlrn.denoise(noisy, sigma=25)
    >>> bool(restored.std() < noisy.std() / 4)
    True

    Raises InputError for a picture or sigma that is refused, ModelError for the model.
    """
    if isinstance(picture, Image.Image):
        return _denoise_pil(picture, sigma, model, mode)
    if isinstance(picture, Tensor):
        return _denoise_tensor(picture, sigma, model, mode)
    if isinstance(picture, np.ndarray):
        return _denoise_array(picture, sigma, model, mode)
    raise InputError(f"expected a PIL image, a NumPy array or a torch tensor, not {type(picture).__name__}")


def _denoise_array(
    picture: np.ndarray, sigma: Any, model: Any, mode: str, alpha: np.ndarray | None = None
) -> np.ndarray:
    levels = _LEVELS.get(picture.dtype.name)
    image = picture / np.float32(levels) if levels else picture
    channels = picture.shape[2] if picture.ndim == 3 else 1
    restored = _restorer(model, channels, mode).denoise(image, sigma, alpha=alpha)
    if levels:
        restored = np.rint(np.clip(restored, 0, 1) * levels)
    return restored.astype(picture.dtype)


def _denoise_tensor(picture: Tensor, sigma: Any, model: Any, mode: str) -> Tensor:
    if 0 in picture.shape:
        raise InputError(f"the tensor is empty: {tuple(picture.shape)}")
    if picture.dim() == 4:
        return torch.stack([_denoise_tensor(p, sigma, model, mode) for p in picture])
    array = picture.detach().cpu()
    array = array if picture.dim() == 2 else array.movedim(0, -1)
    array = array if array.dtype != torch.bfloat16 else array.float()  # NumPy has no bfloat16
    restored = torch.from_numpy(_denoise_array(array.numpy(), sigma, model, mode)).to(picture)
    return restored if picture.dim() == 2 else restored.movedim(-1, 0)


def _denoise_pil(picture: Image.Image, sigma: Any, model: Any, mode: str) -> Image.Image:
    if picture.mode not in _PIL_MODES:
        modes = ", ".join(_PIL_MODES)
        raise InputError(f"pictures of mode {picture.mode} are not taken, only {modes}: convert it first")
    array = np.asarray(picture)
    if picture.mode.endswith("A"):
        colour, alpha = (array[..., 0] if picture.mode == "LA" else array[..., :3]), array[..., -1]
        restored = Image.fromarray(_denoise_array(colour, sigma, model, mode, alpha))
        restored.putalpha(picture.getchannel("A"))
    else:
        restored = Image.fromarray(_denoise_array(array, sigma, model, mode))
    restored.info = dict(picture.info)  # the colour profile and EXIF that Pillow writes again
    return restored


def _restorer(model: NLRN | str | Path | None, channels: int, mode: str) -> Restorer:
    if isinstance(model, NLRN):
        return Restorer(model, settings=Settings(mode=mode))
    return _cached(str(default_model("denoise", channels) if model is None else model), mode)


@lru_cache(maxsize=4)
def _cached(model: str, mode: str) -> Restorer:
    return load(model, mode=mode)
