"""The tags of a page whose image is made larger: its sides, what a pixel measures, and what counts pixels elsewhere.

OME-XML, ImageJ's and tifffile's descriptions are edited where they name sides and the size of a pixel. What counts
pixels in a way that is not known here is left out and named: regions (ROI), private tags of microscopes, of maps.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from nlrn.errors import InputError
from nlrn.io import xmp
from nlrn.io.directories import AGAIN, BYTE, LONG, Entry, Form
from nlrn.io.metadata import XMP

SizeOf = Callable[[int, int], tuple[int, int]]  # (height, width) of an image of this height and width made larger
_WIDTH, _LENGTH, _BITS, _DESCRIPTION = 256, 257, 258, 270
_RESOLUTIONS, _UNIT, _PLANAR, _SAMPLES = (283, 282), 296, 284, 277  # down, across
_IMAGEJ_SIZES, _IMAGEJ = 50838, 50839
_RATIONAL, _NO_UNIT, _MOST = 5, 1, 2**32 - 1
_COUNTING = {  # tags
    33550: "GeoTIFF", 33922: "GeoTIFF", 34264: "GeoTIFF", 33628: "STK", 33629: "STK", 33630: "STK", 33631: "STK",
    34118: "Zeiss SEM", 34361: "FluoView", 34362: "FluoView", 34412: "LSM", 34680: "FEI", 34682: "FEI",
    51123: "Micro-Manager",
}  # fmt: skip
_PIXELS = re.compile(rb"<(?:\w+:)?Pixels\b[^>]*>")
_ATTRIBUTE = re.compile(rb"""\b(SizeX|SizeY|PhysicalSizeX|PhysicalSizeY)(\s*=\s*)(["'])([^"']*)\3""")
_REGIONS = re.compile(rb"<((?:\w+:)?ROI(?:Ref)?)\b(?:[^>]*/>|.*?</\1\s*>)", re.DOTALL)
_ORIGIN = re.compile(rb"^([xy])origin=([-+.\deE]+)", re.MULTILINE)


def grown_tags(
    entries: Mapping[int, Entry], size_of: SizeOf, form: Form, *, calibrated: bool
) -> tuple[dict[int, Entry], tuple[str, ...]]:
    """The tags of a page in its new size, and names of what is left out.

    calibrated: its resolution is that of the thing itself, also where it has a unit. Raises InputError for tags that
    are damaged, and what size_of raises.
    """
    kept, lost = dict(entries), []
    before = number(entries[_LENGTH], form), number(entries[_WIDTH], form)
    size = size_of(*before)
    grown = Fraction(size[0], before[0]), Fraction(size[1], before[1])
    kept[_LENGTH], kept[_WIDTH] = form.places([size[0]]), form.places([size[1]])
    if calibrated or (_UNIT in entries and number(entries[_UNIT], form) == _NO_UNIT):
        for tag, times in zip(_RESOLUTIONS, grown, strict=True):
            if tag in entries:
                kept[tag] = _times(entries[tag], times, form)
    for tag in entries.keys() & _COUNTING.keys():
        lost.append(_COUNTING[tag])
        del kept[tag]
    if XMP in entries:
        packet = xmp.held_to(kept.pop(XMP)[2], size, number(entries[_BITS], form))
        kept |= {XMP: (BYTE, len(packet), packet)} if packet else {}
        lost += [] if packet else ["XMP"]
    for key in [key for key in entries if key % AGAIN == _DESCRIPTION]:
        kind, _, raw = kept.pop(key)
        said = _described(raw, entries, before, size_of, form)
        kept |= {key: (kind, len(said), said)} if said else {}
        regions = b"<OME" in raw[:2000] and _REGIONS.search(raw)
        lost += ["regions (ROI)"] if regions else [] if said else ["its description"]
    try:
        lost += ["regions (ROI)"] * _without_regions(kept, form)
    except (struct.error, IndexError):  # it cannot be parsed
        lost.append("ImageJ's block")
        kept = {tag: entry for tag, entry in kept.items() if tag not in (_IMAGEJ, _IMAGEJ_SIZES)}
    return kept, tuple(dict.fromkeys(lost))


def number(entry: Entry, form: Form) -> int:
    """The first of a tag's whole numbers. Raises InputError."""
    kind, _, raw = entry
    try:
        return int(struct.unpack_from(form.order + {1: "B", 3: "H", 4: "I", 16: "Q"}[kind], raw)[0])
    except (KeyError, struct.error):
        raise InputError(f"damaged: a whole number is of type {kind}") from None


def _times(entry: Entry, times: Fraction, form: Form) -> Entry:
    """A rational number, multiplied; what is none stays."""
    kind, count, raw = entry
    if kind != _RATIONAL or count != 1:
        return entry
    above, below = struct.unpack(form.order + "II", raw)
    if not above or not below:
        return entry
    value = Fraction(above, below) * times
    if value.numerator > _MOST or value.denominator > _MOST:  # the nearest that has room
        value = value.limit_denominator(max(1, int(_MOST / max(value, Fraction(1)))))
    if value.numerator > _MOST:
        return entry
    return kind, count, struct.pack(form.order + "II", value.numerator, value.denominator)


# -- descriptions -----------------------------------------------------------------------------------------------------


def _described(raw: bytes, entries: Mapping[int, Entry], before: tuple[int, int], size_of: SizeOf, form: Form) -> bytes:
    """The text for the new size; empty where it gives a shape that is not that of the page."""
    if b"<OME" in raw[:2000] or b":OME" in raw[:2000]:
        return _REGIONS.sub(b"", _PIXELS.sub(lambda found: _pixels(found[0], size_of), raw))
    size = size_of(*before)
    if raw.startswith(b"ImageJ="):
        grown = {b"y": size[0] / before[0], b"x": size[1] / before[1]}
        return _ORIGIN.sub(lambda found: b"%borigin=%.12g" % (found[1], float(found[2]) * grown[found[1]]), raw)
    if raw.startswith(b"{") and b'"shape"' in raw:
        separate = _PLANAR in entries and number(entries[_PLANAR], form) == 2
        samples = number(entries[_SAMPLES], form) if _SAMPLES in entries else 1
        return _shaped(raw, before, size, behind=samples > 1 and not separate)
    return raw


def _pixels(tag: bytes, size_of: SizeOf) -> bytes:
    """The start of an element Pixels of OME-XML."""
    said = {found[1]: found[4] for found in _ATTRIBUTE.finditer(tag)}
    try:
        before = int(said[b"SizeY"]), int(said[b"SizeX"])
    except (KeyError, ValueError):
        return tag
    sides = dict(zip((b"SizeY", b"SizeX"), zip(size_of(*before), before, strict=True), strict=True))

    def new(found: re.Match[bytes]) -> bytes:
        name, value = found[1], found[4]
        after, was = sides[name.removeprefix(b"Physical")]
        if name in sides:
            value = b"%d" % after
        else:
            try:
                value = b"%.12g" % (float(value) * was / after)
            except ValueError:  # no number
                return b""
        return b"".join((name, found[2], found[3], value, found[3]))

    return _ATTRIBUTE.sub(new, tag)


def _shaped(raw: bytes, before: tuple[int, int], size: tuple[int, int], *, behind: bool) -> bytes:
    """tifffile's: JSON with a shape, perhaps axes and the size of a pixel. behind: samples are the last axis."""
    try:
        said: dict[str, Any] = json.loads(raw.rstrip(b"\0"))
        shape, axes = [int(n) for n in said["shape"]], str(said.get("axes", ""))
        at = len(shape) - 2 - behind, len(shape) - 1 - behind
        if len(axes) == len(shape) and "Y" in axes and "X" in axes:
            at = axes.index("Y"), axes.index("X")
        if min(at) < 0 or (shape[at[0]], shape[at[1]]) != before:
            return b""
    except (ValueError, TypeError, KeyError, RecursionError):
        return b""
    shape[at[0]], shape[at[1]] = size
    said["shape"] = shape
    for name, was, after in zip(("PhysicalSizeY", "PhysicalSizeX"), before, size, strict=True):
        if isinstance(said.get(name), int | float):
            said[name] = said[name] * was / after
    return json.dumps(said).encode() + b"\0"


# -- ImageJ's block ---------------------------------------------------------------------------------------------------


def _without_regions(entries: dict[int, Entry], form: Form) -> bool:
    """Take regions and overlays out of ImageJ's block of metadata; whether there were any."""
    if _IMAGEJ not in entries or _IMAGEJ_SIZES not in entries:
        return False
    _, count, packed = entries[_IMAGEJ_SIZES]
    data, sizes = entries[_IMAGEJ][2], struct.unpack(f"{form.order}{count}I", packed[: 4 * count])
    order = ">" if data[:4] == b"IJIJ" else "<"
    parts, place, first = list[tuple[bytes, list[bytes]]](), sizes[0], 1
    for at in range(4, sizes[0], 8):
        name, several = struct.unpack_from(f"{order}4sI", data, at)
        values = list[bytes]()
        for index in range(first, first + several):
            values.append(data[place : place + sizes[index]])
            place += sizes[index]
        first += several
        parts.append((name, values))
    kept = [(name, values) for name, values in parts if name not in (b"roi ", b"over", b" ior", b"revo")]
    if len(kept) == len(parts):
        return False
    del entries[_IMAGEJ], entries[_IMAGEJ_SIZES]
    if kept:
        head = data[:4] + b"".join(struct.pack(f"{order}4sI", name, len(values)) for name, values in kept)
        every = [head, *(value for _, values in kept for value in values)]
        block, lengths = b"".join(every), [len(part) for part in every]
        entries[_IMAGEJ] = BYTE, len(block), block
        entries[_IMAGEJ_SIZES] = LONG, len(lengths), struct.pack(f"{form.order}{len(lengths)}I", *lengths)
    return True
