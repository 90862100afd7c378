"""Stacks: what tifffile reads of the file given and of the file written, planes beside single images, kills, limits."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.io.axes import split
from nlrn.io.directories import Form
from nlrn.io.image import ImageData, read_image
from nlrn.io.stacks import Limits, TiffStack, float_levels, is_tiff_stack
from nlrn.io.stackwriting import NumberedWriter, TiffStackWriter, Writer
from nlrn.system.journal import Journal

RNG = np.random.default_rng(0)
# Of a page: how its samples lie in the file, which may differ; everything else must not.
PLACES = {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts"}


def values(shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Half smooth, half noise, so that predictors and compressions have something to do."""
    if kind == "float32":
        return RNG.random(shape, np.float32)
    top = np.iinfo(kind).max
    return (np.cumsum(RNG.integers(0, 3, shape), axis=-1) + RNG.integers(0, top // 2, shape)).astype(kind)


def copied(source: Path, target: Path, **options: Any) -> Path:
    """The stack as it is written when nothing is restored."""
    with (
        TiffStack(source, **options) as stack,
        Journal(target, {}) as journal,
        TiffStackWriter(target, stack, journal, overwrite=False) as writer,
    ):
        for index in range(len(stack)):
            writer.put(index, stack.read(index))
        writer.finish()
    return target


def said_by(path: Path) -> dict[str, Any]:
    """All that tifffile reads of a file but where its samples lie."""
    with tifffile.TiffFile(path, is_ome=False, is_imagej=False) as file:  # so that every page is parsed by itself
        pages = [{tag.name: str(tag.value) for tag in page.tags if tag.name not in PLACES} for page in file.pages]
    with tifffile.TiffFile(path) as file:
        series = [(s.kind, s.axes, s.shape, str(s.dtype), s.asarray().tobytes()) for s in file.series]
        kinds = file.is_bigtiff, file.byteorder, file.is_imagej, file.is_ome, file.is_shaped
        return {
            "series": series, "pages": pages, "kinds": kinds, "ome": file.ome_metadata,
            "imagej": str(file.imagej_metadata), "shaped": str(file.shaped_metadata),
        }  # fmt: skip


LUTS = [np.stack([np.arange(256, dtype=np.uint8) * (c == k) for c in range(3)]) for k in range(2)]
IMAGEJ: dict[str, Any] = {
    "spacing": 0.5, "unit": "um", "finterval": 2.5, "Labels": [f"plane {i}" for i in range(12)], "LUTs": LUTS,
    "mode": "composite", "Info": "text of several\nlines",
}  # fmt: skip
OME: dict[str, Any] = {
    "PhysicalSizeX": 0.11, "PhysicalSizeXUnit": "\u00b5m", "PhysicalSizeY": 0.11, "PhysicalSizeYUnit": "\u00b5m",
    "PhysicalSizeZ": 0.3, "TimeIncrement": 1.5, "TimeIncrementUnit": "s", "Channel": {"Name": ["DAPI", "GFP"]},
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "pages": {"metadata": None, "photometric": "minisblack"},
    "tifffile": {"photometric": "minisblack"},
    "ImageJ": {"imagej": True, "resolution": (5.0, 4.0)},
    "ImageJ, one directory": {"imagej": True, "truncate": True, "resolution": (5.0, 4.0)},
    "OME": {"ome": True, "photometric": "minisblack", "resolution": (90909.0, 90909.0), "resolutionunit": 3},
    "BigTIFF": {"bigtiff": True, "photometric": "minisblack"},
    "big-endian": {"byteorder": ">", "photometric": "minisblack"},
}
AXES = {"ZYX": (5, 23, 37), "TZCYX": (2, 3, 2, 23, 37), "CYX": (2, 23, 37)}
STORED: dict[str, dict[str, Any]] = {
    "none": {}, "strips": {"rowsperstrip": 5}, "deflate": {"compression": "zlib"},
    "deflate, predicted": {"compression": "zlib", "predictor": True},
    "deflate, tiles": {"compression": "zlib", "tile": (16, 16)},
    "lzma": {"compression": "lzma"},
}  # fmt: skip


def written(path: Path, kind: str, axes: str, dtype: str, stored: str) -> bool:
    """Whether such a cell is one; its file is written then."""
    options = KINDS[kind] | STORED[stored]
    if kind.startswith("ImageJ") and (stored != "none"):
        return False  # it writes those uncompressed only
    if dtype == "float32" and "predictor" in options:
        return False
    if stored == "lzma" and (dtype != "uint8" or axes != "ZYX"):
        return False  # libtiff's; decoded in a process of its own, by Pillow up to 8 bits
    if options.get("metadata", {}) is not None:
        more = IMAGEJ if kind.startswith("ImageJ") and axes == "TZCYX" else OME if kind == "OME" and "C" in axes else {}
        options = options | {"metadata": {"axes": axes, **more}}
    tifffile.imwrite(path, values(AXES[axes], dtype), **options)
    return True


@pytest.mark.parametrize("cut", [1, 60, 200])
def test_a_stack_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    """Also where the directories stand first, so that all of them are there."""
    planes, form, first = values((2, 8, 32), "uint8"), Form(), 256  # the place of the samples
    tags = {256: form.places([32]), 257: form.places([8]), 258: form.short(8), 259: form.short(1)}
    tags |= {262: form.short(1), 277: form.short(1), 278: form.places([8])}
    data = form.header(8)
    for number in range(2):
        parts = form.parts(first + 256 * number, [256], tiled=False)
        data += form.block(tags | parts, len(data), last=number == 1)
    path = tmp_path / "cut.tif"
    path.write_bytes(data.ljust(first, b"\0") + planes.tobytes())
    with TiffStack(path) as stack:
        assert (np.rint(stack.read(1).array * 255) == planes[1]).all()
    path.write_bytes(path.read_bytes()[:-cut])
    with TiffStack(path) as stack:
        stack.read(0)
        with pytest.raises(InputError, match=r"plane 2 of 2: truncated: pixels are missing"):
            stack.read(1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_written_as_it_was_read(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """Kind x axes x dtype x compression: tifffile reads the same of both files, every tag and sample."""
    whole = request.config.getoption("--slow")
    cells = 0
    grid = list(itertools.product(AXES, ("uint8", "uint16", "float32"), STORED))
    for number, (axes, dtype, stored) in enumerate(grid):
        if not whole and (axes, dtype) not in {("TZCYX", "uint16"), ("ZYX", "uint8"), ("CYX", "float32")}:
            continue
        source = tmp_path / f"{number}.tif"
        if not written(source, kind, axes, dtype, stored):
            continue
        assert is_tiff_stack(source)
        with TiffStack(source) as stack:
            assert (stack.axes or "Q", len(stack)) != ("", 1)
            assert stack.channels == (2 if "C" in axes and kind != "pages" else 1)
        before, after = said_by(source), said_by(copied(source, tmp_path / f"{number}-out.tif"))
        assert after == before, (axes, dtype, stored)
        cells += 1
    assert cells == (9 if kind.startswith("ImageJ") else 43) if whole else (3 if kind.startswith("ImageJ") else 15)


BY_LIBTIFF = {"tiff_lzw": 5, "packbits": 32773, "zstd": 50000, "tiff_adobe_deflate": 8}


@pytest.mark.parametrize("compression", BY_LIBTIFF)
def test_the_compressions_of_libtiff_are_kept(tmp_path: Path, compression: str) -> None:
    """Pages that libtiff compressed, with and without predictors: libtiff reads the same of what is written."""
    for dtype, predictor, colour in itertools.product(("uint8", "uint16", "float32"), (1, 2, 3), (False, True)):
        if ((predictor == 3) != (dtype == "float32") and predictor > 1) or (colour and dtype != "uint8"):
            continue
        if (predictor > 1 and compression == "packbits") or (compression == "zstd" and dtype != "uint8"):
            continue  # libvips has no Zstandard
        shape = (3, 23, 37, 3) if colour else (3, 23, 37)
        planes = [Image.fromarray(plane) for plane in values(shape, dtype)]
        source = tmp_path / f"{dtype}-{predictor}-{colour}.tif"
        info = {317: predictor} if predictor > 1 else {}
        planes[0].save(source, compression=compression, save_all=True, append_images=planes[1:], tiffinfo=info)
        target = copied(source, tmp_path / f"{source.stem}-out.tif")
        with Image.open(source) as before, Image.open(target) as after, tifffile.TiffFile(target) as tags:
            assert before.n_frames == after.n_frames == 3
            assert {int(page.compression) for page in tags.pages} == {BY_LIBTIFF[compression]}
            assert {int(page.predictor) for page in tags.pages} == {predictor}
            for index in range(3):
                before.seek(index)
                after.seek(index)
                np.testing.assert_array_equal(np.asarray(after), np.asarray(before), err_msg=source.name)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planes_of_colour(tmp_path: Path, planar: str, compression: str | None) -> None:
    colour = values((4, 23, 37, 3), "uint16")
    source = tmp_path / "colour.tif"
    given = np.moveaxis(colour, -1, 1) if planar == "separate" else colour
    tifffile.imwrite(source, given, photometric="rgb", planarconfig=planar, compression=compression)
    with TiffStack(source) as stack:
        assert stack.read(2).array.shape == (23, 37, 3)
    assert said_by(copied(source, tmp_path / "out.tif"))["series"] == said_by(source)["series"]


def test_white_may_be_zero_and_colours_of_a_table_are_kept(tmp_path: Path) -> None:
    grey = values((3, 23, 37), "uint8")
    for name, more in (("white", {"photometric": "miniswhite"}), ("table", {"photometric": "palette"})):
        source = tmp_path / f"{name}.tif"
        if name == "table":
            table = (np.arange(256, dtype=np.uint16) * 257)[None].repeat(3, 0)
            tifffile.imwrite(source, grey, colormap=table, ome=True, metadata={"axes": "ZYX"}, **more)
        else:
            tifffile.imwrite(source, grey, metadata=None, **more)
        copied(source, tmp_path / f"{name}-out.tif")
        with tifffile.TiffFile(source) as before, tifffile.TiffFile(tmp_path / f"{name}-out.tif") as after:
            np.testing.assert_array_equal(after.asarray(), before.asarray())
            assert after.pages.first.photometric == before.pages.first.photometric


def test_two_descriptions_are_kept(tmp_path: Path) -> None:
    """As tifffile writes them: the user's, and behind it its own, with shape and axes."""
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    tifffile.imwrite(
        source, values((2, 3, 23, 37), "uint8"), description="mine", metadata={"axes": "TZYX"}, photometric="minisblack"
    )
    copied(source, target)
    assert said_by(target) == said_by(source)
    with tifffile.TiffFile(target) as file:
        assert file.pages.first.description == "mine"
        assert file.series[0].axes == "TZYX"


# -- the command line -------------------------------------------------------------------------------------------------


def noisy(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """12 bits in 16: smooth, noise of 60 values; the second half of the planes is three times as bright."""
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    clean = 600 + 300 * np.sin(x / 9) * np.cos(y / 7) + np.linspace(0, 900, int(np.prod(shape[:-2])))[:, None, None]
    stack = clean + 60 * np.random.default_rng(seed).standard_normal(clean.shape)
    return np.rint(stack.clip(0)).astype(np.uint16).reshape(shape)


@pytest.fixture
def stack_file(tmp_path: Path) -> Path:
    """T 2 x Z 3 x C 2, OME."""
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, noisy((2, 3, 2, 48, 40)), ome=True, metadata={"axes": "TZCYX"})
    return path


def said_plan(text: str) -> list[tuple[str, str]]:
    """(sigma, range) of each channel, as they are printed."""
    lines = [line for line in text.splitlines() if "sigma" in line and "planes:" in line]
    return [(line.partition("sigma ")[2].partition(",")[0], line.partition("range ")[2]) for line in lines]


def test_planes_equal_single_images(
    tmp_path: Path, stack_file: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each plane is what `nlrn denoise` makes of it alone with the sigma and the range that were printed."""
    out = tmp_path / "out.ome.tif"
    assert run(["denoise", str(stack_file), "-o", str(out), "--model", str(weights)]) == 0
    plan = said_plan(capsys.readouterr().out)
    assert len(plan) == 2
    assert plan[0] != plan[1]
    given, got = tifffile.imread(stack_file), tifffile.imread(out)
    assert got.shape == given.shape
    for t, z, c in itertools.product(range(2), range(3), range(2)):
        plane, alone = tmp_path / "plane.tif", tmp_path / "alone.tif"
        tifffile.imwrite(plane, given[t, z, c], metadata=None)
        sigma, chosen = plan[c]
        options = ["--sigma", sigma, "--range", chosen, "--model", str(weights), "-q", "--overwrite"]
        assert run(["denoise", str(plane), "-o", str(alone), *options]) == 0
        np.testing.assert_array_equal(tifffile.imread(alone), got[t, z, c], err_msg=f"{t} {z} {c}")
    assert not list(tmp_path.glob("*.nlrn-*"))


def test_numbered_files_are_the_planes(tmp_path: Path, stack_file: Path, weights: Path) -> None:
    out, pattern = tmp_path / "out.tif", tmp_path / "plane_%03d.png"
    for target in (out, pattern):
        assert run(["denoise", str(stack_file), "-o", str(target), "--model", str(weights), "-q", "--sigma", "20"]) == 0
    names = sorted(path.name for path in tmp_path.glob("plane_*.png"))
    assert names == [f"plane_{i:03d}.png" for i in range(1, 13)]
    got = tifffile.imread(out).reshape(12, 48, 40)
    for index, name in enumerate(names):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), got[index])
    again = ["denoise", str(stack_file), "-o", str(pattern), "--model", str(weights), "-q"]
    assert run(again) == 1  # they are there


def test_floats_of_counts_are_restored_as_the_integers(tmp_path: Path, weights: Path) -> None:
    """A stack of 16 bits and the same saved as floats: the same up to the rounding of the former."""
    stack = noisy((4, 48, 40))
    for name, given in (("int", stack), ("float", stack.astype(np.float32))):
        tifffile.imwrite(tmp_path / f"{name}.tif", given, imagej=True, metadata={"axes": "ZYX"})
        command = ["denoise", str(tmp_path / f"{name}.tif"), "-o", str(tmp_path / f"{name}-out.tif"), "-q"]
        assert run([*command, "--model", str(weights)]) == 0
    rounded, floats = tifffile.imread(tmp_path / "int-out.tif"), tifffile.imread(tmp_path / "float-out.tif")
    assert floats.dtype == np.float32
    assert np.abs(rounded - floats.clip(0, 65535)).max() <= 0.51
    assert [float_levels(*ends) for ends in ((0, 1), (-0.2, 3), (0, 200), (700, 28100), (0, 70000))] == [
        1, 1, 255, 65535, 2**32 - 1,
    ]  # fmt: skip


def test_axes_where_the_file_does_not_say(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pages.tif"
    tifffile.imwrite(path, noisy((6, 48, 40)), metadata=None, photometric="minisblack")
    command = ["denoise", str(path), "--model", str(weights), "--sigma", "9"]
    assert run([*command, "-o", str(tmp_path / "z.tif"), "--axes", "ZYX"]) == 0
    assert "6 planes (Z 6)" in capsys.readouterr().out
    assert run([*command, "-o", str(tmp_path / "c.tif"), "--axes", "ZC2YX"]) == 0
    assert "channel 2: 3 planes" in capsys.readouterr().out
    for axes in ("ZCYX", "Z4YX", "ZZYX", "4ZYX", "YX", "Z0C2"):
        with pytest.raises(InputError):
            split(axes, 6)
    assert split("tc2yx", 6) == ("TC", (3, 2))
    assert split("T3C2", 6) == ("TC", (3, 2))


def test_a_level_for_each_plane_on_request(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planes of 20 and of 80 values of noise: each with its own level; elsewhere it is refused."""
    random, path = np.random.default_rng(0), tmp_path / "stack.tif"
    stack = np.stack([30000 + s * 100 * random.standard_normal((64, 64)) for s in (20, 20, 80)]).astype(np.uint16)
    tifffile.imwrite(path, stack, metadata=None, photometric="minisblack")
    options = ["--model", str(weights), "--range", "type"]
    assert run(["denoise", str(path), "-o", str(tmp_path / "out.tif"), "--sigma", "per-plane", *options]) == 0
    assert "sigma of each plane" in capsys.readouterr().out
    got = tifffile.imread(tmp_path / "out.tif")
    for index, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / "plane.tif", plane, metadata=None)
        command = ["denoise", str(tmp_path / "plane.tif"), "-o", str(tmp_path / "alone.tif"), "-q", "--overwrite"]
        assert run([*command, *options]) == 0
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "alone.tif"), got[index])
        assert run([*command, *options, "--sigma", "per-plane"]) == 2


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_animations_become_stacks(tmp_path: Path, weights: Path, form: str) -> None:
    """Each frame as Pillow shows it; durations are recorded."""
    frames = [Image.fromarray(values((24, 32, 3), "uint8")).quantize(16).convert("RGB") for _ in range(4)]
    path = tmp_path / f"moving.{form.lower()}"
    more = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=[100, 200, 300, 400], loop=0, **more)
    out = tmp_path / "out.tif"
    command = ["denoise", str(path), "-o", str(out), "--model", str(weights), "-q", "--sigma", "9", "--range", "type"]
    assert run(command) == 0
    with tifffile.TiffFile(out) as file:
        assert (file.series[0].axes, file.series[0].shape) == ("TYXS", (4, 24, 32, 3))
        assert file.shaped_metadata[0]["duration_ms"] == [100, 200, 300, 400]
        got = file.asarray()
    for index in range(4):
        with Image.open(path) as image:
            image.seek(index)
            image.convert("RGB").save(tmp_path / "frame.png")
        alone = [*command[:1], str(tmp_path / "frame.png"), "-o", str(tmp_path / "alone.png"), *command[4:]]
        assert run([*alone, "--overwrite"]) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "alone.png")), got[index])


