"""The formats of files that are written: one table, which every list of them is made of.

It imports no library of images, so that the command line and the service can read it before they need one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Written:
    """What files of a format hold.

    suffixes: the usual one first. media: type of the Internet.
    alpha: whether they have transparency. bits, colour_bits: the most of a sample, 32 for floats. longest: pixels of a
    side. quality: whether it is lossy. resolution: whether one is written. described: whether they have
    a profile and EXIF. options: of Pillow's save.
    """

    suffixes: tuple[str, ...]
    media: str
    alpha: bool = False
    bits: int = 8
    colour_bits: int = 8
    longest: int = 1 << 31
    quality: bool = False
    resolution: bool = False
    described: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


_EXACT = {"lossless": True, "exact": True}  # exact: colours under full transparency too
WRITTEN = {  # by Pillow's name
    "PNG": Written((".png",), "image/png", alpha=True, bits=16, colour_bits=16),
    "TIFF": Written((".tif", ".tiff"), "image/tiff", alpha=True, bits=32, colour_bits=32, resolution=True),
    "WEBP": Written((".webp",), "image/webp", alpha=True, longest=16383, options=_EXACT),
    "JPEG": Written(
        suffixes=(".jpg", ".jpeg", ".jpe", ".jfif"),
        media="image/jpeg",
        longest=65500,
        quality=True,
        resolution=True,
        options={"subsampling": 0},  # 4:4:4
    ),
    "AVIF": Written((".avif",), "image/avif", longest=32768, quality=True),
    "BMP": Written((".bmp",), "image/bmp", resolution=True, described=False),
    "PPM": Written((".ppm", ".pgm", ".pnm"), "image/x-portable-anymap", bits=16, described=False),
}
# Suffixes of files that are read and not written, and of their results
INSTEAD = {".gif": ".png", ".pbm": ".png", ".mpo": ".jpg", ".btf": ".tif", ".tf8": ".tif", ".tf2": ".tif"}
SUFFIXES = dict(sorted((suffix, name) for name, kind in WRITTEN.items() for suffix in kind.suffixes))
