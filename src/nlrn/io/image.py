"""Image files <-> float arrays in [0, 1]: exactly the samples of the file, or an error with the reason.

Read: AVIF, BMP, GIF, JPEG, PNG, PPM/PGM, TIFF, WebP, JPEG 2000, and with extras HEIC, JPEG XL and camera raw. Grey
stays grey; 16 bits stay 16 bits in PNG, TIFF, grey PGM and what an extra reads; floats stay floats in TIFF and JPEG XL.
Palettes become colour, CMYK becomes RGB by Pillow's rule, transparency of every kind
becomes a separate alpha plane, the EXIF orientation is applied. Of a multi-image JPEG the main image is read.
Refused: what would be cut or misread silently (AVIF of more than 8 bits, 16-bit colour PPM, signed or 32-bit
integers), animations, several pages, truncated files, PNGs whose checksums or amount of data are wrong.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nlrn.errors import BackendError, ConfigError, InputError
from nlrn.io import wide
from nlrn.io.decode import ApartError, decode, reason_of
from nlrn.io.metadata import Decoded, held_to, is_calibrated, is_worth_naming
from nlrn.io.sandbox import decode_apart
from nlrn.io.texts import NO_TEXTS, Texts
from nlrn.io.tiffwriting import COMPRESSIONS, tiff
from nlrn.io.written import SUFFIXES as SUFFIXES
from nlrn.io.written import WRITTEN
from nlrn.system.atomic import check_target, publish

MAX_PIXELS = 100_000_000  # of what is read
MAX_RESULT_PIXELS = 400_000_000  # of what is made larger
MAX_BYTES = 512 << 20
_TIFF_BYTES = 2**32 - 2**22  # of pixels, with room for tags
_TYPES: dict[int, type] = {8: np.uint8, 16: np.uint16, 32: np.float32}  # of samples, by depth
_HERE = 256 << 10  # bytes of a file that no decoder is busy with for long
_DECODING = threading.Lock()  # warning filters belong to the whole process


@dataclass(frozen=True)
class ImageData:
    """An image and the metadata of its file.

    array: float32 HW (grey) or HWC with 3 channels, in [0, 1]; a restored one may exceed the range.
    alpha: HW uint8 or None, uint16 for depth 16, kept as it was. depth: bits a sample of the file, 8 or 16, or 32 for
    floats, which have no alpha and are neither clipped nor rounded. format: Pillow's name.
    icc: colour profile. exif: without orientation (it has been applied) and, unless requested, without GPS. dpi: pixels
    per inch, across and down. colours: a PNG's chunks gAMA, cHRM, sRGB and cICP, which only a PNG can hold. notes: what
    of the file was left out or converted, a line each. texts: XMP, IPTC, a PNG's texts, a JPEG's comments, without what
    no longer holds and, unless requested, without the place. levels: the sample value of the file that is 1 here: 255,
    65535, or 1 of floats; 0 sets it by the depth. float_levels: what 1 is written as, by
    depth 32. quality, compression: how it is written, as of
    `encode_image`. Of a restored image, noise: what was found in the noisy one, or in each of its channels
    (NoiseEstimate.record), value_range: the sample values that the network saw as black and white, tile: the side of
    the tiles that it was made in where the system refused memory for larger ones, and said: lines worth printing.
    """

    array: np.ndarray
    alpha: np.ndarray | None = None
    depth: int = 8
    format: str = "PNG"
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    colours: bytes = b""
    notes: tuple[str, ...] = ()
    texts: Texts = NO_TEXTS
    noise: tuple[dict[str, Any], ...] = ()
    value_range: tuple[float, float] | None = None
    levels: float = 0.0
    float_levels: float = 1.0
    quality: int = 95
    compression: str = "none"
    tile: int | None = None
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = self.array.shape
        if len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or 0 in shape:
            raise InputError(f"expected an array HW, or HWC with 3 channels; got shape {shape}")
        if not np.issubdtype(self.array.dtype, np.floating):
            raise InputError(f"expected a float array in [0, 1]; got {self.array.dtype}")
        if self.depth not in _TYPES:
            raise InputError(f"depth is {self.depth}; expected 8 or 16 bits, or 32 for floats")
        if self.levels == 0:
            object.__setattr__(self, "levels", 1.0 if self.depth == 32 else 2.0**self.depth - 1)
        if self.alpha is None:
            return
        wanted = f"uint{self.depth}"
        if self.alpha.shape != shape[:2] or self.alpha.dtype != wanted or self.depth == 32:
            raise InputError(
                f"alpha is {self.alpha.dtype} {self.alpha.shape}; expected {wanted} {shape[:2]} as the image"
                if self.depth < 32
                else "images of floats have no alpha"
            )

    def of_size(self, height: int, width: int) -> ImageData:
        """The same in another size, without values yet: black, and memory for none of it."""
        array = np.broadcast_to(np.float32(0), (height, width, *self.array.shape[2:]))
        alpha = None if self.alpha is None else np.broadcast_to(self.alpha.dtype.type(0), (height, width))
        grown = height / self.array.shape[0], width / self.array.shape[1]
        dpi = self.dpi
        if dpi is not None and is_calibrated(self.exif):
            dpi = dpi[0] * grown[1], dpi[1] * grown[0]
        return replace(self, array=array, alpha=alpha, dpi=dpi)._held(grown)

    def _held(self, grown: tuple[float, float] = (1.0, 1.0)) -> ImageData:
        """The same without metadata that does not hold of its size, channels and depth."""
        self = replace(self, texts=self.texts.held_to(self.array.shape[:2], self.depth))
        if self.exif is None:
            return self
        channels = (1 if self.array.ndim == 2 else 3) + (self.alpha is not None)
        exif, notes = held_to(self.exif, self.array.shape[:2], channels, self.depth, grown=grown)
        return replace(self, exif=exif, notes=(*self.notes, *notes))

    def with_depth(self, depth: int) -> ImageData:
        """The same to be written with another depth, alpha scaled to it."""
        if self.alpha is None or depth == self.depth or depth not in (8, 16):
            return replace(self, depth=depth)._held()
        alpha = self.alpha.astype(np.uint16) * 257 if depth == 16 else np.rint(self.alpha / 257).astype(np.uint8)
        return replace(self, depth=depth, alpha=alpha)._held()

    def middle(self, side: int) -> ImageData:
        """The middle of so many pixels a side, or what there is."""
        place = middle(self.array.shape, side)
        alpha = None if self.alpha is None else self.alpha[place]
        return replace(self, array=self.array[place], alpha=alpha)._held()

    def with_array(self, array: np.ndarray) -> ImageData:
        """The same with another colour array: HW, HW1 or HW3. With alpha its size must stay the same."""
        return replace(self, array=array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def middle(shape: tuple[int, ...], side: int) -> tuple[slice, slice]:
    """Rows and columns of the middle of an image HW or HWC, `side` pixels each, or what there is."""
    height, width = shape[:2]
    top, left = max(0, height - side) // 2, max(0, width - side) // 2
    return slice(top, min(height, top + side)), slice(left, min(width, left + side))


def read_image(
    source: str | os.PathLike[str] | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    gps: bool = False,
    apart: bool | None = None,
) -> ImageData:
    """Read one image from a path, or from the bytes of a file. gps: the place stays in the EXIF.

    The limits are checked before anything is decoded. apart: it is decoded in a separate process, limited in memory
    and time, as AVIF, HEIC, JPEG 2000, JPEG XL and camera raw always are; None: also a file of over 256 KiB, which can
    keep a decoder busy for minutes. Raises InputError,
    and nothing else, for whatever cannot be read exactly (see the module); the message names the file and the reason.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    data = file_bytes(source, max_bytes)
    if len(data) > max_bytes:
        raise InputError(f"{name}: over {max_bytes:,} bytes; max_bytes of nlrn.io.image.read_image raises this limit")
    try:
        apart = len(data) > _HERE if apart is None else apart
        decoded = (decode_apart if apart else _decode_here)(data, max_pixels, gps=gps)
    except InputError as error:
        raise InputError(f"{name}: {error}", limit=error.limit) from None
    except BackendError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise InputError(f"{name}: {reason_of(error)}") from error
    levels = 1 if decoded.depth == 32 else 2**decoded.depth - 1
    texts = decoded.texts.held_to(decoded.colour.shape[:2], decoded.depth)
    return ImageData(np.divide(decoded.colour, levels, dtype=np.float32, order="C"), *decoded[1:-1], texts)


