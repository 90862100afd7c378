"""TIFF files: what one declares as its image, by tifffile's parse, and its samples, all of them or none.

tifffile reads what is not compressed and what is deflated; libtiff, through Pillow, the other compressions. Which
directory is the image, and whether its kind is read, is decided here for both. Camera raw files, stacks, channels that
are neither colour nor alpha, missing strips and tags outside of the file are refused; reduced copies (previews, the
levels of a pyramid) are left out with a note.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.ExifTags import Base

from nlrn.errors import InputError
from nlrn.io.directories import raw_value
from nlrn.io.formats import tiff_pages
from nlrn.io.metadata import IPTC, PHOTOSHOP, XMP, Decoded, FileMetadata, held_to, tagged_dpi
from nlrn.io.texts import tiff_texts
from nlrn.io.tiffsamples import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CMYK,
    FLOAT,
    PALETTE,
    RGB,
    UINT,
    UNASSOCIATED,
    WHITE_IS_ZERO,
    YCBCR,
    Kind,
    checked_parts,
    each_of,
    samples_of,
    tags_of,
)

if TYPE_CHECKING:
    from tifffile import TiffFile

_SENSOR = frozenset({32803, 34892})  # of the tag PhotometricInterpretation: what a camera's sensor saw
_NAMES = {4: "a mask", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32844: "LogL", 32845: "LogLuv"}  # of the same
_INT, _NOT_SAID = 2, 4  # of the tag SampleFormat
_MOST_PAGES = 64  # that are looked at: more are no pyramid
_DNG, _PATTERN = 50706, 33421
_TEXTS = XMP, IPTC, PHOTOSHOP


class CameraRawError(InputError):
    """A camera's raw file that begins as a TIFF does."""


def read_tiff(
    data: bytes,
    gps: bool,
    check_size: Callable[[int, int], None],
    before_pixels: Callable[[int, int], None],
) -> Decoded:
    """The image that a TIFF declares, upright. check_size, before_pixels: called with its width and height.

    Raises InputError for a file or a kind that is refused, CameraRawError among them, and whatever a library raises for
    one that is damaged.
    """
    from tifffile import TiffFile

    pages = tiff_pages(data, strict=True)
    if pages > _MOST_PAGES:
        raise InputError(f"{pages:,} frames or pages; expected a single image", limit="frames")
    # the stream is closed, for tifffile's objects refer to each other and hold it until a collection
    with silent(), io.BytesIO(data) as stream, TiffFile(stream, is_ome=False) as file:
        page, notes = _main(file, data)
        width, height = page.imagewidth, page.imagelength
        if min(width, height) < 1:
            raise InputError("damaged or truncated: tags are missing")
        check_size(width, height)
        kind = kind_of(page)
        images = images_behind(file, page)
        if images > 1:
            raise InputError(
                f"a stack of {images:,} images of {width} x {height} behind one directory; expected a"
                " single image: save them as files of their own",
                limit="frames",
            )
        parts = checked_parts(page, kind, data)
        before_pixels(width, height)
        colour, alpha, more = samples_of(page, kind, parts, data)
        if colour.dtype == np.float32 and not np.isfinite(colour).all():
            raise InputError("it holds numbers that are not finite (NaN or infinity)")
        tags = tags_of(page, data)
        orientation = tags.get(Base.Orientation)
        icc = tags.get(Base.InterColorProfile)
        blocks = [raw_value(page.tags[code], data) if code in page.tags else b"" for code in _TEXTS]
        for code in _TEXTS:
            tags.pop(code, None)
        icc = icc if isinstance(icc, bytes) else None
        notes, texts = notes + more, tiff_texts(*blocks)
        metadata = FileMetadata(tags, orientation, icc, tagged_dpi(tags), notes=notes, texts=texts)
        found = metadata.decoded(colour, alpha, "TIFF", gps)
        if found.exif is None:
            return found
        bands = (1 if colour.ndim == 2 else 3) + (alpha is not None)
        exif, stale = held_to(found.exif, found.colour.shape[:2], bands, found.depth)
        return found._replace(exif=exif, notes=found.notes + stale)


