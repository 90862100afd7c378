"""Files of the kinds that extras read, written by the libraries themselves."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

BLACK, WHITE = 512, 16383  # of the sensor of raw()


def heic(values: np.ndarray, *, bits: int = 8, exif: bytes = b"", icc: bytes = b"", more: int = 0) -> bytes:
    """Without loss. values: uint8, or uint16 of so many bits; more: further images behind the first."""
    import pillow_heif

    letters = {2: "L", 3: "RGB" if values.shape[-1] == 3 else "RGBA"}[values.ndim]
    mode, body = (letters if bits == 8 else f"{letters};16"), values
    if bits > 8:
        body = values << (16 - bits)
    file = pillow_heif.from_bytes(mode, values.shape[1::-1], body.tobytes())
    for _ in range(more):
        file.add_frombytes(mode, values.shape[1::-1], body.tobytes())
    before, pillow_heif.options.SAVE_HDR_TO_12_BIT = pillow_heif.options.SAVE_HDR_TO_12_BIT, bits == 12
    out: Any = io.BytesIO()
    blocks = ({"exif": exif} if exif else {}) | ({"icc_profile": icc} if icc else {})
    try:
        file.save(out, quality=-1, chroma=444, matrix_coefficients=0, **blocks)
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = before
    return bytes(out.getvalue())


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def inside_header(file: bytes, more: bytes) -> bytes:
    """A JPEG 2000 file with further boxes at the end of its header, jp2h."""
    place = file.index(b"jp2h") - 4
    end = file.index(b"jp2c") - 4
    return file[:place] + box(b"jp2h", file[place + 8 : end] + more) + file[end:]


def camera_raw(scene: np.ndarray, *, flip: int = 1, exposure: tuple[int, int] = (1, 30)) -> bytes:
    """A DNG of one sensor with the pattern RGGB. scene: linear [H, W, 3] in 0..1; flip: the tag Orientation."""
    from tifffile import TiffWriter

    channel = np.array([[0, 1], [1, 2]])
    sensor = np.zeros(scene.shape[:2], np.uint16)
    for i in (0, 1):
        for j in (0, 1):
            sensor[i::2, j::2] = np.rint(BLACK + scene[i::2, j::2, channel[i, j]] * (WHITE - BLACK))
    # XYZ to the camera's colours: those of sRGB's primaries (IEC 61966-2-1)
    matrix = [3.2404542, -1.5371385, -0.4985314, -0.9692660, 1.8760108, 0.0415560, 0.0556434, -0.2040259, 1.0572252]
    tags: list[tuple[Any, ...]] = [
        (50706, "B", 4, bytes([1, 4, 0, 0])), (50707, "B", 4, bytes([1, 1, 0, 0])), (50708, "s", 0, "A camera"),
        (271, "s", 0, "A maker"), (272, "s", 0, "A camera"), (274, "H", 1, flip), (33421, "H", 2, (2, 2)),
        (33422, "B", 4, bytes([0, 1, 1, 2])), (50710, "B", 3, bytes([0, 1, 2])), (50711, "H", 1, 1),
        (50713, "H", 2, (1, 1)), (50714, "H", 1, BLACK), (50717, "H", 1, WHITE),
        (50721, "2i", 9, [n for x in matrix for n in (round(1e4 * x), 10_000)]), (50728, "2I", 3, [1] * 6),
        (50778, "H", 1, 21), (33434, "2I", 1, exposure),
    ]  # fmt: skip
    file: Any = io.BytesIO()
    with TiffWriter(file) as writer:
        extra = [(*tag, True) for tag in tags]
        writer.write(sensor, photometric=32803, planarconfig=1, extratags=extra, metadata=None, software=False)
    return bytes(file.getvalue())


def exif_of() -> bytes:
    """An EXIF block with an orientation of 6, a maker, an exposure and a place."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "A maker", 6
    exif[0x8769] = {0x829A: IFDRational(1, 30)}
    exif[0x8825] = {1: "N", 2: (48.0, 0.0, 0.0)}
    return exif.tobytes()
