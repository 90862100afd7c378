"""What is read is exact, whatever the bytes; the rest is refused, at once and without memory."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagefiles import FORMATS, WITH_ALPHA, chunk, file_of, image_of, levels, outcome, png, samples, tiff
from PIL import ExifTags, Image

from nlrn.errors import BackendError, InputError
from nlrn.io.image import encode_image, read_image
from nlrn.io.sandbox import decode_apart

Count = Callable[[int], int]


def test_pngsuite_is_exact(data_root: Path) -> None:
    exact = 0
    for file in sorted((data_root / "pngsuite" / "png").glob("[!x]*.png")):
        header = file.read_bytes()[24:26]
        image = read_image(file)
        colour, top = levels(image), 2**image.depth - 1
        assert image.depth == max(8, header[0])
        assert (image.array.ndim == 2) == (header[1] in (0, 4))
        alpha = np.full(colour.shape[:2], top) if image.alpha is None else image.alpha
        colour = np.stack([colour] * 3, axis=-1) if colour.ndim == 2 else colour
        expected = json.loads((data_root / "pngsuite" / "json" / f"{file.stem}.json").read_text())
        np.testing.assert_array_equal(np.dstack([colour, alpha]).ravel(), expected, err_msg=file.stem)
        exact += 1
    assert exact == 161


def test_pngsuite_corrupt_files_are_refused(data_root: Path) -> None:
    files = sorted((data_root / "pngsuite" / "png").glob("x*.png"))
    assert len(files) == 14
    for file in files:
        with pytest.raises(InputError, match=file.stem):
            read_image(file)


@pytest.mark.parametrize("mode", ["I", "LAB"])
def test_wide_integers_and_lab_samples_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match="expected unsigned integers"):
        read_image(file_of(Image.new(mode, (4, 4)), "TIFF"))


def test_16_bit_colour_is_exact_in_png_and_tiff() -> None:
    """Written by our own hand, grey and colour, with alpha and without, big bytes first and little ones."""
    for channels, colour in ((2, 4), (3, 2), (4, 6)):
        values = samples((3, 5, channels), top=65535)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        extra = {2: (2,), 4: (2,)}.get(channels, ())
        for data in (
            png(5, 3, 16, colour, rows),
            tiff(5, 3, (16,) * channels, 2 if channels > 2 else 1, values.astype("<u2").tobytes(), extra=extra),
        ):
            image = read_image(data)
            assert image.depth == 16
            found = levels(image)
            np.testing.assert_array_equal(found, values[..., 0] if channels == 2 else values[..., :3])
            if channels in (2, 4):
                assert image.alpha is not None
                assert image.alpha.dtype == np.uint16
                np.testing.assert_array_equal(image.alpha, values[..., -1])
            else:
                assert image.alpha is None
    grey = samples((3, 4), top=65535)
    white_is_zero = read_image(tiff(4, 3, (16,), 0, grey.astype("<u2").tobytes()))
    np.testing.assert_array_equal(levels(white_is_zero), 65535 - grey)


def test_a_transparent_colour_of_16_bits_becomes_alpha() -> None:
    values = np.array([[[1, 2, 3], [1, 2, 259]]])  # equal in their low bytes
    rows = b"\0" + values.astype(">u2").tobytes()
    image = read_image(png(2, 1, 16, 2, rows, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))))
    np.testing.assert_array_equal(image.alpha, [[0, 65535]])
    np.testing.assert_array_equal(levels(image), values)


def test_floats_are_kept_and_what_is_not_finite_is_refused() -> None:
    for channels in (1, 3):
        values = np.random.RandomState(0).normal(0.5, 0.4, (3, 5, channels)).astype("<f4")  # beyond 0..1 too
        data = tiff(5, 3, (32,) * channels, 2 if channels > 1 else 1, values.tobytes(), kind=3)
        image = read_image(data)
        assert image.depth == 32
        np.testing.assert_array_equal(image.array, values[..., 0] if channels == 1 else values)
    np.testing.assert_array_equal(
        read_image(file_of(Image.new("F", (4, 4), 0.25), "TIFF")).array, np.full((4, 4), 0.25)
    )
    for bad in (np.nan, np.inf):
        values[1, 2, 0] = bad
        with pytest.raises(InputError, match="not finite"):
            read_image(tiff(5, 3, (32,) * 3, 2, values.tobytes(), kind=3))


def test_avif_of_more_than_8_bits_is_refused_and_8_bits_are_near() -> None:
    import pyvips

    values = samples((24, 32, 3))
    plain = file_of(Image.fromarray(values), "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(levels(read_image(plain)) - values).max() <= 4
    for bits in (10, 12):
        deep = pyvips.Image.new_from_array(values.astype(np.uint16) * 257, interpretation="rgb16")
        with pytest.raises(InputError, match=f"{bits}-bit samples"):
            read_image(deep.heifsave_buffer(compression="av1", bitdepth=bits))


def test_other_wide_samples_are_refused() -> None:
    for data, reason in (
        (b"P6\n4 3\n65535\n" + bytes(72), "16-bit samples"),
        (b"P3\n1 1\n# note\n1000\n1 2 3\n", "16-bit samples"),
        (tiff(4, 3, (12,), 1, bytes(18)), "12-bit samples"),  # not scaled by Pillow
        (tiff(4, 3, (16,) * 4, 5, bytes(96)), "grey or RGB only"),  # inks
        (tiff(4, 3, (16,) * 4, 2, bytes(96), extra=(1,)), "multiplied into the colour"),
        (tiff(4, 3, (16,) * 4, 2, bytes(96), extra=(0,)), "unknown kind"),
        (tiff(4, 3, (16,) * 3, 2, bytes(70)), "truncated"),
        (tiff(4, 3, (32,) * 2, 1, bytes(96), extra=(2,), kind=3), "2 samples a pixel"),
        (tiff(4, 3, (32,), 0, bytes(48), kind=3), "grey or RGB only"),  # white is zero: not inverted by libvips
        (tiff(4, 3, (64,), 1, bytes(96), kind=3), "floats of 64 bits"),
        (tiff(4, 3, (16,), 1, bytes(24), kind=3), "floats of 16 bits"),
    ):
        with pytest.raises(InputError, match=reason):
            read_image(data)


def test_16_bit_grey_keeps_16_bits() -> None:
    values = samples((5, 7), top=65535)
    for data in (
        tiff(7, 5, (16,), 1, values.astype("<u2").tobytes()),
        file_of(Image.fromarray(values), "PNG"),
        file_of(Image.fromarray(values), "TIFF"),
        file_of(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
    ):
        image = read_image(data)
        assert image.depth == 16
        np.testing.assert_array_equal(levels(image), values)


def test_16_bit_pgm_is_exact() -> None:
    values = np.arange(65536).reshape(256, 256)
    plain = b" ".join(b"%d" % value for value in values.ravel())
    raw = values.astype(">u2").tobytes()
    for data in (b"P5\n256 256\n65535\n" + raw, b"P2\n256 256\n65535\n" + plain):
        image = read_image(data)
        assert (image.depth, image.format) == (16, "PPM")
        np.testing.assert_array_equal(levels(image), values)
    for cut in (20, 1000, len(raw)):
        with pytest.raises(InputError, match="truncated"):
            read_image((b"P5\n256 256\n65535\n" + raw)[:cut])


@pytest.mark.parametrize("top", [256, 1000, 1023, 4095, 65534])
def test_a_pgm_with_another_maximum_is_scaled_to_16_bits(top: int) -> None:
    values = np.arange(top + 1)[None]
    expected = np.rint(values / top * 65535)
    for data in (
        b"P5 %d 1 %d\n" % (top + 1, top) + values.astype(">u2").tobytes(),
        b"P2 %d 1 %d\n" % (top + 1, top) + b" ".join(b"%d" % value for value in values[0]),
    ):
        image = read_image(data)
        assert image.depth == 16
        np.testing.assert_array_equal(levels(image), expected)


def test_transparent_colours_of_grey_and_colour_become_alpha() -> None:
    grey = np.array([[0, 1, 2, 3]])
    for bits in (1, 2, 4, 8):  # the key is a sample of the file, Pillow scales the pixels but not the key
        packed = 0
        for value in grey[0] % 2**bits:
            packed = packed << bits | int(value)
        rows = b"\0" + (packed << max(8 - 4 * bits, 0)).to_bytes(-(-bits * 4 // 8), "big")
        key = chunk(b"tRNS", struct.pack(">H", 1))
        image = read_image(png(4, 1, bits, 0, rows, key))
        assert image.array.ndim == 2
        np.testing.assert_array_equal(image.alpha == 0, grey % 2**bits == 1)
    rows = b"\0" + bytes([1, 2, 3, 1, 2, 4])
    image = read_image(png(2, 1, 8, 2, rows, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))))
    np.testing.assert_array_equal(image.alpha, [[0, 255]])
    np.testing.assert_array_equal(levels(image), [[[1, 2, 3], [1, 2, 4]]])


def test_palettes_and_cmyk_are_converted_by_pillows_rule() -> None:
    made = Image.fromarray(samples((9, 8, 3))).quantize(16)
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(levels(read_image(file_of(made, form))), made.convert("RGB"))
    image = read_image(file_of(made, "PNG", transparency=3))
    np.testing.assert_array_equal(image.alpha == 0, np.asarray(made) == 3)
    for form in ("JPEG", "TIFF"):
        inks = Image.merge("CMYK", [Image.fromarray(samples((9, 8), seed)) for seed in range(4)])
        data = file_of(inks, form)
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(levels(read_image(data)), expected)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(20, 31), (20, 31, 3)])
def test_truncated_files_are_refused_or_the_same(form: str, shape: tuple[int, ...], count: Count) -> None:
    data = encode_image(image_of(samples(shape)), form)
    whole = read_image(data).array
    places, last = (40, 10) if form != "AVIF" else (4, 2)  # each is decoded in a process of its own
    cuts = {*np.linspace(0, len(data) - 1, count(10 * places), dtype=int), *range(len(data) - last, len(data))}
    for cut in cuts:
        image = outcome(data[: int(cut)])
        assert image is None or np.array_equal(image.array, whole), f"cut at {cut} of {len(data)}"


def test_a_png_with_rows_missing_is_refused() -> None:
    """Pillow leaves them black when the compressed data ends between two rows."""
    row = b"\0" + bytes([200] * 30)
    assert (read_image(png(30, 20, 8, 0, row * 20)).array > 0).all()
    for rows in (0, 1, 10, 19):
        with pytest.raises(InputError, match="rows are missing"):
            read_image(png(30, 20, 8, 0, row * rows))
    with pytest.raises(InputError, match="palette is missing"):
        read_image(png(30, 20, 8, 3, row * 20))


def seeds() -> list[bytes]:
    """One small file of every kind that is read."""
    grey, colour = samples((7, 9)), samples((7, 9, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    full = image_of(colour, grey, exif=exif.tobytes())
    files = [encode_image(image_of(values), form) for values in (grey, colour) for form in FORMATS]
    files += [encode_image(full, form) for form in WITH_ALPHA]
    deep = image_of(samples((7, 9, 3), top=65535), samples((7, 9), top=65535), exif=exif.tobytes())
    files += [encode_image(deep, form) for form in ("PNG", "TIFF")]
    files += [encode_image(dataclasses.replace(image_of(colour), depth=32), "TIFF")]
    files += [file_of(Image.fromarray(colour).quantize(8), form) for form in ("GIF", "PNG", "BMP", "TIFF")]
    files += [file_of(Image.fromarray(colour), "JPEG", progressive=True, exif=exif.tobytes())]
    files += [file_of(Image.fromarray(colour), "TIFF", compression=name) for name in ("tiff_lzw", "jpeg")]
    return [*files, file_of(Image.fromarray(colour).convert("CMYK"), "JPEG"), b"P3\n2 1\n9\n1 2 3 4 5 6\n"]


def mended(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks put right, so that damage reaches the decoder."""
    out, place = data[:8], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            break
        out += chunk(data[place + 4 : place + 8], data[place + 8 : place + 8 + length])
        place += 12 + length
    return out + data[place:]


