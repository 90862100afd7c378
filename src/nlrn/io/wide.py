"""Samples that Pillow would cut or misread: 16 bits with colour or alpha, and floats, in PNG and TIFF.

libvips (pyvips) decodes both and compresses PNG; it sees pixels alone. Tags, profiles and EXIF are read and written
here and by Pillow, since libvips rewrites them. It is imported when such a picture comes.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, TiffTags
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from nlrn.errors import BackendError, InputError

_INTEGER, _FLOAT = 1, 3  # of the tag SampleFormat
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # of the tag PhotometricInterpretation
_UNASSOCIATED = 2  # of the tag ExtraSamples: alpha beside colour that was not multiplied by it
_COMPRESSIONS = frozenset({1, 5, 8, 32773, 32946})  # none, LZW, deflate, PackBits: without loss, and without tables
_FILL_ORDER, _PREDICTOR, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTES = 266, 317, 322, 323, 324, 325
_HEADER = 33  # bytes of a PNG: the signature and IHDR
_INCH = 2  # of the tag ResolutionUnit
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _IMAGE_DEPTH = 338, 339, 32997
_LONGS = frozenset({256, 257, 273, 278, 279, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTES})
_PIXEL_TAGS = sorted(_LONGS | {258, 259, 262, _FILL_ORDER, 277, 284, _PREDICTOR, _EXTRA_SAMPLES, _SAMPLE_FORMAT})


def is_wide_png(data: bytes, transparent: bool) -> bool:
    """16 bits that are not plain grey. transparent: one of its colours is."""
    return data[24] == 16 and (data[25] != 0 or transparent)


def tiff_tags(data: bytes) -> Image.Exif:
    """The tags of a TIFF's first page; none for what is left to Pillow: a BigTIFF, or one that is damaged."""
    tags = Image.Exif()
    if b"+" not in data[2:4]:
        with contextlib.suppress(Exception):
            tags.load(data)
    return tags


def is_wide_tiff(tags: Image.Exif) -> bool:
    """16-bit integers that are not plain grey with black as zero, or floats."""
    bits, kinds = set(_each(tags, Base.BitsPerSample, 1)), set(_each(tags, _SAMPLE_FORMAT, _INTEGER))
    if _FLOAT in kinds:
        return True
    plain = tags.get(Base.SamplesPerPixel, 1) == 1 and tags.get(Base.PhotometricInterpretation) == _BLACK_IS_ZERO
    return bits == {16} and kinds == {_INTEGER} and not plain


def _each(tags: Image.Exif, tag: int, default: int) -> tuple[int, ...]:
    found = tags.get(tag, default)
    return found if isinstance(found, tuple) else (found,)


def check_tiff(tags: Image.Exif) -> None:
    """Raises InputError for a wide TIFF of a kind that is not read, before anything is decoded."""
    if not {Base.ImageWidth, Base.ImageLength, Base.PhotometricInterpretation} <= set(tags):
        raise InputError("damaged or truncated: tags are missing")
    bits, kinds = set(_each(tags, Base.BitsPerSample, 1)), set(_each(tags, _SAMPLE_FORMAT, _INTEGER))
    floats, photometric = kinds == {_FLOAT}, tags[Base.PhotometricInterpretation]
    samples = tags.get(Base.SamplesPerPixel, 1)
    if (bits, kinds) not in (({16}, {_INTEGER}), ({32}, {_FLOAT})):
        raise InputError(f"samples of {sorted(bits)} bits; expected 8 or 16 bits, or floats of 32")
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or (floats and photometric == _WHITE_IS_ZERO):
        raise InputError("16-bit and float TIFFs are read as grey or RGB only; save the picture with 8 bits a sample")
    if samples not in ((3, 4) if photometric == _RGB else (1, 2)) or (floats and samples in (2, 4)):
        raise InputError(f"{samples} samples a pixel; expected grey or RGB, of integers with or without alpha")
    extra = _each(tags, _EXTRA_SAMPLES, _UNASSOCIATED)
    if samples in (2, 4) and (_EXTRA_SAMPLES not in tags or any(kind != _UNASSOCIATED for kind in extra)):
        raise InputError("its alpha is of an unknown kind, or was multiplied into the colour; save it unassociated")
    if tags.get(Base.Compression, 1) not in _COMPRESSIONS or tags.get(_IMAGE_DEPTH, 1) != 1:
        raise InputError("compressed in a way that is not read with 16 bits or floats; save it with LZW or deflate")


def tiff_pixels(data: bytes, tags: Image.Exif) -> bytes:
    """The TIFF with the tags of its pixels alone. Raises InputError when it ends before its pixels do."""
    tiled = _TILE_OFFSETS in tags
    places = _each(tags, _TILE_OFFSETS if tiled else Base.StripOffsets, 0)
    sizes = _each(tags, _TILE_BYTES if tiled else Base.StripByteCounts, 0)
    if len(places) != len(sizes) or any(
        a < 8 or n < 1 or a + n > len(data) for a, n in zip(places, sizes, strict=True)
    ):
        raise InputError("truncated: pixels are missing")
    order = "<" if data[:2] == b"II" else ">"
    entries, after = [], b""
    kept = [tag for tag in _PIXEL_TAGS if tag in tags]
    start = len(data) + len(data) % 2
    behind = start + 2 + 12 * len(kept) + 4
    for tag in kept:
        values = _each(tags, tag, 0)
        kind, letter = (4, "I") if tag in _LONGS else (3, "H")
        raw = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(raw) > 4:
            place = struct.pack(f"{order}I", behind + len(after))
            after += raw
        else:
            place = raw.ljust(4, b"\0")
        entries.append(struct.pack(f"{order}HHI", tag, kind, len(values)) + place)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(entries) + bytes(4)
    head = data[:4] + struct.pack(f"{order}I", start)
    return b"".join((head, memoryview(data)[8:], bytes(start - len(data)), directory, after))


