"""JPEG 2000 files: up to 8 bits, and grey, by Pillow; colour of more bits by imagecodecs.

Their boxes are read here (ISO/IEC 15444-1, annex I): colour, alpha, profile, EXIF.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from nlrn.errors import InputError
from nlrn.io.boxes import Box, boxes
from nlrn.io.further import CODESTREAM, JPEG2000, CheckSize, planes, widened
from nlrn.io.metadata import Decoded, FileMetadata, likely_dpi, loaded_exif, tagged_dpi
from nlrn.io.texts import NO_TEXTS, Texts

_EXIF, _XMP = b"JpgTiffExif->JP2", bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_IPTC = bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38")
_SRGB, _GREY, _SYCC, _CMYK = 16, 17, 18, 12  # of the box colr
_END = b"\xff\xd9"


@dataclass
class _File:
    """What the boxes say. start, end: of the codestream; alpha: kinds of the channels that are not colour."""

    start: int = 0
    end: int = 0
    colours: int | None = None
    icc: bytes | None = None
    palette: bool = False
    alpha: list[int] = field(default_factory=list)
    exif: bytes = b""
    texts: Texts = NO_TEXTS


def read(data: bytes, gps: bool, check_size: CheckSize, before_pixels: CheckSize) -> Decoded:
    """One image; see nlrn.io.further.read."""
    file = _File(0, len(data)) if data.startswith(CODESTREAM) else _parsed(data)
    width, height, components = _components(data, file)
    check_size(width, height)
    if data[file.end - 2 : file.end] != _END:
        raise InputError("truncated: the end of its codestream is missing")
    bits = _bits(file, components)
    wide = bits > 8 and len(components) > 1
    codecs = JPEG2000.library("imagecodecs") if wide else None
    with Jpeg2KImageFile(io.BytesIO(data)) as image:
        dpi = image.info.get("dpi")
        before_pixels(width, height)
        values = _by_pillow(image, bits) if codecs is None else np.asarray(codecs.jpeg2k_decode(data, numthreads=1))
    if values.shape[:2] != (height, width):
        raise InputError("damaged: its image is of another size than declared")
    colour, alpha = planes(widened(values, bits))
    exif = loaded_exif(file.exif)
    notes = ("CMYK was converted to RGB",) if file.colours == _CMYK else ()
    resolution = likely_dpi(*dpi) if dpi else tagged_dpi(exif)
    metadata = FileMetadata(exif, None, file.icc, resolution, notes=notes, texts=file.texts)
    return metadata.decoded(colour, alpha, "JPEG2000", gps)


def _by_pillow(image: ImageFile, bits: int) -> np.ndarray:
    image.load()
    if image.mode in ("P", "PA", "CMYK", "YCbCr"):
        with_alpha = image.mode == "PA" or "transparency" in image.info
        return np.asarray(Image.Image.convert(image, "RGBA" if with_alpha else "RGB"))
    values = np.asarray(image)
    return values >> (8 * values.itemsize - bits)  # Pillow puts them at the top of its samples


def _parsed(data: bytes) -> _File:
    file = _File()
    for box in boxes(data):
        if box.kind == b"jp2c":
            if file.end:
                raise InputError("frames or pages; expected a single image", limit="frames")
            file.start, file.end = box.start, box.end
        if box.kind == b"jp2h":
            for inner in boxes(data, box.start, box.end):
                _look(file, inner, data[inner.start : inner.end])
        if box.kind == b"uuid":
            name, rest = data[box.start : box.start + 16], data[box.start + 16 : box.end]
            file.exif = rest if name == _EXIF else file.exif
            if name == _XMP and not file.texts.xmp:
                file.texts = file.texts._replace(xmp=rest)
            if name == _IPTC and not file.texts.iptc:
                file.texts = file.texts._replace(iptc=rest)
    if not file.end:
        raise InputError("damaged or truncated: it has no codestream")
    return file


def _look(file: _File, box: Box, content: bytes) -> None:
    if box.kind == b"colr" and file.colours is None and file.icc is None:
        if content[:1] == b"\x01":
            file.colours = int.from_bytes(content[3:7], "big")
        elif content[:1] in (b"\x02", b"\x03"):
            file.icc = content[3:]
    if box.kind == b"pclr":
        file.palette = True
    if box.kind == b"cdef":
        file.alpha = [kind for _, kind, _ in struct.iter_unpack(">HHH", content[2:]) if kind]


def _components(data: bytes, file: _File) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Width, height, and of each component its bits (over 128: signed) and sampling, of the head of its codestream."""
    start = file.start
    if data[start : start + 4] != CODESTREAM:
        raise InputError("damaged: its codestream does not begin with its size")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    (count,) = struct.unpack_from(">H", data, start + 40)
    if not (right > left and bottom > top and 0 < count <= 16384):
        raise InputError("damaged: an image without pixels")
    found = list(struct.iter_unpack(">BBB", data[start + 42 : start + 42 + 3 * count]))
    return right - left, bottom - top, [(bits + 1, across, down) for bits, across, down in found]


def _bits(file: _File, components: list[tuple[int, int, int]]) -> int:
    """Bits a sample. Raises InputError for what would be cut or misread."""
    bits, sampling = {bits for bits, _, _ in components}, {(x, y) for _, x, y in components}
    if len(bits) > 1 or max(bits) > 16:
        signed = max(bits) > 128
        what = "signed integers" if signed else f"samples of {', '.join(map(str, sorted(bits)))} bits"
        raise InputError(f"{what}; expected unsigned integers of up to 16 bits, the same for all")
    (each,) = bits
    if file.colours not in (None, _SRGB, _GREY, _SYCC, _CMYK):
        raise InputError(f"colours of kind {file.colours}; expected grey or RGB")
    plain = file.colours in (None, _SRGB, _GREY) and sampling == {(1, 1)}
    if each != 8 and (file.palette or not plain):
        raise InputError(f"{each} bits with a palette, or in other colours than grey and RGB; save it as RGB")
    extra = len(components) - (4 if file.colours == _CMYK else 1 if len(components) < 3 else 3)
    if extra not in (0, 1) or (extra and file.alpha != [1]):
        raise InputError(
            f"{len(components)} samples a pixel, the others than grey or RGB not declared as alpha: they would be lost"
        )
    return each
