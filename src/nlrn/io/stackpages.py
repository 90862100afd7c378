"""What the pages of a stack must be, so that each can be written as it was read."""

from __future__ import annotations

from typing import Any

from nlrn.errors import InputError
from nlrn.io.chunks import WRITTEN
from nlrn.io.tiffs import kind_of
from nlrn.io.tiffsamples import CMYK, PALETTE, YCBCR, Kind


def stack_kind(page: Any, *, lookup: bool) -> Kind:
    """What the samples of a page are. Raises InputError for what is not read, or not written as it was.

    lookup: as of `kind_of`.
    """
    kind = kind_of(page, lookup=lookup)
    if kind.photometric == PALETTE:
        raise InputError("a palette, which stacks do not keep: save it as grey of 8 bits, or as RGB")
    if kind.bits < 8:
        bits = f"{kind.bits} bit{'s' if kind.bits > 1 else ''}"
        raise InputError(f"samples of {bits}, which stacks do not keep: save it as grey of 8 bits")
    if kind.photometric == CMYK or (kind.photometric == YCBCR and int(page.compression) in WRITTEN):
        name = "CMYK" if kind.photometric == CMYK else "YCbCr outside of JPEG"
        raise InputError(f"{name}, which stacks do not keep: save it as RGB")
    return kind
