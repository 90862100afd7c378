"""TIFF files: tifffile writes them with all its options, and judges what was read and written."""

from __future__ import annotations

import dataclasses
import gc
import io
import itertools
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from imagefiles import file_of, samples
from PIL import Image

from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.io.chunks import LZW, PLAIN, Layout, chunks
from nlrn.io.image import ImageData, encode_image, read_image
from nlrn.io.tiffs import CameraRawError, read_tiff

RNG = np.random.default_rng(0)


def written(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def of_type(shape: tuple[int, ...], kind: str) -> np.ndarray:
    if kind == "float32":
        return RNG.random(shape, np.float32)
    return RNG.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


def read_back(data: bytes) -> np.ndarray:
    """Samples as tifffile gives them: contiguous, alpha last."""
    image = read_image(data)
    top = 1 if image.depth == 32 else 2**image.depth - 1
    values = image.array.astype(np.float64) * top
    values = values if image.depth == 32 else np.rint(values)
    return values if image.alpha is None else np.dstack([values, image.alpha])


# -- the grid of tifffile's options: right, or refused ----------------------------------------------------------------

GRID = list(
    itertools.product(
        ("grey", "rgb", "rgba", "greya"),
        ("uint8", "uint16", "float32"),
        ("<", ">"),
        (False, True),  # BigTIFF
        (None, "zlib"),
        (False, True),  # predictor
        ("contig", "separate"),
        ("strips", "tiles", "one strip"),
    )
)


@pytest.mark.parametrize("start", range(8))
def test_what_tifffile_writes_is_read_or_refused(start: int) -> None:
    """Every cell under its own options; wrong would be other samples than those that were written."""
    refused = 0
    for colour, kind, order, big, compression, predictor, planar, parts in GRID[start::8]:
        bands = {"grey": 1, "rgb": 3, "rgba": 4, "greya": 2}[colour]
        values = of_type((23, 37) if bands == 1 else (23, 37, bands), kind)
        options: dict[str, Any] = {"photometric": "rgb" if bands > 2 else "minisblack", "byteorder": order}
        options |= {"bigtiff": big, "compression": compression, "metadata": None}
        if predictor and compression and kind != "float32":
            options["predictor"] = True
        if bands > 1:
            options["planarconfig"] = planar
        if bands in (2, 4):
            options["extrasamples"] = ["unassalpha"]
        options |= {"strips": {"rowsperstrip": 5}, "tiles": {"tile": (16, 16)}, "one strip": {}}[parts]
        given_ = np.moveaxis(values, -1, 0) if bands > 1 and planar == "separate" else values
        data = written(given_, **options)
        try:
            got = read_back(data)
        except InputError:
            if kind != "float32" or bands not in (2, 4):
                raise
            refused += 1
            continue
        np.testing.assert_array_equal(got, values, err_msg=str(options))
    assert refused < len(GRID[start::8]) / 4


COMPRESSED = {
    "lzw": ({"compression": "tiff_lzw"}, ("L", "RGB", "RGBA", "I;16")),
    "packbits": ({"compression": "packbits"}, ("L", "RGB", "RGBA", "I;16")),
    "deflate": ({"compression": "tiff_adobe_deflate"}, ("L", "RGB", "RGBA", "I;16", "1")),
    "old deflate": ({"compression": "tiff_deflate"}, ("L", "RGB")),
    "lzma": ({"compression": "lzma"}, ("L", "RGB")),
    "zstd": ({"compression": "zstd"}, ("L", "RGB")),
    "group 3": ({"compression": "group3"}, ("1",)),
    "group 4": ({"compression": "group4"}, ("1",)),
    "jpeg": ({"compression": "jpeg"}, ("L", "RGB")),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_every_compression_that_was_read_is_read(name: str) -> None:
    options, modes = COMPRESSED[name]
    for mode in modes:
        if mode == "I;16":
            image = Image.fromarray(samples((23, 37), top=65535))
        else:
            bands = {"L": 1, "1": 1, "RGB": 3, "RGBA": 4}[mode]
            values = samples((23, 37, bands)[: 2 + (bands > 1)])
            image = Image.fromarray(values).convert(mode)
        data = file_of(image, "TIFF", **options)
        right = Image.open(io.BytesIO(data))
        expected = np.asarray(right.convert("L") if mode == "1" else right).astype(float)
        got = read_back(data)
        assert np.abs(got - expected).max() <= (2 if name in ("jpeg", "webp") else 0), mode


def compressed_by_hand(planes: list[np.ndarray], word: str, photometric: int, extra: int = 0) -> bytes:
    """Planes that Pillow compressed, one strip each, put together here: it writes them neither apart nor inverted."""
    strips = []
    for plane in planes:
        data = file_of(Image.fromarray(plane), "TIFF", compression=word, strip_size=1 << 20)
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            strips.append(data[page.dataoffsets[0] :][: page.databytecounts[0]])
            code = int(page.compression)
    (height, width), count = planes[0].shape, len(planes)
    places = np.cumsum([8, *map(len, strips)]).tolist()
    values: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8 * planes[0].itemsize] * count), 259: ("H", [code]),
        262: ("H", [photometric]), 273: ("I", places[:-1]), 277: ("H", [count]), 278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]), 284: ("H", [2 if count > 1 else 1]),
    }  # fmt: skip
    if extra:
        values[338] = ("H", [extra])
    start = places[-1] + places[-1] % 2
    entries, after, behind = b"", b"", start + 2 + 12 * len(values) + 4
    for tag, (letter, numbers) in sorted(values.items()):
        raw = struct.pack(f"<{len(numbers)}{letter}", *numbers)
        inside = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", behind + len(after))
        after += raw + bytes(len(raw) % 2) if len(raw) > 4 else b""
        entries += struct.pack("<HHI", tag, 3 if letter == "H" else 4, len(numbers)) + inside
    directory = struct.pack("<H", len(values)) + entries + bytes(4) + after
    return b"II*\0" + struct.pack("<I", start) + b"".join(strips) + bytes(start - places[-1]) + directory


