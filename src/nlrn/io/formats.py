"""The outer structure of AVIF, PNG, GIF and TIFF files, read before Pillow sees them.

Pillow ignores wrong checksums and missing rows in a PNG, and some small files keep it busy for minutes or
fill the memory. Everything here takes time in proportion to the file and hardly any memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, Protocol

from nlrn.errors import InputError

PNG_HEADER = 33  # bytes of the signature and IHDR
_PIECE = 1 << 16  # bytes of a compressed stream that are looked at together
_MAX_CHUNKS = 1 << 16  # 512 MiB in pieces of 8 KiB, which is what most writers make
TAG_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), start=1))  # by TIFF type
_COLOUR_CHUNKS = frozenset({b"cHRM", b"cICP", b"gAMA", b"sRGB"})  # the meaning of a PNG's numbers, with its profile
_POINTERS = frozenset({34665, 34853, 40965})  # tags that hold the place of another directory
_SUB_DIRECTORIES, _MOST_DIRECTORIES = 330, 64


class PngHeader(NamedTuple):
    """The chunk IHDR of a PNG. colour: 0 grey, 2 RGB, 3 palette, 4 and 6 the first two with alpha."""

    width: int
    height: int
    bits: int
    colour: int
    compression: int
    filters: int
    interlace: int


def png_header(data: bytes) -> PngHeader:
    """The header of a PNG, which begins behind the signature and the chunk's length and name."""
    return PngHeader._make(struct.unpack_from(">IIBBBBB", data, 16))


def gif_frames(data: bytes) -> int:
    """Number of frames of a GIF.

    Raises InputError for a comment in over 1,000 pieces: Pillow's time is the square of their number.
    """
    frames, comments = 0, 0
    for kind, place in gif_blocks(data):
        frames += kind == b"\x2c"
        while kind == b"\x21\xfe" and data[place]:
            place += 1 + data[place]
            comments += 1
            if comments > 1000:
                raise InputError("damaged: its comment is in over 1,000 pieces")
    return frames


def gif_blocks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(kind, place of its first piece) of the blocks of a GIF; kind: of a frame, or of an extension, two bytes.

    Raises InputError, or IndexError, where there is none.
    """
    place = 13 + _gif_table(data[10])
    while place < len(data) and data[place] != 0x3B:
        kind = data[place : place + 1]
        if kind == b"\x2c":
            place += 11 + _gif_table(data[place + 9])
        elif kind == b"\x21":
            kind = data[place : place + 2]
            place += 2
        else:
            raise InputError("damaged: no GIF block where one should be")
        yield kind, place
        while data[place]:
            place += 1 + data[place]
        place += 1


def _gif_table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags % 8 + 1) if flags & 0x80 else 0


def avif_bits(data: bytes) -> int:
    """The most bits a sample of the images in an AVIF, 8, 10 or 12, by the boxes that set up their decoders."""
    bits, place = 8, data.find(b"av1C")
    while place >= 0:
        flags = int.from_bytes(data[place + 6 : place + 7], "big")  # after a mark and the profile
        bits = max(bits, (12 if flags & 0x20 else 10) if flags & 0x40 else 8)
        place = data.find(b"av1C", place + 4)
    return bits


class Bytes(Protocol):
    """The bytes of a file: in memory, or of a file on a disk, read where they are needed."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes: ...


def tiff_pages(data: Bytes, *, strict: bool = False, most: int = 10_000) -> int:
    """Number of pages of a TIFF file or EXIF block, at most so many.

    Refused when the tags of the first page claim more bytes than there are: Pillow would read them all. strict: also
    where a directory of any page, or of those they point to, or a value of its tags ends beyond the file: readers
    ignore such tags, which may define how the pixels are stored.
    """
    walk = _Directories(data, strict)
    offset, seen = walk.number(8 if walk.big else 4, walk.wide), set[int]()
    if walk.claimed(offset) > len(data):
        raise InputError("damaged: its tags claim more bytes than the file has")
    while 0 < offset < len(data) and offset not in seen and len(seen) < most:
        if strict and offset not in walk.seen and len(seen) < _MOST_DIRECTORIES:
            walk.claimed(offset)
        seen.add(offset)
        offset = walk.number(walk.end(offset), walk.wide)
    if strict and offset >= len(data):
        raise InputError("truncated: its next page lies beyond the file")
    return len(seen)


