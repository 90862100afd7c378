"""The bytes of one picture file -> its samples, exactly, or InputError with the reason.

Pillow decodes. What it would cut or misread without a word is found here and refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import IFD, Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from nlrn.errors import InputError
from nlrn.io.formats import avif_bits, gif_frames, inflated_size, png_colours, png_exif, png_parts, png_size, tiff_pages
from nlrn.io.wide import check_tiff, is_wide_png, is_wide_tiff, read, ready, tiff_pixels, tiff_tags

# The readers are called by name: Image.open has a limit of its own, global to the process.
_READERS: dict[bytes, type[ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile, b"\xff\xd8\xff": JpegImageFile, b"BM": BmpImageFile,
    b"GIF8": GifImageFile, b"RIFF": WebPImageFile, b"II*\0": TiffImageFile, b"MM\0*": TiffImageFile,
    b"II+\0": TiffImageFile, b"MM\0+": TiffImageFile,
    **{b"P%d" % digit: PpmImageFile for digit in range(1, 7)},
}  # fmt: skip
_GREY16 = frozenset({"I;16", "I;16B"})
_MODES = _GREY16 | {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
# Not carried over: how a TIFF stores its pixels, orientation, position, other blocks of metadata.
_DROPPED_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 301, 317, 320, *range(322, 326), 330}
    | {*range(338, 342), 347, *range(512, 522), 529, 530, 532, 700, 33723, 34377, 34675, 37724}
    | {IFD.GPSInfo, IFD.Exif, 33550, 33922, 34264, 34735, 34736, 34737, 42112}  # the last: places
)
_CROSSED: dict[int, int] = {
    Base.XResolution: Base.YResolution,
    Base.YResolution: Base.XResolution,
}  # of a picture that lay on its side
_TURNS: dict[int | None, Callable[[np.ndarray], np.ndarray]] = {  # HW or HWC by EXIF orientation
    2: np.fliplr, 3: lambda x: x[::-1, ::-1], 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


class _Told(NamedTuple):
    """What a file says of its picture as it is stored."""

    exif: Image.Exif
    orientation: int | None
    icc: bytes | None
    dpi: tuple[float, float] | None
    colours: bytes

    def rest(self, gps: bool) -> tuple[bytes | None, bytes | None, tuple[float, float] | None, bytes]:
        """icc, exif, dpi and colours of the upright picture."""
        lying = self.orientation in (5, 6, 7, 8)
        dpi = self.dpi[::-1] if self.dpi and lying else self.dpi
        return self.icc, _kept_exif(self.exif, gps, _CROSSED if lying else {}), dpi, self.colours


class Decoded(NamedTuple):
    """Samples HW or HW3 (uint8; uint16 for depth 16, float32 for 32), alpha HW of their type or None, and what else the
    file said. dpi: pixels per inch, across and down; colours: see nlrn.io.formats.png_colours."""

    colour: np.ndarray
    alpha: np.ndarray | None
    depth: int
    format: str
    icc: bytes | None
    exif: bytes | None
    dpi: tuple[float, float] | None
    colours: bytes


def is_avif(data: bytes) -> bool:
    """Its decoder believes the frame, not the size in the container: nlrn.io.sandbox decodes it."""
    brands = data[8 : min(256, int.from_bytes(data[:4], "big"))]  # the chief one, a version, those that fit too
    return data[4:8] == b"ftyp" and any(brands[i : i + 4] in (b"avif", b"avis") for i in range(0, len(brands), 4))


def is_known(data: bytes) -> bool:
    """Whether the file begins as one of a format that is read."""
    return _reader(data) is not None


def _reader(data: bytes) -> type[ImageFile] | None:
    if is_avif(data):
        return AvifImageFile
    reader = next((reader for magic, reader in _READERS.items() if data.startswith(magic)), None)
    return None if reader is WebPImageFile and data[8:12] != b"WEBP" else reader


def decode(
    data: bytes,
    max_pixels: int,
    *,
    gps: bool = False,
    before_pixels: Callable[[int, int], None] = lambda width, height: None,
) -> Decoded:
    """Decode one picture, upright; its size and kind are checked before any pixel is decoded.

    gps: the place stays in the EXIF. before_pixels(width, height) is called in between.
    Raises InputError for a picture that is refused, and whatever Pillow raises for one that is damaged.
    """
    reader = _reader(data)
    if reader is None:
        raise InputError("not a picture of a known format (AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF, WebP)")
    frames, rows = 1, []
    if reader is PngImageFile:
        rows = png_parts(data)
    elif reader is GifImageFile:
        frames = gif_frames(data)
    elif reader is TiffImageFile:
        frames, tags = tiff_pages(data), tiff_tags(data)
        if is_wide_tiff(tags):  # some of which Pillow does not even open
            check_tiff(tags)
            size = int(tags[Base.ImageWidth]), int(tags[Base.ImageLength])
            _check_size(*size, max_pixels)
            _check_frames(frames)
            pixels, icc = tiff_pixels(data, tags), tags.get(Base.InterColorProfile)
            told = _Told(tags, tags.get(Base.Orientation), icc or None, _tagged_dpi(tags), b"")
            return _wide(pixels, size, "TIFF", told, gps, before_pixels)
    with reader(io.BytesIO(data)) as picture:
        _check_size(*picture.size, max_pixels)
        _check_frames(max(frames, int(getattr(picture, "n_frames", 1))) if frames == 1 else frames)
        wide = reader is PngImageFile and is_wide_png(data, "transparency" in picture.info)
        depth = 16 if wide else _depth(picture, data)
        if reader is PngImageFile and inflated_size(rows, png_size(data)) < png_size(data):
            raise InputError("truncated: rows are missing")
        if wide:
            exif = _loaded_exif(png_exif(data))
            told = _told(picture, exif, exif.get(Base.Orientation), data)
            return _wide(data, picture.size, "PNG", told, gps, before_pixels)
        before_pixels(*picture.size)
        turned = getattr(picture, "tag_v2", {}).get(Base.Orientation)  # Pillow turns a TIFF as it loads
        picture.load()
        exif = _readable_exif(picture)
        told = _told(picture, exif, turned or exif.get(Base.Orientation), data)
        rest = told.rest(gps)  # before the orientation is taken out of it
        _apply_orientation(picture)
        colour, alpha = _planes(picture, data)
        return Decoded(colour, alpha, depth, str(picture.format), *rest)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{width} x {height} is {width * height:,} pixels; the limit is {max_pixels:,},"
            " raised by --max-pixels (max_pixels of nlrn.io.image.read_picture)",
            limit="pixels",
        )


def _check_frames(frames: int) -> None:
    if frames > 1:
        raise InputError(f"{frames} frames or pages; expected a single picture", limit="frames")


def _wide(
    data: bytes,
    size: tuple[int, int],
    form: str,
    told: _Told,
    gps: bool,
    before_pixels: Callable[[int, int], None],
) -> Decoded:
    """16-bit colour or alpha, or floats, upright."""
    ready()  # what the library itself takes is none of the picture's
    before_pixels(*size)
    turn = _TURNS.get(told.orientation, np.asarray)
    colour, alpha = read(data, size)
    depth = 8 * colour.itemsize
    return Decoded(turn(colour), None if alpha is None else turn(alpha), depth, form, *told.rest(gps))


def _told(picture: ImageFile, exif: Image.Exif, orientation: int | None, data: bytes) -> _Told:
    info = picture.info
    told = picture.format in ("BMP", "PNG") or info.get("jfif_unit") in (1, 2)  # else Pillow guesses
    dpi = _likely_dpi(*info["dpi"]) if told and "dpi" in info else _tagged_dpi(exif)
    colours = png_colours(data) if picture.format == "PNG" else b""
    return _Told(exif, orientation, info.get("icc_profile") or None, dpi, colours)


def _tagged_dpi(tags: Image.Exif) -> tuple[float, float] | None:
    """The resolution by the tags of a TIFF or an EXIF block."""
    inches = {2: 1.0, 3: 2.54}.get(tags.get(Base.ResolutionUnit, 2))
    values = tags.get(Base.XResolution), tags.get(Base.YResolution)
    return None if inches is None else _likely_dpi(*values, inches)


def _likely_dpi(x: Any, y: Any, times: float = 1.0) -> tuple[float, float] | None:
    """None for what is no resolution."""
    try:
        x, y = float(x) * times, float(y) * times
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0.5 <= x <= 1e6 and 0.5 <= y <= 1e6 else None  # NaN is neither


def _loaded_exif(block: bytes) -> Image.Exif:
    """Of a block, or none where it cannot be read or would fill the memory."""
    exif = Image.Exif()
    try:
        if block:
            tiff_pages(block)
            exif.load(block)
        return exif
    except Exception:
        return Image.Exif()


def _readable_exif(picture: Image.Image) -> Image.Exif:
    """EXIF, or none where it cannot be read."""
    try:
        _check_exif(picture)
        return picture.getexif()
    except Exception:
        return Image.Exif()


def _depth(picture: ImageFile, data: bytes) -> int:
    """The depth, 8 or 16, of a picture that Pillow reads as it is; InputError for any other."""
    bits, mode = _bits(picture, data), picture.mode
    tags = getattr(picture, "tag_v2", {})
    if isinstance(picture, PpmImageFile) and mode == "I":  # grey with a maximum over 255, scaled to 65535
        return 16
    if mode not in _MODES or any(kind != 1 for kind in tags.get(_SAMPLE_FORMAT, (1,))):
        raise InputError(f"pixels of mode {mode} ({bits} bits); expected unsigned integers, grey or colour")
    plain = tags.get(_PHOTOMETRIC, 1) == 1 and "transparency" not in picture.info  # 1: black is zero
    if mode in _GREY16 and bits == 16 and plain:
        return 16
    if bits > 8:
        raise InputError(
            f"{bits}-bit samples would be cut or misread here (as mode {mode}); save the picture with 8 bits a sample,"
            " or as PNG or TIFF with 16"
        )
    return 8


def _bits(picture: ImageFile, data: bytes) -> int:
    """Bits a sample in the file, where Pillow's mode does not tell."""
    if isinstance(picture, PngImageFile):
        return data[24]
    if isinstance(picture, AvifImageFile):
        return avif_bits(data)
    if isinstance(picture, TiffImageFile):
        return int(max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    arguments = picture.tile[0][3] if isinstance(picture, PpmImageFile) else None
    largest = arguments[1] if isinstance(arguments, tuple) else 0
    return 16 if isinstance(largest, int) and largest > 255 else 8


def _check_exif(picture: Image.Image) -> None:
    """Raises for EXIF that would fill the memory, also in the text form that ImageMagick wrote into PNGs."""
    text = str(picture.info.get("Raw profile type exif", ""))
    block = picture.info.get("exif") or bytes.fromhex("".join(text.split("\n")[3:]))
    tiff_pages(block.removeprefix(b"Exif\0\0"))


def _apply_orientation(picture: ImageFile) -> None:
    try:
        _check_exif(picture)
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception:  # EXIF that cannot be read says nothing about the orientation
        return


def _planes(picture: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour HW or HW3 (uint8 or uint16) and alpha HW (uint8) or None."""
    key = picture.info.get("transparency")
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGB" if key is None and picture.mode == "P" else "RGBA")
    elif picture.mode in ("1", "CMYK", "YCbCr"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    values = np.asarray(picture)
    if picture.mode == "I":  # a PGM of 16 bits, see _depth
        values = values.astype(np.uint16)
    if picture.mode in ("LA", "RGBA"):
        return values[..., 0] if picture.mode == "LA" else values[..., :3], values[..., -1].copy()
    if key is None:
        return values, None
    levels = 2 ** data[24] - 1 if isinstance(picture, PngImageFile) else 255
    wanted = (np.array(key) & levels) * (255 // levels)  # the file's own sample value, one a channel
    same = values == wanted
    opaque = ~(same.all(axis=2) if values.ndim == 3 else same)
    return values, opaque.astype(np.uint8) * np.uint8(255)


def _kept_exif(source: Image.Exif, gps: bool, renamed: Mapping[int, int]) -> bytes | None:
    """EXIF that still holds: without orientation and how the pixels were stored; gps: with the place. None for none."""
    kept = Image.Exif()
    try:
        for tag, value in source.items():
            if tag not in _DROPPED_TAGS:
                kept[renamed.get(tag, tag)] = value
        details = source.get_ifd(IFD.Exif)
        if details:
            kept[IFD.Exif] = dict(details)
        place = source.get_ifd(IFD.GPSInfo)
        if gps and place:
            kept[IFD.GPSInfo] = dict(place)
        return kept.tobytes() if len(kept) else None
    except Exception:  # unreadable EXIF is left out
        return None