@pytest.mark.parametrize("word", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd"])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("look", ["grey and alpha", "RGB", "RGBA", "CMYK", "white is zero"])
def test_compressed_planes_that_lie_apart_and_white_that_is_zero(word: str, kind: str, look: str) -> None:
    """Pillow reads the first plane of a grey image twice, as its alpha; libvips inverts 16 bits by itself."""
    count, photometric = {
        "grey and alpha": (2, 1),
        "RGB": (3, 2),
        "RGBA": (4, 2),
        "CMYK": (4, 5),
        "white is zero": (1, 0),
    }[look]
    planes = [of_type((19, 23), kind) for _ in range(count)]
    data = compressed_by_hand(planes, word, photometric, extra=2 if look in ("grey and alpha", "RGBA") else 0)
    if look == "CMYK" and kind == "uint16":
        with pytest.raises(InputError, match="grey or RGB only"):
            read_image(data)
        return
    values = np.dstack(planes) if count > 1 else planes[0]
    if look == "CMYK":
        values = np.asarray(Image.fromarray(values, "CMYK").convert("RGB"))
    if look == "white is zero":
        values = np.iinfo(kind).max - values
    np.testing.assert_array_equal(read_back(data), values)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from(["uint8", "uint16", "float32"]),
    st.sampled_from([1, 3]), st.sampled_from([None, "zlib"]), st.sampled_from([None, 1, 3, 7]), st.booleans(),
)  # fmt: skip
def test_any_size_and_strip(
    height: int, width: int, kind: str, bands: int, compression: str | None, rows: int | None, big: bool
) -> None:
    values = of_type((height, width, bands)[: 2 + (bands > 1)], kind)
    data = written(
        values, photometric="rgb" if bands == 3 else "minisblack", compression=compression, rowsperstrip=rows,
        bigtiff=big, metadata=None,
    )  # fmt: skip
    np.testing.assert_array_equal(read_back(data), values)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["uint8", "uint16", "float32"]), st.data())
