"""Stacks enlarged: planes beside single images, what tifffile reads of both files, tags by hand, kills, refusals."""

from __future__ import annotations

import itertools
import json
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from networks import random_model
from PIL import Image
from test_stacks import KINDS, LUTS, OME, STORED, noisy, peak, stop_at

from nlrn.cli import run
from nlrn.io.directories import BYTE, LONG, Form
from nlrn.io.grown import grown_tags
from nlrn.io.stacks import TiffStack
from nlrn.models.checkpoint import save_model


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights file of a small network for enlarging that was not trained."""
    path = tmp_path_factory.mktemp("weights") / "sr.safetensors"
    save_model(path, random_model(task="sr", sigma_input=False), {"steps": "0"})
    return str(path)


def upscale(source: Path, target: Path, *words: str) -> int:
    return run(["upscale", str(source), "-o", str(target), "--overwrite", *words])


@pytest.mark.parametrize("way", [["--keep-noise"], ["--denoise-first"], []])
def test_planes_equal_single_images(
    tmp_path: Path, enlarger: str, capsys: pytest.CaptureFixture[str], way: list[str]
) -> None:
    """Each is what `nlrn upscale` makes of it alone with the range and the decision about noise that were printed."""
    given = noisy((2, 2, 48, 40))
    source, out = tmp_path / "stack.ome.tif", tmp_path / "out.ome.tif"
    tifffile.imwrite(source, given, ome=True, metadata={"axes": "ZCYX"})
    scale = ["--scale", "1.7", "--model", enlarger]
    assert upscale(source, out, *scale, *way) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "planes: " in line and "channel" in line]
    assert len(lines) == 2
    got = tifffile.imread(out)
    assert got.shape == (2, 2, 82, 68)
    for z, c in itertools.product(range(2), range(2)):
        plane, alone = tmp_path / "plane.tif", tmp_path / "alone.tif"
        tifffile.imwrite(plane, given[z, c], metadata=None)
        chosen = lines[c].partition("range ")[2]
        first = "--denoise-first" if "noise removed" in lines[c] else "--keep-noise"
        assert way in ([], [first])
        assert upscale(plane, alone, "--range", chosen, first, "-q", *scale) == 0
        np.testing.assert_array_equal(tifffile.imread(alone), got[z, c], err_msg=f"{z} {c}")


IMAGEJ: dict[str, Any] = {
    "spacing": 0.5, "unit": "um", "finterval": 2.5, "Labels": [f"plane {i}" for i in range(4)], "LUTs": LUTS,
    "mode": "composite", "Info": "text of several\nlines", "xorigin": 8.0, "yorigin": 4.0,
}  # fmt: skip


def written(path: Path, kind: str, stored: str) -> None:
    """C 2 x Z 2 of 20 x 33, in microscope's units where the kind has any."""
    options = KINDS[kind] | STORED[stored]
    more = IMAGEJ if kind.startswith("ImageJ") else OME if kind == "OME" else {"PhysicalSizeX": 0.5}
    axes = "ZCYX"
    if options.get("metadata", {}) is not None:
        options = options | {"metadata": {"axes": axes, **more}}
    tifffile.imwrite(path, noisy((2, 2, 20, 33)), **options)


CELLS = [(kind, stored) for kind, stored in itertools.product(KINDS, ("none", "deflate, tiles", "strips"))
         if stored == "none" or not kind.startswith("ImageJ")]  # fmt: skip


