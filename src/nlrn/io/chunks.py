"""The samples of one plane as a TIFF stores them: cut into strips or tiles, predicted, in a byte order, compressed."""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from nlrn.errors import InputError
from nlrn.io.directories import Entry, Form

PLAIN, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 8, 32946, 32773, 34925, 50000
WRITTEN = frozenset({PLAIN, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD})
_BY_LIBTIFF = {LZW: "tiff_lzw", PACKBITS: "packbits", ZSTD: "zstd"}  # Pillow's words
_HORIZONTAL, _FLOATING = 2, 3  # of the tag Predictor


@dataclass(frozen=True)
class Layout:
    """How a page stores its samples. chunk: rows and columns of a strip (of the width) or of a tile.

    separate: each sample of a pixel is a plane of its own. order: "<" or ">", of bytes.
    """

    compression: int
    predictor: int
    chunk: tuple[int, int]
    tiled: bool
    separate: bool
    order: Literal["<", ">"]


def page_tags(layout: Layout, size: tuple[int, int], samples: int, dtype: np.dtype[Any]) -> dict[int, Entry]:
    """The tags of a page in strips, (height, width) with 1 to 4 samples a pixel, all but where the strips lie."""
    form, colours = Form(layout.order), 3 if samples > 2 else 1
    tags = {256: form.places([size[1]]), 257: form.places([size[0]]), 258: form.short(*[8 * dtype.itemsize] * samples)}
    tags |= {259: form.short(layout.compression), 262: form.short(2 if colours == 3 else 1), 277: form.short(samples)}
    tags |= {278: form.places([layout.chunk[0]]), 284: form.short(1)}
    if layout.compression != PLAIN:
        tags[317] = form.short(layout.predictor)
    if samples > colours:
        tags[338] = form.short(2)  # alpha, not multiplied in
    if dtype.kind == "f":
        tags[339] = form.short(*[3] * samples)
    return tags


def chunks(values: np.ndarray, layout: Layout) -> Iterator[bytes]:
    """The strips or tiles of [H, W, samples], uint8, uint16 or float32, in their order in the file."""
    parts = np.split(values, values.shape[2], axis=2) if layout.separate else [values]
    rows, columns = layout.chunk
    for part in parts:
        for top in range(0, part.shape[0], rows):
            for left in range(0, part.shape[1], columns):
                block = part[top : top + rows, left : left + columns]
                if layout.tiled:  # tiles are whole
                    missing = rows - block.shape[0], columns - block.shape[1]
                    block = np.pad(block, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
                yield _compressed(_bytes_of(block, layout), layout.compression)


def _bytes_of(block: np.ndarray, layout: Layout) -> np.ndarray:
    """[rows, bytes] as they are compressed."""
    rows, _, samples = block.shape
    if layout.compression != PLAIN and layout.predictor == _FLOATING and block.dtype.kind == "f":
        planes = block.astype(">f4").view(np.uint8).reshape(rows, -1, 4).transpose(0, 2, 1).reshape(rows, -1)
        return _differences(planes, samples)
    flat = np.ascontiguousarray(block).view(f"u{block.itemsize}").reshape(rows, -1)
    if layout.compression != PLAIN and layout.predictor == _HORIZONTAL:
        flat = _differences(flat, samples)
    return flat.astype(flat.dtype.newbyteorder(layout.order), copy=False).view(np.uint8).reshape(rows, -1)


def _differences(flat: np.ndarray, stride: int) -> np.ndarray:
    """Each number less the one before it of the same sample, by the arithmetic of its type."""
    out = flat.copy()
    out[:, stride:] -= flat[:, :-stride]
    return out


def _compressed(rows: np.ndarray, compression: int) -> bytes:
    if compression == PLAIN:
        return rows.tobytes()
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.compress(rows.tobytes(), 6)
    if compression == LZMA:
        return lzma.compress(rows.tobytes())
    if compression not in _BY_LIBTIFF:
        raise InputError(f"compression {compression} is not written")
    return _by_libtiff(rows, _BY_LIBTIFF[compression])


def _by_libtiff(rows: np.ndarray, word: str) -> bytes:
    """Of a grey image of 8 bits that libtiff writes in one strip."""
    from tifffile import TiffFile

    written = io.BytesIO()
    options: dict[str, Any] = {"compression": word, "strip_size": rows.size + 1}
    Image.fromarray(np.ascontiguousarray(rows)).save(written, "TIFF", **options)
    written.seek(0)
    with written as file, TiffFile(file) as made:  # closed: tifffile's objects hold it until a collection
        page: Any = made.pages[0]
        (place,), (size,) = page.dataoffsets, page.databytecounts  # one strip, as was asked
        return file.getbuffer()[place : place + size].tobytes()
