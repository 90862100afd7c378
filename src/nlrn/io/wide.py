"""Samples that Pillow would cut: 16 bits with colour or alpha in PNG.

libvips (pyvips) decodes and compresses them; it handles pixels only. Profiles and EXIF are read and written here and by
Pillow, since libvips rewrites them. It is imported for such an image only.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from nlrn.errors import BackendError, InputError
from nlrn.io.formats import PNG_HEADER, png_chunk, png_chunks, png_header
from nlrn.io.further import planes


def is_wide_png(data: bytes, transparent: bool) -> bool:
    """16 bits that are not plain grey. transparent: one of its colours is."""
    header = png_header(data)
    return header.bits == 16 and (header.colour != 0 or transparent)


def read(data: bytes, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """(colour HW or HW3, alpha HW or None), uint16, of a PNG, as they lie in the file.

    size: (width, height) that was checked. Raises InputError for what is damaged or another kind.
    """
    vips = library()
    try:
        image = vips.Image.new_from_buffer(data, "", fail_on="warning")
        if (image.width, image.height) != size:
            raise InputError(
                f"damaged: {image.width} x {image.height} pixels where {size[0]} x {size[1]} were declared"
            )
        if image.format != "ushort" or image.bands > 4:
            raise InputError(f"{image.bands} samples a pixel of {image.format}; expected 1 to 4 of 16 bits")
        values: np.ndarray = image.numpy().reshape(size[1], size[0], -1)
    except vips.Error as error:
        raise InputError(f"damaged or truncated ({' '.join(str(error).split())})") from error
    return planes(values)


def png(values: np.ndarray, metadata: dict[str, Any]) -> bytes:
    """A PNG of uint16 [H, W, 1 to 4]; metadata: icc_profile and exif, as Pillow takes them."""
    image = library().Image.new_from_array(values, interpretation="rgb16" if values.shape[2] > 2 else "grey16")
    plain = bytes(image.pngsave_buffer(bitdepth=16, compression=6))
    parts = [plain[:PNG_HEADER]]
    if "icc_profile" in metadata:
        parts.append(png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata["icc_profile"])))
    if "exif" in metadata:
        parts.append(png_chunk(b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0")))
    parts += [plain[place:end] for kind, place, end in png_chunks(plain) if kind in (b"IDAT", b"IEND")]
    return b"".join(parts)


def png_with(data: bytes, colours: bytes, dpi: tuple[float, float] | None) -> bytes:
    """The PNG with the chunks of nlrn.io.formats.png_colours and a resolution, in pixels per inch across and down."""
    metres = b"" if dpi is None else png_chunk(b"pHYs", struct.pack(">IIB", *(round(x / 0.0254) for x in dpi), 1))
    return data[:PNG_HEADER] + colours + metres + data[PNG_HEADER:] if colours or metres else data


def library() -> Any:
    """libvips. Raises BackendError where it is not installed."""
    try:
        import pyvips  # type: ignore[import-untyped]
    except (ImportError, OSError) as error:
        raise BackendError("PNGs of 16-bit colour need libvips (pip install pyvips pyvips-binary)") from error
    pyvips.cache_set_max(0)  # it would keep files and pixels that were read
    return pyvips