# -- kills, limits, refusals ------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_byte_for_byte(tmp_path: Path, weights: Path, count: Callable[[int], int]) -> None:
    """SIGKILL inside the stack; the file equals that of an uninterrupted run."""
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, noisy((24, 96, 96)), imagej=True, metadata={"axes": "ZYX"})
    whole, killed = tmp_path / "whole.tif", tmp_path / "killed.tif"
    options = ["--model", str(weights), "--sigma", "20", "-q"]
    assert run(["denoise", str(path), "-o", str(whole), *options]) == 0
    command = [sys.executable, "-m", "nlrn", "denoise", str(path), "-o", str(killed), *options]
    journal, seen = tmp_path / "killed.tif.nlrn-journal", 0
    for planes in (3, 9, 15)[: count(10)]:
        process = subprocess.Popen(command)
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b'"crc"') >= planes:
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
        if killed.exists():
            break
        found = journal.read_bytes().count(b'"crc"')
        assert found >= seen
        seen = found
    assert seen >= 3
    assert run(["denoise", str(path), "-o", str(killed), *options]) == 0 or killed.exists()
    assert killed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.nlrn-*"))


def test_a_torn_part_is_done_again(
    tmp_path: Path, weights: Path, stack_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line of the journal, bytes of a plane that are missing or changed: nothing wrong is kept."""
    whole = tmp_path / "whole.tif"
    options = ["--model", str(weights), "--sigma", "20", "-q"]
    assert run(["denoise", str(stack_file), "-o", str(whole), *options]) == 0
    for damage in ("torn line", "short", "changed", "other work"):
        out = tmp_path / f"{damage.replace(' ', '-')}.tif"
        part, journal = Path(f"{out}.nlrn-part"), Path(f"{out}.nlrn-journal")
        with monkeypatch.context() as patched:
            stop_at(patched, 5)
            assert run(["denoise", str(stack_file), "-o", str(out), *options]) == 130
        assert not out.exists()
        assert journal.read_bytes().count(b'"crc"') == 5
        data, lines = bytearray(part.read_bytes()), journal.read_bytes()
        if damage == "torn line":
            journal.write_bytes(lines[:-7])
        elif damage == "short":
            part.write_bytes(data[:-100])
        elif damage == "changed":
            data[-200] ^= 255
            part.write_bytes(data)
        else:
            journal.write_bytes(lines.replace(b'"planes": 12', b'"planes": 13', 1))
        assert run(["denoise", str(stack_file), "-o", str(out), *options]) == 0
        assert out.read_bytes() == whole.read_bytes(), damage


def stop_at(patched: pytest.MonkeyPatch, planes: int) -> None:
    """Ctrl-C once so many planes are written."""
    for kind in (TiffStackWriter, NumberedWriter):
        patched.setattr(kind, "put", partialmethod(_put_until, kind.put, planes))


def _put_until(self: Writer, put: Callable[..., None], planes: int, index: int, image: ImageData) -> None:
    if index == planes:
        raise KeyboardInterrupt
    put(self, index, image)


@pytest.mark.parametrize("form", ["tif", "numbered"])
def test_a_command_that_is_refused_or_stopped_leaves_what_another_has_done(
    tmp_path: Path, weights: Path, stack_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], form: str,
) -> None:  # fmt: skip
    out = tmp_path / ("out.tif" if form == "tif" else "out_%02d.png")
    words = ["denoise", str(stack_file), "-o", str(out), "--model", str(weights)]
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        assert run([*words, "--sigma", "20"]) == 130
    if form == "numbered":
        assert run([*words, "--sigma", "30"]) == 1
        assert "exists already" in capsys.readouterr().err
    else:
        with monkeypatch.context() as patched:

            def stopped(*_: object) -> None:
                raise KeyboardInterrupt

            patched.setattr("nlrn.inference.stacks.samples_of", stopped)
            assert run([*words, "--sigma", "30"]) == 130
    capsys.readouterr()
    assert run([*words, "--sigma", "20"]) == 0
    assert "resumed: 5 of 12 planes were done" in capsys.readouterr().out


def test_a_stack_that_was_killed_between_its_two_names_is_whole(
    tmp_path: Path, weights: Path, stack_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has its name and still the temporary one, and a journal."""
    out = tmp_path / "out.tif"
    words = ["denoise", str(stack_file), "-o", str(out), "--model", str(weights), "--sigma", "20"]
    assert run(words) == 0
    whole = out.read_bytes()
    part, journal = Path(f"{out}.nlrn-part"), Path(f"{out}.nlrn-journal")
    part.hardlink_to(out)
    journal.write_text('{"nlrn-journal": 1}\n')
    assert run(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert not part.exists()
    assert not journal.exists()
    assert out.read_bytes() == whole
    part.hardlink_to(out)
    assert run([*words, "--overwrite"]) == 0
    assert out.read_bytes() == whole
    assert not part.exists()


def test_a_map_that_changed_begins_anew(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planes of two maps are not mixed, though the map keeps its name."""
    stack, levels, out = (tmp_path / f"{name}.tif" for name in ("stack", "map", "out"))
    tifffile.imwrite(stack, noisy((4, 48, 40)), photometric="minisblack")
    options = ["--model", str(weights), "--sigma-map", str(levels), "--range", "type"]
    tifffile.imwrite(levels, np.full((48, 40), 1.0, np.float32))
    with monkeypatch.context() as patched:
        stop_at(patched, 2)
        assert run(["denoise", str(stack), "-o", str(out), *options]) == 130
    tifffile.imwrite(levels, np.full((48, 40), 9.0, np.float32))
    capsys.readouterr()
    assert run(["denoise", str(stack), "-o", str(out), *options]) == 0
    assert "resumed" not in capsys.readouterr().out
    whole = tmp_path / "whole.tif"
    assert run(["denoise", str(stack), "-o", str(whole), "-q", *options]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_name_that_was_not_typed_is_no_pattern(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """cells_0.1%dmso.tif is the name of one file, beside it, in a folder, and in a folder of results."""
    stack, options = tmp_path / "in" / "cells_0.1%dmso.tif", ["--model", str(weights), "--sigma", "20"]
    stack.parent.mkdir()
    tifffile.imwrite(stack, noisy((3, 48, 40)), photometric="minisblack")
    (tmp_path / "there").mkdir()
    assert run(["denoise", str(stack), *options]) == 0
    beside = stack.with_name("cells_0.1%dmso-restored.tif")
    assert f"wrote {beside}" in capsys.readouterr().out
    beside = beside.rename(tmp_path / "restored.tif")
    assert run(["denoise", str(stack), "-o", str(tmp_path / "there"), *options]) == 0
    for _ in range(2):
        assert run(["denoise", str(stack.parent), "-o", str(tmp_path / "out"), *options]) == 0
    for folder in ("there", "out"):
        (result,) = (tmp_path / folder).glob("*.tif")
        assert result.name == stack.name
        assert result.read_bytes() == beside.read_bytes()
    assert "1 already done" in capsys.readouterr().out
    assert run(["denoise", str(stack), "-o", str(tmp_path / "plane%d.png"), *options]) == 0
    assert len(list(tmp_path.glob("plane?.png"))) == 3


def test_the_place_of_a_stack_is_not_kept(
    tmp_path: Path, stack_file: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["denoise", str(stack_file), "-o", str(tmp_path / "out.tif"), "--model", str(weights), "--sigma", "20"]
    assert run([*command, "--keep-gps"]) == 0
    assert "--keep-gps has no effect on a stack" in capsys.readouterr().out


def test_limits_are_named(tmp_path: Path, stack_file: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["denoise", str(stack_file), "-o", str(tmp_path / "out.tif"), "--model", str(weights), "-q"]
    for option, value in (("--max-planes", "11"), ("--max-pixels", "1900")):
        assert run([*command, option, value]) == 1
        assert option in capsys.readouterr().err
    with pytest.raises(InputError, match="max-bytes"):
        TiffStack(stack_file, limits=Limits(bytes=1000))
    assert not list(tmp_path.glob("out*"))


def test_what_is_no_whole_stack_is_refused(tmp_path: Path, stack_file: Path, weights: Path) -> None:
    """Cut anywhere, one error and nothing written; a single page and reduced copies of it are images as before."""
    data = stack_file.read_bytes()
    for size in (9, 100, len(data) // 2, len(data) - 1):
        cut = tmp_path / "cut.tif"
        cut.write_bytes(data[:size])
        assert run(["denoise", str(cut), "-o", str(tmp_path / "out.tif"), "--model", str(weights), "-q"]) == 1
    single = tmp_path / "single.tif"
    tifffile.imwrite(single, noisy((48, 40)))
    assert not is_tiff_stack(single)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(noisy((64, 64)), metadata=None)
        writer.write(noisy((32, 32)), metadata=None, subfiletype=1)
    assert not is_tiff_stack(tmp_path / "pyramid.tif")
    assert read_image((tmp_path / "pyramid.tif").read_bytes()).array.shape == (64, 64)
    assert not list(tmp_path.glob("out*"))


def test_a_file_beside_the_target_is_not_ours(tmp_path: Path, stack_file: Path, weights: Path) -> None:
    """A journal or part of that name that another program made, or a link, is left as it is."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    command = ["denoise", str(stack_file), "-o", str(tmp_path / "out.tif"), "--model", str(weights), "-q"]
    for name in ("out.tif.nlrn-journal", "out.tif.nlrn-part"):
        (tmp_path / name).symlink_to(precious)
        assert run(command) == 2
        (tmp_path / name).unlink()
    (tmp_path / "out.tif.nlrn-journal").write_text("a diary")
    assert run(command) == 2
    assert (tmp_path / "out.tif.nlrn-journal").read_text() == "a diary"
    assert precious.read_text() == "mine"


def test_two_runs_do_not_write_one_file(tmp_path: Path, stack_file: Path, weights: Path) -> None:
    out = tmp_path / "out.tif"
    with Journal(out, {}):
        assert run(["denoise", str(stack_file), "-o", str(out), "--model", str(weights), "-q"]) == 2


PEAK = """
import json, resource, sys
from nlrn.cli import run
code = run(sys.argv[1:])
print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def peak(*words: str) -> float:
    """MiB of a process of its own."""
    found = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=True)
    code, kibibytes = json.loads(found.stdout.splitlines()[-1])
    assert code == 0, found.stderr
    return kibibytes / 1024


@pytest.mark.slow
def test_memory_is_that_of_one_plane(tmp_path: Path) -> None:
    """1.2 GiB in 1,200 planes take hardly more than 12 of them."""
    from networks import random_model

    from nlrn.models.checkpoint import save_model

    model = tmp_path / "tiny.safetensors"
    save_model(model, random_model(channels=2, embed_channels=2, states=1, window=3), {"steps": "0"})
    peaks = []
    for planes in (12, 1200):
        path = tmp_path / f"{planes}.tif"
        with tifffile.TiffWriter(path, bigtiff=True) as writer:
            for index in range(planes):
                writer.write(noisy((1, 512, 1024), index % 7)[0], contiguous=False, metadata=None)
        out = str(tmp_path / "out.tif")
        options = ["--model", str(model), "--sigma", "9", "-q", "--overwrite"]
        peaks.append(peak("denoise", str(path), "-o", out, *options))
    print(f"peak of 12 planes {peaks[0]:.0f} MiB, of 1,200 {peaks[1]:.0f} MiB")
    assert (tmp_path / "1200.tif").stat().st_size > 1.1 * 2**30
    assert peaks[1] < peaks[0] + 64


# -- a single image of counts ----------


def test_a_single_image_of_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """700 to 28,100, as a microscope's program exports them: no option is needed, and counts come back."""
    ramp = np.linspace(700, 28_100, 64)[None, :] + np.random.default_rng(0).normal(0, 900, (48, 64))
    counts = np.rint(ramp).clip(0, 65535)
    for name, values in (("f", counts.astype(np.float32)), ("i", counts.astype(np.uint16))):
        tifffile.imwrite(tmp_path / f"{name}.tif", values)
        assert run(["denoise", str(tmp_path / f"{name}.tif"), "-o", str(tmp_path / f"{name}-out.tif")]) == 0
    printed = capsys.readouterr().out
    assert "floats beyond 0..1 are counts: sigma is in 1/255 of 65535" in printed
    assert len({line for line in printed.splitlines() if "sigma" in line and "floats" not in line}) == 1
    floats, integers = (tifffile.imread(tmp_path / f"{name}-out.tif") for name in "fi")
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, integers, atol=0.6)
    narrow = tmp_path / "out.png"
    assert run(["denoise", str(tmp_path / "f.tif"), "-o", str(narrow), "--depth", "16"]) == 0
    np.testing.assert_allclose(np.asarray(Image.open(narrow)), integers, atol=1)
    stack = np.stack([counts, counts[::-1]]).astype(np.float32)
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    options = ["--sigma", "3", "--range", "0,30000", "-q"]
    assert run(["denoise", str(tmp_path / "s.tif"), "-o", str(tmp_path / "s-out.tif"), *options]) == 0
    assert run(["denoise", str(tmp_path / "f.tif"), "-o", str(tmp_path / "p-out.tif"), *options]) == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "s-out.tif")[0], tifffile.imread(tmp_path / "p-out.tif"))
    assert run(["denoise", str(tmp_path / "s.tif"), "-o", str(tmp_path / "n_%d.tif"), *options]) == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "n_1.tif"), tifffile.imread(tmp_path / "p-out.tif"))


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path, stack_file: Path) -> Path:
    """A folder of an image, two stacks, an animation, and a damaged stack."""
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(noisy((1, 48, 40))[0].astype(np.uint8)).save(folder / "one.png")
    (folder / "stack.tif").write_bytes(stack_file.read_bytes())
    tifffile.imwrite(folder / "below" / "pages.tiff", noisy((3, 48, 40), 3), photometric="minisblack")
    frames = [Image.fromarray((noisy((1, 40, 48), i)[0] % 251).astype(np.uint8)) for i in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "torn.tif").write_bytes(stack_file.read_bytes()[:-3000])
    return folder


