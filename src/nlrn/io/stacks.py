"""Stacks: TIFF files of many planes, read one plane at a time; what they say of their axes and of themselves.

A plane is handed to `nlrn.io.image.read_image` as a TIFF of its own, with the bytes of its strips or tiles as they lie
in the file: it is read, checked and refused as an image file would be. Memory is that of one plane.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np

from nlrn.errors import InputError
from nlrn.io.axes import Lines, channels_of, leading, lines_of, split
from nlrn.io.chunks import DEFLATE, WRITTEN, Layout
from nlrn.io.decode import check_size
from nlrn.io.directories import BYTE, Entry, Form, entries_of
from nlrn.io.formats import tiff_pages
from nlrn.io.image import MAX_PIXELS, ImageData, read_image
from nlrn.io.metadata import XMP
from nlrn.io.stackpages import PRIVATE, places_of, stack_kind
from nlrn.io.tiffs import images_behind, is_raw, silent
from nlrn.io.tiffsamples import (
    BLACK_IS_ZERO,
    COMPRESSIONS,
    FLOAT,
    PALETTE,
    PIXEL_TAGS,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    each_of,
)
from nlrn.io.xmp import upright

MAX_PLANES = 100_000
MAX_STACK_BYTES = 256 << 30
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLACES, _SIZES = frozenset({273, 324}), frozenset({279, 325})  # tags: of strips or of tiles
_HERE = frozenset({1, 5, 8, 32773, 32946})  # compressions that keep no decoder busy for longer than their samples take
_FEW = 16  # pages, which may be one image and reduced copies of it
_MOST_CHUNKS = 1 << 16  # of a plane
_ROOM = 1 << 16  # bytes by which a compressed plane may be larger than its samples
_SUB, _EXIF, _GPS, _INTEROPERABILITY = 330, 34665, 34853, 40965
_POINTERS = frozenset({_SUB, _EXIF, _GPS, _INTEROPERABILITY})
_FILL_ORDER, _EXTRA_SAMPLES, _ORIENTATION = 266, 338, 274
_OF_A_FILE, _RESOLUTION = frozenset({_ORIENTATION, 34675}), frozenset({282, 283, 296})  # 34675: the profile
_UNNAMED = frozenset("QI")  # tifffile's letters where a file names no axis
_DESCRIPTION = frozenset({270})
_JPEG_TAGS = frozenset({347, *range(512, 522), 529, 530, 532})
_UNASSOCIATED = 2
_FLOAT_LEVELS = (1.0, 255.0, 65535.0, 2.0**32 - 1)


class Stack(Protocol):
    """Planes of one file, in their order in it; a context. By default they are of one channel, and stored as they are.

    It is the base of the classes that are one.
    """

    kind: str  # as it is printed
    axes: str  # of the planes, "TZC"; one letter a number of `sizes`
    sizes: tuple[int, ...]
    channels: int  # of those that have a noise level and a range of their own
    notes: tuple[str, ...]
    one_directory: bool  # one directory stands for all planes, which lie one behind the other
    form: Form  # byte order and kind of the TIFF that it is written as
    lines: Lines  # which planes lie beside each other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __len__(self) -> int: ...

    def channel(self, index: int) -> int:
        """The number of the channel of a plane."""
        return 0

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a plane."""

    def read(self, index: int) -> ImageData:
        """One plane. Raises InputError."""

    def layout(self, index: int) -> Layout:
        """How the samples of a plane are stored in the result."""

    def entries(self, index: int) -> dict[int, Entry]:
        """The tags of the result's page, all but where its strips or tiles lie."""

    def stored(self, index: int, values: np.ndarray) -> np.ndarray:
        """[H, W, samples] as the page stores them."""
        return values


@dataclass(frozen=True)
class Limits:
    """pixels of a plane, planes and bytes of a file."""

    pixels: int = MAX_PIXELS
    planes: int = MAX_PLANES
    bytes: int = MAX_STACK_BYTES


