"""The pages of a stack: which are planes, and what they must be to be written as they were read."""

from __future__ import annotations

import math
from typing import Any

from nlrn.errors import InputError
from nlrn.io.chunks import PLAIN, WRITTEN
from nlrn.io.tiffs import kind_of
from nlrn.io.tiffsamples import CMYK, PALETTE, YCBCR, Kind

# Tags whose values are not as their types say, or point into the file: they cannot be copied.
PRIVATE = {33628: "STK", 33629: "STK", 33630: "STK", 33631: "STK", 34412: "LSM"}


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


def places_of(series: Any, pages: int) -> list[tuple[int, int]]:
    """(page, image behind it) of each plane of a series, in its order."""
    listed = list(series._pages)
    if any(page is None or page.parent is not series.parent for page in listed):
        raise InputError("some of its planes lie in other files, or nowhere: save the stack as one file")
    count = math.prod(series.get_shape(False)) // max(1, series.keyframe.size)
    if count == len(listed):
        return [(int(page.index), 0) for page in listed]
    if len(listed) == 1 and pages == count:
        return [(number, 0) for number in range(pages)]
    page = listed[0]
    if len(listed) == 1 and int(page.compression) == PLAIN and page.is_contiguous and series.dataoffset is not None:
        end = int(page.dataoffsets[0]) + count * int(page.nbytes)
        if end > series.parent.filehandle.size:
            raise InputError("truncated: planes are missing")
        return [(int(page.index), number) for number in range(count)]
    raise InputError(f"{count} planes are declared, and {len(listed)} found: planes are missing")