@contextmanager
def silent() -> Iterator[None]:
    """tifffile logs what it passes over; what matters of it is refused here."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


# -- what the file declares -------------------------------------------------------------------------------------------


def _main(file: TiffFile, data: bytes) -> tuple[Any, tuple[str, ...]]:
    """The directory of the image, and a note of what else there is. Raises InputError where that is not clear."""
    chain: list[Any] = list(file.pages)
    below = [(page, inner) for page in chain for inner in _sub_directories(page)]
    every = chain + [inner for _, inner in below]
    _refuse_raw(every, data)
    if any(page.is_mask for page in every):
        raise InputError("it holds a mask besides its image, which would be lost: save the image with an alpha channel")
    whole = [page for page in chain if not page.is_reduced]
    whole += [inner for page, inner in below if not inner.is_reduced and not _is_level(page, inner)]
    if not whole and len(chain) == 1:
        whole = chain
    if len(whole) != 1:
        sizes = [f"{page.imagewidth} x {page.imagelength}" for page in whole or chain]
        listed = ", ".join(sizes[:4]) + (", ..." if len(sizes) > 4 else "")
        raise InputError(f"{len(sizes)} frames or pages ({listed}); expected a single image", limit="frames")
    left = len(every) - 1
    return whole[0], (f"left out: {left} reduced {'copy' if left == 1 else 'copies'} of the image",) if left else ()


def _sub_directories(page: Any, depth: int = 2) -> Iterator[Any]:
    """The directories that a page points to, and those they point to."""
    if depth and page.subifds:
        if len(page.subifds) > _MOST_PAGES:
            raise InputError(f"{len(page.subifds)} frames or pages; expected a single image", limit="frames")
        for inner in page.pages:
            yield inner
            yield from _sub_directories(inner, depth - 1)


def _is_level(page: Any, inner: Any) -> bool:
    """Whether a directory is the same image made smaller: both sides by one factor."""
    if not (0 < inner.imagewidth < page.imagewidth and 0 < inner.imagelength < page.imagelength):
        return False
    factor = page.imagewidth / inner.imagewidth
    same = (page.samplesperpixel, page.bitspersample) == (inner.samplesperpixel, inner.bitspersample)
    return same and factor >= 1.5 and abs(page.imagelength / factor - inner.imagelength) <= 1


def _refuse_raw(pages: list[Any], data: bytes) -> None:
    if name := is_raw(pages, data):
        ends = (at + size for page in pages for at, size in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > len(data):
            raise InputError(f"truncated: a camera's raw file ({name}) whose samples end beyond it")
        raise CameraRawError(f"a camera's raw file ({name})")


def is_raw(pages: list[Any], data: bytes) -> str:
    """The kind of a camera's raw file; empty for other files. data: at least its first 16 bytes."""
    make = str(pages[0].tags.valueof(Base.Make, "")).upper()
    sensor = any(_photometric(page) in _SENSOR or _PATTERN in page.tags for page in pages)
    if data[8:10] == b"CR":
        return "CR2"
    if any(_DNG in page.tags for page in pages):
        return "DNG"
    if sensor:
        return next((kind for maker, kind in (("NIKON", "NEF"), ("SONY", "ARW")) if maker in make), "raw")
    return ""


def _photometric(page: Any) -> int:
    return int(page.tags.valueof(Base.PhotometricInterpretation, -1))


