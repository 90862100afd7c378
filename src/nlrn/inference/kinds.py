"""Images of every accepted kind as float arrays, and results of the same kind, dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nlrn.errors import InputError
from nlrn.functional.alpha import enlarged_alpha
from nlrn.functional.ranges import Range, checked_image, on_unit_scale
from nlrn.io.image import rounded

ImageT = TypeVar("ImageT", np.ndarray, Tensor, Image.Image)
# float HW or HWC, its alpha, the range that was chosen, on its scale -> the result
Restore = Callable[[np.ndarray, np.ndarray | None, Range], np.ndarray]
_TENSORS = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
LEVELS = {"uint8": 255, "uint16": 65535}
_PIL_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L")


def floats_or_same_kind(image: ImageT, restore: Restore, value_range: Range) -> ImageT:
    """As `of_the_same_kind`, but a NumPy array other than uint8 and uint16 goes to `restore` unchanged."""
    given: Any = image
    if isinstance(given, np.ndarray) and given.dtype.name not in LEVELS:
        restored: Any = restore(given, None, value_range)
        return restored
    return of_the_same_kind(image, restore, value_range)


def of_the_same_kind(image: ImageT, restore: Restore, value_range: Range) -> ImageT:
    """The result of `restore` for an image, of the image's kind, dtype and device.

    Integers are scaled by their range, and rounded and clipped again; floats are neither. A PIL image keeps its alpha,
    its profile and EXIF; a tensor HW, CHW or BCHW its device.

    Raises InputError for an image of another kind, dtype or shape.
    """
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
    levels = LEVELS.get(image.dtype.name, 1)
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