def _decode_here(data: bytes, max_pixels: int, *, gps: bool) -> Decoded:
    try:
        with _DECODING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode(data, max_pixels, gps=gps)
    except ApartError:
        return decode_apart(data, max_pixels, gps=gps)


def write_image(
    path: str | os.PathLike[str],
    image: ImageData,
    *,
    format: str | None = None,  # noqa: A002 - Pillow's word
    overwrite: bool = False,
    quality: int | None = None,
) -> Path:
    """Write an image so that the file appears whole or not at all; returns its path.

    The suffix decides the format; a name without one takes `format`, else the image's own. Raises
    InputError as `encode_image` and `nlrn.system.atomic.publish` do, and for an unknown suffix.
    """
    kind = _output_format(Path(path), format or image.format)
    try:
        data = encode_image(image, kind, quality=quality)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return publish(Path(path), data, overwrite=overwrite)


def encode_image(image: ImageData, format: str, *, quality: int | None = None) -> bytes:  # noqa: A002 - Pillow's word
    """The bytes of a file of one of the formats AVIF, BMP, JPEG, PNG, PPM, TIFF, WEBP.

    The array is clipped to [0, 1] and rounded, halves to even, to the image's depth; floats are written unchanged.
    AVIF, BMP, JPEG and WebP refuse 16 bits, PPM those of colour, and all but TIFF floats. All but JPEG and AVIF (4:4:4
    at `quality`, 1 to 100, by default the image's) are lossless; WebP turns grey into colour. TIFF is compressed by the
    image's `compression`, one of COMPRESSIONS of nlrn.io.tiffwriting.
    Profile and EXIF are kept except in BMP and PPM, a profile only where it fits the number of channels; the resolution
    in BMP, JPEG (to whole pixels per inch), PNG and TIFF; texts as `left_out_by` says.
    Raises InputError for values that are not finite, and for what the format cannot hold.
    """
    if format not in WRITTEN:
        raise InputError(f"cannot write {format!r}; formats are {', '.join(sorted(WRITTEN))}")
    quality = image.quality if quality is None else quality
    if not 1 <= quality <= 100:
        raise ConfigError(f"quality is {quality}; expected 1 to 100")
    if image.compression not in COMPRESSIONS:
        raise ConfigError(f"compression is {image.compression!r}; expected {', '.join(COMPRESSIONS)}")
    check_holds(image, format)
    values = samples(image)
    options = {**WRITTEN[format].options, **_metadata(image, format), **image.texts.options(format)}
    if WRITTEN[format].quality:
        options["quality"] = quality
    if format == "AVIF":
        options["subsampling"] = "4:0:0" if values.ndim == 2 else "4:4:4"
    if format == "TIFF":
        options["compression"] = image.compression
    data = _save(values, format, options)
    data = image.texts.written(data, format)
    return wide.png_with(data, image.colours, image.dpi) if format == "PNG" else data


