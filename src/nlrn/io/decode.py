"""The bytes of one image file -> its samples, exactly, or InputError with the reason.

Pillow decodes. What it would cut or misread silently is found here and refused. Further kinds of file are
`nlrn.io.further`'s.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from nlrn.errors import InputError
from nlrn.io import further
from nlrn.io.boxes import brands
from nlrn.io.formats import (
    avif_bits,
    avif_check,
    bmp_check,
    gif_frames,
    inflated_size,
    png_colour_count,
    png_colours,
    png_exif,
    png_header,
    png_parts,
    png_size,
    tiff_pages,
)
from nlrn.io.metadata import Decoded, FileMetadata, likely_dpi, loaded_exif, tagged_dpi
from nlrn.io.texts import texts_of
from nlrn.io.tiffs import CameraRawError, read_tiff
from nlrn.io.wide import is_wide_png, library, read
from nlrn.io.xmp import orientation as xmp_orientation

# The readers are called by name: Image.open has another limit, global to the process.
_READERS: dict[bytes, type[ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile, b"\xff\xd8\xff": JpegImageFile, b"BM": BmpImageFile,
    b"GIF8": GifImageFile, b"RIFF": WebPImageFile, b"II*\0": TiffImageFile, b"MM\0*": TiffImageFile,
    b"II+\0": TiffImageFile, b"MM\0+": TiffImageFile,
    **{b"P%d" % digit: PpmImageFile for digit in range(1, 7)},
}  # fmt: skip
_GREY16 = frozenset({"I;16", "I;16B"})
_MODES = _GREY16 | {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def reason_of(error: Exception) -> str:
    """The reason of a refusal where a library failed: what it does not support is not damaged."""
    said = str(error) or type(error).__name__
    unread = "unsupported" in said.lower() or "not supported" in said.lower()
    return f"of a kind that is not read ({said})" if unread else f"damaged or truncated ({said})"


class ApartError(Exception):
    """A file whose decoder is run by nlrn.io.sandbox only, in a limited process."""


def is_known(data: bytes) -> bool:
    """Whether the file begins as one of a format that is read, if need be with an extra."""
    return _reader(data) is not None or further.kind_of(data) is not None


def _reader(data: bytes) -> type[ImageFile] | None:
    if brands(data) & {b"avif", b"avis"}:
        return AvifImageFile
    reader = next((reader for magic, reader in _READERS.items() if data.startswith(magic)), None)
    return None if reader is WebPImageFile and data[8:12] != b"WEBP" else reader


def decode(
    data: bytes,
    max_pixels: int,
    *,
    gps: bool = False,
    apart: bool = False,
    before_pixels: Callable[[int, int], None] = lambda width, height: None,
) -> Decoded:
    """Decode one image, upright; its size and kind are checked before any pixel is decoded.

    gps: the place stays in the EXIF. before_pixels(width, height) is called in between. apart: this is a process that
    is limited in memory and time; else ApartError is raised for AVIF, whose decoder ignores the size in the container,
    and for what nlrn.io.further reads.
    Raises InputError for an image that is refused, and whatever Pillow raises for one that is damaged.
    """
    reader, checked = _reader(data), partial(check_size, max_pixels=max_pixels)
    kind = further.kind_of(data) if reader is None else None
    if reader is None and kind is None:
        raise InputError(
            "not an image of a known format (AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF, WebP; with extras HEIC, JPEG 2000,"
            " JPEG XL, camera raw)"
        )
    if reader is TiffImageFile:
        try:
            return read_tiff(data, gps, checked, before_pixels)
        except CameraRawError:
            kind = further.RAW
    if not apart and (kind is not None or reader is AvifImageFile):
        raise ApartError
    if kind is not None:
        return further.read(kind, data, gps, checked, before_pixels)
    assert reader is not None
    return _by_pillow(reader, data, max_pixels, gps, before_pixels)


def _by_pillow(
    reader: type[ImageFile], data: bytes, max_pixels: int, gps: bool, before_pixels: Callable[[int, int], None]
) -> Decoded:
    frames, rows = 1, []
    if reader is PngImageFile:
        rows = png_parts(data)
    elif reader is BmpImageFile:
        bmp_check(data)
    elif reader is AvifImageFile:
        avif_check(data)
    elif reader is GifImageFile:
        frames = gif_frames(data)
    with reader(io.BytesIO(data)) as image:
        check_size(*image.size, max_pixels)
        frames = max(frames, int(getattr(image, "n_frames", 1))) if frames == 1 else frames
        if frames > 1:
            raise InputError(f"{frames} frames or pages; expected a single image", limit="frames")
        wide = reader is PngImageFile and is_wide_png(data, "transparency" in image.info)
        if not wide:
            _check_depth(image, data)
        if reader is PngImageFile and inflated_size(rows, png_size(data)) < png_size(data):
            raise InputError("truncated: rows are missing")
        if wide:
            library()  # the memory of the library itself is not the image's
            before_pixels(*image.size)
            metadata = _file_metadata(image, loaded_exif(png_exif(data)), data)
            return metadata.decoded(*read(data, image.size), "PNG", gps)
        before_pixels(*image.size)
        packet = _packet_of_avif(image)
        image.load()
        metadata = _file_metadata(image, _readable_exif(image), data, packet)
        return metadata.decoded(*_planes(image, data), str(image.format), gps)


def check_size(
    width: int, height: int, max_pixels: int, argument: str = " (max_pixels of nlrn.io.image.read_image)"
) -> None:
    """Raises InputError for more pixels than the limit."""
    if width * height > max_pixels:
        pixels = f"{width} x {height} is {width * height:,} pixels"
        limit = f"the limit is {max_pixels:,}, raised by --max-pixels{argument}"
        raise InputError(f"{pixels}; {limit}", limit="pixels")


def _packet_of_avif(image: ImageFile) -> bytes:
    """XMP that only the library finds, which Pillow then does not see: it would turn the image by it.

    What turns an AVIF are its container's properties irot and imir alone (MIAF, ISO/IEC 23000-22).
    """
    packet = image.info.pop("xmp", b"") if isinstance(image, AvifImageFile) else b""
    return packet if isinstance(packet, bytes) else b""


def _file_metadata(image: ImageFile, exif: Image.Exif, data: bytes, packet: bytes = b"") -> FileMetadata:
    info = image.info
    metadata = image.format in ("BMP", "PNG") or info.get("jfif_unit") in (1, 2)  # else Pillow guesses
    dpi = likely_dpi(*info["dpi"]) if metadata and "dpi" in info else tagged_dpi(exif)
    colours = png_colours(data) if image.format == "PNG" else b""
    texts = texts_of(data, str(image.format), packet)
    notes = ("CMYK was converted to RGB",) if image.mode == "CMYK" else ()
    orientation = exif.get(Base.Orientation)
    if image.format != "AVIF":
        orientation = orientation or xmp_orientation(texts.xmp)
    return FileMetadata(exif, orientation, info.get("icc_profile") or None, dpi, colours, notes, texts)


def _readable_exif(image: Image.Image) -> Image.Exif:
    """EXIF, or none where it cannot be read or would fill the memory, also as the text that ImageMagick wrote."""
    try:
        text = str(image.info.get("Raw profile type exif", ""))
        block = image.info.get("exif") or bytes.fromhex("".join(text.split("\n")[3:]))
        tiff_pages(block.removeprefix(b"Exif\0\0"))
        return image.getexif()
    except Exception:
        return Image.Exif()


def _check_depth(image: ImageFile, data: bytes) -> None:
    """Raises InputError for an image whose 8 or 16 bits Pillow does not read exactly."""
    bits, mode = bits_of(image, data), image.mode
    if isinstance(image, PpmImageFile) and mode == "I":  # grey with a maximum over 255, scaled to 65535
        return
    if mode not in _MODES:
        raise InputError(f"pixels of mode {mode} ({bits} bits); expected unsigned integers, grey or colour")
    if bits > 8 and not (mode in _GREY16 and bits == 16 and "transparency" not in image.info):
        raise InputError(
            f"{bits}-bit samples would be cut or misread here (as mode {mode}); save the image with 8 bits a sample,"
            " or as PNG or TIFF with 16"
        )


def bits_of(image: ImageFile, data: bytes) -> int:
    """Bits a sample in the file, which Pillow's mode does not always show."""
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITSPERSAMPLE, (1,)))
    if isinstance(image, PngImageFile):
        return png_header(data).bits
    if isinstance(image, AvifImageFile):
        return avif_bits(data)
    arguments = image.tile[0][3] if isinstance(image, PpmImageFile) else None
    largest = arguments[1] if isinstance(arguments, tuple) else 0
    return 16 if isinstance(largest, int) and largest > 255 else 8


def _planes(image: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour HW or HW3 (uint8 or uint16) and alpha HW (uint8) or None."""
    key = image.info.get("transparency")
    if isinstance(image, PngImageFile) and image.mode == "P" and np.asarray(image).max() >= png_colour_count(data):
        raise InputError("damaged: pixels of colours that its palette does not have")
    if image.mode in ("P", "PA"):
        image = image.convert("RGB" if key is None and image.mode == "P" else "RGBA")
    elif image.mode in ("1", "CMYK", "YCbCr"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    values = np.asarray(image)
    if image.mode == "I":  # a PGM of 16 bits, see _check_depth
        values = values.astype(np.uint16)
    if image.mode in ("LA", "RGBA"):
        return further.planes(values)
    if key is None:
        return values, None
    levels = 2 ** png_header(data).bits - 1 if isinstance(image, PngImageFile) else 255
    wanted = (np.array(key) & levels) * (255 // levels)  # the file's own sample value, one a channel
    same = values == wanted
    opaque = ~(same.all(axis=2) if values.ndim == 3 else same)
    return values, opaque.astype(np.uint8) * np.uint8(255)