def test_all_the_samples_or_none(planes: int, bands: int, kind: str, chosen: st.DataObject) -> None:
    """Whatever is declared: what is read has as many samples as tifffile finds in the file."""
    shape = (planes, 12, 17, bands) if bands > 1 else (planes, 12, 17)
    values = of_type(shape, kind)
    how = chosen.draw(st.sampled_from(["plain", "imagej", "ome", "truncated", "pages"]))
    options: dict[str, Any] = {"photometric": "rgb" if bands >= 3 else "minisblack"}
    if bands > 1:
        options |= {"planarconfig": "contig"}
        kinds = chosen.draw(st.sampled_from(["unassalpha", "assocalpha", "unspecified"]))
        extra = bands - (3 if bands >= 3 else 1)
        options |= {"extrasamples": [kinds] + ["unspecified"] * (extra - 1)} if extra else {}
    if how == "imagej":
        if kind == "float32" and bands > 1:
            return
        options = {"imagej": True} if bands in (1, 3) and not (bands == 3 and kind == "uint16") else options
    if how == "ome":
        options["ome"] = True
    try:
        if how == "truncated":
            file = io.BytesIO()
            with tifffile.TiffWriter(file) as writer:
                writer.write(values, truncate=True, **options)
            data = file.getvalue()
        else:
            data = written(values if planes > 1 else values[0], **options)
    except (ValueError, TypeError):  # what tifffile does not write
        return
    declared = tifffile.TiffFile(io.BytesIO(data)).series[0].size
    try:
        image = read_image(data)
    except InputError as error:
        if "damaged" in str(error):
            raise
        return
    assert image.array.size + (0 if image.alpha is None else image.alpha.size) == declared


# -- kinds of files ---------------------------------------------------------------------------------------------------