def test_mutated_files_never_raise_anything_else(count: Count) -> None:
    files = seeds()
    edit = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from("sid"), st.binary(min_size=1, max_size=4))

    @settings(max_examples=count(2000))
    @given(st.sampled_from(files), st.lists(edit, min_size=1, max_size=6), st.booleans())
    def law(data: bytes, edits: list[tuple[float, str, bytes]], mend: bool) -> None:
        for where, kind, new in edits:
            place = int(where * len(data))
            rest = {"s": place + len(new), "i": place, "d": place + 8 * len(new)}[kind]
            data = data[:place] + (b"" if kind == "d" else new) + data[rest:]
        if mend and data.startswith(b"\x89PNG"):
            data = mended(data)
        image = outcome(data, max_pixels=1_000_000)
        if image is None:
            return
        assert np.isfinite(image.array).all()
        if image.depth < 32:
            assert image.array.min() >= 0
            assert image.array.max() <= 1

    law()


def test_tags_that_libtiff_frowns_at_stop_no_intact_image() -> None:
    """Strange metadata is nothing of the pixels: they are decoded by the tags of the pixels alone."""
    values = samples((5, 7, 3), top=65535)
    exif = Image.Exif()
    exif[ExifTags.Base.Copyright] = "me\0you\0"
    exif[ExifTags.Base.DateTime] = "2026:01:02 03:04:05"
    exif[ExifTags.Base.ResolutionUnit] = 0
    exif[ExifTags.Base.Rating] = 3
    for form in ("PNG", "TIFF"):
        image = read_image(encode_image(image_of(values, exif=exif.tobytes()), form))
        np.testing.assert_array_equal(levels(image), values)
        kept = Image.Exif()
        kept.load(image.exif)
        strange = (
            {ExifTags.Base.ResolutionUnit} if form == "TIFF" else set()
        )  # which it cannot hold without a resolution
        assert {t: v for t, v in kept.items() if t in exif} == {t: v for t, v in exif.items() if t not in strange}
    plain = read_image(encode_image(image_of(values), "PNG"))
    assert plain.exif is None
    assert b"pHYs" not in encode_image(image_of(values), "PNG")
    data = bytearray(tiff(7, 5, (16,) * 3, 2, values.astype("<u2").tobytes()))
    place = data.index(struct.pack("<HHI", 278, 4, 1))
    data[place : place + 12] = struct.pack("<HHII", 278, 4, 1, 5)
    np.testing.assert_array_equal(levels(read_image(bytes(data))), values)