def left_out_by(image: ImageData, format: str) -> tuple[str, ...]:  # noqa: A002
    """The line that names what of the image's metadata a file of the format does not hold; none for nothing.

    XMP goes into all but BMP and PPM, IPTC into JPEG and TIFF, a PNG's texts into PNG, a JPEG's comments into JPEG.
    """
    kept = _metadata(image, format)
    lost = ["EXIF"] if image.exif is not None and "exif" not in kept and is_worth_naming(image.exif) else []
    lost += ["the colour profile"] if image.icc is not None and "icc_profile" not in kept else []
    lost += ["gamma and primaries"] if image.colours and format != "PNG" else []
    lost += image.texts.lost_in(format)
    return (f"left out of the {format}: {', '.join(lost)}",) if lost else ()


def check_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    inputs: Iterable[str | os.PathLike[str]] = (),
    image: ImageData | None = None,
) -> None:
    """Find out before any work whether `path` can be written. Raises InputError with the reason.

    Checked: a known suffix, that the format holds `image` (its size, alpha and depth), and what
    nlrn.system.atomic.check_target checks.
    """
    path = Path(path)
    kind = _output_format(path, None)
    if image is not None:
        check_holds(image, kind)
    check_target(path, overwrite=overwrite, inputs=inputs)


def check_holds(image: ImageData, format: str) -> None:  # noqa: A002
    """Raises InputError where files of the format cannot hold such an image: its size, alpha, depth or floats."""
    (height, width), holds = image.array.shape[:2], WRITTEN[format]
    if max(height, width) > holds.longest:
        raise InputError(
            f"{format} files have sides of at most {holds.longest:,} pixels, and this would be {width} x {height};"
            " write PNG or TIFF instead"
        )
    samples = image.array.size + (0 if image.alpha is None else height * width)
    if format == "TIFF" and samples * image.depth // 8 > _TIFF_BYTES:
        raise InputError("TIFF files end at 4 GiB, and this would be larger; write PNG instead, or fewer bits")
    if image.alpha is not None and not holds.alpha:
        raise InputError(f"{format} files hold no transparency; write PNG, TIFF or WebP instead")
    bits = {name: kind.bits if image.array.ndim == 2 else kind.colour_bits for name, kind in WRITTEN.items()}
    if image.depth == 32 > bits[format]:
        raise InputError(f"{format} files hold no floats: write TIFF, or give a depth of 8 or 16 bits")
    if image.depth > bits[format]:
        keep = [suffix for suffix, kind in SUFFIXES.items() if bits[kind] >= image.depth]
        raise InputError(
            f"{format} files would cut the image's 16 bits to 8; these suffixes keep them: {', '.join(keep)};"
            " or give a depth of 8"
        )