@pytest.mark.parametrize(("kind", "stored"), CELLS)
def test_what_a_stack_says_holds_of_its_new_size(tmp_path: Path, enlarger: str, kind: str, stored: str) -> None:
    """Three times as large: the series, its axes and every tag by tifffile, and where they count pixels, thirds."""
    source, out = tmp_path / "in.tif", tmp_path / "out.tif"
    written(source, kind, stored)
    assert upscale(source, out, "--scale", "3", "--model", enlarger, "--keep-noise", "-q") == 0
    with tifffile.TiffFile(source) as before, tifffile.TiffFile(out) as after:
        assert [(s.kind, s.axes, str(s.dtype)) for s in after.series] == [
            (s.kind, s.axes, str(s.dtype)) for s in before.series
        ]
        assert after.series[0].shape == (*before.series[0].shape[:-2], 60, 99)
        assert (after.byteorder, after.is_bigtiff, len(after.pages)) == (
            before.byteorder, before.is_bigtiff, len(before.pages),
        )  # fmt: skip
        old, new = before.pages.first, after.pages.first
        assert (new.compression, new.predictor, new.is_tiled) == (old.compression, old.predictor, old.is_tiled)
        if old.is_tiled:
            assert (new.tilelength, new.tilewidth) == (old.tilelength, old.tilewidth)
        elif stored == "strips":
            assert new.rowsperstrip == 5
        ratio = [
            Fraction(*new.tags[name].value) / Fraction(*old.tags[name].value) for name in ("XResolution", "YResolution")
        ]
        assert ratio == [3, 3]
        assert new.tags["ResolutionUnit"].value == old.tags["ResolutionUnit"].value
        if kind == "OME":
            was, now = (tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"] for file in (before, after))
            assert (now.pop("SizeX"), now.pop("SizeY")) == (99, 60)
            for name in ("PhysicalSizeX", "PhysicalSizeY"):
                assert now.pop(name) == pytest.approx(was.pop(name) / 3)
            assert now == {name: value for name, value in was.items() if name not in ("SizeX", "SizeY")}
            assert [channel["Name"] for channel in now["Channel"]] == ["DAPI", "GFP"]
        if before.is_imagej:
            was, now = dict(before.imagej_metadata), dict(after.imagej_metadata)
            assert [now.pop(name) for name in ("xorigin", "yorigin")] == [24, 12]
            assert str(now) == str({name: value for name, value in was.items() if name not in ("xorigin", "yorigin")})
        if before.is_shaped:
            assert after.shaped_metadata[0]["axes"] == "ZCYX"
            assert after.shaped_metadata[0].get("PhysicalSizeX", 1 / 6) == pytest.approx(1 / 6)


def test_images_of_other_sizes_and_a_description_of_their_own(tmp_path: Path, enlarger: str) -> None:
    """Two series of an OME-TIFF, each three times as large; the user's description and tifffile's behind it."""
    options = ["--scale", "3", "--model", enlarger, "--keep-noise", "-q"]
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as writer:
        writer.write(noisy((3, 20, 30)), metadata={"axes": "ZYX", "PhysicalSizeX": 0.3})
        writer.write(noisy((2, 33, 17)), metadata={"axes": "TYX", "PhysicalSizeX": 0.6})
    assert upscale(tmp_path / "two.ome.tif", tmp_path / "out.ome.tif", *options) == 0
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as file:
        assert [(s.axes, s.shape) for s in file.series] == [("ZYX", (3, 60, 90)), ("TYX", (2, 99, 51))]
        sizes = [image["Pixels"]["PhysicalSizeX"] for image in tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]]
        assert sizes == pytest.approx([0.1, 0.2])
    tifffile.imwrite(tmp_path / "in.tif", noisy((3, 20, 30)), description="mine", metadata={"axes": "TYX"},
                     photometric="minisblack")  # fmt: skip
    assert upscale(tmp_path / "in.tif", tmp_path / "out.tif", *options) == 0
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages.first.description == "mine"
        assert (file.series[0].axes, file.series[0].shape) == ("TYX", (3, 60, 90))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_animations_are_enlarged(tmp_path: Path, enlarger: str, form: str) -> None:
    """Into a stack, and into numbered files that are the same."""
    frames = [Image.fromarray((noisy((24, 32), i) % 251).astype(np.uint8)).convert("RGB") for i in range(3)]
    path, out = tmp_path / f"moving.{form.lower()}", tmp_path / "out.tif"
    frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=100)
    options = ["--width", "70", "--model", enlarger, "--keep-noise", "-q"]
    assert upscale(path, out, *options) == 0
    with tifffile.TiffFile(out) as file:
        assert file.series[0].axes[:3] == "TYX"
        assert file.series[0].shape[:3] == (3, 53, 70)
        assert file.shaped_metadata[0]["duration_ms"] == [100, 100, 100]
        got = file.asarray()
    assert upscale(path, tmp_path / "n_%d.png", *options) == 0
    for index in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"n_{index + 1}.png")), got[index])


def test_colour_alpha_and_floats(tmp_path: Path, enlarger: str) -> None:
    random = np.random.default_rng(0)
    for name, shape, kind in (("rgb", (3, 20, 24, 3), "u1"), ("rgba", (3, 20, 24, 4), "u2"), ("f", (3, 20, 24), "f4")):
        given = (random.random(shape) * {"u1": 255, "u2": 65535, "f4": 20000}[kind]).astype(kind)
        more = {"photometric": "minisblack"} if len(shape) == 3 else {"photometric": "rgb"}
        more |= {"extrasamples": ["unassalpha"]} if shape[-1] == 4 else {}
        tifffile.imwrite(tmp_path / f"{name}.tif", given, **more)
        options = ["--model", enlarger, "--keep-noise", "-q"]
        assert upscale(tmp_path / f"{name}.tif", tmp_path / "out.tif", *options, "--range", "type") == 0
        got = tifffile.imread(tmp_path / "out.tif")
        assert (got.shape, got.dtype) == ((3, 40, 48, *shape[3:]), given.dtype)
        tifffile.imwrite(tmp_path / "plane.tif", given[1], **more)
        assert upscale(tmp_path / "plane.tif", tmp_path / "alone.tif", *options, "--range", "type") == 0
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "alone.tif"), got[1])