@pytest.mark.parametrize("cut", [1, 50, 200])
def test_wide_tiffs_that_end_early_are_refused(cut: int) -> None:
    data = encode_image(image_of(samples((9, 9, 3), top=65535)), "TIFF")
    with pytest.raises(InputError, match="truncated"):
        read_image(data[:-cut])


def test_places_are_left_out_of_every_result() -> None:
    made, exif = Image.fromarray(samples((4, 5))), Image.Exif()
    exif[33922] = (0.0, 0.0, 0.0, 11.5, 48.1, 0.0)
    exif[33550] = (1.0, 1.0, 0.0)
    image = read_image(file_of(made, "TIFF", tiffinfo=exif))
    for form in ("TIFF", "PNG", "JPEG"):
        found = read_image(encode_image(image, form)).exif
        kept = Image.Exif()
        kept.load(found or b"")
        assert not {33922, 33550} & set(kept)


def late_exif_bomb() -> bytes:
    """EXIF of a 16-bit PNG that stands behind its pixels: 9,000 tags that each claim nearly all of it."""
    tags = b"".join(struct.pack("<HHII", 1000 + k, 1, 100_000, 8) for k in range(9000))
    block = b"II*\0" + struct.pack("<IH", 8, 9000) + tags + bytes(4)
    data = png(4, 3, 16, 2, b"".join(b"\0" + bytes(24) for _ in range(3)))
    return data[:-12] + chunk(b"eXIf", block) + data[-12:]


