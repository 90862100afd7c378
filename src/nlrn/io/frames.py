"""Animations (PNG, WebP, GIF) as stacks: each frame as it is shown, one at a time."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from nlrn.errors import InputError
from nlrn.io.axes import Lines, lines_of
from nlrn.io.chunks import DEFLATE, Layout, page_tags
from nlrn.io.decode import check_size
from nlrn.io.directories import ASCII, UNDEFINED, Entry, Form
from nlrn.io.formats import gif_frames, png_parts
from nlrn.io.image import MAX_BYTES, ImageData, file_bytes
from nlrn.io.metadata import left_out
from nlrn.io.stacks import Limits, Stack
from nlrn.io.texts import texts_of

_READERS: dict[bytes, type[ImageFile]] = {b"\x89PNG": PngImageFile, b"GIF8": GifImageFile, b"RIFF": WebPImageFile}


def is_animation(path: Path) -> bool:
    """Whether a PNG, WebP or GIF has more frames than one; False for what is none, and for what cannot be read."""
    with suppress(Exception):  # of a damaged file, which is refused as an image is
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(64)
                marked = start.startswith(b"GIF8") or (
                    start[:4] == b"RIFF" and start[12:16] == b"VP8X" and start[20] & 2
                )
                if not marked and not (start.startswith(b"\x89PNG") and b"acTL" in start + file.read(1 << 16)):
                    return False
            image = _opened(file_bytes(path, MAX_BYTES))
            return _skipped(image) + _frames(image) > 1
    return False


def _opened(data: bytes) -> ImageFile:
    reader = next((reader for magic, reader in _READERS.items() if data.startswith(magic)), None)
    if reader is None:
        raise InputError("not an animation of a known format (PNG, WebP, GIF)")
    if reader is PngImageFile:
        png_parts(data)
    if reader is GifImageFile:
        gif_frames(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reader(io.BytesIO(data))


def _frames(image: ImageFile) -> int:
    return int(getattr(image, "n_frames", 1)) - _skipped(image)


def _skipped(image: ImageFile) -> int:
    """1 where the first that Pillow counts is what a PNG shows instead of its animation, and no frame of it."""
    return int(bool(getattr(image, "default_image", False)))


class FrameStack(Stack):
    """The frames of an animation; a context. Grey where all are, without alpha where all are opaque.

    Raises InputError for what cannot be read, and beyond the limits, before any frame is decoded.
    """

    one_directory, channels, axes, form = False, 1, "T", Form()

    def __init__(self, path: Path, *, limits: Limits = Limits()) -> None:  # noqa: B008
        self.path = path
        try:
            self._data = file_bytes(path, min(limits.bytes, MAX_BYTES))
            if len(self._data) > min(limits.bytes, MAX_BYTES):
                raise InputError(f"over {min(limits.bytes, MAX_BYTES):,} bytes", limit="bytes")
            self._image = _opened(self._data)
            self._check(limits)
            self._look()
        except InputError as error:
            raise InputError(f"{path}: {error}", limit=error.limit) from None
        except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
            raise InputError(f"{path}: damaged or truncated ({error or type(error).__name__})") from error

    def _check(self, limits: Limits) -> None:
        check_size(*self._image.size, limits.pixels, "")
        if self._data.startswith(b"\x89PNG") and self._data[24] == 16:
            raise InputError("an animation of 16 bits, which would be cut to 8")
        self._count = _frames(self._image)
        if self._count > limits.planes:
            most = limits.planes
            raise InputError(f"{self._count:,} frames; the limit is {most:,}, raised by --max-planes", limit="frames")

    def _look(self) -> None:
        """What the frames have: colour, alpha, how long each is shown."""
        self.kind = f"animated {self._image.format}"
        self.sizes: tuple[int, ...] = (self._count,)
        self.lines = Lines(lines_of(self.axes, self.sizes))
        texts = texts_of(self._data, str(self._image.format))
        still = ("left out: the image that is shown in place of the animation",) * _skipped(self._image)
        self.notes = left_out([*texts.lost_in(""), *texts.notes]) + still
        self._colour = self._alpha = False
        self._milliseconds: list[float] = []
        for index in range(self._count):
            values = self._frame(index)
            self._alpha |= bool((values[..., 3] < 255).any())
            self._colour |= not (values[..., :1] == values[..., 1:3]).all()
            self._milliseconds.append(float(self._image.info.get("duration") or 0))

    def _frame(self, index: int) -> np.ndarray:
        """RGBA, uint8."""
        self._image.seek(index + _skipped(self._image))
        return np.asarray(self._image.convert("RGBA"))

    def __exit__(self, *_: object) -> None:
        self._image.close()

    def __len__(self) -> int:
        return self._count

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of every frame."""
        width, height = self._image.size
        return height, width

    def read(self, index: int) -> ImageData:
        """One frame, as it is shown."""
        try:
            values = self._frame(index)
        except Exception as error:
            raise InputError(f"{self.path}: frame {index + 1}: damaged ({error})") from error
        colour = values[..., :3] if self._colour else values[..., 0]
        alpha = values[..., 3].copy() if self._alpha else None
        return ImageData(np.divide(colour, 255, dtype=np.float32), alpha, 8, "TIFF", icc=self._profile())

    def _profile(self) -> bytes | None:
        """Of colour; where all frames are grey it would not fit."""
        return (self._image.info.get("icc_profile") or None) if self._colour else None

    def layout(self, index: int) -> Layout:
        """One strip a frame, deflated."""
        return Layout(DEFLATE, 2, self.size(index), tiled=False, separate=False, order="<")

    def entries(self, index: int) -> dict[int, Entry]:
        """The tags of a frame's page; the first holds what tifffile writes: shape, axes and durations."""
        samples = (3 if self._colour else 1) + self._alpha
        entries = page_tags(self.layout(index), self.size(index), samples, np.dtype(np.uint8))
        if index == 0:
            entries[270] = self._description(samples)
            if icc := self._profile():
                entries[34675] = (UNDEFINED, len(icc), icc)
        return entries

    def _description(self, samples: int) -> Entry:
        width, height = self._image.size
        shape = [self._count, height, width, *([samples] if samples > 1 else [])]
        text = {"shape": shape, "axes": "TYXS"[: len(shape)], "duration_ms": self._milliseconds}
        raw = json.dumps(text).encode() + b"\0"
        return ASCII, len(raw), raw
