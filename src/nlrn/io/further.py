"""Kinds of file that further libraries read, each an extra: HEIC, JPEG 2000, JPEG XL, a camera's raw file.

A library is loaded when such a file is met, in the process of `nlrn.io.sandbox` only.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from nlrn.errors import InputError
from nlrn.io.boxes import brands
from nlrn.io.metadata import Decoded

CheckSize = Callable[[int, int], None]
JP2, JXL = b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n"  # their first boxes
CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000 without boxes
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_RAW = (
    b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"II\x1a\0\0\0HEAPCCDR", b"\0MRM", b"FOVb",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """extra: what to install; libraries: that it brings; suffixes: of such files; becomes: of their results."""

    name: str
    extra: str
    libraries: tuple[str, ...]
    suffixes: tuple[str, ...]
    becomes: str

    def library(self, name: str) -> Any:
        """A module of one of its libraries. Raises InputError with the command that installs it."""
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise InputError(f'{self.name} is read with an extra: pip install "nlrn[{self.extra}]"') from error


HEIC = Kind("HEIC", "heic", ("pillow_heif",), (".heic", ".heif", ".hif"), ".png")
JPEG2000 = Kind(
    "JPEG 2000 of more than 8 bits in colour", "jpeg2000", (), (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), ".png"
)  # up to 8 bits, and grey, are Pillow's
JPEGXL = Kind("JPEG XL", "jpegxl", ("imagecodecs", "pillow_jxl"), (".jxl",), ".png")
_RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
RAW = Kind("a camera's raw file", "raw", ("rawpy",), _RAW_SUFFIXES, ".tif")
KINDS = (HEIC, JPEG2000, JPEGXL, RAW)
BECOMES = {suffix: kind.becomes for kind in KINDS for suffix in kind.suffixes}  # of results, by suffix


def kind_of(data: bytes) -> Kind | None:
    """Which of these kinds a file is, by its first bytes; raw files that begin as a TIFF are found by its tags."""
    named = brands(data)
    if data.startswith((JP2, CODESTREAM)):
        return JPEG2000
    if data.startswith((JXL, b"\xff\x0a")):
        return JPEGXL
    if b"crx " in named or data.startswith(_RAW):
        return RAW
    return HEIC if named & _HEIC and not named & {b"avif", b"avis"} else None


def read(kind: Kind, data: bytes, gps: bool, check_size: CheckSize, before_pixels: CheckSize) -> Decoded:
    """One image, upright; arguments and errors as of `nlrn.io.tiffs.read_tiff`."""
    from nlrn.io import camera_raw, heic, jpeg2000, jpegxl

    reader = {HEIC: heic, JPEG2000: jpeg2000, JPEGXL: jpegxl, RAW: camera_raw}[kind]
    return reader.read(data, gps, check_size, before_pixels)


@cache
def suffixes() -> dict[str, str]:
    """The suffixes of those kinds whose libraries are installed, and what the results of such files are."""
    there = [kind for kind in KINDS if all(importlib.util.find_spec(name) for name in kind.libraries)]
    return {suffix: kind.becomes for kind in there for suffix in kind.suffixes}


def widened(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned samples of 1 to 16 bits on the whole range of 8 bits, or of 16 where they have more than 8."""
    dtype: type = np.uint8 if bits <= 8 else np.uint16
    least, most = 2**bits - 1, int(np.iinfo(dtype).max)
    if least == most:
        return values.astype(dtype, copy=False)
    out: np.ndarray = np.empty(values.shape, dtype)
    for start in range(0, len(values), 256):
        out[start : start + 256] = (values[start : start + 256].astype(np.uint32) * most + least // 2) // least
    return out


def planes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour HW or HW3 and alpha HW or None, of samples HW or HWC with 1 to 4 of them."""
    if values.ndim == 2:
        return values, None
    samples = values.shape[2]
    colour = values[..., 0] if samples < 3 else values[..., :3]
    return colour, values[..., -1].copy() if samples in (2, 4) else None
