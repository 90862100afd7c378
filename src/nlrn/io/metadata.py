"""The metadata of a file: EXIF and TIFF tags, resolution, orientation, descriptions.

What is no longer valid for the image as read or written is updated or left out; what is left out is named.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

from nlrn.io.formats import tiff_pages
from nlrn.io.texts import NO_TEXTS, Texts

XMP, IPTC, PHOTOSHOP, LAYERS = 700, 33723, 34377, 37724
_BLOCKS = {  # tags that no EXIF block keeps
    XMP: "XMP", IPTC: "IPTC", PHOTOSHOP: "Photoshop's data", LAYERS: "layers", 50839: "ImageJ's metadata",
}  # fmt: skip
# Not carried over: how a TIFF stores its pixels, orientation, position, other blocks of metadata.
_DROPPED_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 301, 317, 320, *range(322, 326)}
    | {330, 332, 333, 334, *range(336, 342), 347, *range(512, 522), 529, 530, 532, 34675, 50838, 50839, *_BLOCKS}
    | {IFD.GPSInfo, IFD.Exif, 33550, 33922, 34264, 34735, 34736, 34737, 42112}  # the last: places
)
_CROSSED: dict[int, int] = {
    Base.XResolution: Base.YResolution,
    Base.YResolution: Base.XResolution,
}  # of an image that lay on its side
TURNS: dict[int | None, Callable[[np.ndarray], np.ndarray]] = {  # HW or HWC by EXIF orientation
    2: np.fliplr, 3: lambda x: x[::-1, ::-1], 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip
_NO_UNIT = 1  # of the tag ResolutionUnit
_OME_TYPES = {8: "uint8", 16: "uint16", 32: "float"}


class FileMetadata(NamedTuple):
    """The metadata of a file about its image as stored."""

    exif: Image.Exif
    orientation: int | None
    icc: bytes | None
    dpi: tuple[float, float] | None
    colours: bytes = b""
    notes: tuple[str, ...] = ()
    texts: Texts = NO_TEXTS

    def decoded(self, colour: np.ndarray, alpha: np.ndarray | None, form: str, gps: bool) -> Decoded:
        """The decoded file of these samples as they lie in it, turned upright. gps: with the place."""
        turn, lying = TURNS.get(self.orientation, np.asarray), self.orientation in (5, 6, 7, 8)
        dpi = self.dpi[::-1] if self.dpi and lying else self.dpi
        exif = _kept_exif(self.exif, gps, _CROSSED if lying else {})
        blocks = [name for tag, name in _BLOCKS.items() if tag in self.exif]
        texts = self.texts.upright(gps)
        notes = (*left_out(list(dict.fromkeys([*texts.notes, *blocks]))), *self.notes)
        alpha, depth = None if alpha is None else turn(alpha), 8 * colour.itemsize
        texts = texts._replace(notes=())
        return Decoded(turn(colour), alpha, depth, form, self.icc, exif, dpi, self.colours, notes, texts)


class Decoded(NamedTuple):
    """A decoded file: samples HW or HW3 (uint8; uint16 for depth 16, float32 for 32), and metadata.

    alpha: HW of their type or None. dpi: pixels per inch, across and down; colours: see nlrn.io.formats.png_colours;
    notes: what of the file was left out or converted, a line each; texts: what it holds in words besides EXIF.
    """

    colour: np.ndarray
    alpha: np.ndarray | None
    depth: int
    format: str
    icc: bytes | None
    exif: bytes | None
    dpi: tuple[float, float] | None
    colours: bytes
    notes: tuple[str, ...] = ()
    texts: Texts = NO_TEXTS


def left_out(blocks: list[str]) -> tuple[str, ...]:
    """The line that names blocks of metadata that are not carried over; none for none."""
    return (f"left out of the metadata: {', '.join(blocks)}",) if blocks else ()


def tagged_dpi(tags: Image.Exif) -> tuple[float, float] | None:
    """The resolution by the tags of a TIFF or an EXIF block."""
    inches = {2: 1.0, 3: 2.54}.get(tags.get(Base.ResolutionUnit, 2))
    values = tags.get(Base.XResolution), tags.get(Base.YResolution)
    return None if inches is None else likely_dpi(*values, inches)


def likely_dpi(x: Any, y: Any, times: float = 1.0) -> tuple[float, float] | None:
    """None for what is no resolution."""
    try:
        x, y = float(x) * times, float(y) * times
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0.5 <= x <= 1e6 and 0.5 <= y <= 1e6 else None  # NaN is neither


def loaded_exif(block: bytes) -> Image.Exif:
    """Of a block, or none where it cannot be read or would fill the memory."""
    exif = Image.Exif()
    try:
        if block:
            tiff_pages(block.removeprefix(b"Exif\0\0"))
            exif.load(block)
        return exif
    except Exception:
        return Image.Exif()


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
        return exif_bytes(kept) if len(kept) else None
    except Exception:  # unreadable EXIF is left out
        return None


def exif_bytes(exif: Image.Exif) -> bytes:
    """The block, its texts byte for byte: Pillow reads Latin-1, and writes what is not ASCII as question marks."""
    for tag, value in list(exif.items()):
        exif[tag] = as_bytes(value)
    return exif.tobytes()


def as_bytes(value: Any) -> Any:
    """A tag's value, texts that are not ASCII as the bytes that they were."""
    if isinstance(value, dict):
        return {tag: as_bytes(inner) for tag, inner in value.items()}
    if isinstance(value, str) and not value.isascii():
        with contextlib.suppress(UnicodeEncodeError):
            return value.encode("latin-1")
    return value