def test_a_stopped_run_resumes_byte_for_byte(
    tmp_path: Path, enlarger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with another scale, which is other work."""
    source, whole, out = (tmp_path / name for name in ("stack.tif", "whole.tif", "out.tif"))
    tifffile.imwrite(source, noisy((6, 24, 24)), imagej=True, metadata={"axes": "ZYX"})
    assert upscale(source, whole, "--model", enlarger) == 0
    for scale in ("2", "3"):
        with monkeypatch.context() as patched:
            stop_at(patched, 4)
            assert upscale(source, out, "--model", enlarger, "--scale", scale) == 130
    capsys.readouterr()
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        assert upscale(source, out, "--model", enlarger) == 130
    assert "resumed" not in capsys.readouterr().out
    assert upscale(source, out, "--model", enlarger) == 0
    assert "resumed: 5 of 6 planes were done" in capsys.readouterr().out
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.nlrn-*"))


@pytest.mark.slow
def test_memory_is_that_of_one_plane(tmp_path: Path) -> None:
    """120 planes, of 480 MiB enlarged, take hardly more than 12."""
    model, peaks = tmp_path / "tiny.safetensors", []
    tiny = random_model(channels=2, embed_channels=2, states=1, window=3, task="sr", sigma_input=False)
    save_model(model, tiny, {"steps": "0"})
    for planes in (12, 120):
        source = tmp_path / f"{planes}.tif"
        with tifffile.TiffWriter(source) as writer:
            for index in range(planes):
                writer.write(noisy((1, 512, 1024), index % 7)[0], contiguous=False, metadata=None)
        options = ["--model", str(model), "--keep-noise", "--memory", "256", "-q", "--overwrite"]
        peaks.append(peak("upscale", str(source), "-o", str(tmp_path / "out.tif"), *options))
    print(f"peak of 12 planes {peaks[0]:.0f} MiB, of 120 {peaks[1]:.0f} MiB")
    assert peaks[1] < peaks[0] + 64


def test_stacks_of_a_folder_are_enlarged_as_by_their_own_command(
    tmp_path: Path, enlarger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(folder / "stack.tif", noisy((3, 24, 24)), photometric="minisblack")
    Image.fromarray(noisy((24, 24)).astype(np.uint8)).save(folder / "one.png")
    command = ["upscale", str(folder), "-o", str(tmp_path / "out"), "--json", "--scale", "3", "--model", enlarger]
    assert run(command) == 0
    assert set(json.loads(capsys.readouterr().out)["done"]) == {"one.png", "stack.tif"}
    assert upscale(folder / "stack.tif", tmp_path / "alone.tif", "--scale", "3", "--model", enlarger, "-q") == 0
    assert (tmp_path / "out" / "stack.tif").read_bytes() == (tmp_path / "alone.tif").read_bytes()
    assert run(command) == 0
    assert len(json.loads(capsys.readouterr().out)["skipped"]) == 2


def test_refusals(tmp_path: Path, enlarger: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, nothing written."""
    source = tmp_path / "stack.tif"
    tifffile.imwrite(source, noisy((3, 24, 24)), photometric="minisblack")
    before = set(tmp_path.iterdir())
    for words, name, said in (
        (["-o", str(tmp_path / "out.png")], "x", "written as a TIFF"),
        (["-o", str(tmp_path / "out.tif"), "--scale", "16", "--max-planes", "2"], "x", "--max-planes"),
        (["-o", str(tmp_path / "out.tif"), "--width", "24"], "x", "sides can grow"),
        (["-o", str(tmp_path / "out.tif"), "--depth", "8"], "x", "keeps its depth"),
    ):
        assert run(["upscale", str(source), "--model", enlarger, "-q", *words]) in (1, 2), name
        assert said in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


# -- tags -------------------------------------------------------------------------------------------------------------


def doubled(height: int, width: int) -> tuple[int, int]:
    return 2 * height, 3 * width


def test_tags_that_count_pixels() -> None:
    """Regions of ImageJ and OME, private tags and shapes that do not fit are left out by name; all else stays."""
    form = Form("<")
    plain = {256: form.short(10), 257: form.short(20), 258: form.short(16), 277: form.short(1)}
    parts = ["label".encode("utf-16-le"), b"REGION", "info text".encode("utf-16-le")]
    head = b"JIJI" + struct.pack("<4sI4sI4sI", b"lbal", 1, b" ior", 1, b"ofni", 1)
    block = head + b"".join(parts)
    sizes = struct.pack("<4I", len(head), *map(len, parts))
    entries = plain | {50839: (BYTE, len(block), block), 50838: (LONG, 4, sizes), 34412: (BYTE, 3, b"LSM")}
    kept, lost = grown_tags(entries, doubled, form, calibrated=True)
    assert set(lost) == {"regions (ROI)", "LSM"}
    counts = struct.unpack("<3I", kept[50838][2])
    assert tifffile.tifffile.imagej_metadata(kept[50839][2], counts, "<") == {"Labels": "label", "Info": "info text"}
    for broken in (sizes[:8], struct.pack("<4I", 4000, 1, 1, 1), b""):
        kept, lost = grown_tags(entries | {50838: (LONG, len(broken) // 4, broken)}, doubled, form, calibrated=True)
        assert set(lost) == {"ImageJ's block", "LSM"}
        assert kept.keys() == plain.keys()
    assert kept[256] == form.places([30])
    assert kept[257] == form.places([40])
    assert kept[277] == plain[277]
    xml = b'<OME:OME><OME:Image><OME:Pixels SizeX="10" SizeY=\'20\' PhysicalSizeX="0.3" PhysicalSizeZ="1"/>'
    xml += b'<OME:ROIRef ID="ROI:0"/></OME:Image><OME:ROI ID="ROI:0"><x/></OME:ROI><ROI ID="b"/></OME:OME>\0'
    kept, lost = grown_tags(plain | {270: (2, len(xml), xml)}, doubled, form, calibrated=True)
    want = b'<OME:OME><OME:Image><OME:Pixels SizeX="30" SizeY=\'40\' PhysicalSizeX="0.1" PhysicalSizeZ="1"/>'
    assert kept[270][2] == want + b"</OME:Image></OME:OME>\0"
    assert kept[270][1] == len(kept[270][2])
    assert lost == ("regions (ROI)",)
    for shape, more, after in (
        ([4, 20, 10], {}, [4, 40, 30]), ([20, 10, 4], {"axes": "YXZ"}, [40, 30, 4]), ([4, 21, 10], {}, None),
    ):  # fmt: skip
        text = json.dumps({"shape": shape, **more}).encode() + b"\0"
        kept, lost = grown_tags(plain | {270: (2, len(text), text)}, doubled, form, calibrated=False)
        assert (json.loads(kept[270][2].rstrip(b"\0"))["shape"] if 270 in kept else None) == after
        assert bool(lost) == (after is None)


def test_a_resolution_of_a_print_stays_and_fractions_keep_their_room() -> None:
    plain = {256: (3, 1, b"\x0a\0"), 257: (3, 1, b"\x14\0"), 258: (3, 1, b"\x10\0"), 296: (3, 1, b"\2\0")}
    for above, below in ((300, 1), (4294967291, 7), (2**32 - 1, 1), (7, 4294967291), (0, 1), (5, 0)):
        entries = plain | {282: (5, 1, struct.pack("<II", above, below))}
        kept, _ = grown_tags(entries, doubled, Form(), calibrated=False)
        assert kept[282] == entries[282]
        kept, _ = grown_tags(entries, doubled, Form(), calibrated=True)
        found = struct.unpack("<II", kept[282][2])
        if below and 0 < 3 * above / below < 2**32:
            assert found[0] / found[1] == pytest.approx(3 * above / below, rel=1e-6)
        else:
            assert kept[282] == entries[282]


def test_planes_declared_by_a_private_tag_are_refused(
    tmp_path: Path, enlarger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One directory for all planes, and a description that is not of them: it cannot be written in another size."""
    source = tmp_path / "stack.tif"
    geo = [(33550, "d", 3, (1.0, 1.0, 0.0), False)]
    tifffile.imwrite(source, noisy((3, 24, 24)), photometric="minisblack", truncate=True, extratags=geo)
    with TiffStack(source) as stack:
        assert stack.one_directory
    assert upscale(source, tmp_path / "out.tif", "--model", enlarger, "-q") == 1
    assert "save it as a plain TIFF stack" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