def _output_format(path: Path, otherwise: str | None) -> str:
    suffix = path.suffix.lower()
    kind = SUFFIXES.get(suffix) if suffix else otherwise
    if kind is None:
        what = f"suffix {suffix!r} is unknown" if suffix else "no suffix"
        raise InputError(f"{path}: {what}; known are {', '.join(SUFFIXES)}")
    return kind


def file_bytes(source: str | os.PathLike[str] | bytes, max_bytes: int) -> bytes:
    """At most one byte more than the limit; neither a pipe nor a device is ever opened. Raises InputError."""
    if isinstance(source, bytes):
        return source
    try:
        if not stat.S_ISREG(Path(source).stat().st_mode):
            raise InputError(f"{source} is no regular file (a folder, pipe or device)")
        with Path(source).open("rb") as file:
            return file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)  # no more memory than the file needs
    except FileNotFoundError as error:
        raise InputError(f"no file {source}") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"cannot read {source}: {error}") from error


def samples(image: ImageData) -> np.ndarray:
    """[H, W] or [H, W, 2 to 4] of the type of the image's file; alpha last. Raises InputError as `rounded`."""
    counts = image.depth == 32 and image.float_levels != 1
    values = rounded(image.array * np.float32(image.float_levels) if counts else image.array, image.depth)
    return values if image.alpha is None else np.dstack((values, image.alpha))


def rounded(array: np.ndarray, depth: int) -> np.ndarray:
    """An array in [0, 1] as uint8 or uint16 of the same shape; float32 for depth 32.

    Rounding is in float64, block by block, as nlrn.functional.metrics.quantize8.

    Raises InputError for values that are not finite.
    """
    if not np.isfinite(array).all():
        raise InputError("the image has values that are not finite; nothing was written")
    if depth == 32:
        return array.astype(np.float32, copy=False)
    levels = 2**depth - 1
    out: np.ndarray = np.empty(array.shape, dtype=_TYPES[depth])
    for start in range(0, len(array), 256):
        block = np.clip(array[start : start + 256].astype(np.float64), 0, 1)
        out[start : start + 256] = np.rint(block * levels)
    return out


def _metadata(image: ImageData, format: str) -> dict[str, Any]:  # noqa: A002
    found: dict[str, Any] = {}
    if image.dpi is not None and WRITTEN[format].resolution and (format != "JPEG" or max(image.dpi) < 65535):
        found["dpi"] = image.dpi
    if not WRITTEN[format].described:
        return found
    space = b"GRAY" if image.array.ndim == 2 and format != "WEBP" else b"RGB "
    if image.icc is not None and image.icc[16:20] == space:
        found["icc_profile"] = image.icc
    if image.exif is not None and (format != "JPEG" or len(image.exif) <= 65533):  # one JPEG segment
        found["exif"] = image.exif
    return found


def _save(values: np.ndarray, format: str, options: dict[str, Any]) -> bytes:  # noqa: A002
    try:
        if format == "TIFF":
            return tiff(values, options)
        if values.dtype == np.uint16 and values.ndim == 3:  # wider than Pillow holds
            return wide.png(values, options)
        file = io.BytesIO()
        Image.fromarray(values).save(file, format, **options)
        return file.getvalue()
    except BackendError:
        raise
    except Exception as error:  # a side that is too long, for example
        raise InputError(f"cannot be written as {format}: {error}") from error