STACKS = {"stack.tif": "stack.tif", "below/pages.tiff": "below/pages.tiff", "moving.gif": "moving.tif"}


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_stacks_of_a_folder_are_restored_as_by_their_own_command(
    tmp_path: Path, mixed: Path, weights: Path, capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    """The same bytes; the manifest knows them; the command again does nothing twice."""
    out, options = tmp_path / "out", ["--model", str(weights)]
    command = ["denoise", str(mixed), "-o", str(out), "-r", "--json", "-j", str(jobs), "--memory", "256", *options]
    assert run(command) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found["done"]) == {"one.png", *STACKS}
    assert set(found["failed"]) == {"torn.tif"}
    assert found["said"]["stack.tif"][0].startswith("OME-TIFF: 12 planes")
    for name, result in STACKS.items():
        alone = tmp_path / "alone.tif"
        assert run(["denoise", str(mixed / name), "-o", str(alone), "-q", "--overwrite", *options]) == 0
        assert (out / result).read_bytes() == alone.read_bytes(), name
    records = {r["in"]: r for r in map(json.loads, (out / "nlrn-manifest.jsonl").read_text().splitlines())}
    for name, result in STACKS.items():
        sums = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (mixed / name, out / result))
        assert (records[name]["input"], records[name]["output"]) == tuple(sums)
        assert records[name]["published"]
    assert [path.name for path in out.rglob("*.nlrn-*")] == [".nlrn-lock"]
    assert run(command) == 1
    again = json.loads(capsys.readouterr().out)
    assert (again["done"], set(again["skipped"])) == ([], {"one.png", *STACKS})


