"""A TIFF of one image: its samples in strips, profile, resolution and texts, and the tags of an EXIF block.

The directories are written here: what Pillow writes has no 16-bit colour, what tifffile writes neither EXIF nor GPS.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from nlrn.io.chunks import DEFLATE, LZW, PLAIN, Layout, chunks, page_tags
from nlrn.io.directories import BYTE, UNDEFINED, Entry, Form
from nlrn.io.formats import TAG_BYTES
from nlrn.io.metadata import as_bytes

COMPRESSIONS = {"none": PLAIN, "lzw": LZW, "deflate": DEFLATE}
_STRIP = 1 << 18  # bytes of a strip that is compressed
_RESOLUTION, _INCH = (Base.XResolution, Base.YResolution, Base.ResolutionUnit), 2
_DIRECTORIES = IFD.Exif, IFD.GPSInfo
_BLOCKS = (("icc_profile", 34675, UNDEFINED), ("xmp", 700, BYTE), ("iptc", 33723, UNDEFINED))  # their tags and types


def tiff(values: np.ndarray, metadata: dict[str, Any]) -> bytes:
    """The file of uint8, uint16 or float32 [H, W] or [H, W, 2 to 4]; the second or the fourth channel is alpha.

    metadata: icc_profile, exif and dpi, as Pillow takes them; xmp and iptc, bytes; compression, one of COMPRESSIONS.
    """
    name, pixels = metadata.get("compression", "none"), np.atleast_3d(values)
    height, width, bands = pixels.shape
    rows = height if name == "none" else max(1, min(height, _STRIP // pixels[0].nbytes))
    predictor = 3 if values.dtype.kind == "f" else 2  # differences of the bytes of floats, or of integers
    layout = Layout(COMPRESSIONS[name], predictor, (rows, width), tiled=False, separate=False, order="<")
    file, form = io.BytesIO(), Form()
    place = file.write(form.header(0))
    sizes = [file.write(strip) for strip in chunks(pixels, layout)]
    own = page_tags(layout, (height, width), bands, values.dtype) | form.parts(place, sizes, tiled=False)
    own |= {tag: (kind, len(metadata[name]), metadata[name]) for name, tag, kind in _BLOCKS if name in metadata}
    exif = Image.Exif()
    if "exif" in metadata:
        exif.load(metadata["exif"])
    said = {tag: value for tag, value in exif.items() if tag not in own and tag not in _DIRECTORIES}
    if "dpi" in metadata:
        said |= dict(zip(_RESOLUTION, (*metadata["dpi"], _INCH), strict=True))
    elif Base.XResolution not in said or Base.YResolution not in said:
        said = {tag: value for tag, value in said.items() if tag not in _RESOLUTION}
    entries = own | _entries(_directory(said).tobytes(0))
    for tag in _DIRECTORIES:
        if inner := exif.get_ifd(tag):
            entries[int(tag)] = form.places([_append(file, lambda at, i=inner: _directory(i).tobytes(at))])
    start = _append(file, lambda at: form.block(entries, at, last=True))
    file.seek(0)
    file.write(form.header(start))
    return file.getvalue()


def _append(file: io.BytesIO, made: Any) -> int:
    """Put made(its place) behind the file, at an even place, which is returned."""
    place = file.seek(0, io.SEEK_END)
    place += file.write(bytes(place % 2))
    file.write(made(place))
    return place


def _directory(values: Mapping[int, Any]) -> ImageFileDirectory_v2:
    directory = ImageFileDirectory_v2(prefix=b"II")
    for tag, value in values.items():
        directory[tag] = as_bytes(value)
    return directory


def _entries(data: bytes) -> dict[int, Entry]:
    """The tags of a little-endian directory at the place 0."""
    found = {}
    for i in range(int.from_bytes(data[:2], "little")):
        tag, kind, count, inside = struct.unpack("<HHI4s", data[2 + 12 * i : 14 + 12 * i])
        size, place = count * TAG_BYTES[kind], int.from_bytes(inside, "little")
        found[tag] = kind, count, inside[:size] if size <= 4 else data[place : place + size]
    return found
