"""Pages of stacks that would be lost or changed: refused, left out with a line, or kept, as tifffile and Pillow say."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps
from test_stacks import copied, values

from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.inference.stacks import samples_of
from nlrn.io.directories import LONG, Form
from nlrn.io.frames import FrameStack
from nlrn.io.image import ImageData, write_image
from nlrn.io.stacks import TiffStack
from nlrn.io.stackwriting import TiffStackWriter
from nlrn.system.journal import Journal


def saved(path: Path, mode: str, compression: str | None = None) -> None:
    """Two pages of Pillow's: the first grey of 8 bits unless they are compressed, the second of this mode."""
    grey, colour = Image.fromarray(values((24, 32), "uint8")), Image.fromarray(values((24, 32, 3), "uint8"))
    second = {"1": grey.convert("1"), "P": colour.quantize(16), "CMYK": colour.convert("CMYK")}.get(mode) or colour
    first = second if compression else grey
    first.save(path, "TIFF", save_all=True, append_images=[second.convert(mode)], compression=compression)


@pytest.mark.parametrize(
    ("mode", "compression", "words"),
    [
        ("1", None, "samples of 1 bit,.*save it as grey of 8 bits"),
        ("1", "group4", "samples of 1 bit,.*save it as grey of 8 bits"),
        ("P", None, "a palette.*save it as grey of 8 bits, or as RGB"),
        ("CMYK", None, "CMYK.*save it as RGB"),
        ("YCbCr", None, "YCbCr outside of JPEG.*save it as RGB"),
    ],
)
def test_pages_that_cannot_be_written_as_they_are_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, compression: str | None, words: str
) -> None:
    """Before any work, and any page of the file, not only the first."""
    source = tmp_path / "in.tif"
    saved(source, mode, compression)
    with pytest.raises(InputError, match=f"plane {1 if compression else 2} of 2: {words}"):
        TiffStack(source)
    assert run(["denoise", str(source), "-o", str(tmp_path / "out.tif"), "--sigma", "9", "-q"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source]


def test_planes_of_colour_in_jpeg_are_written_as_rgb(tmp_path: Path) -> None:
    source = tmp_path / "in.tif"
    pages = [Image.fromarray(np.full((24, 32, 3), level, np.uint8)) for level in ((200, 30, 60), (20, 130, 90))]
    pages[0].save(source, save_all=True, append_images=pages[1:], compression="jpeg")
    with tifffile.TiffFile(copied(source, tmp_path / "out.tif")) as after, Image.open(source) as before:
        assert {int(page.photometric) for page in after.pages} == {2}
        for index, page in enumerate(after.pages):
            before.seek(index)
            assert np.abs(page.asarray().astype(int) - np.asarray(before.convert("RGB"))).max() <= 1


@pytest.mark.parametrize("made", [lambda grey: np.dstack([grey] * 3), lambda grey: grey])
def test_samples_that_their_tags_do_not_declare_are_not_written(
    tmp_path: Path, made: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Of other channels, and of another depth."""
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    tifffile.imwrite(source, values((2, 24, 32), "uint16"), metadata=None, photometric="minisblack")
    array = made(np.zeros((24, 32), np.float32))
    image = ImageData(array, depth=16 if array.ndim == 3 else 8)
    with (
        TiffStack(source) as stack,
        Journal(target, {}) as journal,
        TiffStackWriter(target, stack, journal, overwrite=False) as writer,
    ):
        writer.put(0, stack.read(0))
        with pytest.raises(InputError, match=r"plane 2 has . samples a pixel of .*, and its tags say 1 of 16"):
            writer.put(1, image)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("uint8", "uint16"), "planes of 8 bits and of 16 bits in one file: save them apart"),
        (("uint16", "uint8"), "planes of 8 bits and of 16 bits in one file: save them apart"),
        (("uint16", "float32"), "planes of 16 bits and of floats in one file: save them apart"),
    ],
)
@pytest.mark.parametrize("ome", [False, True])
def test_planes_of_several_types_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kinds: tuple[str, ...], words: str, ome: bool
) -> None:
    """Images of one OME-TIFF, or pages, as tifffile writes and reads them: no values are taken for those of a type."""
    source = tmp_path / "in.tif"
    with tifffile.TiffWriter(source, ome=ome) as writer:
        for kind in kinds:
            metadata = {"axes": "ZYX"} if ome else None
            writer.write(values((2, 24, 32), kind), photometric="minisblack", metadata=metadata)
    with tifffile.TiffFile(source) as file:
        assert {str(series.dtype) for series in file.series} == set(kinds)
    for command in (["denoise", "--sigma", "9"], ["upscale"]):
        assert run([command[0], str(source), "-o", str(tmp_path / "out.tif"), *command[1:]]) == 1
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def microscope_file(path: Path, planes: np.ndarray, pages: int, private: list[tuple[int, int, int, bytes]]) -> None:
    """Planes of 8 bits in so many directories, each second a reduced copy, and the first with private tags.

    Their counts may not be those of their bytes.
    """
    form, (_, height, width), data = Form(), planes.shape, bytearray(8)
    places = []
    for *_, value in private:
        places.append(len(data))
        data += value
    start = len(data)
    data += planes.tobytes()
    first = len(data)
    for index in range(pages):
        tags = {256: form.places([width]), 257: form.places([height]), 258: form.short(8), 259: form.short(1)}
        tags |= {262: form.short(1), 277: form.short(1), 278: form.places([height])}
        tags[254] = form.places([index % 2])
        tags |= form.parts(start + index * height * width, [height * width], tiled=False)
        tags |= {code: (LONG, 2, bytes(8)) for code, *_ in private if index == 0}
        block = form.block(tags, len(data), last=index == pages - 1)
        for (code, kind, number, _), place in zip(private, places, strict=True):
            at = block.find(struct.pack("<HHI", code, LONG, 2))
            if at >= 0:
                block = block[:at] + struct.pack("<HHII", code, kind, number, place) + block[at + 12 :]
        data += block + bytes(len(block) % 2)
    data[:8] = form.header(first)
    path.write_bytes(data)


def test_the_private_tags_of_zeiss_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = np.dtype([(name, "<" + kind) for name, kind in tifffile.TIFF.CZ_LSMINFO])
    said = np.zeros(1, fields)[0]
    sizes = {"DimensionX": 32, "DimensionY": 24, "DimensionZ": 1, "DimensionChannels": 1, "DimensionTime": 3}
    for name, value in {"MagicNumber": 67127628, "StructureSize": fields.itemsize, "ScanType": 3, **sizes}.items():
        said[name] = value
    source, out, planes = tmp_path / "in.tif", tmp_path / "out.tif", values((3, 24, 32), "uint8")
    microscope_file(source, planes.repeat(2, axis=0), 6, [(34412, 1, fields.itemsize, said.tobytes())])
    with tifffile.TiffFile(source) as file:
        assert file.is_lsm
        np.testing.assert_array_equal(file.asarray(), planes)
    assert run(["denoise", str(source), "-o", str(out), "--sigma", "0", "--range", "type"]) == 0
    printed = capsys.readouterr().out
    assert (
        "left out: the tags of LSM, with what they say of places, times and scale, 3 reduced copies of its planes\n"
        in printed
    )
    np.testing.assert_array_equal(tifffile.imread(copied(source, tmp_path / "copy.tif")), planes)
    with tifffile.TiffFile(out) as file:
        assert not file.is_lsm
        assert len(file.pages) == 3


def test_planes_that_metamorphs_tags_alone_declare_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, planes = tmp_path / "in.tif", values((3, 24, 32), "uint8")
    uic2 = b"".join(struct.pack("<6I", 1000 * i, 1, 2455000, 3600000 * i, 2455000, 0) for i in range(3))
    microscope_file(source, planes, 1, [(33628, 4, 2, bytes(16)), (33629, 5, 3, uic2)])
    with tifffile.TiffFile(source) as file:
        assert file.is_stk
        np.testing.assert_array_equal(file.asarray(), planes)
    assert run(["denoise", str(source), "-o", str(tmp_path / "out.tif"), "--sigma", "9", "-q"]) == 1
    assert "its planes are declared by STK: save it as a plain TIFF stack" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]
    words = ["--sigma", "0", "--range", "type", "-q"]
    assert run(["denoise", str(source), "-o", str(tmp_path / "out_%d.png"), *words]) == 0
    assert len(list(tmp_path.glob("out_?.png"))) == 3


@pytest.mark.parametrize("thumbs", ["same type", "colour of 8 bits"])
def test_reduced_copies_among_the_pages_are_left_out_and_named(tmp_path: Path, thumbs: str) -> None:
    """One behind each page, as Pillow and tifffile see them; also of another type, which is no plane of another."""
    source, planes = tmp_path / "in.tif", values((3, 24, 32), "uint16")
    with tifffile.TiffWriter(source) as writer:
        for plane in planes:
            small = plane[::4, ::4] if thumbs == "same type" else values((6, 8, 3), "uint8")
            writer.write(plane, metadata=None, photometric="minisblack")
            writer.write(small, metadata=None, photometric="rgb" if small.ndim == 3 else "minisblack", subfiletype=1)
    with TiffStack(source) as stack:
        assert stack.notes == ("left out: 3 reduced copies of its planes",)
        assert (len(stack), stack.channels) == (3, 1)
    with tifffile.TiffFile(copied(source, tmp_path / "out.tif")) as file:
        assert len(file.pages) == 3
        np.testing.assert_array_equal(file.asarray(), planes)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_numbered_files_are_those_of_single_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], turned: int, suffix: str
) -> None:
    """Upright as Pillow turns the pages, with their profile and resolution; a TIFF keeps both tags and samples."""
    source, profile = tmp_path / "in.tif", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pages = [Image.fromarray(values((24, 32, 3), "uint8")) for _ in range(2)]
    info = {"tiffinfo": {274: turned}, "icc_profile": profile, "dpi": (300, 200)}
    pages[0].save(source, save_all=True, append_images=pages[1:], **info)
    with TiffStack(source, alone=True) as stack:
        assert stack.size(1) == stack.read(1).array.shape[:2]
        for index in range(2):
            write_image(tmp_path / f"page_{index + 1}.{suffix}", stack.read(index))
    command = ["denoise", str(source), "--sigma", "0", "--range", "type", "-o"]
    assert run([*command, str(tmp_path / f"out_%d.{suffix}")]) == 0
    for index in range(2):
        with Image.open(source) as before, Image.open(tmp_path / f"page_{index + 1}.{suffix}") as after:
            before.seek(index)
            upright = ImageOps.exif_transpose(before)
            np.testing.assert_array_equal(np.asarray(after), np.asarray(upright))
        with Image.open(tmp_path / f"out_{index + 1}.{suffix}") as after:
            assert after.size == upright.size
            assert after.info["icc_profile"] == profile
            assert after.info["dpi"] == pytest.approx((200, 300) if turned > 4 else (300, 200), abs=0.1)
            assert after.getexif().get(274, 1) == 1
    with tifffile.TiffFile(source) as file:
        before = file.asarray()
    with tifffile.TiffFile(copied(source, tmp_path / "out.tif")) as file:
        assert {int(page.tags[274].value) for page in file.pages} == {turned}
        np.testing.assert_array_equal(file.asarray(), before)


def test_frames_that_are_numbered_keep_their_profile(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = [Image.fromarray(values((24, 32, 3), "uint8")) for _ in range(2)]
    frames[0].save(tmp_path / "in.png", save_all=True, append_images=frames[1:], icc_profile=profile)
    command = ["denoise", str(tmp_path / "in.png"), "-q", "--sigma", "9", "--range", "type"]
    assert run([*command, "-o", str(tmp_path / "out_%d.png")]) == 0
    for index in (1, 2):
        with Image.open(tmp_path / f"out_{index}.png") as image:
            assert image.info["icc_profile"] == profile


@pytest.mark.parametrize("count", [1, 3])
def test_an_image_in_place_of_the_animation_is_no_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    """A PNG's frames are those of its chunks fcTL; Pillow counts the image before them, too."""
    source, out = tmp_path / "in.png", tmp_path / "out.tif"
    still, *frames = (Image.fromarray(values((24, 32, 3), "uint8")) for _ in range(1 + count))
    durations = [100 * (index + 1) for index in range(count)]
    still.save(source, save_all=True, append_images=frames, default_image=True, duration=durations)
    data = source.read_bytes()
    assert struct.unpack_from(">I", data, data.index(b"acTL") + 4) == (count,)
    with FrameStack(source) as stack:
        assert len(stack) == count
        for index, frame in enumerate(frames):
            np.testing.assert_array_equal(np.rint(stack.read(index).array * 255), np.asarray(frame))
    assert run(["denoise", str(source), "-o", str(out), "--sigma", "9", "--range", "type"]) == 0
    assert "left out: the image that is shown in place of the animation" in capsys.readouterr().out
    with tifffile.TiffFile(out) as file:
        assert len(file.pages) == count
        assert file.shaped_metadata[0]["duration_ms"] == durations


@dataclass(frozen=True)
class Channels:
    """So many channels of 2 planes of one size, of values that rise evenly from 0 to 1."""

    channels: int
    side: int

    def __len__(self) -> int:
        return 2 * self.channels

    def channel(self, index: int) -> int:
        return index % self.channels

    def read(self, index: int) -> tuple[np.ndarray, None]:
        return np.linspace(0, 1, self.side**2, dtype=np.float32).reshape(self.side, self.side), None


@pytest.mark.parametrize(("channels", "most"), [(1, 2**21), (4, 2**21), (5, 2**23 // 5), (32, 2**18), (300, 2**16)])
def test_what_is_held_of_many_channels_is_no_more_than_of_four(channels: int, most: int) -> None:
    """Pixels of each channel; their range is that of all pixels."""
    found = samples_of(Channels(channels, side := 256 if channels > 32 else 1100))
    assert len(found) == channels
    for sample in found:
        assert min(most, 2 * side**2) / 4 <= sample.size <= 1.01 * most
        np.testing.assert_allclose(np.quantile(sample, (0.001, 0.5, 0.999)), (0.001, 0.5, 0.999), atol=0.005)
    assert sum(sample.nbytes for sample in found) <= max(4 * 2**23, channels * 4 * 2**16) * 1.01
