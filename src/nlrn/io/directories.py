"""Directories of a TIFF or BigTIFF, in either byte order: their tags as bytes, and as a file has them.

Values are kept as the bytes that they were, so that what a stack says of itself (OME-XML, ImageJ's metadata, its
resolution) is written as it was read.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from nlrn.io.formats import TAG_BYTES, Bytes

Entry = tuple[int, int, bytes]  # type and count of a tag's value, its bytes
BYTE, ASCII, SHORT, LONG, UNDEFINED, LONG_8 = 1, 2, 3, 4, 7, 16  # types
LONG8 = {16: 4, 17: 9, 18: 13}  # types of a BigTIFF and what they are in a TIFF
_POINTERS = frozenset({34665, 34853})  # tags: EXIF, GPS
_BELOW = {34665: frozenset({40965}), 34853: frozenset[int](), 40965: frozenset[int]()}  # of those in these directories
AGAIN = 1 << 16  # added to a tag that its directory has already, as tifffile writes two descriptions


@dataclass(frozen=True)
class Form:
    """Of a file: its byte order, "<" or ">", and whether it is a BigTIFF."""

    order: Literal["<", ">"] = "<"
    big: bool = False

    @property
    def wide(self) -> int:
        """Bytes of a place in the file."""
        return 8 if self.big else 4

    def header(self, first: int) -> bytes:
        """The file's first bytes, 8 or 16; first: the place of its first directory."""
        mark = b"II" if self.order == "<" else b"MM"
        if self.big:
            return mark + struct.pack(self.order + "HHHQ", 43, 8, 0, first)
        return mark + struct.pack(self.order + "HI", 42, first)

    def short(self, *values: int) -> Entry:
        """A tag of short numbers."""
        return SHORT, len(values), struct.pack(f"{self.order}{len(values)}H", *values)

    def places(self, values: Sequence[int]) -> Entry:
        """A tag of places or sizes."""
        letter = "Q" if self.big else "I"
        packed = struct.pack(f"{self.order}{len(values)}{letter}", *values)
        return LONG_8 if self.big else LONG, len(values), packed

    def parts(self, start: int, sizes: Sequence[int], *, tiled: bool) -> dict[int, Entry]:
        """The tags of where strips or tiles of these sizes lie, one behind the other."""
        tags, starts = (324, 325) if tiled else (273, 279), list(accumulate(sizes[:-1], initial=start))
        return {tags[0]: self.places(starts), tags[1]: self.places(sizes)}

    def block(self, entries: Mapping[int, Entry], start: int, *, last: bool) -> bytes:
        """A directory at this place, its values behind it; another follows at the next even place unless it is last.

        Keys of entries are tags, of those that occur again with AGAIN added, as often as they do.
        """
        order, wide = self.order, self.wide
        head = struct.pack(order + ("Q" if self.big else "H"), len(entries))
        size = len(head) + len(entries) * (4 + 2 * wide) + wide
        lines, values = [], bytearray()
        for key, entry in sorted(entries.items(), key=lambda one: (one[0] % AGAIN, one[0])):
            tag = key % AGAIN
            kind, count, raw = entry if self.big else narrow(entry, order)
            if len(raw) > wide:
                inside = struct.pack(order + ("Q" if self.big else "I"), start + size + len(values))
                values += raw + bytes(len(raw) % 2)
            else:
                inside = raw.ljust(wide, b"\0")
            lines.append(struct.pack(order + ("HHQ" if self.big else "HHI"), tag, kind, count) + inside)
        behind = start + size + len(values)
        following = 0 if last else behind + behind % 2
        return b"".join([head, *lines, struct.pack(order + ("Q" if self.big else "I"), following), values])


def narrow(entry: Entry, order: str, *, clamped: bool = False) -> Entry:
    """An entry of a BigTIFF as a TIFF has it. Numbers that do not fit raise struct.error, or are clamped."""
    kind, count, raw = entry
    if kind not in LONG8:
        return entry
    signed = LONG8[kind] == 9
    values: Sequence[int] = struct.unpack(f"{order}{count}{'q' if signed else 'Q'}", raw)
    if clamped:
        values = [min(n, 2**31 - 1 if signed else 2**32 - 1) for n in values]
    return LONG8[kind], count, struct.pack(f"{order}{count}{'i' if signed else 'I'}", *values)


def raw_value(tag: Any, data: Bytes) -> bytes:
    """The bytes of a tag's value; tifffile follows those that point to directories."""
    wide, letter = (8, "Q") if tag.parent.is_bigtiff else (4, "I")
    place, size = tag.offset + 4 + wide, tag.count * TAG_BYTES[int(tag.dtype)]
    if size > wide:
        (place,) = struct.unpack(tag.parent.byteorder + letter, data[place : place + wide])
    return data[place : place + size]


def entries_of(
    page: Any, data: Bytes, without: frozenset[int] = frozenset(), *, again: frozenset[int] = frozenset()
) -> dict[int, Entry]:
    """The tags of a page as tifffile parsed it, with the bytes of their values.

    The first of each; of the tags `again` the others, too, each with one more AGAIN added.
    """
    found: dict[int, Entry] = {}
    seen = Counter[int]()
    for tag in page.tags:
        code = int(tag.code)
        if code not in without and (not seen[code] or code in again):
            found[code + seen[code] * AGAIN] = int(tag.dtype), int(tag.count), raw_value(tag, data)
        seen[code] += 1
    return found


def entries_at(data: Bytes, place: int, form: Form) -> dict[int, Entry]:
    """The tags of a directory at a place of the file, but for those whose values do not lie in it."""
    order, wide, letter = form.order, form.wide, "Q" if form.big else "I"
    head, each = (8, 20) if form.big else (2, 12)
    (count,) = struct.unpack(order + ("Q" if form.big else "H"), data[place : place + head])
    found: dict[int, Entry] = {}
    for at in range(place + head, min(place + head + count * each, len(data) - each + 1), each):
        tag, kind, number = struct.unpack(order + "HH" + letter, data[at : at + 4 + wide])
        start, size = at + 4 + wide, number * TAG_BYTES.get(kind, 0)
        if size > wide:
            (start,) = struct.unpack(order + letter, data[start : start + wide])
        raw = data[start : start + size]
        if kind in TAG_BYTES and len(raw) == size:
            found.setdefault(tag, (kind, number, raw))
    return found


def with_pointed(
    entries: Mapping[int, Entry], data: Bytes, form: Form, start: int, pointers: frozenset[int] = _POINTERS
) -> bytes:
    """A TIFF's directory at this place, of tags of the file `data`; EXIF and GPS, to which they point there, follow it.

    form: the file's, which may be a BigTIFF. pointers: those of the tags that point. Its length is even.
    """
    small = Form(form.order)
    kept = {tag: narrow(entry, form.order, clamped=True) for tag, entry in entries.items()}
    pointing = sorted(pointers & entries.keys())
    kept |= {tag: small.places([0]) for tag in pointing}
    size = len(small.block(kept, start, last=True))
    behind = bytes(size % 2)
    for tag in pointing:
        kind, _, raw = entries[tag]
        place = int.from_bytes(raw[: TAG_BYTES[kind]], "little" if form.order == "<" else "big")
        at = start + size + len(behind)
        kept[tag] = small.places([at])
        behind += with_pointed(entries_at(data, place, form), data, form, at, _BELOW[tag])
    return small.block(kept, start, last=True) + behind
