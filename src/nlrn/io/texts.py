"""What files hold in words besides EXIF: XMP, IPTC, the text chunks of PNG, the comments of JPEG.

They are read as bytes, from the structure of the file, and written as those bytes where the format has a place for
them. What no longer holds of the image, and the place where it was made, is taken out of XMP (nlrn.io.xmp).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nlrn.io import xmp
from nlrn.io.formats import PNG_HEADER, gif_blocks, png_chunk, png_chunks

MOST_BYTES = 16 << 20  # of all texts of a file
_XMP_PNG = b"XML:com.adobe.xmp"
_XMP_JPEG, _XMP_MORE = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP, _RESOURCE, _IPTC = b"Photoshop 3.0\0", b"8BIM", 0x0404
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_COPIES = (b"Raw profile type ", b"exif:", b"tiff:")  # ImageMagick's texts of what is carried over, or not, elsewhere
_SEGMENT = 65533  # bytes of what a JPEG's segment can hold
_PACKETS = frozenset({"AVIF", "JPEG", "PNG", "TIFF", "WEBP"})  # formats with a place for XMP
_PPM_PART = re.compile(rb"\s*(?:(#)|(\d+))")
_FREE, _FIRST = b"\xff", range(0xE0, 0xE3)  # filling between segments; APP0 to APP2 come before others


class Texts(NamedTuple):
    """The texts of a file. xmp: a packet; iptc: records of IPTC's Information Interchange Model; empty for none.

    chunks: names and contents of a PNG's text chunks; comments: of a JPEG. notes: names of what is not carried over.
    """

    xmp: bytes = b""
    iptc: bytes = b""
    chunks: tuple[bytes, ...] = ()
    comments: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()

    def upright(self, gps: bool) -> Texts:
        """Those of the upright image; gps: with the place where it was made."""
        packet = xmp.upright(self.xmp, gps=gps)
        chunks = tuple(chunk for chunk in self.chunks if gps or not xmp.is_place("", _keyword(chunk).decode("latin-1")))
        found = self._replace(xmp=packet or b"", chunks=chunks)
        if packet is None:
            found = found._replace(notes=(*found.notes, "XMP that cannot be read"))
        if sum(map(len, (found.xmp, found.iptc, *found.chunks, *found.comments))) > MOST_BYTES:
            found = Texts(notes=(*found.notes, f"texts of over {MOST_BYTES >> 20} MiB"))
        return found

    def held_to(self, size: tuple[int, int], depth: int) -> Texts:
        """Those of an image of this (height, width) and so many bits a sample."""
        return self._replace(xmp=xmp.held_to(self.xmp, size, depth) or b"")

    def lost_in(self, form: str) -> list[str]:
        """Names of what files of the format have no place for."""
        lost = ["XMP"] if self.xmp and not self._packet(form) else []
        lost += ["IPTC"] if self.iptc and not self._records(form) else []
        count = len(self.chunks)
        lost += [f"{count} text{'s' if count > 1 else ''}"] if count and form != "PNG" else []
        kept = form == "JPEG" and all(len(comment) <= _SEGMENT for comment in self.comments)
        return lost + (["a comment"] if self.comments and not kept else [])

    def _packet(self, form: str) -> bytes:
        """XMP for a file of the format; empty for none."""
        if form == "TIFF":
            return self.xmp
        packet = self.xmp.rstrip(b"\0")
        fits = form in _PACKETS and (form != "JPEG" or len(packet) <= _SEGMENT - len(_XMP_JPEG))
        return packet if fits and xmp.is_utf8(packet) else b""

    def _records(self, form: str) -> bytes:
        """IPTC for a file of the format; empty for none."""
        room = _SEGMENT - len(_PHOTOSHOP) - 12
        return self.iptc if form == "TIFF" or (form == "JPEG" and len(self.iptc) <= room) else b""

    def options(self, form: str) -> dict[str, bytes]:
        """The arguments of Pillow's save, or of nlrn.io.tiffwriting.tiff, that write them."""
        if form not in ("AVIF", "TIFF", "WEBP"):
            return {}
        found = {"xmp": self._packet(form), "iptc": self._records(form)}
        return {name: value for name, value in found.items() if value}

    def written(self, data: bytes, form: str) -> bytes:
        """The file of a PNG or JPEG with them; others as they are."""
        packet, records = self._packet(form), self._records(form)
        if form == "PNG":
            parts = [b"iTXt" + _XMP_PNG + bytes(5) + packet] if packet else []
            return _put(data, PNG_HEADER, (png_chunk(named[:4], named[4:]) for named in (*parts, *self.chunks)))
        if form != "JPEG":
            return data
        parts = [b"\xe1" + _XMP_JPEG + packet] if packet else []
        if records:
            size = struct.pack(">HHI", _IPTC, 0, len(records))
            parts.append(b"\xed" + _PHOTOSHOP + _RESOURCE + size + records + bytes(len(records) % 2))
        parts += [b"\xfe" + comment for comment in self.comments if len(comment) <= _SEGMENT]
        place = next((start for start, marker, _ in _segments(data) if marker not in _FIRST), 2)
        return _put(data, place, (b"\xff" + x[:1] + struct.pack(">H", len(x) + 1) + x[1:] for x in parts))


NO_TEXTS = Texts()


def _put(data: bytes, place: int, parts: Iterator[bytes]) -> bytes:
    more = b"".join(parts)
    return data[:place] + more + data[place:] if more else data


# -- of each format ---------------------------------------------------------------------------------------------------


