"""A TIFF of one image: samples, profile and resolution by tifffile, and the tags of an EXIF block.

tifffile writes neither the directories of EXIF and GPS nor every tag, so that its directory is written again behind the
pixels, with those tags.
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

from nlrn.io.chunks import DEFLATE, LZW, PLAIN, Layout, chunks
from nlrn.io.directories import BYTE, Entry, Form
from nlrn.io.formats import TAG_BYTES
from nlrn.io.metadata import as_bytes

COMPRESSIONS = {"none": PLAIN, "lzw": LZW, "deflate": DEFLATE}
_STRIP = 1 << 18  # bytes of a strip that is compressed
_INCH = 2  # of the tag ResolutionUnit
_RESOLUTION = frozenset({Base.XResolution, Base.YResolution, Base.ResolutionUnit})
_COMPRESSION, _STRIPS, _ROWS, _SIZES, _PREDICTOR = 259, 273, 278, 279, 317  # tags
_UNDEFINED = 7  # a type of tags
_TEXTS = (("xmp", 700, BYTE), ("iptc", 33723, _UNDEFINED))  # their tags and types


def tiff(values: np.ndarray, metadata: dict[str, Any]) -> bytes:
    """The file of uint8, uint16 or float32 [H, W] or [H, W, 2 to 4]; the second or the fourth channel is alpha.

    metadata: icc_profile, exif and dpi, as Pillow takes them; xmp and iptc, bytes; compression, one of COMPRESSIONS.
    """
    from tifffile import TiffWriter

    name = metadata.get("compression", "none")
    plain = name == "none"  # else the samples come behind the directory: tifffile compresses by another package only
    stored: dict[str, Any] = {"data": values} if plain else {"data": None, "shape": values.shape, "dtype": values.dtype}
    bands = values.shape[2] if values.ndim == 3 else 1
    resolution = {"resolution": metadata["dpi"], "resolutionunit": _INCH} if "dpi" in metadata else {}
    file = io.BytesIO()
    with TiffWriter(file, bigtiff=False, byteorder="<") as writer:
        writer.write(
            photometric="rgb" if bands > 2 else "minisblack",
            planarconfig="contig" if bands > 1 else None,
            extrasamples=["unassalpha"] if bands in (2, 4) else None,
            iccprofile=metadata.get("icc_profile"),
            rowsperstrip=values.shape[0],
            metadata=None,
            software=False,
            **resolution,
            **stored,
        )
    exif = Image.Exif()
    if "exif" in metadata:
        exif.load(metadata["exif"])
    more = {} if plain else _compressed(file, values, name)
    more |= {tag: (kind, len(metadata[name]), metadata[name]) for name, tag, kind in _TEXTS if name in metadata}
    _add_tags(file, exif, more, keep_resolution=bool(resolution))
    return file.getvalue()


def _compressed(file: io.BytesIO, values: np.ndarray, name: str) -> dict[int, Entry]:
    """Put the strips where tifffile left room for the samples, at the end of the file; the tags that say so."""
    with file.getbuffer() as data:  # the samples' room is not copied
        (place,) = struct.unpack("<I", _entries(data, int.from_bytes(data[4:8], "little"))[_STRIPS][2])
    rows = max(1, min(values.shape[0], _STRIP // max(1, values[0].nbytes)))
    predictor = 3 if values.dtype.kind == "f" else 2  # differences of the bytes of floats, or of integers
    layout = Layout(COMPRESSIONS[name], predictor, (rows, values.shape[1]), False, False, "<")
    file.seek(place)
    sizes = [file.write(strip) for strip in chunks(values if values.ndim == 3 else values[..., None], layout)]
    file.truncate()
    places = (place + np.cumsum([0, *sizes[:-1]])).tolist()
    numbers = {_COMPRESSION: [layout.compression], _PREDICTOR: [predictor], _ROWS: [rows]}
    numbers |= {_STRIPS: places, _SIZES: sizes}
    return {tag: Form().places(them) for tag, them in numbers.items()}


def _add_tags(file: io.BytesIO, exif: Image.Exif, more: Mapping[int, Entry], *, keep_resolution: bool) -> None:
    """Write the first directory again, with the tags of the block that are not of the pixels, and more."""
    data = file.getvalue()
    own = _entries(data, int.from_bytes(data[4:8], "little"))
    if not keep_resolution:  # which tifffile makes up
        own = {tag: entry for tag, entry in own.items() if tag not in _RESOLUTION}
    said = {tag: value for tag, value in exif.items() if tag not in own and tag not in (IFD.Exif, IFD.GPSInfo)}
    if Base.XResolution not in said or Base.YResolution not in said:
        said = {tag: value for tag, value in said.items() if tag not in _RESOLUTION}
    entries = own | _entries(_directory(said).tobytes(0), 0) | dict(more)
    for tag in (IFD.Exif, IFD.GPSInfo):
        if inner := exif.get_ifd(tag):
            entries[int(tag)] = Form().places([_append(file, lambda at, i=inner: _directory(i).tobytes(at))])
    start = _append(file, lambda at: Form().block(entries, at, last=True))
    file.seek(4)
    file.write(struct.pack("<I", start))


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


def _entries(data: bytes | memoryview, start: int) -> dict[int, Entry]:
    """The tags of a little-endian directory."""
    found = {}
    for i in range(int.from_bytes(data[start : start + 2], "little")):
        tag, kind, count, inside = struct.unpack("<HHI4s", data[start + 2 + 12 * i : start + 14 + 12 * i])
        size, place = count * TAG_BYTES[kind], int.from_bytes(inside, "little")
        found[tag] = kind, count, inside[:size] if size <= 4 else bytes(data[place : place + size])
    return found
