"""What decoding in a process of its own costs, against decoding here: python scripts/measure_decoding.py.

Seconds of the processor, the process's included, and of the clock, the median of 7 interleaved runs.
"""

from __future__ import annotations

import argparse
import io
import resource
import time

import numpy as np
from PIL import Image

from nlrn.io.image import read_image

RUNS = 7


def jpeg(side: int, quality: int) -> bytes:
    """A smooth image with noise, side x side pixels, in colour."""
    random, ramp = np.random.default_rng(0), np.arange(side) / 40
    values = 128 + 60 * np.sin(ramp)[:, None] + 40 * np.cos(ramp)[None] + random.normal(0, 12, (side, side))
    grey, file = np.clip(values, 0, 255).astype(np.uint8), io.BytesIO()
    colour = np.dstack([grey, np.roll(grey, 3, 0), np.roll(grey, 5, 1)])
    Image.fromarray(colour).save(file, "JPEG", quality=quality)
    return file.getvalue()


def took(data: bytes, apart: bool) -> tuple[float, float]:
    """Seconds of the processor and of the clock."""
    before, began = _used(), time.perf_counter()
    read_image(data, apart=apart)
    return _used() - before, time.perf_counter() - began


def _used() -> float:
    found = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def main() -> None:
    """Print a line for each size."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for side, quality in ((1150, 88), (4000, 88)):
        data = jpeg(side, quality)
        runs = np.array([[took(data, apart) for apart in (False, True)] for _ in range(RUNS)])
        (here, clock), (apart, clock_apart) = np.median(runs, axis=0)
        print(
            f"JPEG of {len(data) / 1e6:.1f} MB, {side * side / 1e6:.1f} megapixels: here {here:.2f} s of the processor"
            f" ({clock:.2f} of the clock), apart {apart:.2f} ({clock_apart:.2f}): {apart - here:+.2f}"
        )


if __name__ == "__main__":
    main()