def text_of(value: Any) -> str:
    """A description as text."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value or "")


def held_to(
    exif: bytes, size: tuple[int, int], channels: int, depth: int, *, grown: tuple[float, float] = (1.0, 1.0)
) -> tuple[bytes | None, tuple[str, ...]]:
    """The EXIF block of an image of this (height, width), with so many channels and bits, and what had to go.

    Sizes are brought up to date, a resolution without a unit, or in ImageJ's and OME's files, grows with the sides. A
    description that names another size or type, as OME's, ImageJ's or tifffile's does, is left out.
    """
    found = loaded_exif(exif)
    details = found.get_ifd(IFD.Exif) if IFD.Exif in found else {}
    for tag, side in ((Base.ExifImageWidth, size[1]), (Base.ExifImageHeight, size[0])):
        if tag in details:
            details[tag] = side
    notes: tuple[str, ...] = ()
    description = text_of(found.get(Base.ImageDescription))
    if kind := _stale(description, size, channels, depth, grown):
        del found[Base.ImageDescription]
        notes = (f"left out: {kind}, which no longer holds",)
    if found.get(Base.ResolutionUnit) == _NO_UNIT or _of_a_microscope(description):
        for tag, times in ((Base.XResolution, grown[1]), (Base.YResolution, grown[0])):
            if tag in found and times != 1:
                found[tag] = float(found[tag]) * times
    return (exif_bytes(found) if len(found) else None), notes


def is_worth_naming(exif: bytes) -> bool:
    """Whether the block holds more than a resolution, which every TIFF has."""
    return bool(set(loaded_exif(exif)) - {Base.XResolution, Base.YResolution, Base.ResolutionUnit})


def is_calibrated(exif: bytes | None) -> bool:
    """Whether the resolution is that of the thing itself, as a microscope gives it, and not of a print."""
    return _of_a_microscope(text_of(loaded_exif(exif or b"").get(Base.ImageDescription)))


def _of_a_microscope(description: str) -> bool:
    return "<OME" in description[:2000] or description.startswith("ImageJ=")


def _stale(text: str, size: tuple[int, int], channels: int, depth: int, grown: tuple[float, float]) -> str:
    """The kind of a description that is not valid for such an image; else empty."""
    if "<OME" in text[:2000]:
        said = dict(re.findall(r'\b(SizeX|SizeY|SizeC|Type)="([^"]*)"', text))
        holds = {"SizeX": str(size[1]), "SizeY": str(size[0]), "SizeC": str(channels), "Type": _OME_TYPES[depth]}
        stale = grown != (1.0, 1.0) or any(holds[name] != value for name, value in said.items())
        return "its OME description" if stale else ""
    if text.startswith("{") and '"shape"' in text:
        try:
            shape = [int(n) for n in json.loads(text)["shape"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return "its description"
        return (
            "" if [n for n in shape if n > 1] == [n for n in (*size, channels) if n > 1] else "its tifffile description"
        )
    if text.startswith("ImageJ="):
        said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        levels = {8: 255.0, 16: 65535.0}.get(depth)
        with contextlib.suppress(ValueError):
            shown = [float(said[name]) for name in ("min", "max") if name in said]
            stale = bool(shown) and (levels is None or max(shown) > levels or (depth == 16 and max(shown) <= 1))
            return "its ImageJ description" if stale else ""
        return "its ImageJ description"
    return ""
