"""Image files made by Pillow or by our own hand, and what came out of them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from nlrn.errors import InputError
from nlrn.io.image import SUFFIXES, ImageData, read_image

FORMATS = sorted(set(SUFFIXES.values()))
LOSSY = ("AVIF", "JPEG")
WITH_ALPHA = ("PNG", "TIFF", "WEBP")


def samples(shape: tuple[int, ...], seed: int = 0, top: int = 255) -> np.ndarray:
    kind = np.uint8 if top == 255 else np.uint16
    return np.random.default_rng(seed).integers(0, top, shape, dtype=kind, endpoint=True)


def image_of(values: np.ndarray, alpha: np.ndarray | None = None, **more: object) -> ImageData:
    depth = 8 * values.itemsize
    return ImageData((values / (2**depth - 1)).astype(np.float32), alpha, depth, **more)


def levels(image: ImageData) -> np.ndarray:
    """The integer samples of an image that was read; they must be exact."""
    scaled = image.array.astype(np.float64) * (2**image.depth - 1)
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


def outcome(data: bytes, **limits: int) -> ImageData | None:
    """The image, or None when it is refused; any other exception fails the test."""
    try:
        return read_image(data, **limits)
    except InputError:
        return None


def tiff(
    width: int,
    height: int,
    bits: tuple[int, ...],
    photometric: int,
    pixels: bytes,
    *,
    extra: tuple[int, ...] = (),
    kind: int = 1,
) -> bytes:
    """An uncompressed little-endian TIFF by our own hand. extra: kinds of alpha; kind: 1 integers, 3 floats."""
    count = len(bits)
    after = struct.pack(f"<{count}H", *bits) + struct.pack(f"<{count}H", *[kind] * count)
    place = 8 + len(pixels)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height),
        (258, 3, count, bits[0] if count == 1 else _pair(bits) if count == 2 else place), (259, 3, 1, 1),
        (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, count), (278, 4, 1, height), (279, 4, 1, len(pixels)),
        *([(338, 3, 1, extra[0])] if extra else []),
        (339, 3, count, kind if count == 1 else _pair((kind, kind)) if count == 2 else place + 2 * count),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = place + len(after)
    return b"II*\0" + struct.pack("<I", start) + pixels + after + struct.pack("<H", len(tags)) + body + bytes(4)


def _pair(values: tuple[int, ...]) -> int:
    """Two shorts in the place of one long."""
    return values[0] | values[1] << 16
