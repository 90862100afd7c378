"""Decoding in a process of its own: the same image, whatever the format, and an end to what takes too much."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from imagefiles import FORMATS, WITH_ALPHA, chunk, file_of, image_of, png, samples
from PIL import Image

from nlrn.errors import InputError
from nlrn.io.decode import decode
from nlrn.io.image import ImageData, encode_image, read_image


def _files() -> dict[str, bytes]:
    found = {form: encode_image(image_of(samples((21, 17, 3))), form) for form in FORMATS}
    found |= {f"{f}-alpha": encode_image(image_of(samples((9, 8, 3)), samples((9, 8))), f) for f in WITH_ALPHA}
    wide = image_of(samples((300, 400, 3), top=65535), samples((300, 400), top=65535))
    found |= {f"{form}-16": encode_image(wide, form) for form in ("PNG", "TIFF")}
    floats = ImageData(np.random.default_rng(0).random((300, 400, 3), np.float32), depth=32)
    return found | {"TIFF-32": encode_image(floats, "TIFF"), "GIF": file_of(Image.new("P", (9, 8), 3), "GIF")}


FILES = _files()


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_the_same_decoded_apart(name: str) -> None:
    here, apart = read_image(FILES[name]), read_image(FILES[name], apart=True)
    np.testing.assert_array_equal(apart.array, here.array)
    assert (apart.alpha is None) == (here.alpha is None)
    if here.alpha is not None:
        np.testing.assert_array_equal(apart.alpha, here.alpha)
    assert (apart.depth, apart.format, apart.icc, apart.exif) == (here.depth, here.format, here.icc, here.exif)


@pytest.mark.parametrize("name", FILES)
def test_the_size_is_told_once_and_before_the_pixels(name: str) -> None:
    """What the limit of memory is set by, in every format. A refusal of it leaves the pixels alone."""
    shown = []

    def before(width: int, height: int) -> None:
        shown.append((height, width))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        decode(FILES[name], 10**6, apart=True, before_pixels=before)
    assert shown == [read_image(FILES[name]).array.shape[:2]]


@pytest.mark.parametrize("name", ["PNG", "PNG-16", "TIFF-16", "TIFF-32", "JPEG", "WEBP", "AVIF"])
def test_refusals_are_the_same_too(name: str) -> None:
    for data, limits in ((FILES[name][: len(FILES[name]) * 2 // 3], {}), (FILES[name], {"max_pixels": 10})):
        said = []
        for apart in (False, True):
            with pytest.raises(InputError) as error:
                read_image(data, apart=apart, **limits)
            said.append((str(error.value), error.value.limit))
        assert said[0] == said[1]


def test_a_large_image_fits_what_its_size_may_take() -> None:
    """4 Mpx in every way that is read: the limit is set, and no honest image runs into it."""
    grey = samples((2000, 2000))
    for data in (
        file_of(Image.fromarray(grey), "PNG"),
        file_of(Image.fromarray(grey), "JPEG", progressive=True),
        encode_image(image_of(samples((2000, 2000, 3), top=65535), samples((2000, 2000), top=65535)), "PNG"),
        encode_image(image_of(samples((2000, 2000, 3), top=65535)), "TIFF"),
    ):
        assert read_image(data, apart=True).array.shape[:2] == (2000, 2000)


DECODED = """
import contextlib, pathlib, resource, sys
from nlrn.errors import InputError
from nlrn.io.image import read_image
with contextlib.suppress(InputError):
    assert read_image(pathlib.Path(sys.argv[1]), apart=True).array.shape == (4, 4)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_what_stands_before_the_pixels_is_limited_too(tmp_path: Path) -> None:
    """A chunk of text inflates to a gigabyte: refused, or passed over, and never in memory."""
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 30), 9))
    (tmp_path / "bomb.png").write_bytes(png(4, 4, 8, 0, (b"\0" + bytes(4)) * 4, bomb))
    command = [sys.executable, "-c", DECODED, str(tmp_path / "bomb.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 700 << 10  # KiB of the largest child, here the only one