def test_a_folder_resumes_inside_a_stack(
    tmp_path: Path, mixed: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (mixed / "torn.tif").unlink()
    options = ["--model", str(weights), "--sigma", "20"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(["denoise", str(mixed), "-o", str(whole), "-q", *options]) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        assert run(["denoise", str(mixed), "-o", str(out), *options]) == 130
    assert (out / "stack.tif.nlrn-part").exists()
    capsys.readouterr()
    assert run(["denoise", str(mixed), "-o", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert "resumed: 5 of 12 planes were done" in printed
    assert "1 images restored" in printed
    assert "2 already done" in printed
    with monkeypatch.context() as patched:  # killed when the file has its name and the manifest does not say so yet

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("nlrn.batch.manifest.Manifest.complete", killed)
        assert run(["denoise", str(mixed), "-o", str(out), "--overwrite", "--strength", "0.5", *options]) == 130
    assert run(["denoise", str(mixed), "-o", str(out), "--overwrite", *options]) == 0
    assert {p.name: p.read_bytes() for p in out.glob("*.tif")} == {p.name: p.read_bytes() for p in whole.glob("*.tif")}


def test_stacks_of_a_folder_that_cannot_be_written_are_named(
    tmp_path: Path, mixed: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mixed / "torn.tif").unlink()
    command = ["denoise", str(mixed), "--model", str(weights), "--sigma", "20", "-o"]
    assert run([*command, str(tmp_path / "png"), "--format", "png"]) == 1
    printed = capsys.readouterr()
    assert "12 planes are written as a TIFF" in printed.err
    assert "1 images restored" in printed.out
    assert run([*command, str(tmp_path / "deep"), "--depth", "8"]) == 1
    printed = capsys.readouterr()
    assert "stack.tif: a stack keeps its depth" in printed.err
    assert "2 images restored" in printed.out  # the animation has 8 bits
    tifffile.imwrite(mixed / "moving.tif", np.zeros((8, 8), np.uint8))
    assert run([*command, str(tmp_path / "two")]) == 2
    assert "would both become moving.tif" in capsys.readouterr().err