class FileBytes:
    """A file on a disk, sliced as bytes are, of which nothing stays in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: slice) -> bytes:
        start, stop, _ = key.indices(self.size)
        self.file.seek(start)
        return self.file.read(max(0, stop - start))


def is_tiff_stack(path: Path) -> bool:
    """Whether a TIFF holds more images than one; False for what is no TIFF, and for what cannot be read."""
    from tifffile import TiffFile

    with suppress(Exception):  # of a damaged file, which is refused as an image is
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            start = file.read(16)
            if not start.startswith(_TIFF):
                return False
            file.seek(0)
            with silent(), TiffFile(file, _multifile=False) as tiff:
                pages: Any = tiff.pages
                first = pages.first
                if is_raw([first], start):
                    return False
                whole = sum(not page.is_reduced for page in pages) if len(pages) <= _FEW else 2
                return whole > 1 or images_behind(tiff, first) > 1
    return False


class TiffStack(Stack):
    """A TIFF of many planes; a context. axes: letters of the planes' axes where the file names none (see `split`).

    alone: each plane is to become a file of its own: it is read upright, with its profile and a print's resolution.
    Raises InputError for what cannot be read as one, and where it is beyond the limits, before any plane is decoded.
    """

    def __init__(self, path: Path, *, axes: str | None = None, limits: Limits = Limits(), alone: bool = False) -> None:
        self.path, self.limits, self.alone = path, limits, alone
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        try:
            self._open(axes)
        except InputError as error:
            self._file.close()
            raise InputError(f"{path}: {error}", limit=error.limit) from None
        except Exception as error:
            self._file.close()
            raise InputError(f"{path}: damaged or truncated ({error or type(error).__name__})") from error

    def _open(self, axes: str | None) -> None:
        from tifffile import TiffFile

        self._data = data = FileBytes(self._file)
        most = self.limits
        if len(data) > most.bytes:
            raise InputError(f"{len(data):,} bytes; the limit is {most.bytes:,}, raised by --max-bytes", limit="bytes")
        pages = tiff_pages(data, strict=True, most=most.planes + 1)
        if pages > most.planes:
            raise InputError(f"over {most.planes:,} planes; --max-planes raises this limit", limit="frames")
        with silent():
            with TiffFile(self.path, _multifile=False) as tiff:
                self._find_planes(tiff, axes)
            self._file.seek(0)
            self._tiff = TiffFile(self._file, _multifile=False)  # whose pages are parsed whole, each by itself
        self.form = Form(self._tiff.byteorder, bool(self._tiff.is_bigtiff))
        self._check_pages()
        self._check_planes()

    def _find_planes(self, tiff: Any, axes: str | None) -> None:
        """Which page, and which image behind it, is a plane, and of which channel."""
        found: list[tuple[int, int, int, tuple[int, int]]] = []  # page, image behind it, channel, line and place in it
        self.kind = "OME-TIFF" if tiff.is_ome else "ImageJ stack" if tiff.is_imagej else "TIFF"
        self.channels, self.axes = 0, ""
        self.notes: tuple[str, ...] = ()
        self.sizes: tuple[int, ...] = ()
        self.one_directory = False
        whole = [series for series in tiff.series if not series.keyframe.is_reduced]
        for number, series in enumerate(whole or tiff.series):
            places = places_of(series, len(tiff.pages))
            letters, sizes = leading(series, len(places))
            if axes is not None and number == 0:
                said, (letters, sizes) = (letters, sizes), split(axes, len(places))
                if said[0] not in _UNNAMED and said != (letters, sizes):
                    listed = " x ".join(f"{letter} {size}" for letter, size in zip(*said, strict=True))
                    self.notes += (f"the file says {listed}: the axes that are given are taken instead",)
            channels = channels_of(letters, sizes)
            self.one_directory |= any(part for _, part in places)
            lines = [(len(found) + line, place) for line, place in lines_of(letters, sizes)]
            found += [
                (page, part, self.channels + c, line)
                for (page, part), c, line in zip(places, channels, lines, strict=True)
            ]
            self.channels += int(max(channels, default=0)) + 1
            if number == 0:
                self.axes, self.sizes = letters, sizes
        if len(found) > self.limits.planes:
            most = self.limits.planes
            raise InputError(f"{len(found):,} planes; the limit is {most:,}, raised by --max-planes", limit="frames")
        if self.one_directory and len(tiff.pages) > 1:
            raise InputError("planes behind one directory, and other directories: save it as a plain stack")
        self.planes = sorted(found)
        self.lines = Lines([line for *_, line in self.planes])

    def _check_pages(self) -> None:
        first: Any = self._tiff.pages.first
        if is_raw([first], self._data[0:16]):
            raise InputError("a camera's raw file: develop it first, into a TIFF")
        pointers = {int(tag.code) for tag in first.tags} & _POINTERS
        names = {_SUB: "images below its planes (the levels of a pyramid)", _EXIF: "EXIF", _GPS: "GPS"}
        left = [names[code] for code in (_SUB, _EXIF, _GPS) if code in pointers]
        private = list(dict.fromkeys(PRIVATE[tag] for tag in PRIVATE if tag in first.tags))
        if private and self.one_directory and self.kind == "TIFF" and not self.alone:
            raise InputError(f"its planes are declared by {private[0]}: save it as a plain TIFF stack")
        left += [f"the tags of {name}, with what they say of places, times and scale" for name in private]
        others = set(range(len(self._tiff.pages))) - {page for page, *_ in self.planes}
        if copies := sum(bool(self._page(number).is_reduced) for number in others):
            left.append(f"{copies} reduced {'copy' if copies == 1 else 'copies'} of its planes")
        if left:
            self.notes += (f"left out: {', '.join(left)}",)
        compression = int(first.compression)
        if compression not in WRITTEN:
            self.notes += (f"{COMPRESSIONS.get(compression, compression)} would lose detail: written with deflate",)

    def _check_planes(self) -> None:
        """Raises InputError for a plane that could not be written as it was read, and for planes of several types."""
        types = set[str]()
        for index, (number, *_) in enumerate(self.planes[:1] if self.one_directory else self.planes):
            page = self._page(number)
            try:
                kind = stack_kind(page, lookup=self._is_lookup(page))
            except InputError as error:
                raise InputError(f"plane {index + 1} of {len(self)}: {error}", limit=error.limit) from None
            types.add("floats" if kind.format == FLOAT else f"{kind.bits:2} bits")
        if len(types) > 1:
            raise InputError(f"planes of {' and of '.join(map(str.strip, sorted(types)))} in one file: save them apart")

    def __exit__(self, *_: object) -> None:
        self._tiff.close()
        self._file.close()

    def __len__(self) -> int:
        return len(self.planes)

    def channel(self, index: int) -> int:
        """The number of the channel of a plane."""
        return self.planes[index][2]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a plane."""
        page = self._page(self.planes[index][0])
        sides = int(page.imagelength), int(page.imagewidth)
        return sides[::-1] if self.alone and page.tags.valueof(_ORIENTATION, 1) in (5, 6, 7, 8) else sides

    def read(self, index: int) -> ImageData:
        """One plane. Raises InputError as read_image does."""
        try:
            page, part, *_ = self.planes[index]
            data = self._plane(self._page(page), part)
            here = int(self._page(page).compression) in _HERE
            most = max(len(data), 1)
            return read_image(data, max_pixels=self.limits.pixels, max_bytes=most, apart=False if here else None)
        except InputError as error:
            text = str(error).removeprefix("the image: ")
            raise InputError(f"{self.path}: plane {index + 1} of {len(self)}: {text}", limit=error.limit) from error

    def _page(self, number: int) -> Any:
        with silent():
            return self._tiff.pages[number]

    def _plane(self, page: Any, part: int) -> bytes:
        """A TIFF of one plane: the tags of its pixels, its strips or tiles as they are."""
        width, height = int(page.imagewidth), int(page.imagelength)
        check_size(width, height, self.limits.pixels, "")
        places, sizes = list(each_of(page.dataoffsets)), list(each_of(page.databytecounts))
        if self.one_directory:
            places, sizes = [places[0] + part * page.nbytes], [page.nbytes]
        if len(places) != len(sizes) or len(places) > _MOST_CHUNKS or int(page.compression) == 6:
            raise InputError("its strips or tiles are in a form that is not read in stacks; save it uncompressed")
        if sum(sizes) > 2 * page.nbytes + _ROOM + 64 * len(sizes):
            raise InputError("damaged: its strips or tiles are larger than its samples")
        form = Form(self.form.order)
        without = _PLACES | _SIZES | ({320} if self._is_lookup(page) else frozenset())
        kept = PIXEL_TAGS | (_OF_A_FILE if self.alone else frozenset())
        kept |= _RESOLUTION if self.alone and self.kind == "TIFF" else frozenset()
        entries = {tag: entry for tag, entry in entries_of(page, self._data, without).items() if tag in kept}
        if self._is_lookup(page):
            entries[262] = form.short(BLACK_IS_ZERO)
        if self.one_directory:
            entries[278] = form.places([height])
        body = b"".join([self._data[place : place + size] for place, size in zip(places, sizes, strict=True)])
        if len(body) < sum(sizes):
            raise InputError("truncated: pixels are missing")
        entries |= form.parts(8, sizes, tiled=page.is_tiled)
        body += bytes(len(body) % 2)
        start = 8 + len(body)
        return form.header(start) + body + form.block(entries, start, last=True)

    def _is_lookup(self, page: Any) -> bool:
        """Whether a palette is how a microscope's program shows grey values."""
        return int(page.photometric) == PALETTE and self.kind != "TIFF"

    def layout(self, index: int) -> Layout:
        """How the samples of a plane are stored in the result: as they were."""
        page = self._page(self.planes[index][0])
        compression = int(page.compression)
        chunk = page.tilelength, page.tilewidth
        if self.one_directory or not page.is_tiled:
            rows = page.imagelength if self.one_directory else min(page.rowsperstrip, page.imagelength)
            chunk = rows, page.imagewidth
        return Layout(
            compression if compression in WRITTEN else DEFLATE,
            int(page.predictor) if compression in WRITTEN else 1,
            (int(chunk[0]), int(chunk[1])),
            bool(page.is_tiled),
            bool(page.planarconfig == 2 and page.samplesperpixel > 1),
            self.form.order,
        )

    def entries(self, index: int) -> dict[int, Entry]:
        """The tags of the result's page, all but where its strips or tiles lie."""
        page, form = self._page(self.planes[index][0]), self.form
        entries = entries_of(
            page, self._data, _PLACES | _SIZES | _POINTERS | PRIVATE.keys() | {_FILL_ORDER}, again=_DESCRIPTION
        )
        if int(page.compression) not in WRITTEN:
            entries = {tag: entry for tag, entry in entries.items() if tag not in _JPEG_TAGS | {317}}
            entries[259] = form.short(DEFLATE)
            if int(page.photometric) == YCBCR:
                entries[262] = form.short(RGB)
        if not page.is_tiled:
            entries[278] = form.places([self.layout(index).chunk[0]])
        if _EXTRA_SAMPLES in entries:
            entries[_EXTRA_SAMPLES] = form.short(_UNASSOCIATED)
        if XMP in entries and (packet := upright(entries.pop(XMP)[2], gps=False)):
            entries[XMP] = (BYTE, len(packet), packet)
        return entries

    def stored(self, index: int, values: np.ndarray) -> np.ndarray:
        """[H, W, samples] as the page stores them."""
        page = self._page(self.planes[index][0])
        if int(page.photometric) == WHITE_IS_ZERO:
            values = np.asarray(np.iinfo(values.dtype).max, values.dtype) - values
        return values


def float_levels(low: float, high: float) -> float:
    """The sample value that is 1 in a stack of floats in this range.

    1, or 255, 65535, 2^32 - 1 where they are counts of 8, 16 or 32 bits.
    """
    most = max(abs(low), abs(high))
    return next((levels for levels in _FLOAT_LEVELS if most <= levels * (5 if levels == 1 else 1)), _FLOAT_LEVELS[-1])


def scaled(image: ImageData, levels: float) -> ImageData:
    """An image of floats with another value as 1; others as they are."""
    if image.depth != 32 or levels == image.levels:
        return image
    array = image.array * np.float32(image.levels / levels)
    return replace(image, array=array, levels=levels, float_levels=levels)
