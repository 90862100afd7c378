"""Samples that Pillow would cut or misread: 16 bits with colour or alpha, and floats, in PNG and TIFF.

libvips (pyvips) reads both and writes PNG. It is imported when such a picture comes.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from PIL import Image, TiffTags
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from nlrn.errors import BackendError, InputError

_INTEGER, _FLOAT = 1, 3  # of the tag SampleFormat
_BLACK_IS_ZERO, _RGB = 1, 2  # of the tag PhotometricInterpretation
_UNASSOCIATED = 2  # of the tag ExtraSamples: alpha beside colour that was not multiplied by it
_SAMPLE_FORMAT, _EXTRA_SAMPLES = 339, 338


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
    """16-bit integers that are not plain grey with black as zero, or 32-bit floats."""
    bits, kinds = _each(tags, Base.BitsPerSample, 1), _each(tags, _SAMPLE_FORMAT, _INTEGER)
    if bits == {32} and kinds == {_FLOAT}:
        return True
    plain = tags.get(Base.SamplesPerPixel, 1) == 1 and tags.get(Base.PhotometricInterpretation) == _BLACK_IS_ZERO
    return bits == {16} and kinds == {_INTEGER} and not plain


def _each(tags: Image.Exif, tag: int, default: int) -> set[int]:
    found = tags.get(tag, default)
    return set(found) if isinstance(found, tuple) else {found}


def check_tiff(tags: Image.Exif) -> None:
    """Raises InputError for a wide TIFF of a kind that is not read."""
    if not {Base.ImageWidth, Base.ImageLength, Base.PhotometricInterpretation} <= set(tags):
        raise InputError("damaged or truncated: tags are missing")
    if tags.get(Base.PhotometricInterpretation) not in (0, _BLACK_IS_ZERO, _RGB):
        raise InputError("16-bit and float TIFFs are read as grey or RGB only; save the picture with 8 bits a sample")
    extra = tags.get(_EXTRA_SAMPLES, ())
    if any(kind != _UNASSOCIATED for kind in (extra if isinstance(extra, tuple) else (extra,))):
        raise InputError("its alpha is of an unknown kind, or was multiplied into the colour; save it unassociated")


def read(data: bytes, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """(colour HW or HW3, alpha HW or None), uint16 or, without alpha, float32, as they lie in the file.

    size: (width, height) that was checked. Raises InputError for what is damaged or another kind.
    """
    vips = _vips()
    try:
        image = vips.Image.new_from_buffer(data, "", fail_on="warning")
        if (image.width, image.height) != size:
            raise InputError(f"damaged: {image.width} x {image.height} pixels where {size[0]} x {size[1]} were told")
        values = image.numpy().reshape(size[1], size[0], -1)
    except vips.Error as error:
        raise InputError(f"damaged or truncated ({' '.join(str(error).split())})") from error
    bands = values.shape[2]
    if values.dtype not in (np.uint16, np.float32) or bands > 4 or (values.dtype == np.float32 and bands in (2, 4)):
        raise InputError(f"{bands} samples a pixel of {values.dtype}; expected 16-bit grey or RGB, or floats")
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise InputError("it holds numbers that are not finite (NaN or infinity)")
    colour = values[..., 0] if bands < 3 else values[..., :3]
    return colour, values[..., -1] if bands in (2, 4) else None


def png(values: np.ndarray, metadata: dict[str, bytes]) -> bytes:
    """A PNG of uint16 [H, W, 1 to 4]; metadata: icc_profile and exif, as Pillow takes them."""
    vips = _vips()
    image = vips.Image.new_from_array(values, interpretation="rgb16" if values.shape[2] > 2 else "grey16").copy()
    for name, field in (("icc_profile", "icc-profile-data"), ("exif", "exif-data")):
        if name in metadata:
            image.set_type(vips.GValue.blob_type, field, metadata[name])
    return bytes(image.pngsave_buffer(bitdepth=16, compression=6))


def tiff(values: np.ndarray, metadata: dict[str, bytes]) -> bytes:
    """An uncompressed TIFF of uint16 or float32 [H, W, 1 to 4], with metadata as for `png`.

    Pillow writes the tags, EXIF among them, which libvips would leave out.
    """
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
    return pyvips
