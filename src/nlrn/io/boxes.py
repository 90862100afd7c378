"""Boxes: what files of HEIC, JPEG 2000 and JPEG XL consist of, each with a length and a name of four letters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nlrn.errors import InputError

_MOST = 1 << 16


class Box(NamedTuple):
    """start, end: of its content, in the file."""

    kind: bytes
    start: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes of a file, or of the content of one of them. Raises InputError where one ends beyond it."""
    end = len(data) if end is None else end
    for _ in range(_MOST):
        if start == end:
            return
        size, head = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        size = size or end - start  # the last one may leave it open
        if size < head or start + size > end:
            raise InputError("truncated: one of its boxes ends beyond the file")
        yield Box(data[start + 4 : start + 8], start + head, start + size)
        start += size
    raise InputError(f"damaged: over {_MOST:,} boxes")


def brands(data: bytes) -> frozenset[bytes]:
    """The kinds of file that its first box, ftyp, names; empty for none."""
    if data[4:8] != b"ftyp":
        return frozenset()
    named = data[8 : min(256, int.from_bytes(data[:4], "big"))]  # the chief one, a version, those that fit too
    return frozenset(named[i : i + 4] for i in range(0, len(named), 4) if i != 4)