class _Directories:
    """The directories of a TIFF file or EXIF block, as far as their tags give lengths and offsets."""

    def __init__(self, data: Bytes, strict: bool) -> None:
        self.data, self.strict, self.seen = data, strict, set[int]()
        self.order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
        self.big = b"+" in data[2:4]
        self.wide, self.count_size, self.entry = (8, 8, 20) if self.big else (4, 2, 12)
        self.pointers = _POINTERS | {_SUB_DIRECTORIES} if strict else _POINTERS

    def number(self, place: int, size: int) -> int:
        return int.from_bytes(self.data[place : place + size], self.order)

    def end(self, offset: int) -> int:
        return offset + self.count_size + self.entry * self.number(offset, self.count_size)

    def claimed(self, offset: int) -> int:
        """Bytes of all values of a directory and of those it points to (EXIF, GPS, interoperability)."""
        end, total = self.end(offset), 0
        self.seen.add(offset)
        if self.strict and not 8 <= offset < end <= len(self.data):
            raise InputError("truncated: a directory of its tags ends beyond the file")
        for place in range(offset + self.count_size, min(end, len(self.data)), self.entry):
            total += self._value(place)
        return total

    def _value(self, place: int) -> int:
        """Bytes of the value of one tag, and of the directories that it points to."""
        tag, count, each = self.number(place, 2), self.number(place + 4, self.wide), self.number(place + 2, 2)
        each = TAG_BYTES.get(each, 0)
        total = count * each
        at = place + 4 + self.wide if total <= self.wide else self.number(place + 4 + self.wide, self.wide)
        if self.strict and at + total > len(self.data):
            raise InputError(f"truncated: the value of its tag {tag} lies beyond the file")
        if tag in self.pointers:
            for i in range(min(count, _MOST_DIRECTORIES - len(self.seen))):
                inner = self.number(at + each * i, each)
                if inner not in self.seen and len(self.seen) < _MOST_DIRECTORIES:
                    total += self.claimed(inner)
        return total


def png_parts(data: bytes) -> list[memoryview]:
    """The pieces of the compressed rows of a PNG.

    Raises InputError for what Pillow accepts silently: wrong checksums, and whatever the specification forbids of the
    chunks that decide about pixels (PNG, third edition, 5.6 and 11.2).
    """
    seen, parts, view, before = set[bytes](), list[memoryview](), memoryview(data), b""
    for number, (kind, place, end) in enumerate(png_chunks(data)):
        if number == _MAX_CHUNKS:
            raise InputError(f"damaged: over {_MAX_CHUNKS:,} chunks")
        if end > len(data):
            raise InputError("truncated")
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise InputError(f"damaged: wrong checksum of chunk {kind!r}")
        _check_png_order(kind, before, seen)
        body = view[place + 8 : end - 4]
        if kind in _PNG_CHECKS:
            _PNG_CHECKS[kind](body, data)
        if kind == b"IDAT":
            parts.append(body)
        seen.add(kind)
        before = kind
    if before != b"IEND":
        raise InputError("truncated")
    if png_header(data).colour == 3 and b"PLTE" not in seen:
        raise InputError("damaged: the palette is missing")
    if not parts:
        raise InputError("damaged: no rows")
    return parts


def _check_png_order(kind: bytes, before: bytes, seen: set[bytes]) -> None:
    """Raises InputError for a chunk that may not stand behind those that were seen."""
    if not kind.isalpha():
        raise InputError(f"damaged: {kind!r} is no name of a chunk")
    if (kind == b"IHDR") != (not before):
        raise InputError("damaged: a PNG begins with its one chunk IHDR")
    if kind[:1].isupper() and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
        raise InputError(f"it has a chunk {kind!r} that is critical and unknown")
    if kind == b"IDAT" and b"IDAT" in seen and before != b"IDAT":
        raise InputError("damaged: other chunks between those of its rows")
    if kind in (b"PLTE", b"tRNS") and (kind in seen or b"IDAT" in seen):
        raise InputError(f"damaged: {kind.decode()} twice, or behind the rows")
    if kind == b"PLTE" and b"tRNS" in seen:
        raise InputError("damaged: PLTE behind tRNS")


def _check_header(body: memoryview, data: bytes) -> None:
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    if len(body) != 13 or 0 in (header := png_header(data))[:2]:
        raise InputError("damaged: its header is of another length, or of an image without pixels")
    if header.bits not in depths.get(header.colour, ()) or header.compression or header.filters or header.interlace > 1:
        raise InputError(f"damaged: {header.bits} bits of colour type {header.colour}, or a method that does not exist")


