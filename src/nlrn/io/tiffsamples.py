"""The samples of a TIFF's image as nlrn.io.tiffs judged it: its strips and tiles, checked, and decoded, all of them.

tifffile decodes what is not compressed and what is deflated; libtiff, through Pillow, the other compressions.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from nlrn.errors import InputError
from nlrn.io.directories import Entry, Form, entries_of, narrow, with_pointed
from nlrn.io.formats import inflated_size
from nlrn.io.further import planes
from nlrn.io.metadata import IPTC, LAYERS, PHOTOSHOP, XMP

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, _MASK, CMYK, YCBCR = range(7)  # of the tag PhotometricInterpretation
UINT, FLOAT = 1, 3  # of the tag SampleFormat
ASSOCIATED, UNASSOCIATED = 1, 2  # of the tag ExtraSamples
_PLAIN, _DEFLATE, _PREDICTED = 1, frozenset({8, 32946}), frozenset({1, 2})
_HORIZONTAL, _FLOATING = 2, 3  # of the tag Predictor
_OLD_JPEG = 6
COMPRESSIONS = {
    1: "none", 2: "CCITT RLE", 3: "CCITT T.4", 4: "CCITT T.6", 5: "LZW", 6: "old JPEG", 7: "JPEG", 8: "deflate",
    32773: "PackBits", 32946: "deflate", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
_LOSSLESS = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})
_COEFFICIENTS, _REFERENCE = 529, 532
_COLOUR_TAGS = frozenset({332, 338, 529, 530, 532})  # what the samples are, beside how many
_LARGE = frozenset({XMP, IPTC, PHOTOSHOP, LAYERS})  # tags of blocks that are read apart, or not at all
PIXEL_TAGS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347}
    | {*range(512, 522), 529, 530, 532}
)


@dataclass(frozen=True)
class Kind:
    """bits and format of a sample, photometric interpretation, channels of colour, kind of an alpha, 0 for none."""

    bits: int
    format: int
    photometric: int
    colours: int
    alpha: int


def each_of(value: Any) -> tuple[Any, ...]:
    """The values of a tag, one or several."""
    return tuple(np.atleast_1d(value).tolist())


# -- its samples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Strips or tiles: rows of one, how many there are, and down the image; bytes of a row of one."""

    rows: int
    count: int
    down: int
    row: int

    def bytes_of(self, index: int, page: Any) -> int:
        """Of one without compression: the last strip has fewer rows, tiles are whole."""
        rows = self.rows if page.is_tiled else min(self.rows, page.imagelength - index % self.down * self.rows)
        return rows * self.row


def checked_parts(page: Any, kind: Kind, data: bytes) -> list[memoryview]:
    """The strips or tiles as they lie in the file. Raises InputError where one is missing or ends early."""
    compression = int(page.compression)
    if compression not in COMPRESSIONS or (kind.bits > 8 and compression not in _LOSSLESS):
        raise InputError(
            f"compressed in a way that is not read{' with 16 bits or floats' if kind.bits > 8 else ''}"
            f" ({COMPRESSIONS.get(compression, compression)}); save it with LZW or deflate"
        )
    grid = _grid(page, kind)
    places, sizes = each_of(page.dataoffsets), each_of(page.databytecounts)
    if len(places) != grid.count:
        raise InputError(f"{len(places)} of {grid.count} strips or tiles: the others are missing")
    if compression == _PLAIN and not any(sizes):  # some writers leave them out
        sizes = (0,) * len(places)
    elif len(sizes) != len(places):
        raise InputError("damaged: strips or tiles without their sizes")
    view = memoryview(data)
    return [_part(page, grid, i, view, *part) for i, part in enumerate(zip(places, sizes, strict=True))]


def _grid(page: Any, kind: Kind) -> _Grid:
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    rows, columns = page.rowsperstrip, page.imagewidth
    if page.is_tiled:
        rows, columns = page.tilelength, page.tilewidth
        if min(rows, columns) < 1:
            raise InputError("damaged: tiles of no size")
    else:
        rows = max(1, min(rows, page.imagelength))
    row = (columns * kind.bits * (page.samplesperpixel if planes == 1 else 1) + 7) // 8
    if page.compression == _OLD_JPEG and len(each_of(page.dataoffsets)) == 1:  # one stream, whatever the strips
        return _Grid(page.imagelength, 1, 1, row)
    down, across = math.ceil(page.imagelength / rows), math.ceil(page.imagewidth / columns)
    return _Grid(rows, down * across * planes, down, row)