def ready() -> None:
    """Load the library. Raises BackendError where it is not installed."""
    _vips()


def read(data: bytes, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """(colour HW or HW3, alpha HW or None), uint16 or, without alpha, float32, as they lie in the file.

    size: (width, height) that was checked. Raises InputError for what is damaged or another kind.
    """
    vips = _vips()
    try:
        image = vips.Image.new_from_buffer(data, "", fail_on="warning")
        if (image.width, image.height) != size:
            raise InputError(f"damaged: {image.width} x {image.height} pixels where {size[0]} x {size[1]} were told")
        bands = image.bands
        if image.format not in ("ushort", "float") or bands > 4 or (image.format == "float" and bands in (2, 4)):
            raise InputError(f"{bands} samples a pixel of {image.format}; expected 16-bit grey or RGB, or floats")
        values = image.numpy().reshape(size[1], size[0], -1)
    except vips.Error as error:
        raise InputError(f"damaged or truncated ({' '.join(str(error).split())})") from error
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise InputError("it holds numbers that are not finite (NaN or infinity)")
    colour = values[..., 0] if bands < 3 else values[..., :3]
    return colour, values[..., -1] if bands in (2, 4) else None


def png(values: np.ndarray, metadata: dict[str, Any]) -> bytes:
    """A PNG of uint16 [H, W, 1 to 4]; metadata: icc_profile and exif, as Pillow takes them."""
    image = _vips().Image.new_from_array(values, interpretation="rgb16" if values.shape[2] > 2 else "grey16")
    plain = bytes(image.pngsave_buffer(bitdepth=16, compression=6))
    parts = [plain[:_HEADER]]
    if "icc_profile" in metadata:
        parts.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata["icc_profile"])))
    if "exif" in metadata:
        parts.append(_chunk(b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0")))
    place = _HEADER
    while place < len(plain):
        end = place + 12 + int.from_bytes(plain[place : place + 4], "big")
        if plain[place + 4 : place + 8] in (b"IDAT", b"IEND"):
            parts.append(plain[place:end])
        place = end
    return b"".join(parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(data: bytes, colours: bytes, dpi: tuple[float, float] | None) -> bytes:
    """The PNG with the chunks of nlrn.io.formats.png_colours and a resolution, in pixels per inch across and down."""
    metres = b"" if dpi is None else _chunk(b"pHYs", struct.pack(">IIB", *(round(x / 0.0254) for x in dpi), 1))
    return data[:_HEADER] + colours + metres + data[_HEADER:] if colours or metres else data


def tiff(values: np.ndarray, metadata: dict[str, Any]) -> bytes:
    """An uncompressed TIFF of uint16 or float32 [H, W, 1 to 4]; metadata: as for `png`, and dpi."""
    height, width, bands = values.shape
    pixels = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    tags = ImageFileDirectory_v2(prefix=b"II")
    if "exif" in metadata:
        exif = Image.Exif()
        exif.load(metadata["exif"])
        for tag, value in exif.items():
            tags[tag] = exif.get_ifd(tag) if tag in (IFD.Exif, IFD.GPSInfo) else value
    if "icc_profile" in metadata:
        tags.tagtype[Base.InterColorProfile] = TiffTags.UNDEFINED
        tags[Base.InterColorProfile] = metadata["icc_profile"]
    if "dpi" in metadata:
        tags[Base.XResolution], tags[Base.YResolution] = metadata["dpi"]
        tags[Base.ResolutionUnit] = _INCH
    if bands in (2, 4):
        tags[_EXTRA_SAMPLES] = _UNASSOCIATED
    tags[Base.ImageWidth], tags[Base.ImageLength], tags[Base.RowsPerStrip] = width, height, height
    tags[Base.BitsPerSample] = (8 * values.itemsize,) * bands
    tags[Base.Compression], tags[Base.PlanarConfiguration], tags[Base.SamplesPerPixel] = 1, 1, bands
    tags[Base.PhotometricInterpretation] = _RGB if bands > 2 else _BLACK_IS_ZERO
    tags[_SAMPLE_FORMAT] = (_FLOAT if values.dtype == np.float32 else _INTEGER,) * bands
    tags[Base.StripOffsets], tags[Base.StripByteCounts] = 0, len(pixels)  # the offset is moved behind the tags
    file = io.BytesIO()
    tags.save(file)
    return file.getvalue() + pixels


def _vips() -> Any:
    try:
        import pyvips  # type: ignore[import-untyped]
    except (ImportError, OSError) as error:
        raise BackendError(
            "16-bit colour and float pictures need libvips (pip install pyvips pyvips-binary)"
        ) from error
    pyvips.cache_set_max(0)  # it would keep files and pixels that were read
    return pyvips
