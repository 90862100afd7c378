"""What people's files and folders do: each kind of a fault of the field, in cases of its own."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagefiles import chunk, file_of, png, samples, tiff
from PIL import Image
from scipy import ndimage

import nlrn
from nlrn.batch.plan import left_out, plan
from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera
from nlrn.io import further
from nlrn.io.formats import inflated_size
from nlrn.io.image import SUFFIXES, read_image

ROWS = b"".join(b"\0" + bytes(range(12)) for _ in range(4))  # 4 x 4 RGB
SIGNATURE = b"\x89PNG\r\n\x1a\n"
IHDR = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
IDAT, IEND = chunk(b"IDAT", zlib.compress(ROWS)), chunk(b"IEND")
PALETTE = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
INDICES = chunk(b"IDAT", zlib.compress(b"\0\0\1\2\3" * 4))
PLTE = chunk(b"PLTE", bytes(range(12)))


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"gAMA", struct.pack(">I", 45455)), IHDR, IDAT, IEND],
        [IHDR, IHDR, IDAT, IEND],
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), IHDR, IDAT, IEND],
        [IHDR, IDAT, chunk(b"tEXt", b"a\0b"), IDAT, IEND],
        [IHDR, chunk(b"ABCD"), IDAT, IEND],
        [PALETTE, chunk(b"PLTE"), INDICES, IEND],
        [PALETTE, INDICES, PLTE, IEND],
        [PALETTE, PLTE, PLTE, INDICES, IEND],
        [PALETTE, chunk(b"PLTE", bytes(6)), INDICES, IEND],
        [PALETTE, chunk(b"tRNS", b"\0"), PLTE, INDICES, IEND],
        [IHDR, IEND],
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 4, 2, 0, 0, 0)), IDAT, IEND],
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 2)), IDAT, IEND],
        [chunk(b"IHDR", struct.pack(">IIBBBBBB", 4, 4, 8, 2, 0, 0, 0, 0)), IDAT, IEND],
    ],
)
def test_pngs_that_the_specification_forbids_are_refused(chunks: list[bytes]) -> None:
    with pytest.raises(InputError):
        read_image(SIGNATURE + b"".join(chunks))


def test_pngs_that_it_allows_are_read() -> None:
    whole = read_image(SIGNATURE + IHDR + IDAT + IEND)
    half = zlib.compress(ROWS)
    pieces = [chunk(b"IDAT", half[:5]), chunk(b"IDAT"), chunk(b"IDAT", half[5:])]
    for extra in ([chunk(b"PLTE", bytes(9))], [chunk(b"prVt", b"x")], [chunk(b"tRNS", bytes(6))]):
        again = read_image(SIGNATURE + IHDR + b"".join(extra + pieces) + IEND)
        np.testing.assert_array_equal(again.array, whole.array)
    colours = read_image(SIGNATURE + PALETTE + PLTE + INDICES + IEND)
    np.testing.assert_array_equal(np.rint(colours.array[0] * 255), np.arange(12).reshape(4, 3))


def test_one_large_idat_takes_as_long_as_many() -> None:
    data = memoryview(zlib.compress(np.random.default_rng(0).bytes(24 << 20), 1))

    def seconds(parts: list[memoryview]) -> float:
        started = time.process_time()
        assert inflated_size(parts, 24 << 20) == 24 << 20
        return time.process_time() - started

    assert seconds([data]) < 5 * seconds([data[i : i + 8192] for i in range(0, len(data), 8192)]) + 0.1


def _bmp(bits: int, compression: int, body: bytes) -> bytes:
    palette = b"".join(bytes([i, i, i, 0]) for i in range(2**bits))
    start = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, 8, 2, 1, bits, compression, len(body), 2835, 2835, 2**bits, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + palette + body


def test_runs_in_bmp() -> None:
    for body in (b"\x08\x11\0\0\x08\x22\0\1", b"\0\x03\x12\x30\x05\x44\0\0\x08\x22\0\1", b"\0\1"):
        with pytest.raises(InputError, match="RLE4"):
            read_image(_bmp(4, 2, body))
    eight = read_image(_bmp(8, 1, b"\x08\x11\0\0\0\x03\x01\x02\x03\0\x05\x07\0\1"))
    assert np.rint(eight.array.reshape(2, 8, -1)[0, :, 0] * 255).tolist() == [1, 2, 3, 7, 7, 7, 7, 7]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("place", "value"), [(28, 2), (28, 64), (30, 4), (30, 9), (30, 12)])
def test_a_bmp_of_a_kind_that_is_not_read_is_not_called_damaged(place: int, value: int, apart: bool) -> None:
    """Of 2 and 64 bits, with a JPEG inside, compressions that Pillow does not know."""
    data = bytearray(file_of(Image.fromarray(samples((9, 16, 3))), "BMP"))
    data[place] = value
    with pytest.raises(InputError, match="of a kind that is not read") as caught:
        read_image(bytes(data), apart=apart)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_pixels_of_a_bmp_lie_behind_its_palette(bits: int) -> None:
    """Whatever first byte is declared: the samples that Pillow's own file has, or a refusal."""
    image = Image.fromarray(samples((9, 16)) >> (8 - bits))
    image = image.convert("1") if bits == 1 else image.convert("P")
    data = bytearray(_bmp(bits, 0, bytes(range(8)) * 8)) if bits == 4 else bytearray(file_of(image, "BMP"))
    if bits == 4:
        data[54:118] = b"".join(bytes([17 * i] * 3 + [0]) for i in range(16))
    right, behind = read_image(bytes(data)).array, int.from_bytes(data[10:14], "little")
    for first in (1, 14, 53, 54, 54 + 4, behind - 4, behind - 1):
        data[10:14] = first.to_bytes(4, "little")
        with pytest.raises(InputError, match="inside of its header or palette"):
            read_image(bytes(data))
    data[10:14] = bytes(4)  # some writers leave it out
    np.testing.assert_array_equal(read_image(bytes(data)).array, right)