def _keyword(chunk: bytes) -> bytes:
    return chunk[4:].partition(b"\0")[0]


def _png(data: bytes) -> Texts:
    packet, chunks, notes = b"", list[bytes](), list[str]()
    for kind, place, end in png_chunks(data):
        if kind not in _TEXTS:
            continue
        named = data[place + 4 : end - 4]
        if kind == b"iTXt" and _keyword(named) == _XMP_PNG:
            found = _international(named)
            notes += ["XMP that cannot be read"] if not found else ["a second XMP"] if packet else []
            packet = packet or found
        elif _keyword(named).startswith(_COPIES):
            notes.append("a copy of a profile")
        else:
            chunks.append(named)
    return Texts(packet, chunks=tuple(chunks), notes=tuple(dict.fromkeys(notes)))


def _international(named: bytes) -> bytes:
    """The text of a chunk iTXt; empty where it cannot be read, or is over 4 MiB."""
    rest = named[4:].partition(b"\0")[2]
    flags, parts = rest[:2], rest[2:].split(b"\0", 2)
    if len(parts) < 3 or flags not in (b"\0\0", b"\1\0"):
        return b""
    if flags == b"\0\0":
        return parts[2]
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(parts[2], xmp.MAX_BYTES + 1)
    except zlib.error:
        return b""
    return text if stream.eof and len(text) <= xmp.MAX_BYTES else b""


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(place, marker, contents) of what stands before the first scan of a JPEG."""
    place = 2
    while data[place : place + 1] == _FREE:
        behind = place + 1
        while data[behind : behind + 1] == _FREE:
            behind += 1
        marker, length = data[behind : behind + 1], int.from_bytes(data[behind + 1 : behind + 3], "big")
        if marker in (b"\xda", b"\xd9", b"") or length < 2:
            break
        yield place, marker[0], data[behind + 3 : behind + 1 + length]
        place = behind + 1 + length


def _jpeg(data: bytes) -> Texts:
    packets, comments, photoshop, more = list[bytes](), list[bytes](), list[bytes](), False
    for _, marker, contents in _segments(data):
        if marker == 0xFE:
            comments.append(contents)
        elif marker == 0xE1 and contents.startswith(_XMP_JPEG):
            packets.append(contents[len(_XMP_JPEG) :])
        elif marker == 0xE1 and contents.startswith(_XMP_MORE):
            more = True
        elif marker == 0xED:
            photoshop.append(contents.removeprefix(_PHOTOSHOP))
    iptc, others = _resources(b"".join(photoshop))
    notes = ["a second XMP"] * (len(packets) > 1) + ["extended XMP"] * more + ["Photoshop's data"] * others
    return Texts(packets[0] if packets else b"", iptc, comments=tuple(comments), notes=tuple(notes))


def _resources(data: bytes) -> tuple[bytes, bool]:
    """IPTC among Photoshop's resources, empty for none; whether there are others."""
    place, iptc, others = 0, b"", False
    while data[place : place + 4] == _RESOURCE:
        number = int.from_bytes(data[place + 4 : place + 6], "big")
        named = place + 6 + (data[place + 6] + 2) // 2 * 2 if place + 6 < len(data) else len(data)
        size = int.from_bytes(data[named : named + 4], "big")
        value = data[named + 4 : named + 4 + size]
        if number == _IPTC and not iptc and len(value) == size:
            iptc = value
        else:
            others = True
        place = named + 4 + size + size % 2
    return iptc, others or bool(data[place:].strip(b"\0"))


def _webp(data: bytes) -> Texts:
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] == b"XMP ":
            return Texts(data[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    return Texts()


def _ppm(data: bytes) -> Texts:
    text = data[: 1 << 16]
    place, numbers = 2, 2 if data[1:2] in b"14" else 3
    while numbers and (found := _PPM_PART.match(text, place)):
        if found[1]:
            return Texts(notes=("a comment",))
        place, numbers = found.end(), numbers - bool(found[2])
    return Texts()


def _gif(data: bytes) -> Texts:
    notes = list[str]()
    for kind, place in gif_blocks(data):
        if kind == b"\x21\xfe":
            notes.append("a comment")
        elif kind == b"\x21\xff" and data[place + 1 : place + 12] == b"XMP DataXMP":
            notes.append("XMP")
    return Texts(notes=tuple(dict.fromkeys(notes)))


_READERS: dict[str, Callable[[bytes], Texts]] = {
    "GIF": _gif, "JPEG": _jpeg, "PNG": _png, "PPM": _ppm, "WEBP": _webp,
}  # fmt: skip


def texts_of(data: bytes, form: str, packet: bytes = b"") -> Texts:
    """Those of a file of a format, by Pillow's name; packet: its XMP where only a library finds it (AVIF)."""
    reader = _READERS.get(form)
    return reader(data) if reader else Texts(packet)


def tiff_texts(packet: bytes, iptc: bytes, photoshop: bytes) -> Texts:
    """Those of a TIFF, of the values of its tags 700, 33723 and 34377; empty for a tag that it does not have."""
    inside, others = _resources(photoshop)
    if not iptc.startswith(b"\x1c") and iptc[3:4] == b"\x1c" and len(iptc) % 4 == 0:  # swapped, as numbers of 32 bits
        iptc = struct.pack(f">{len(iptc) // 4}I", *struct.unpack(f"<{len(iptc) // 4}I", iptc))
    return Texts(packet, iptc or inside, notes=("Photoshop's data",) if others else ())
