"""JPEG XL files: samples by imagecodecs, profile and EXIF by pillow-jxl-plugin, whose samples have 8 bits.

What decides whether a file is read is taken from its header (ISO/IEC 18181-1, annex D) before any pixel is decoded.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from nlrn.errors import InputError
from nlrn.io.boxes import boxes
from nlrn.io.further import JPEGXL, JXL, CheckSize, planes, widened
from nlrn.io.metadata import Decoded, FileMetadata, loaded_exif, tagged_dpi
from nlrn.io.texts import NO_TEXTS, Texts, texts_of

_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_HEADER = 64  # bytes of a codestream that are looked at


def read(data: bytes, gps: bool, check_size: CheckSize, before_pixels: CheckSize) -> Decoded:
    """One image; see nlrn.io.further.read."""
    header = _header(_codestream(data))
    check_size(header.width, header.height)
    codecs, jxl = JPEGXL.library("imagecodecs"), JPEGXL.library("pillow_jxl")
    before_pixels(header.width, header.height)
    icc, exif, texts = _metadata(jxl, data)
    values: Any = codecs.jpegxl_decode(data, numthreads=1)
    upright = (header.height, header.width)
    if values.shape[:2] not in (upright, upright[::-1]) or values.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
        raise InputError("damaged: its image is of another size than declared")
    if values.ndim == 3 and (values.shape[2] in (2, 4)) != header.extra:
        raise InputError("it has a channel that is neither colour nor alpha and would be lost")
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if values.dtype == np.float32:
        colour, alpha = planes(values)
        if alpha is not None:
            raise InputError("floats with alpha; save it with 16 bits a sample")
        if not np.isfinite(colour).all():
            raise InputError("it holds numbers that are not finite (NaN or infinity)")
    else:
        colour, alpha = planes(widened(values, header.bits))
    # The orientation in the EXIF is a copy of the file's own, which has been applied
    metadata = FileMetadata(exif, None, icc, tagged_dpi(exif), texts=texts)
    return metadata.decoded(colour, alpha, "JXL", gps)


def _metadata(jxl: Any, data: bytes) -> tuple[bytes | None, Any, Texts]:
    """Profile, EXIF and texts."""
    was_jpeg, _, pixels, icc, found = jxl.Decoder(num_threads=0)(data)
    block, texts = b"", NO_TEXTS
    if was_jpeg:
        with JpegImageFile(io.BytesIO(pixels)) as image:
            block, icc = image.info.get("exif", b""), image.info.get("icc_profile") or icc
        texts = texts_of(pixels, "JPEG")
    del pixels
    for box in found:
        if box.box_type == b"Exif" and not block:
            start = int.from_bytes(box.data[:4], "big")
            block = bytes(box.data[4 + start :])
        if box.box_type == b"xml " and not texts.xmp:
            texts = texts._replace(xmp=bytes(box.data))
    return icc or None, loaded_exif(block), texts


def _codestream(data: bytes) -> bytes:
    """Its first bytes. Raises InputError for a file whose boxes are cut."""
    if not data.startswith(JXL):
        return data[:_HEADER]
    found = [(box.kind, data[box.start : min(box.end, box.start + _HEADER)]) for box in boxes(data)]
    streams = [start if kind == b"jxlc" else start[4:] for kind, start in found if kind in (b"jxlc", b"jxlp")]
    if not streams:
        raise InputError("damaged or truncated: it has no codestream")
    return streams[0]


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    bits: int = 8
    extra: bool = False  # a channel besides the colour


class _Bits:
    """Bits from the low end of each byte."""

    def __init__(self, data: bytes) -> None:
        self.number, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise InputError("truncated: its header is cut")
        value = self.number & ((1 << count) - 1)
        self.number, self.left = self.number >> count, self.left - count
        return value

    def choice(self, *pairs: tuple[int, int]) -> int:
        """One of four numbers, each a constant and so many bits that are added."""
        least, more = pairs[self.take(2)]
        return least + self.take(more)

    def size(self) -> tuple[int, int]:
        """Width and height."""
        small = self.take(1)
        sides = ((1, 9), (1, 13), (1, 18), (1, 30))
        height = 8 * (1 + self.take(5)) if small else self.choice(*sides)
        ratio = self.take(3)
        if ratio:
            across, down = _RATIOS[ratio]
            return height * across // down, height
        return 8 * (1 + self.take(5)) if small else self.choice(*sides), height


def _header(stream: bytes) -> _Header:
    if stream[:2] != b"\xff\x0a":
        raise InputError("damaged: its codestream has another beginning")
    bits = _Bits(stream[2:])
    width, height = bits.size()
    if bits.take(1):  # all as usual
        return _Header(width, height)
    if bits.take(1):
        bits.take(3)  # the orientation, which the library applies
        if bits.take(1):
            bits.size()
        if bits.take(1):
            raise InputError("it has a preview, and is not read for that; save it without")
        if bits.take(1):
            raise InputError("frames or pages; expected a single image", limit="frames")
    if bits.take(1):  # floats
        depth = bits.choice((32, 0), (16, 0), (24, 0), (1, 6))
        bits.take(4)
    else:
        depth = bits.choice((8, 0), (10, 0), (12, 0), (1, 6))
    bits.take(1)
    extra = bits.choice((0, 0), (1, 0), (2, 4), (1, 12))
    if extra > 1:
        raise InputError(f"{extra} channels besides its colour, which would be lost")
    return _Header(width, height, depth, bool(extra))