def test_a_clean_aperture_is_refused() -> None:
    data = file_of(Image.fromarray(samples((16, 24, 3))), "AVIF")
    assert read_image(data).array.shape == (16, 24, 3)
    place = data.index(b"ispe") - 4
    clap = struct.pack(">I4s8I", 40, b"clap", 8, 1, 8, 1, 0, 1, 0, 1)
    grown = bytearray(data[:place] + clap + data[place:])
    for name in (b"meta", b"iprp", b"ipco"):
        at = grown.index(name) - 4
        struct.pack_into(">I", grown, at, struct.unpack_from(">I", grown, at)[0] + 40)
    with pytest.raises(InputError, match="clap"):
        read_image(bytes(grown))


# -- every type that is read here is read by the service's process ----------

TYPES = {
    "grey 1": file_of(Image.fromarray(samples((9, 8))).convert("1"), "PNG"),
    "palette": file_of(Image.fromarray(samples((9, 8, 3))).quantize(9), "PNG"),
    "pgm 16": b"P5\n4 2\n65535\n" + samples((2, 4), top=65535).astype(">u2").tobytes(),
    **{
        f"tiff {order} {bits} {bands}": None
        for order in "<>"
        for bits in ("uint8", "uint16", "float32")
        for bands in (1, 2, 3, 4)
        if bits != "float32" or bands in (1, 3)
    },
    **{f"{form} {mode}": file_of(Image.fromarray(samples((9, 8, 4))).convert(mode), form)
       for form, mode in (("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("GIF", "P"),
                          ("BMP", "RGB"), ("AVIF", "RGBA"), ("TIFF", "CMYK"), ("TIFF", "1"))},
    "png 16 alpha": png(4, 2, 16, 6, b"".join(b"\0" + samples((1, 32), seed).tobytes() for seed in (1, 2))),
    "tiff inverted 16": tiff(4, 3, (16,), 0, samples((3, 4), top=65535).astype("<u2").tobytes()),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_what_is_read_here_is_read_apart(name: str) -> None:
    data = TYPES[name]
    if data is None:
        import tifffile

        _, order, bits, bands = name.split()
        shape = (9, 8, int(bands))[: 2 + (bands != "1")]
        values = np.random.default_rng(0).random(shape) * (1 if bits == "float32" else np.iinfo(bits).max)
        file = io.BytesIO()
        extra = {"extrasamples": ["unassalpha"]} if bands in "24" else {}
        extra |= {"planarconfig": "contig"} if bands != "1" else {}
        photometric = "rgb" if bands in "34" else "minisblack"
        tifffile.imwrite(file, values.astype(bits), byteorder=order, photometric=photometric, metadata=None, **extra)
        data = file.getvalue()
    here, apart = read_image(data, apart=False), read_image(data, apart=True)
    np.testing.assert_array_equal(apart.array, here.array)
    assert (apart.depth, apart.format, apart.notes, apart.exif) == (here.depth, here.format, here.notes, here.exif)
    assert (apart.alpha is None) == (here.alpha is None)
    if here.alpha is not None:
        np.testing.assert_array_equal(apart.alpha, here.alpha)


def test_a_file_that_keeps_its_decoder_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlrn.io.sandbox._SECONDS", 2)
    data = b"P3\n1 1 255\n" + b"#a\n" * 3_000_000 + b"1 2 3"
    started = time.monotonic()
    with pytest.raises(InputError, match="time"):
        read_image(data)
    assert time.monotonic() - started < 30


# -- metadata ----------


def _exif(items: dict[int, bytes], order: str = "<") -> bytes:
    entries, values, start = b"", b"", 8 + 2 + 12 * len(items) + 4
    for tag, text in sorted(items.items()):
        text += b"\0"
        entries += struct.pack(order + "HHII", tag, 2, len(text), start + len(values))
        values += text + bytes(len(text) % 2)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + head + struct.pack(order + "IH", 8, len(items)) + entries + bytes(4) + values


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("text", ["Ærø", "日本語の写真", "© naïve"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_texts_are_kept_byte_for_byte(tmp_path: Path, order: str, text: str, suffix: str) -> None:
    image = Image.fromarray(samples((32, 32, 3)))
    image.save(tmp_path / "a.jpg", exif=_exif({0x10E: text.encode(), 0x8298: text.encode("utf-8")}, order))
    out = tmp_path / f"b{suffix}"
    assert run(["denoise", str(tmp_path / "a.jpg"), "-o", str(out), "--sigma", "0", "-q"]) == 0
    assert out.read_bytes().count(text.encode()) >= 2


def test_a_conversion_is_named() -> None:
    image = Image.fromarray(samples((16, 16, 3)))
    assert read_image(file_of(image.convert("CMYK"), "JPEG")).notes == ("CMYK was converted to RGB",)
    assert read_image(file_of(image, "PNG")).notes == ()


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_descriptions_that_no_longer_hold_go(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    import tifffile

    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (24, 32), kind)
    tifffile.imwrite(tmp_path / "shaped.tif", values)
    tifffile.imwrite(tmp_path / "ome.tif", values, ome=True, metadata={"axes": "YX", "PhysicalSizeX": 0.5})
    tifffile.imwrite(tmp_path / "ij.tif", values, imagej=True, resolution=(4.0, 4.0), metadata={"unit": "um"})
    for name, scale in (("shaped", 1.5), ("ome", 3), ("ij", 2)):
        source, out = tmp_path / f"{name}.tif", tmp_path / f"{name}-out.tif"
        assert run(["upscale", str(source), "-o", str(out), "-s", str(scale)]) == 0
        text = _tags(out)[270]
        assert ("no longer holds" in capsys.readouterr().out) == (name != "ij")
        assert text == "" or name == "ij"
        kept = tmp_path / f"{name}-kept.tif"
        assert run(["denoise", str(source), "-o", str(kept), "--sigma", "0", "-q"]) == 0
        assert _tags(kept)[270] == _tags(source)[270]  # it still holds
    across = _tags(tmp_path / "ij-out.tif")[282]
    assert across[0] / across[1] == 8


def _tags(path: Path) -> dict[int, Any]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        return {270: ""} | {tag.code: tag.value for tag in file.pages.first.tags}


# -- folders ----------


def test_what_looks_like_an_image_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further, "suffixes", dict)  # no extra is installed
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for name in ("a.JXL", "b.jxl", "c.CR3", "below/d.dng", ".hidden.heic", "notes.txt", "e.psd"):
        (folder / name).write_bytes(b"x")
    for name in ("f.jfif", "g.JPE", "h.jpg"):
        Image.fromarray(samples((24, 24, 3))).save(folder / name, "JPEG")
    assert left_out(folder) == {".cr3": 1, ".jxl": 2, ".psd": 1}
    assert left_out(folder, recursive=True) == {".cr3": 1, ".dng": 1, ".jxl": 2, ".psd": 1}
    assert [job.name for job in plan(folder, tmp_path / "out")] == ["f.jfif", "g.JPE", "h.jpg"]
    arguments = ["denoise", str(folder), "-o", str(tmp_path / "out"), "--sigma", "5", "--json"]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {".cr3": 1, ".jxl": 2, ".psd": 1}
    assert run([*arguments[:-1], "--skip-existing"]) == 0
    assert "left out, not read: 1 .cr3, 2 .jxl, 1 .psd" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="a disk that tells case apart")
def test_names_that_differ_in_case_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "A.png", "a.PNG"):
        (tmp_path / "in" / name).write_bytes(b"")
    assert len(plan(tmp_path / "in", tmp_path / "out")) == 3


def test_a_folder_as_the_output_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    image = Image.fromarray(samples((24, 24)))
    image.save("-dash.png")
    image.save("b.gif")
    assert run(["denoise", "-dash.png", "-o", "out", "--sigma", "5", "-q"]) == 0
    assert run(["denoise", "b.gif", "-o", "out", "--sigma", "5", "-q"]) == 0
    assert run(["denoise", "b.gif", "-o", "out", "--sigma", "5", "-q"]) == 1  # it exists
    assert sorted(path.name for path in Path("out").iterdir()) == ["-dash.png", "b.png"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_overwriting_keeps_the_mode(tmp_path: Path, mode: int) -> None:
    Image.fromarray(samples((24, 24))).save(tmp_path / "a.png")
    target = tmp_path / "b.png"
    target.write_bytes(b"")
    target.chmod(mode)
    assert run(["denoise", str(tmp_path / "a.png"), "-o", str(target), "--sigma", "5", "-q", "--overwrite"]) == 0
    assert target.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("name", ["a\x1b[31m.png", "a\nnlrn: wrote.png", "a\u202egnp.png", "a\r.png"])
def test_names_are_printed_without_what_a_terminal_obeys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"x")
    for arguments in (
        ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out")],
        ["denoise", str(tmp_path / "in" / name), "-o", str(tmp_path / "x.png")],
        ["denoise", str(tmp_path / "none" / name), "-o", str(tmp_path / "x.png")],
        ["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "x"), name],
    ):
        assert run(arguments) != 0
        said = capsys.readouterr()
        for text in (said.out, said.err):
            assert all(c.isprintable() or c == "\n" for c in text), text
            assert not any(line.startswith("nlrn: wrote") for line in text.splitlines())


def test_a_full_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(samples((24, 24))).save(tmp_path / "in/a.png")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nlrn.batch.manifest.os.fsync", full)
    assert run(["denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--sigma", "5"]) != 0
    assert "nlrn-manifest.jsonl" in (said := capsys.readouterr().err)
    assert "a.png" in said


# -- margins ----------

CAMERA = np.asarray(Image.open(Path(__file__).parents[1] / "examples/camera.png")).astype(float)


@pytest.mark.parametrize("sides", ["left and right", "below", "all around"])
@pytest.mark.parametrize(("level", "paper", "grain"), [(20, 16, 1), (25, 235, 2), (12, 128, 1.5)])
def test_margins_are_left_out_of_the_estimate(sides: str, level: float, paper: float, grain: float) -> None:
    rng = np.random.default_rng(5)
    inner = CAMERA[96:288, 96:288] + rng.normal(0, level, (192, 192))
    pad = {"left and right": ((0, 0), (32, 48)), "below": ((0, 50), (0, 0)), "all around": ((30, 20), (24, 40))}[sides]
    mask = np.pad(np.zeros(inner.shape, bool), pad, constant_values=True)
    page = np.where(mask, paper + rng.normal(0, grain, mask.shape), np.pad(inner, pad))
    page = np.clip(np.rint(page), 0, 255) / 255
    right = nlrn.estimate_sigma(np.clip(np.rint(inner), 0, 255) / 255)
    found = nlrn.estimate_noise(page)
    assert nlrn.estimate_sigma(page) == pytest.approx(right, rel=0.1)
    assert found.margin == pytest.approx(grain, rel=0.2)
    assert nlrn.estimate_noise(inner / 255).margin is None


@pytest.mark.parametrize("grain", [1.0, 2.0])
def test_margins_are_left_out_where_the_rest_has_a_camera_s_noise(grain: float) -> None:
    rng = np.random.default_rng(6)
    clean = np.stack([ndimage.gaussian_filter(plane, 1.5) for plane in (CAMERA, CAMERA.T, CAMERA[::-1])], axis=2)
    inner = clean[96:288, 96:288] / 255
    inner = add_camera_noise(inner, at_level(draw_camera(np.random.default_rng(1)), 10.0), rng)
    page = 0.9 + rng.normal(0, grain / 255, (300, 192, 3))
    page[50:242] = inner
    page = np.clip(np.rint(255 * page), 0, 255) / 255
    alone, found = nlrn.estimate_noise(inner), nlrn.estimate_noise(page)
    assert alone.kind == found.kind == "camera"
    assert found.level == pytest.approx(alone.level, rel=0.15)
    assert found.margin == pytest.approx(grain, rel=0.2)
    assert alone.margin is None


def test_suffixes_name_formats() -> None:
    assert {SUFFIXES[s] for s in (".jfif", ".jpe", ".jpg", ".jpeg")} == {"JPEG"}


def test_the_command_prints_what_was_left_out(tmp_path: Path) -> None:
    Image.fromarray(samples((24, 24, 3))).save(tmp_path / "a.jpg", comment=b"x")
    command = [sys.executable, "-m", "nlrn", "denoise", "a.jpg", "-o", "b.png", "--sigma", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "left out of the PNG: a comment" in done.stdout