def test_exif_behind_the_pixels_is_read_or_left_out_at_once() -> None:
    started = time.process_time()
    assert read_image(late_exif_bomb()).exif is None
    assert time.process_time() - started < 5
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "a camera", 6
    data = png(4, 3, 16, 2, b"".join(b"\0" + bytes(24) for _ in range(3)))
    image = read_image(data[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[-12:])
    assert image.array.shape == (4, 3, 3)
    assert image.exif is not None


def ifd_bomb() -> bytes:
    """5,000 tags that each claim nearly the whole file, which Pillow would copy 5,000 times."""
    tags = b"".join(struct.pack("<HHII", 1000 + k, 1, 60_000, 8) for k in range(5_000))
    return b"II*\0" + struct.pack("<IH", 8, 5_000) + tags + bytes(4)


def gif_bomb() -> bytes:
    """A comment in a million pieces, whose time in Pillow grows with the square of their number."""
    data = file_of(Image.new("L", (4, 4)), "GIF")
    place = data.index(b"\x2c")
    return data[:place] + b"\x21\xfe" + b"\x01a" * 1_000_000 + b"\0" + data[place:]


@functools.cache
def avif_bomb() -> bytes:
    """64 million pixels in a container that says 16 x 16, which is what Pillow says before it decodes."""
    data = file_of(Image.new("RGB", (8000, 8000)), "AVIF", speed=10)
    size = data.index(b"ispe") + 8
    assert data[size : size + 8] == struct.pack(">II", 8000, 8000)
    return data[:size] + struct.pack(">II", 16, 16) + data[size + 8 :]


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(file_of(Image.new("L", (16, 16)), "JPEG"))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    data = bytearray(file_of(Image.new("RGB", (16, 16)), "WEBP", lossless=True))
    place = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[place : place + 4], "little") & ~((1 << 28) - 1)
    data[place : place + 4] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


