"""The outer structure of AVIF, PNG, GIF and TIFF files, read before Pillow sees them.

Pillow passes over wrong checksums and missing rows in a PNG, and some small files keep it busy for minutes or
fill the memory. Everything here takes time in proportion to the file and hardly any memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Literal

from nlrn.errors import InputError

_MAX_CHUNKS = 1 << 16  # 512 MiB in pieces of 8 KiB, which is what most writers make
_TAG_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), start=1))  # by TIFF type
_COLOUR_CHUNKS = frozenset({b"cHRM", b"cICP", b"gAMA", b"sRGB"})  # what the numbers of a PNG mean, besides its profile
_POINTERS = frozenset({34665, 34853, 40965})  # tags that hold the place of another directory


def gif_frames(data: bytes) -> int:
    """Number of frames; a comment in very many pieces is refused, Pillow takes the square of their number."""
    place, frames, comments = 13 + _gif_table(data[10]), 0, 0
    while place < len(data) and data[place] != 0x3B:
        comment = data[place : place + 2] == b"\x21\xfe"
        if data[place] == 0x2C:
            frames += 1
            place += 11 + _gif_table(data[place + 9])
        elif data[place] == 0x21:
            place += 2
        else:
            raise InputError("damaged: no GIF block where one should be")
        while data[place]:
            place += 1 + data[place]
            comments += comment
            if comments > 1000:
                raise InputError("damaged: its comment is in over 1,000 pieces")
        place += 1
    return frames


def _gif_table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags % 8 + 1) if flags & 0x80 else 0


def avif_bits(data: bytes) -> int:
    """The most bits a sample of the pictures in an AVIF, 8, 10 or 12, by the boxes that set up their decoders."""
    bits, place = 8, data.find(b"av1C")
    while place >= 0:
        flags = int.from_bytes(data[place + 6 : place + 7], "big")  # after a mark and the profile
        bits = max(bits, (12 if flags & 0x20 else 10) if flags & 0x40 else 8)
        place = data.find(b"av1C", place + 4)
    return bits


def tiff_pages(data: bytes) -> int:
    """Number of pages of a TIFF file or EXIF block, at most 10,000.

    Refused when the tags of the first page claim more bytes than there are: Pillow would read them all.
    """
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    big = b"+" in data[2:4]
    wide, count_size, entry = (8, 8, 20) if big else (4, 2, 12)

    directories: set[int] = set()

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], order)

    def claimed(offset: int) -> int:
        """Bytes of all values of a directory and of those it points to (EXIF, GPS, interoperability)."""
        first, total = offset + count_size, 0
        directories.add(offset)
        for place in range(first, min(first + entry * number(offset, count_size), len(data)), entry):
            total += number(place + 4, wide) * _TAG_BYTES.get(number(place + 2, 2), 0)
            inner = number(place + 4 + wide, wide)
            if number(place, 2) in _POINTERS and inner not in directories and len(directories) < 8:
                total += claimed(inner)
        return total

    offset, seen = number(8 if big else 4, wide), set[int]()
    if claimed(offset) > len(data):
        raise InputError("damaged: its tags claim more bytes than the file has")
    while 0 < offset < len(data) and offset not in seen and len(seen) < 10_000:
        seen.add(offset)
        offset = number(offset + count_size + entry * number(offset, count_size), wide)
    return len(seen)


def png_parts(data: bytes) -> list[memoryview]:
    """The pieces of the compressed rows; what Pillow lets pass is refused: wrong checksums, no palette."""
    place, kinds, parts, view = 8, set(), [], memoryview(data)
    for _ in range(_MAX_CHUNKS):
        length = int.from_bytes(data[place : place + 4], "big")
        kind, checksum = data[place + 4 : place + 8], data[place + 8 + length : place + 12 + length]
        if len(checksum) < 4:
            raise InputError("truncated")
        if zlib.crc32(view[place + 4 : place + 8 + length]) != int.from_bytes(checksum, "big"):
            raise InputError(f"damaged: wrong checksum of chunk {kind!r}")
        kinds.add(kind)
        if kind == b"IDAT":
            parts.append(view[place + 8 : place + 8 + length])
        place += 12 + length
        if kind == b"IEND":
            break
    else:
        raise InputError(f"damaged: over {_MAX_CHUNKS:,} chunks")
    if data[25] == 3 and b"PLTE" not in kinds:
        raise InputError("damaged: the palette is missing")
    return parts


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, place, end) of every chunk of a PNG that png_parts has seen, up to the last."""
    place, kind = 8, b""
    while kind != b"IEND" and place + 12 <= len(data):
        kind, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4], "big")
        yield kind, place, end
        place = end


def png_exif(data: bytes) -> bytes:
    """The EXIF block of a PNG, wherever it stands; empty for none."""
    return next((data[place + 8 : end - 4] for kind, place, end in _png_chunks(data) if kind == b"eXIf"), b"")


def png_colours(data: bytes) -> bytes:
    """Its chunks gAMA, cHRM, sRGB and cICP as they are, the first of each; empty for none."""
    found: dict[bytes, bytes] = {}
    for kind, place, end in _png_chunks(data):
        if kind in _COLOUR_CHUNKS and end - place <= 12 + 32:
            found.setdefault(kind, data[place:end])
    return b"".join(chunk for _, chunk in sorted(found.items()))


def png_size(data: bytes) -> int:
    """Bytes of the filtered rows of a PNG, from its header."""
    width, height = (int.from_bytes(data[k : k + 4], "big") for k in (16, 20))
    pixel = data[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[data[25]]
    passes = [(0, 0, 1, 1)]
    if data[28]:  # Adam7: first column and row, steps
        passes = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + -(-columns * pixel // 8)) for columns, rows in sizes if columns > 0)


def inflated_size(parts: Iterable[memoryview], enough: int) -> int:
    """Bytes that a zlib stream holds, counted until there are enough; never more than 1 MiB in memory."""
    stream, size = zlib.decompressobj(), 0
    for part in parts:
        rest: bytes | memoryview = part
        while rest and size < enough and not stream.eof:
            size += len(stream.decompress(rest, 1 << 20))
            rest = stream.unconsumed_tail
    return size if size >= enough else size + len(stream.flush())
