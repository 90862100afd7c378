"""Camera raw files, by rawpy (LibRaw): demosaiced, linear, 16 bits, in sRGB's colours, as the camera balanced them."""

from __future__ import annotations

import io
import struct
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.JpegImagePlugin import JpegImageFile

from nlrn.errors import InputError
from nlrn.io.boxes import boxes
from nlrn.io.further import RAW, CheckSize
from nlrn.io.metadata import Decoded, FileMetadata, loaded_exif

_KEPT = (
    Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist, Base.Copyright,
)  # fmt: skip
_MAKER_NOTE, _PIXELS = 37500, frozenset({40962, 40963, 40965})
_NOTE = "a raw file was developed: linear, 16 bits, with a profile that says so"


def read(data: bytes, gps: bool, check_size: CheckSize, before_pixels: CheckSize) -> Decoded:
    """The developed image, upright; see nlrn.io.further.read."""
    rawpy = RAW.library("rawpy")
    if data[4:8] == b"ftyp":
        deque(boxes(data), maxlen=0)  # whether they end with the file
    with rawpy.RawPy() as raw:
        raw.open_buffer(io.BytesIO(data))
        sizes = raw.sizes
        width, height = (int(side) for side in (sizes.iwidth, sizes.iheight))
        check_size(width, height)
        before_pixels(max(width, int(sizes.raw_width)), max(height, int(sizes.raw_height)))
        exif = _exif(raw, data)
        raw.unpack()
        values: Any = raw.postprocess(
            gamma=(1, 1), no_auto_bright=True, adjust_maximum_thr=0.0, output_bps=16, use_camera_wb=True,
            output_color=rawpy.ColorSpace.sRGB,
        )  # fmt: skip
    if values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] not in (1, 3):
        raise InputError("its sensor has other channels than red, green and blue, or one")
    colour = values[..., 0] if values.shape[2] == 1 else values
    icc = linear_profile() if colour.ndim == 3 else None
    metadata = FileMetadata(exif, None, icc, None, notes=(_NOTE,))
    return metadata.decoded(colour, None, "RAW", gps)


def _exif(raw: Any, data: bytes) -> Image.Exif:
    """What a photograph says of itself: of the file's own tags, or of its preview; none where it cannot be read."""
    found = loaded_exif(data) if data[:4] in (b"II*\0", b"MM\0*") else Image.Exif()
    if Base.Model not in found:
        with suppress(Exception), JpegImageFile(io.BytesIO(raw.extract_thumb().data)) as preview:  # there may be none
            found = loaded_exif(preview.info.get("exif", b""))
    kept = Image.Exif()
    with suppress(Exception):
        for tag in _KEPT:
            if tag in found:
                kept[tag] = found[tag]
        for directory in (IFD.Exif, IFD.GPSInfo):
            inner = found.get_ifd(directory)
            left = {tag: value for tag, value in inner.items() if tag not in _PIXELS and tag != _MAKER_NOTE}
            if left:
                kept[directory] = left
    return kept


def linear_profile() -> bytes:
    """An ICC profile, version 2: sRGB's primaries adapted to D50 (IEC 61966-2-1), no curve."""
    name = b"sRGB primaries, linear"
    text = b"desc" + struct.pack(">II", 0, len(name) + 1) + name + bytes(1 + 4 + 4 + 2 + 1 + 67)
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"no copyright\0", b"wtpt": _xyz(0.9642, 1.0, 0.8249)}
    tags |= {b"rXYZ": _xyz(0.43607, 0.22249, 0.01392), b"gXYZ": _xyz(0.38515, 0.71687, 0.09708)}
    tags |= {b"bXYZ": _xyz(0.14307, 0.06061, 0.7141)}
    tags |= {key: b"curv" + bytes(8) for key in (b"rTRC", b"gTRC", b"bTRC")}
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        table += struct.pack(">4sII", key, at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = at + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
    header = header.ljust(68, b"\0") + struct.pack(">3I", *(round(65536 * x) for x in (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ " + struct.pack(">I3i", 0, *(round(65536 * value) for value in values))