def kind_of(page: Any, *, lookup: bool = False) -> Kind:
    """What the samples are. Raises InputError for what is not read, and names it.

    lookup: they are grey, and the palette is how they are shown.
    """
    photometric, samples = BLACK_IS_ZERO if lookup else _photometric(page), page.samplesperpixel
    bits = {int(bit) for bit in each_of(page.tags.valueof(Base.BitsPerSample, 1))}
    formats = set(each_of(page.tags.valueof(339, UINT)))
    if photometric < 0 or 256 not in page.tags or 257 not in page.tags:
        raise InputError("damaged or truncated: tags are missing")
    if page.imagedepth > 1:
        raise InputError(f"a volume of {page.imagedepth} planes; expected a single image", limit="frames")
    if len(bits) > 1 or len(formats) > 1:
        raise InputError(f"samples of {sorted(bits)} bits, of {len(formats)} kinds; expected the same for all")
    (bit,), (form,) = bits, formats
    if form not in (UINT, FLOAT) and not (form == _NOT_SAID and bit in (8, 16)):
        what = {_INT: "signed integers", 5: "complex integers", 6: "complex numbers"}.get(form, f"of kind {form}")
        raise InputError(f"samples of {bit} bits that are {what}; expected unsigned integers, or floats of 32 bits")
    if bit not in ((32,) if form == FLOAT else (1, 2, 4, 8, 16)):
        if form == UINT and 8 < bit < 16:
            raise InputError(f"{bit}-bit samples would be cut or misread here; save the image with 8 bits, or with 16")
        if form == FLOAT:
            raise InputError(f"floats of {bit} bits, which are not read: save the image with floats of 32 bits")
        raise InputError(f"samples of [{bit}] bits; expected 8 or 16 bits, or floats of 32")
    form = FLOAT if form == FLOAT else UINT
    names = {RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1}
    if photometric not in names:
        raise InputError(
            f"{_NAMES.get(photometric, f'colours of kind {photometric}')}; expected unsigned integers, grey or colour"
        )
    if (bit > 8 and photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)) or (
        form == FLOAT and photometric == WHITE_IS_ZERO
    ):
        raise InputError("16-bit and float TIFFs are read as grey or RGB only; save the image with 8 bits a sample")
    return Kind(bit, form, photometric, names[photometric], _alpha(page, samples - names[photometric], bit, form))


def _alpha(page: Any, extra: int, bits: int, form: int) -> int:
    """The kind of the alpha among so many samples beside the colour; 0 for none. Raises InputError for other ones."""
    samples, declared = page.samplesperpixel, each_of(page.tags.valueof(338, ()))
    if extra == 0:
        return 0
    photometric = _photometric(page)
    if extra != 1 or form == FLOAT or bits < 8 or photometric not in (BLACK_IS_ZERO, RGB) or declared == (0,):
        colours = {RGB: "RGB", CMYK: "CMYK", YCBCR: "YCbCr", PALETTE: "a palette"}.get(photometric, "grey")
        raise InputError(
            f"{samples} samples a pixel, of which {colours} takes {samples - extra}: the others would be lost; save"
            " them in files of their own"
            + (" (the last is of an unknown kind)" if declared == (0,) and extra == 1 else "")
        )
    if not declared:
        raise InputError(
            f"{samples} samples a pixel, the last of an unknown kind: say by ExtraSamples that it is alpha"
        )
    kind = int(declared[0])
    if kind == ASSOCIATED and (bits > 8 or photometric != RGB):
        raise InputError("its alpha was multiplied into the colour; save it unassociated")
    if kind not in (ASSOCIATED, UNASSOCIATED):
        raise InputError(f"its alpha is of an unknown kind ({kind}); save it unassociated")
    return kind


def images_behind(file: TiffFile, page: Any) -> int:
    """How many images a description declares that lie behind this one directory."""
    text = page.description if isinstance(page.description, str) else ""
    images = 1
    if "<OME" in text[:2000]:
        images = sum(
            _ome_planes(pixels, page.samplesperpixel) for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", text)
        )
    elif text.startswith("ImageJ="):
        images = max([int(n) for n in re.findall(r"^images=(\d{1,9})\s*$", text, re.MULTILINE)], default=1)
    if images <= 1:
        images = _series_length(file, page)
    return images


def _ome_planes(pixels: str, samples: int) -> int:
    sizes = {name: int(n) for name, n in re.findall(r'\bSize([ZCT])="(\d{1,9})"', pixels)}
    return sizes.get("Z", 1) * sizes.get("T", 1) * math.ceil(sizes.get("C", 1) / samples)


def _series_length(file: TiffFile, page: Any) -> int:
    """Of how many images tifffile takes the page to be the first."""
    if len(file.pages) > 1 or page is not file.pages.first:
        return 1
    try:
        size = file.series[0].size
    except Exception:  # of metadata of a kind that is damaged, which nothing here depends on
        return 1
    return max(1, size // max(1, page.size))