def series(*pages: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for values, options in pages:
            writer.write(values, metadata=None, **options)
    return file.getvalue()


MAIN = of_type((64, 96), "uint16")
GREY = {"photometric": "minisblack"}


def test_reduced_copies_are_left_out_with_a_note() -> None:
    levels = [(MAIN[::k, ::k].copy(), {**GREY, "subfiletype": 1}) for k in (2, 4)]
    for data in (
        series((MAIN, GREY), *levels),  # in the chain
        series((MAIN, {**GREY, "subifds": 2}), *levels),  # below
        series((MAIN, {**GREY, "subifds": 2}), *((v, GREY) for v, _ in levels)),  # below, not marked
        series(levels[0], (MAIN, GREY), levels[1]),  # a preview first
        series(({"a": MAIN[::4, ::4].copy()}["a"], {**GREY, "subifds": 1, "subfiletype": 1}), (MAIN, GREY)),
    ):
        image = read_image(data)
        np.testing.assert_array_equal(np.rint(image.array * 65535), MAIN)
        assert any("reduced cop" in note for note in image.notes)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (series((MAIN, GREY), (MAIN, GREY)), "2 frames or pages"),
        (series((MAIN, GREY), (MAIN[:20, :20].copy(), GREY)), "96 x 64, 20 x 20"),
        (series((MAIN, {**GREY, "subifds": 1}), (MAIN, GREY)), "2 frames"),
        (series((MAIN, GREY), (MAIN > 9, {"photometric": "mask", "subfiletype": 4})), "mask"),
        (written(of_type((4, 9, 8), "uint16"), volumetric=True, **GREY), "4"),
        (written(of_type((3, 9, 8), "uint8"), ome=True, metadata={"axes": "CYX"}), "3"),
        (written(MAIN.astype(np.int16), **GREY), "signed"),
        (written(MAIN.astype(np.uint32), **GREY), r"\[32\] bits"),
        (written(MAIN.astype(np.float64), **GREY), "floats of 64 bits, which are not read"),
        (written((MAIN / 65535).astype(np.float16), **GREY), "floats of 16 bits, which are not read: .* of 32 bits"),
        (written(MAIN.astype(np.complex64), **GREY), "complex"),
        (written(of_type((9, 8, 6), "uint8"), photometric="rgb"), "6 samples"),
        (written(of_type((9, 8, 5), "uint8"), photometric="separated"), "CMYK takes 4"),
    ],
)
def test_what_is_refused_is_named(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        read_image(data)
    assert "damaged" not in str(error.value)


def _raw_kind(data: bytes) -> str:
    """Of a camera's raw file, which nlrn.io.further reads: the name that it is found by."""
    with pytest.raises(CameraRawError) as error:
        read_tiff(data, False, lambda width, height: None, lambda width, height: None)
    return str(error.value)


def test_raw_files_by_their_tags() -> None:
    assert "raw file (raw)" in _raw_kind(written(of_type((9, 8), "uint8"), photometric="cfa"))
    assert "raw file (DNG)" in _raw_kind(written(MAIN, **GREY, extratags=[(50706, 1, 4, bytes((1, 4, 0, 0)), True)]))


@pytest.mark.parametrize(("make", "name"), [("NIKON CORPORATION", "NEF"), ("SONY", "ARW"), ("Leica", "raw")])
def test_raw_files_by_their_maker(make: str, name: str) -> None:
    preview = of_type((16, 24, 3), "uint8")
    head = {"photometric": "rgb", "subfiletype": 1, "subifds": 1, "extratags": [(271, 2, len(make) + 1, make, True)]}
    assert f"raw file ({name})" in _raw_kind(series((preview, head), (MAIN, {"photometric": "cfa", "subfiletype": 0})))


def test_a_canon_raw_by_its_header() -> None:
    data = bytearray(series((MAIN, GREY)))
    moved = data[:8] + b"CR\2\0" + bytes(4) + data[8:]
    with pytest.raises(InputError, match=r"CR2|truncated"):
        read_image(bytes(moved))
    start = struct.unpack("<I", data[4:8])[0]
    data += bytes(len(data) % 2)
    place = len(data)
    count = struct.unpack("<H", data[start : start + 2])[0]
    data += data[start : start + 2 + 12 * count + 4]
    struct.pack_into("<I", data, 4, place)
    data[8:12] = b"CR\2\0"
    assert "CR2" in _raw_kind(bytes(data))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_every_cut_is_refused(order: str, big: bool, kind: str) -> None:
    data = written(
        of_type((9, 11, 3), kind), photometric="rgb", byteorder=order, bigtiff=big, compression="zlib", predictor=True,
        description="some words that are longer than eight bytes", software="a writer", metadata=None,
    )  # fmt: skip
    whole = read_back(data)
    for cut in [*range(1, 40), *range(40, len(data) - 8, 11)]:
        try:
            got = read_back(data[:-cut])
        except InputError:
            continue
        np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize("parts", [{"rowsperstrip": 3}, {"tile": (16, 16)}, {"rowsperstrip": 3, "planarconfig": 2}])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("what", ["offset 0", "no bytes", "beyond"])
def test_missing_strips_and_tiles_are_refused(parts: dict[str, Any], compression: str | None, what: str) -> None:
    rgb = of_type((3, 40, 40), "uint8") if "planarconfig" in parts else of_type((40, 40, 3), "uint8")
    file = io.BytesIO(written(rgb, photometric="rgb", compression=compression, metadata=None, **parts))
    with tifffile.TiffFile(file, mode="r+") as tif:
        page = tif.pages.first
        offsets = page.tags[324 if "tile" in parts else 273]
        counts = page.tags[325 if "tile" in parts else 279]
        tag, value = {"offset 0": (offsets, 0), "no bytes": (counts, 1), "beyond": (offsets, 2**24)}[what]
        tag.overwrite((*tag.value[:-1], value))
    with pytest.raises(InputError):
        read_image(file.getvalue())


def test_colours_against_pillow() -> None:
    rgb = Image.fromarray(samples((23, 37, 3)))
    for mode in ("P", "CMYK", "YCbCr"):
        image = rgb.quantize(40) if mode == "P" else rgb.convert(mode)
        for compression in (None, "tiff_adobe_deflate", "tiff_lzw"):
            data = file_of(image, "TIFF", **({"compression": compression} if compression else {}))
            expected = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(read_back(data) - expected).max() <= (2 if mode == "YCbCr" else 0), (mode, compression)
            assert ("CMYK was converted to RGB" in read_image(data).notes) == (mode == "CMYK")


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("inverted", [False, True])
def test_few_bits(bits: int, inverted: bool) -> None:
    values = RNG.integers(0, 2**bits, (9, 16), np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(9, -1), axis=1)
    pixels = packed.tobytes()
    entries = [(256, 16), (257, 9), (258, bits), (259, 1), (262, 0 if inverted else 1), (273, 8), (277, 1), (278, 9)]
    entries.append((279, len(pixels)))
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(entries))
    data = head + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries) + bytes(4)
    expected = values.astype(int) * 255 // (2**bits - 1)
    np.testing.assert_array_equal(read_back(data), 255 - expected if inverted else expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(bits: int) -> None:
    rgb = Image.fromarray(samples((13, 24, 3))).quantize(2**bits)
    values, table = np.asarray(rgb), RNG.integers(0, 65535, (3, 2**bits), np.uint16)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(13, -1), axis=1).tobytes()
    colours = table.tobytes()
    entries = [(256, 3, 1, 24), (257, 3, 1, 13), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 3), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 3, 1, 13), (279, 4, 1, len(packed)), (320, 3, table.size, 8 + len(packed))]
    head = b"II*\0" + struct.pack("<I", 8 + len(packed) + len(colours)) + packed + colours
    data = head + struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    np.testing.assert_array_equal(read_back(data), (table.T // 256)[values])


def test_premultiplied_alpha_of_8_bits_is_taken_out() -> None:
    alpha = np.full((8, 8), 128, np.uint8)
    colour = np.full((8, 8, 3), 64, np.uint8)
    data = written(np.dstack([colour, alpha]), photometric="rgb", extrasamples=["assocalpha"], metadata=None)
    image = read_image(data)
    assert np.abs(image.array * 255 - 127.5).max() < 1
    assert np.array_equal(image.alpha, alpha)


def test_a_bomb_in_a_strip_is_refused() -> None:
    import zlib

    data = written(np.zeros((16, 16), np.uint8), compression="zlib", metadata=None)
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        place, size = tif.pages.first.dataoffsets[0], tif.pages.first.databytecounts[0]
    bomb = zlib.compress(bytes(50 << 20), 9)
    file = io.BytesIO(data + bomb)
    with tifffile.TiffFile(file, mode="r+") as tif:
        tif.pages.first.tags[273].overwrite(len(data))
        tif.pages.first.tags[279].overwrite(len(bomb))
    assert place != len(data) and size != len(bomb)  # noqa: PT018
    with pytest.raises(InputError, match="too many pixels"):
        read_image(file.getvalue())


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "alpha"), [(8, False), (8, True), (16, False), (16, True), (32, False)])
@pytest.mark.parametrize("bands", [1, 3])
def test_others_read_what_is_written(tmp_path: Path, depth: int, bands: int, alpha: bool) -> None:
    """tifffile and libvips as judges of samples, shape and metadata."""
    import pyvips

    array = RNG.random((21, 34, bands)[: 2 + (bands > 1)], np.float32)
    plane = RNG.integers(0, 2**depth - 1, (21, 34), f"uint{depth}") if alpha else None
    exif = Image.Exif()
    exif[271], exif[270], exif[34665] = "a maker", "Größe 5 µm".encode(), {33437: 2.5, 36867: "2020:01:01 00:00:00"}
    exif[34853] = {1: "N"}
    data = encode_image(ImageData(array, plane, depth, dpi=(300.0, 150.0), exif=exif.tobytes()), "TIFF")
    (tmp_path / "a.tif").write_bytes(data)
    expected = array if depth == 32 else np.rint(array.astype(np.float64) * (2**depth - 1)).astype(f"uint{depth}")
    expected = expected if plane is None else np.dstack([expected, plane])
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert len(tif.pages) == 1
        page = tif.pages.first
        np.testing.assert_array_equal(page.asarray(), expected)
        assert page.tags[34665].value["FNumber"] == 2.5
        assert page.tags[34853].value["GPSLatitudeRef"] == "N"
        assert page.tags[282].value == (300, 1)
        assert page.tags[283].value == (150, 1)
        assert "Größe 5 µm".encode() in data
        assert page.extrasamples == ((2,) if alpha else ())
    seen = pyvips.Image.new_from_file(str(tmp_path / "a.tif"), fail_on="warning")
    np.testing.assert_array_equal(seen.numpy().reshape(expected.shape), expected)