def _part(page: Any, grid: _Grid, index: int, view: memoryview, place: int, size: int) -> memoryview:
    """One strip or tile, which must lie in the file and, where it can be seen beforehand, have all its samples."""
    least = grid.bytes_of(index, page)
    if page.compression == _PLAIN:
        if 0 < size < least:
            raise InputError("truncated: pixels are missing")
        size = least
    if place < 8 or size < 1:
        raise InputError(f"strip or tile {index + 1} of {grid.count} is missing")
    if place + size > len(view):
        raise InputError("truncated: pixels are missing")
    part = view[place : place + size]
    if page.compression in _DEFLATE:
        most = grid.rows * grid.row
        found = inflated_size([part], most + 1)
        if not least <= found <= most:
            raise InputError("truncated: pixels are missing" if found < least else "damaged: too many pixels")
    return part


def samples_of(
    page: Any, kind: Kind, parts: list[memoryview], data: bytes
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Colour HW or HW3 and alpha, uint8, uint16 or float32, as stored; and a note where the colour was converted."""
    plain = page.compression == _PLAIN or page.compression in _DEFLATE
    if plain and kind.bits not in (2, 4) and int(page.predictor) in _PREDICTED:
        values = _by_tifffile(page, kind, parts)
    elif kind.bits > 8:
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        values = np.concatenate(
            [_by_libtiff(page, kind, data, parts, i, len(parts) // planes) for i in range(planes)], axis=2
        )
    elif page.planarconfig == 2 and page.samplesperpixel > 1:
        each = len(parts) // page.samplesperpixel
        values = np.dstack([_plane(page, kind, data, parts, i, each) for i in range(page.samplesperpixel)])
    else:
        return _by_pillow(page, kind, data, parts)
    if values.shape[2] != kind.colours + (kind.alpha != 0):
        raise InputError(f"damaged: {values.shape[2]} samples a pixel where {page.samplesperpixel} were declared")
    return _converted(page, kind, values)


def _by_libtiff(page: Any, kind: Kind, data: bytes, parts: list[memoryview], index: int, each: int) -> np.ndarray:
    """[H, W, samples] of 16 bits or floats, or one plane of those that lie apart: through Pillow, as rows of bytes.

    libtiff undoes the compression; byte order and predictor are undone here. each: strips or tiles of a plane.
    """
    samples, size = 1 if page.planarconfig == 2 else page.samplesperpixel, kind.bits // 8
    tiled, order = page.is_tiled, page.parent.byteorder
    columns = page.tilewidth if tiled else page.imagewidth
    across = math.ceil(page.imagewidth / columns)
    height = math.ceil(page.imagelength / page.tilelength) * page.tilelength if tiled else page.imagelength
    row = columns * samples * size
    changed = _of_one_plane(page, index, each)
    sides = {256: across * row, 257: height} | ({322: row} if tiled else {})
    changed |= {tag: Form(order).places([side]) for tag, side in sides.items()}
    rows = _grey(
        _alone(page, data, parts[index * each :][:each], changed, without=_COLOUR_TAGS | {317}), (across * row, height)
    )
    blocks = rows.reshape(height, across, row)
    number, predictor = np.dtype(f"{order}{'f' if kind.format == FLOAT else 'u'}{size}"), int(page.predictor)
    predictor = 1 if page.compression == _PLAIN else predictor  # it belongs to a compression
    if predictor == _FLOATING:
        apart = np.cumsum(blocks.reshape(height, across, -1, samples), axis=2, dtype=np.uint8)
        together = apart.reshape(height, across, size, -1).swapaxes(2, 3)
        values = np.ascontiguousarray(together).view(f">f{size}")
    else:
        whole = blocks.view(f"{order}u{size}").reshape(height, across, columns, samples)
        whole = np.cumsum(whole, axis=2, dtype=f"u{size}") if predictor == _HORIZONTAL else whole
        values = whole.astype(f"u{size}", copy=False).view(number.newbyteorder("="))
    values = values.reshape(height, across * columns, samples)[: page.imagelength, : page.imagewidth]
    return values.astype(number.newbyteorder("="), copy=False)


def _plane(page: Any, kind: Kind, data: bytes, parts: list[memoryview], index: int, each: int) -> np.ndarray:
    """One of the planes of an image whose samples of 8 bits lie apart, [H, W] as stored: as a grey image by itself."""
    if kind.bits < 8:
        raise InputError(f"{page.samplesperpixel} samples a pixel of {kind.bits} bits; expected 8 bits of colour")
    if kind.photometric == YCBCR and page.is_subsampled:
        raise InputError("YCbCr with fewer samples of colour is read from JPEG only; save the image as RGB")
    changed = _of_one_plane(page, index, each)
    return _grey(
        _alone(page, data, parts[index * each :][:each], changed, without=_COLOUR_TAGS),
        (page.imagewidth, page.imagelength),
    )


def _of_one_plane(page: Any, index: int, each: int) -> dict[int, Entry]:
    """Tags of a grey image of one sample of 8 bits that consists of these strips or tiles."""
    wanted, tiled, form = slice(index * each, (index + 1) * each), page.is_tiled, Form(page.parent.byteorder)
    numbers = {258: 8, 262: BLACK_IS_ZERO, 277: 1, 284: 1, 339: UINT}
    return {tag: form.short(number) for tag, number in numbers.items()} | {
        324 if tiled else 273: form.places(each_of(page.dataoffsets)[wanted]),
        325 if tiled else 279: form.places(each_of(page.databytecounts)[wanted]),
    }


def _grey(file: bytes, size: tuple[int, int]) -> np.ndarray:
    with TiffImageFile(io.BytesIO(file)) as image:
        if image.size != size or image.mode != "L":
            raise InputError("damaged: its decoder finds another size or kind")
        image.load()
        return np.asarray(image)


def _by_tifffile(page: Any, kind: Kind, parts: list[memoryview]) -> np.ndarray:
    """[H, W, samples] as stored."""
    if kind.photometric == YCBCR and page.is_subsampled:
        raise InputError("YCbCr with fewer samples of colour is read from JPEG only; save the image as RGB")
    out = np.empty((page.samplesperpixel, page.imagelength, page.imagewidth), page.dtype)
    separate = page.planarconfig == 2
    for i, part in enumerate(parts):
        values, (plane, _, top, left, _), shape = page.decode(bytes(part), i)
        values = values.reshape(shape)[0]
        height, width = min(shape[1], page.imagelength - top), min(shape[2], page.imagewidth - left)
        place = (
            slice(plane, plane + 1) if separate else slice(None),
            slice(top, top + height),
            slice(left, left + width),
        )
        out[place] = values[:height, :width].transpose(2, 0, 1)
    return out.transpose(1, 2, 0)


def _converted(page: Any, kind: Kind, values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    top = 1 if kind.format == FLOAT else 2**kind.bits - 1
    if kind.photometric == PALETTE:
        return _coloured(page, kind, values[..., 0]), None, ()
    if kind.bits < 8:
        values = (values.astype(np.uint16) * 255 // top).astype(np.uint8)
        top = 255
    if kind.photometric == WHITE_IS_ZERO:
        values = np.asarray(top, values.dtype) - values
    values = np.ascontiguousarray(values)
    if kind.photometric in (CMYK, YCBCR):
        _check_colours(page, kind)
        mode = "CMYK" if kind.photometric == CMYK else "YCbCr"
        image = Image.frombytes(mode, values.shape[1::-1], values.tobytes())
        return np.asarray(image.convert("RGB")), None, ("CMYK was converted to RGB",) if mode == "CMYK" else ()
    if kind.alpha == ASSOCIATED:
        image = Image.frombytes("RGBa", values.shape[1::-1], values.tobytes())
        values = np.asarray(image.convert("RGBA"))
    return *planes(values), ()


def _check_colours(page: Any, kind: Kind) -> None:
    """Raises InputError for inks and luminances that are not the usual ones."""
    if kind.photometric == CMYK and page.tags.valueof(332, 1) != 1:
        raise InputError("inks other than CMYK; save the image as RGB")
    coefficients = [a / b for a, b in _pairs(page.tags.valueof(_COEFFICIENTS)) if b]
    range_ = [a / b for a, b in _pairs(page.tags.valueof(_REFERENCE)) if b]
    usual = np.allclose(coefficients or [0.299, 0.587, 0.114], [0.299, 0.587, 0.114], atol=1e-3)
    full = (range_ or [0, 255, 128, 255, 128, 255])[:2]
    if kind.photometric == YCBCR and not (usual and np.allclose(full, [0, 255], atol=1)):
        raise InputError("YCbCr of other coefficients or a reduced range; save the image as RGB")


def _pairs(value: Any) -> list[tuple[float, float]]:
    flat = each_of(value) if value is not None else ()
    return list(zip(flat[::2], flat[1::2], strict=False))


def _coloured(page: Any, kind: Kind, values: np.ndarray) -> np.ndarray:
    table = np.asarray(page.tags.valueof(320, ()), np.uint32)
    if kind.bits > 8 or table.size != 3 * 2**kind.bits:
        raise InputError("damaged: its palette is missing or of another size")
    table = table.reshape(3, -1).T
    return (table if table.max() < 256 else table // 256).astype(np.uint8)[values.astype(np.intp)]  # some give 8 bits


def _by_pillow(
    page: Any, kind: Kind, data: bytes, parts: list[memoryview]
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """By libtiff, up to 8 bits."""
    _check_colours(page, kind) if kind.photometric == CMYK else None
    if kind.bits < 8 and page.samplesperpixel > 1:
        raise InputError(f"{page.samplesperpixel} samples a pixel of {kind.bits} bits; expected 8 bits of colour")
    with TiffImageFile(io.BytesIO(_alone(page, data, parts))) as image:
        if image.size != (page.imagewidth, page.imagelength):
            raise InputError("damaged: its decoder finds another size")
        image.load()
        notes: tuple[str, ...] = ("CMYK was converted to RGB",) if image.mode == "CMYK" else ()
        if kind.photometric == PALETTE and image.mode == "P":
            return _coloured(page, kind, np.asarray(image)), None, ()
        mode = {1: "L", 3: "RGB", 4: "RGB"}[kind.colours] if not kind.alpha else ("LA" if kind.colours == 1 else "RGBA")
        allowed = {"L": ("1", "L"), "RGB": ("RGB", "CMYK", "YCbCr"), "LA": ("LA",), "RGBA": ("RGBA",)}[mode]
        if image.mode not in allowed:
            raise InputError(f"pixels of mode {image.mode}; expected grey or colour of 8 bits")
        values = np.asarray(image if image.mode == mode else image.convert(mode))
    return *planes(values), notes


# -- directories of one page, for other readers -----------------------------------------------------------------------


def _alone(
    page: Any,
    data: bytes,
    parts: list[memoryview],
    changed: Mapping[int, Entry] = MappingProxyType({}),
    without: frozenset[int] = frozenset(),
) -> bytes:
    """A TIFF, of a BigTIFF too, of the tags of the page's pixels and these strips or tiles. changed: other tags."""
    form, every = Form(page.parent.byteorder), entries_of(page, data, _LARGE)
    entries = {tag: narrow(every[tag], form.order, clamped=True) for tag in every.keys() & (PIXEL_TAGS - without)}
    entries |= changed
    sizes = [len(part) for part in parts]
    body: list[Any] = [memoryview(data)[8:]]  # where its tags point into it, or parts overlap
    if page.compression != _OLD_JPEG and sum(sizes) <= len(data):
        entries |= form.parts(8, sizes, tiled=page.is_tiled)
        body = list(parts)
    length = sum(map(len, body))
    body.append(bytes(length % 2))
    start = 8 + length + length % 2
    return b"".join((form.header(start), *body, form.block(entries, start, last=True)))


def tags_of(page: Any, data: bytes) -> Image.Exif:
    """The tags of the page that are not of its pixels, with EXIF and GPS; of layers only that there are any."""
    exif, form = Image.Exif(), Form(page.parent.byteorder, bool(page.parent.is_bigtiff))
    try:
        entries = entries_of(page, data, PIXEL_TAGS | _LARGE)
        exif.load(Form(form.order).header(8) + with_pointed(entries, data, form, 8))
    except MemoryError:
        raise
    except Exception:  # what cannot be read is left out
        exif = Image.Exif()
    if LAYERS in page.tags:
        exif[LAYERS] = b""
    return exif