def bmp_of_size(width: int, height: int, bits: int = 24, packed: int = 0) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, width, height, 1, bits, packed, *[0] * 5)


def big_tiff(width: int, height: int) -> bytes:
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (279, 4, 8),
    ]
    body = b"".join(struct.pack("<HHQQ", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(tags)) + body + bytes(8)


def plain_bombs() -> dict[str, tuple[bytes, str]]:
    """Headers that claim too many pixels, of every format, and frames by the thousand."""
    frames = [Image.new("L", (4, 4), n) for n in range(200)]
    several = {"save_all": True, "append_images": frames[1:]}
    sizes = {
        "jpeg size": jpeg_of_size(65_000, 65_000),
        "webp size": webp_of_size(16_383, 16_383),
        "png row": png(2**31 - 1, 1, 8, 0, b""),
        "png column": png(1, 2**31 - 1, 1, 0, b""),
        "png palette": png(60_000, 60_000, 8, 3, b"", chunk(b"PLTE", bytes(3))),
        "png bits": png(60_000, 60_000, 1, 0, b""),
        "bmp packed": bmp_of_size(60_000, 60_000, 8, 1),
        "bmp upside down": bmp_of_size(60_000, -60_000),
        "pgm": b"P5 60000 60000 255\n",
        "pbm": b"P4 100000 100000\n",
        "pgm in words": b"P2 60000 60000 255\n1 2 3",
        "big tiff": big_tiff(60_000, 60_000),
        "tiff bits": tiff(60_000, 60_000, (1,), 1, b""),
    }
    found = {name: (data, "pixels") for name, data in sizes.items()}
    found["gif frames"] = file_of(frames[0], "GIF", **several), "200 frames"
    found["png frames"] = file_of(frames[0], "PNG", **several), "frames"
    found["tiff pages"] = file_of(frames[0], "TIFF", **several), "200 frames or pages"
    return found


@functools.cache
def bombs() -> dict[str, tuple[bytes | Callable[[], bytes], str]]:
    """Small files that would cost much, and what the refusal says. The dearest is made where it is first used."""
    text = zlib.compress(bytes(60 << 20), 9)
    row = b"\0\0"
    return {
        "png size": (png(60_000, 60_000, 8, 2, b""), "3,600,000,000 pixels; the limit is 100,000,000"),
        "bmp size": (
            b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
            "pixels",
        ),
        "ppm size": (b"P6 60000 60000 255\n", "raised by --max-pixels"),
        "tiff size": (tiff(60_000, 60_000, (8,), 1, b""), "raised by --max-pixels"),
        "wide png size": (png(60_000, 60_000, 16, 2, b""), "raised by --max-pixels"),
        "samples": (tiff(1000, 100, (16,) * 10_000, 1, bytes(8)), "10000 samples a pixel"),
        "wide tiff size": (tiff(60_000, 60_000, (16,) * 3, 2, b""), "raised by --max-pixels"),
        "gif size": (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;", "pixels"),
        "zTXt": (png(1, 1, 8, 0, row, chunk(b"zTXt", b"k\0\0" + text)), "Decompressed data too large"),
        "iCCP": (png(1, 1, 8, 0, row, chunk(b"iCCP", b"k\0\0" + text)), "Decompressed data too large"),
        "iTXt": (png(1, 1, 8, 0, row, chunk(b"iTXt", b"k\0\1\0\0\0" + text)), "ecompressed"),
        "chunks": (png(1, 1, 8, 0, row, chunk(b"abCd") * 70_000), "over 65,536 chunks"),
        "tags": (ifd_bomb(), "more bytes than the file has"),
        "frame": (avif_bomb, "Failed to decode frame 0"),
        "comment": (gif_bomb(), "comment is in over 1,000 pieces"),
    } | plain_bombs()


def bomb(name: str) -> bytes:
    data = bombs()[name][0]
    return data() if callable(data) else data


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_at_once(name: str) -> None:
    data, reason = bomb(name), bombs()[name][1]
    before = time.process_time()
    with pytest.raises(InputError, match=reason):
        read_image(data)
    assert time.process_time() - before < 1  # of this process alone: what others do does not count


MEMORY = """
import sys
from pathlib import Path
from nlrn.errors import BackendError, InputError
from nlrn.io.image import read_image

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

good, *bombs = map(Path, sys.argv[1:])
read_image(good)
for bomb in bombs:
    before = peak()
    try:
        read_image(bomb)
    except InputError:
        pass
    print(peak() - before)
"""


def growth_of_the_peak(good: Path, *files: Path) -> list[int]:
    """Bytes that each file adds to the peak of a fresh process, whoever allocates them."""
    command = [sys.executable, "-c", MEMORY, str(good), *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


def test_bombs_are_refused_without_memory(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(file_of(Image.new("L", (9, 9)), "PNG"))
    for name in bombs():
        (tmp_path / name).write_bytes(bomb(name))
    growth = growth_of_the_peak(tmp_path / "good", *(tmp_path / name for name in bombs()))
    assert len(growth) == len(bombs())
    assert sum(growth) <= 64 << 20, dict(zip(bombs(), growth, strict=True))
    (tmp_path / "large").write_bytes(png(5000, 5000, 8, 0, bytes(5001 * 5000)))  # no bomb: 125 MB are needed
    assert growth_of_the_peak(tmp_path / "good", tmp_path / "large")[0] > 64 << 20


CHILDREN = """
import resource, sys
from pathlib import Path
from nlrn.errors import BackendError, InputError
from nlrn.io.image import read_image

for file in sys.argv[1:]:
    try:
        read_image(file)
    except InputError as error:
        assert "Failed to decode frame" in str(error)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
"""


@pytest.mark.slow
def test_a_decoder_of_its_own_gets_what_the_size_that_was_checked_may_take(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(file_of(Image.new("RGB", (16, 16)), "AVIF"))
    (tmp_path / "bomb").write_bytes(avif_bomb())  # 64 million pixels: 96 MB and more
    command = [sys.executable, "-c", CHILDREN, str(tmp_path / "good"), str(tmp_path / "bomb")]
    good, bomb = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert bomb - good <= 64 << 20


def test_a_decoder_of_its_own_needs_no_threads_and_minds_limits_that_are_there() -> None:
    """The limit of the processor's time may be lower than ours; a chief brand of mif1 is AVIF too."""
    values = samples((24, 32, 3))
    data = file_of(Image.fromarray(values), "AVIF", quality=100, subsampling="4:4:4")
    assert data[8:12] == b"avif"
    other = data[:8] + b"mif1" + data[12:]
    assert b"avif" in other[16:40]
    np.testing.assert_array_equal(read_image(other).array, read_image(data).array)
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (30, 30));"
    command = [
        sys.executable,
        "-c",
        script + "from nlrn.io.image import read_image; print(read_image(sys.stdin.buffer.read()).array.shape)",
    ]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    assert done.stdout.strip() == b"(24, 32, 3)"


ANSWERS = {  # what a decoder that was taken over could say, and the error
    "import os; os.write(1, b'x' * (1 << 20)); os.write(1, b'y' * (1 << 28))": (InputError, "silently"),
    "print('{}')": (BackendError, "an unexpected answer"),
    'print(\'{"colour": [[9, 9], "<f8"], "alpha": null}\')': (BackendError, "samples <f8"),
    'print(\'{"colour": [[90000, 90000], "|u1"], "alpha": null}\')': (BackendError, "samples"),
    'print(\'{"colour": [[9, 9], "|u1"], "alpha": null}\')': (InputError, "before the last row"),
    "raise SystemExit(3)": (InputError, "silently"),
}


@pytest.mark.parametrize("words", ANSWERS)
def test_a_decoder_is_not_believed_whatever_it_says(
    words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner = tmp_path / "answer.py"
    runner.write_text(words)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{runner}"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    kind, reason = ANSWERS[words]
    with pytest.raises(kind, match=reason):
        decode_apart(b"anything" * 100_000, 1000)


def test_no_process_to_decode_in_is_no_damage_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with pytest.raises(BackendError, match="cannot start the decoding process"):
        read_image(file_of(Image.new("L", (9, 9)), "AVIF"))


def test_animations_and_pages_are_refused_with_their_number() -> None:
    frames = [Image.fromarray(samples((9, 8, 3), seed)) for seed in range(7)]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        with pytest.raises(InputError, match="7 frames or pages"):
            read_image(file_of(frames[0], form, save_all=True, append_images=frames[1:]))


def test_of_a_multi_image_jpeg_the_main_image_is_read() -> None:
    frames = [Image.new("L", (8, 8), 50), Image.new("L", (8, 8), 200)]
    image = read_image(file_of(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert (levels(image) == 50).all()