def test_a_tiff_goes_through_the_command_line_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = [(MAIN[::2, ::2].copy(), {**GREY, "subfiletype": 1})]
    (tmp_path / "a.tif").write_bytes(series((MAIN, GREY), *levels))
    assert run(["denoise", str(tmp_path / "a.tif"), "-o", str(tmp_path / "b.tif"), "--sigma", "0"]) == 0
    assert "left out: 1 reduced copy" in capsys.readouterr().out
    assert tifffile.imread(tmp_path / "b.tif").shape == MAIN.shape


def test_no_line_of_tifffile_reaches_the_terminal(tmp_path: Path) -> None:
    data = bytearray(series((MAIN, GREY)))
    (tmp_path / "a.tif").write_bytes(data[:-3])
    read = f"try: read_image({str(tmp_path / 'a.tif')!r})\nexcept ValueError: pass"
    code = f"from nlrn.io.image import read_image\n{read}"
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# -- what is written ----------


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *((kind, shape) for kind in ("uint8", "uint16", "float32") for shape in ((70, 50), (90, 1500, 3))),
        *((kind, (70, 50, 4)) for kind in ("uint8", "uint16")),  # floats have no alpha
    ],
)
def test_a_compressed_tiff_holds_the_same_samples_and_tags(compression: str, kind: str, shape: tuple[int, ...]) -> None:
    """Judged by libtiff, which Pillow and libvips read by, and by tifffile's reading of the tags."""
    y, x = np.indices(shape[:2])
    plane = (3 * y + x) % 256 if kind == "uint8" else 100 * (y % 90) + 7 * x
    values = (np.repeat(plane[..., None], shape[2], axis=2) if len(shape) > 2 else plane).astype(kind)
    if kind == "float32":
        values /= 20000
    levels = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    colour, alpha = (values[..., :3], values[..., 3].copy()) if shape[2:] == (4,) else (values, None)
    depth = 8 * values.itemsize
    block = Image.Exif()
    block[0x010F] = "A maker"
    image = ImageData((colour / levels).astype(np.float32), alpha, depth, exif=block.tobytes(), dpi=(300.0, 300.0))
    data = encode_image(dataclasses.replace(image, compression=compression), "TIFF")
    import pyvips

    found = pyvips.Image.new_from_buffer(data, "", fail_on="warning").numpy()
    np.testing.assert_array_equal(found.reshape(values.shape), values)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        assert page.compression == {"none": 1, "lzw": 5, "deflate": 8}[compression]
        assert (page.tags[271].value, page.tags[282].value) == ("A maker", (300, 1))
    if compression != "none":
        assert len(data) < len(encode_image(image, "TIFF")) * 0.6
    again = read_image(data)
    np.testing.assert_array_equal(again.array, image.array)


