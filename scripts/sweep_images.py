"""Every file of a folder read, written as TIFF, and compared with what libvips and tifffile find in both.

python scripts/sweep_images.py FOLDER: a table of accepted, refused and wrong by suffix; wrong must be 0. An accepted
file is wrong where libvips finds other samples in it (turned upright; CMYK, colours that are fully transparent and the
difference of lossy decoders apart), or tifffile finds other samples in what was written.
"""

from __future__ import annotations

import io
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from nlrn.errors import NLRNError
from nlrn.io.image import ImageData, encode_image, read_image
from nlrn.io.metadata import TURNS

_TOLERANCE = {"JPEG": 6, "AVIF": 6, "WEBP": 3}  # of decoders of lossy formats, 0-255 units
_LOSSY = (6, 7, 50001)  # compressions of TIFF


def main() -> int:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for path in sorted(p for p in Path(sys.argv[1]).rglob("*") if p.is_file()):
        verdict = _verdict(path)
        table[path.suffix.lower()][verdict.split(":")[0]] += 1
        if verdict.startswith("wrong"):
            print(path.name, verdict)
    kinds = ("accepted", "accepted, not judged", "refused", "wrong")
    print("suffix", *kinds, sep=" | ")
    for suffix, found in sorted(table.items()):
        print(suffix, *(found[kind] for kind in kinds), sep=" | ")
    total = sum(table.values(), Counter[str]())
    print("all", *(total[kind] for kind in kinds), sep=" | ")
    return int(total["wrong"] > 0)


def _verdict(path: Path) -> str:
    try:
        image = read_image(path, max_pixels=20_000_000)
    except NLRNError as error:
        return f"refused: {error}"
    values = _samples(image)
    written = tifffile.imread(io.BytesIO(encode_image(image, "TIFF")))
    if written.shape != values.shape or not np.array_equal(written, values):
        return "wrong: written"
    seen = _by_libvips(path)
    if seen is None:
        return "accepted, not judged"
    if seen.shape != values.shape:
        if seen.ndim == 3 and values.ndim == 2 and np.ptp(seen[..., :3].astype(int), axis=2).max() == 0:
            seen = seen[..., 0]  # grey in three channels
        elif values.ndim == 3 and seen.ndim == 2 and values.shape[2] == 3:
            seen = np.dstack([seen] * 3)
        else:
            return "accepted, not judged"
    if seen.dtype != values.dtype:
        return "accepted, not judged"
    lossy = _TOLERANCE.get(image.format, 6 if image.format == "TIFF" and _is_lossy(path) else 0)
    away = np.abs(seen.astype(np.float64) - values)
    if image.alpha is not None:
        away[image.alpha == 0, :-1] = 0
    off = float(away.max())
    return "accepted" if off <= lossy or np.isnan(off) else f"wrong: {off:g} off"


def _samples(image: ImageData) -> Any:
    if image.depth == 32:
        return image.array
    top = 2**image.depth - 1
    values = np.rint(image.array.astype(np.float64) * top).astype(f"uint{image.depth}")
    return values if image.alpha is None else np.dstack([values, image.alpha])


def _is_lossy(path: Path) -> bool:
    with tifffile.TiffFile(path) as file:
        return any(int(page.compression) in _LOSSY for page in file.pages)


def _by_libvips(path: Path) -> Any:
    import pyvips  # type: ignore[import-untyped]

    try:
        image = pyvips.Image.new_from_file(str(path), fail_on="warning")
        if image.interpretation == "cmyk" or image.bands > 4:
            return None
        values = np.asarray(image.autorot().numpy())
        orientation = Image.open(path).getexif().get(274, 1)  # by XMP and raw profiles too, which libvips passes over
        if orientation != 1 and path.suffix.lower() == ".png":
            values = TURNS[orientation](np.asarray(image.numpy()))
    except pyvips.Error:
        return None
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


if __name__ == "__main__":
    sys.exit(main())
