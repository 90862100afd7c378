"""Picture files made by Pillow or by our own hand, and what came out of them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from nlrn.errors import InputError
from nlrn.images import SUFFIXES, Picture, read_picture

FORMATS = sorted(set(SUFFIXES.values()))
WITH_ALPHA = ("PNG", "TIFF", "WEBP")


def samples(shape: tuple[int, ...], seed: int = 0, top: int = 255) -> np.ndarray:
    kind = np.uint8 if top == 255 else np.uint16
    return np.random.default_rng(seed).integers(0, top, shape, dtype=kind, endpoint=True)


def picture_of(values: np.ndarray, alpha: np.ndarray | None = None, **more: object) -> Picture:
    depth = 8 * values.itemsize
    return Picture((values / (2**depth - 1)).astype(np.float32), alpha, depth, **more)


def levels(picture: Picture) -> np.ndarray:
    """The integer samples of a picture that was read; they must be exact."""
    scaled = picture.array.astype(np.float64) * (2**picture.depth - 1)
    np.testing.assert_allclose(scaled, np.rint(scaled), rtol=0, atol=0.01)
    return np.rint(scaled).astype(int)


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG by our own hand; `rows` with their filter bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND")


def outcome(data: bytes, **limits: int) -> Picture | None:
    """The picture, or None when it is refused; any other exception fails the test."""
    try:
        return read_picture(data, **limits)
    except InputError:
        return None


def tiff(width: int, height: int, bits: tuple[int, ...], photometric: int, pixels: bytes) -> bytes:
    """An uncompressed little-endian TIFF by our own hand."""
    depth = struct.pack(f"<{len(bits)}H", *bits)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height),
        (258, 3, len(bits), bits[0] if len(bits) == 1 else 8 + len(pixels)), (259, 3, 1, 1),
        (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, len(bits)), (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = 8 + len(pixels) + len(depth)
    return b"II*\0" + struct.pack("<I", start) + pixels + depth + struct.pack("<H", len(tags)) + body + bytes(4)