def test_quality_and_compression_are_options(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    sizes = {}
    for quality in ("40", "95"):
        out = tmp_path / f"q{quality}.jpg"
        assert run(["denoise", str(tmp_path / "a.png"), "-o", str(out), "--sigma", "1", "--quality", quality]) == 0
        sizes[quality] = out.stat().st_size
    plain = tmp_path / "plain.jpg"
    assert run(["denoise", str(tmp_path / "a.png"), "-o", str(plain), "--sigma", "1"]) == 0
    assert sizes["40"] < sizes["95"] == plain.stat().st_size
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "in" / "a.png")
    many = ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--sigma", "1", "--format", "tif"]
    assert run([*many, "--compression", "lzw"]) == 0
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as file:
        assert file.pages.first.compression == 5
    assert run(many) == 2  # another result is asked for under the same name


def test_the_core_alone_writes_every_compression() -> None:
    """Where imagecodecs is not installed, which only extras bring."""
    script = """
import dataclasses, sys
sys.modules["imagecodecs"] = None
import numpy as np
from nlrn.io.image import ImageData, encode_image, read_image
from nlrn.io.tiffwriting import COMPRESSIONS
for depth in (8, 16, 32):
    values = np.linspace(0, 1, 64 * 48 * 3).reshape(64, 48, 3)
    image = ImageData((values if depth == 32 else np.rint(values * 255) / 255).astype(np.float32), None, depth)
    for name in COMPRESSIONS:
        data = encode_image(dataclasses.replace(image, compression=name), "TIFF")
        assert np.array_equal(read_image(data).array, image.array), (depth, name)
print("all")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "all\n", done.stderr


SIDE = 256
BIG = np.random.default_rng(0).integers(0, 65535, (SIDE, SIDE)).astype(np.uint16)


def read_once(**options: Any) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, BIG, metadata=None, **options)
    read_image(file.getvalue(), apart=False)


HOLDING: dict[str, Callable[[], Any]] = {
    "read": read_once,
    "read, deflate": lambda: read_once(compression="zlib"),
    "write": lambda: encode_image(ImageData(BIG / np.float32(65535), depth=16), "TIFF"),
    "strips": lambda: list(chunks(BIG[..., None], Layout(PLAIN, 1, (SIDE, SIDE), False, False, "<"))),
    "strips by libtiff": lambda: list(chunks(BIG[..., None], Layout(LZW, 1, (SIDE, SIDE), False, False, "<"))),
}


@pytest.mark.parametrize("name", HOLDING)
def test_nothing_of_a_file_waits_for_a_collection(name: str) -> None:
    """A stack is read plane by plane: what objects in a circle hold would lie there for many planes."""
    HOLDING[name]()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(4):
            HOLDING[name]()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < BIG.nbytes