def _check_palette(body: memoryview, data: bytes) -> None:
    header = png_header(data)
    most = 2**header.bits if header.colour == 3 else 256
    if header.colour in (0, 4) or len(body) % 3 or not 3 <= len(body) <= 3 * most:
        raise InputError("damaged: a palette of a size that cannot be, or of a grey image")


def _check_transparency(body: memoryview, data: bytes) -> None:
    sizes = {0: (2,), 2: (6,), 3: range(1, 257)}
    if len(body) not in sizes.get(png_header(data).colour, ()):
        raise InputError("damaged: its transparency is of another size than its colours")


_PNG_CHECKS = {b"IHDR": _check_header, b"PLTE": _check_palette, b"tRNS": _check_transparency}


def png_colour_count(data: bytes) -> int:
    """Entries of the palette of a PNG; 0 without one."""
    return next(((end - place - 12) // 3 for kind, place, end in png_chunks(data) if kind == b"PLTE"), 0)


def bmp_check(data: bytes) -> None:
    """Raises InputError for runs of 4-bit pixels, of which Pillow reads those of odd length wrongly.

    Also where the pixels would begin inside of the header or the palette: readers disagree about such a file.
    """
    first, header, bits, compression, used = (
        int.from_bytes(data[k : k + n], "little") for k, n in ((10, 4), (14, 4), (28, 2), (30, 4), (46, 4))
    )
    if header >= 40 and bits == 4 and compression == 2:
        raise InputError("a BMP of 4 bits in runs (RLE4) is not read; save it without compression, or as PNG")
    most = 2**bits if bits in (1, 4, 8) else 0
    palette = 4 * (used or most) if header >= 40 and used <= most else 0  # a larger number is wrong
    if 0 < first < 14 + header + palette:
        raise InputError(f"damaged: its pixels begin at byte {first}, inside of its header or palette")


def avif_check(data: bytes) -> None:
    """Raises InputError for a clean aperture, the part of the frame that is the image, which the decoder ignores."""
    place = 0
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        size = size if size > 1 else int.from_bytes(data[place + 8 : place + 16], "big") if size else len(data) - place
        if kind == b"meta" and b"\0\0\0\x28clap" in data[place : place + size]:
            raise InputError("it declares a part of its frame as the image (clap), which is not read; save it cropped")
        place += max(size, 8)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, place, end) of every chunk of a PNG, up to IEND, or to one that the file does not hold all of."""
    place, kind = 8, b""
    while kind != b"IEND" and place + 12 <= len(data):
        kind, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4], "big")
        yield kind, place, end
        place = end


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_exif(data: bytes) -> bytes:
    """The EXIF block of a PNG, wherever it stands; empty for none."""
    return next((data[place + 8 : end - 4] for kind, place, end in png_chunks(data) if kind == b"eXIf"), b"")


def png_colours(data: bytes) -> bytes:
    """The chunks gAMA, cHRM, sRGB and cICP of a PNG, unchanged, the first of each; empty for none."""
    found: dict[bytes, bytes] = {}
    for kind, place, end in png_chunks(data):
        if kind in _COLOUR_CHUNKS and end - place <= 12 + 32:
            found.setdefault(kind, data[place:end])
    return b"".join(chunk for _, chunk in sorted(found.items()))


def png_size(data: bytes) -> int:
    """Bytes of the filtered rows of a PNG, from its header."""
    header = png_header(data)
    pixel = header.bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[header.colour]
    passes = [(0, 0, 1, 1)]
    if header.interlace:  # Adam7: first column and row, steps
        passes = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    sizes = [(-((x - header.width) // dx), -((y - header.height) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + -(-columns * pixel // 8)) for columns, rows in sizes if columns > 0)


def inflated_size(parts: Iterable[memoryview], enough: int) -> int:
    """Bytes that a zlib stream holds, counted until there are enough; never more than 1 MiB in memory."""
    stream, size = zlib.decompressobj(), 0
    pieces = (part[i : i + _PIECE] for part in parts for i in range(0, len(part), _PIECE))
    for piece in pieces:  # small ones: what is not consumed yet is copied each time
        rest: bytes | memoryview = piece
        while rest and size < enough and not stream.eof:
            size += len(stream.decompress(rest, 1 << 20))
            rest = stream.unconsumed_tail
        if size >= enough or stream.eof:
            break
    return size if size >= enough else size + len(stream.flush())
