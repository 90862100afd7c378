"""Kinds of file that extras read: HEIC, JPEG 2000, JPEG XL, camera raw. What was written without loss is read so."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from furtherfiles import box, camera_raw, exif_of, heic, inside_header
from imagefiles import samples
from PIL import Image, ImageCms

from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.io import further
from nlrn.io.decode import ApartError, decode
from nlrn.io.image import read_image

pytest.importorskip("pillow_heif")
pytest.importorskip("rawpy")
pytest.importorskip("pillow_jxl")
codecs = pytest.importorskip("imagecodecs")

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _jp2(values: np.ndarray, bits: int | None = None, form: str = "jp2") -> bytes:
    return bytes(codecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits, codecformat=form))


def _jxl(values: np.ndarray, bits: int | None = None, boxes: bool = True) -> bytes:
    return bytes(codecs.jpegxl_encode(values, lossless=True, bitspersample=bits, usecontainer=boxes))


def _values(shape: tuple[int, ...], bits: int) -> np.ndarray:
    values = samples(shape, top=2**bits - 1)
    values.flat[0], values.flat[1] = 0, 2**bits - 1
    return values.astype(np.uint8 if bits == 8 else np.uint16)


CASES: dict[str, Callable[[np.ndarray], bytes]] = {
    "HEIC 8": heic, "HEIC 10": lambda v: heic(v, bits=10), "HEIC 12": lambda v: heic(v, bits=12),
    "JPEG2000 8": _jp2, "JPEG2000 12": lambda v: _jp2(v, 12), "JPEG2000 16": _jp2,
    "JPEG2000 8 stream": lambda v: _jp2(v, form="j2k"), "JPEG2000 16 stream": lambda v: _jp2(v, form="j2k"),
    "JXL 8": _jxl, "JXL 10": lambda v: _jxl(v, 10), "JXL 16": _jxl, "JXL 16 stream": lambda v: _jxl(v, boxes=False),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(40, 56), (40, 56, 3)], ids=["grey", "colour"])
def test_what_was_written_is_read(case: str, shape: tuple[int, ...]) -> None:
    form, bits = case.split()[0], int(case.split()[1])
    values = _values(shape, bits)
    image = read_image(CASES[case](values))
    assert (image.format, image.depth) == (form, 8 if bits == 8 else 16)
    most = 2**image.depth - 1
    expected = np.floor(values.astype(np.float64) * most / (2**bits - 1) + 0.5)
    np.testing.assert_array_equal(np.rint(image.array.astype(np.float64) * most), expected)
    assert image.array.max() == 1  # the whole range


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_kept(bits: int) -> None:
    values = _values((40, 56, 4), bits)
    files = [_jxl(values), inside_header(_jp2(values), _alpha())]
    files += [heic(values)] if bits == 8 else []
    if bits == 8:  # as Pillow declares it
        out = io.BytesIO()
        Image.fromarray(values).save(out, "JPEG2000")
        files.append(out.getvalue())
    for data in files:
        image = read_image(data)
        assert image.alpha is not None
        np.testing.assert_array_equal(image.alpha, values[..., 3])
        np.testing.assert_array_equal(np.rint(image.array * (2**bits - 1)), values[..., :3])


def _alpha(kind: int = 1) -> bytes:
    """The box that declares the fourth channel as alpha: 1, or 2 for one that was multiplied into the colour."""
    rows = [(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, kind, 0)]
    return box(b"cdef", b"".join(n.to_bytes(2, "big") for n in (4, *(x for row in rows for x in row))))


def test_metadata_is_kept_and_the_orientation_applied_once() -> None:
    values = _values((40, 56, 3), 8)
    block = exif_of()
    jp2 = _jp2(values)
    start = jp2.index(b"jp2c") - 4
    jp2 = jp2[:start] + box(b"uuid", b"JpgTiffExif->JP2" + block.removeprefix(b"Exif\0\0")) + jp2[start:]
    turned = {"HEIC": (np.rot90(values, -1), heic(values, exif=block, icc=PROFILE)), "JPEG2000": (values, jp2)}
    turned["JXL"] = (values, _jxl(values) + box(b"Exif", bytes(4) + block.removeprefix(b"Exif\0\0")))
    for form, (expected, data) in turned.items():
        image = read_image(data)
        np.testing.assert_array_equal(np.rint(image.array * 255), expected, err_msg=form)
        for gps, found in ((False, image), (True, read_image(data, gps=True))):
            assert found.exif is not None
            exif = Image.Exif()
            exif.load(found.exif)
            assert exif[0x010F] == "A maker"
            assert 0x0112 not in exif
            assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(1 / 30)
            assert bool(exif.get_ifd(0x8825)) == gps
    assert read_image(turned["HEIC"][1]).icc == PROFILE
    jp2 = _jp2(values)
    place = jp2.index(b"colr") - 4  # with a profile in the place of the name of a colour space
    profiled = inside_header(jp2[:place] + box(b"colr", b"\x02\0\0" + PROFILE) + jp2[place + 15 :], b"")
    assert read_image(profiled).icc == PROFILE


def test_jpeg_xl_has_the_profile_of_its_samples() -> None:
    """Also where the file only names its colour space: a program shows the result as it shows the file."""
    image = read_image(_jxl(_values((40, 56, 3), 16)))
    assert image.icc is not None
    assert "RGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(image.icc)))


def test_floats_of_jpeg_xl_stay_floats(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((40, 56, 3), np.float32)
    image = read_image(_jxl(values))
    assert image.depth == 32
    np.testing.assert_array_equal(image.array, values)


def _scene() -> np.ndarray:
    y, x = np.mgrid[:96, :128]
    return np.stack([0.1 + 0.8 * x / 128, 0.1 + 0.8 * y / 96, np.full(x.shape, 0.5)], axis=-1)


@pytest.mark.parametrize("flip", [1, 6])
def test_a_raw_file_is_developed_linearly(flip: int) -> None:
    scene = _scene()
    image = read_image(camera_raw(scene, flip=flip))
    assert (image.format, image.depth) == ("RAW", 16)
    expected = np.rot90(scene, -1) if flip == 6 else scene
    assert image.array.shape == expected.shape
    assert np.abs(image.array - expected)[4:-4, 4:-4].max() < 1e-3  # a ramp is demosaiced exactly but at its border
    assert image.exif is not None
    exif = Image.Exif()
    exif.load(image.exif)
    assert exif[0x0110] == "A camera"
    assert not {50706, 33421, 0x0112} & set(exif)  # the result is no raw file
    assert image.icc is not None
    linear = ImageCms.ImageCmsProfile(io.BytesIO(image.icc))
    grey = Image.fromarray(np.full((1, 1, 3), 64, np.uint8))
    seen = ImageCms.profileToProfile(grey, linear, ImageCms.createProfile("sRGB"))
    assert seen is not None
    assert np.asarray(seen).ravel().tolist() == [137] * 3  # 255 * (1.055 (64/255)^(1/2.4) - 0.055)


def test_a_raw_file_becomes_a_tiff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shot.dng").write_bytes(camera_raw(_scene()))
    assert run(["denoise", str(tmp_path / "shot.dng"), "--sigma", "5"]) == 0
    result = read_image(tmp_path / "shot-restored.tif")
    assert (result.format, result.depth, result.array.shape) == ("TIFF", 16, (96, 128, 3))
    assert "a raw file was developed: linear" in capsys.readouterr().out


REFUSED = {
    "a signed JPEG 2000": (lambda: _jp2(_values((40, 56), 8)).replace(b"\0\x01\x07\x01\x01", b"\0\x01\x87\x01\x01"),
                           "signed"),
    "alpha in the colour": (lambda: inside_header(_jp2(_values((40, 56, 4), 8)), _alpha(2)), "not declared as alpha"),
    "a fourth channel of no kind": (lambda: _jp2(_values((40, 56, 4), 8)), "not declared as alpha"),
    "two images in one JPEG 2000": (lambda: _jp2(_values((40, 56), 8)) + box(b"jp2c", b"\xff\x4f\xff\x51"),
                                    "single image"),
    "an animated JPEG XL": (lambda: _animated(), "single image"),
}  # fmt: skip


def _animated() -> bytes:
    return bytes(codecs.jpegxl_encode(_values((3, 40, 56, 3), 8), lossless=True))


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_cut_or_misread_is_refused(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(InputError, match=reason):
        read_image(make())


def test_further_images_of_a_heic_are_named() -> None:
    image = read_image(heic(_values((40, 56, 3), 8), more=2))
    assert "left out: 2 more images of the file" in image.notes


@pytest.mark.parametrize("name", ["HEIC 8", "HEIC 10", "JPEG2000 8", "JPEG2000 16", "JXL 8", "JXL 16 stream", "raw"])
def test_a_file_that_is_cut_is_refused(name: str) -> None:
    data = camera_raw(_scene()) if name == "raw" else CASES[name](_values((40, 56, 3), int(name.split()[1])))
    for size in np.linspace(16, len(data) - 1, 3).astype(int):
        with pytest.raises(InputError):
            read_image(data[:size])


@pytest.mark.parametrize("name", ["HEIC 8", "JPEG2000 8", "JPEG2000 16", "JXL 8", "raw"])
def test_the_size_is_known_before_the_pixels(name: str) -> None:
    data = camera_raw(_scene()) if name == "raw" else CASES[name](_values((40, 56, 3), int(name.split()[1])))
    shape = (96, 128) if name == "raw" else (40, 56)
    shown = []

    def before(width: int, height: int) -> None:
        shown.append((height, width))
        raise InterruptedError

    with pytest.raises(ApartError):  # no decoder of these runs in this process
        decode(data, 10**6)
    with pytest.raises(InterruptedError):
        decode(data, 10**6, apart=True, before_pixels=before)
    assert shown == [shape]
    with pytest.raises(InputError, match="the limit is 10"):
        read_image(data, max_pixels=10)


@pytest.mark.parametrize("name", ["HEIC 8", "JPEG2000 16", "JXL 8", "raw"])
def test_without_the_library_the_extra_is_named(name: str) -> None:
    data = camera_raw(_scene()) if name == "raw" else CASES[name](_values((40, 56, 3), int(name.split()[1])))
    code = """if True:
        import sys
        for name in ("pillow_heif", "imagecodecs", "pillow_jxl", "rawpy"):
            sys.modules[name] = None
        from nlrn.errors import InputError
        from nlrn.io.decode import decode
        try:
            decode(sys.stdin.buffer.read(), 10**6, apart=True)
        except InputError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    extra = {"HEIC": "heic", "JPEG2000": "jpeg2000", "JXL": "jpegxl", "raw": "raw"}[name.split()[0]]
    assert f'pip install "nlrn[{extra}]"' in done.stdout.decode()


def test_a_large_file_fits_the_memory_that_is_allowed() -> None:
    """Of 2 megapixels: what the decoders take grows with the image, as the limit does."""
    y, x = np.mgrid[:1200, :1600]
    values = np.stack([(x * 255 // 1600), (y * 255 // 1200), (x + y) % 256], axis=-1).astype(np.uint8)
    lossy = bytes(codecs.jpegxl_encode(values, level=90))
    scene = values / 255.0
    for data in (heic(values), _jp2(values.astype(np.uint16) * 257), lossy, camera_raw(scene)):
        assert read_image(data).array.shape == (1200, 1600, 3)


# -- folders ----------


def test_a_folder_processes_what_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    values = _values((24, 24, 3), 8)
    for name, data in {"a.heic": heic(values), "b.JXL": _jxl(values), "c.jp2": _jp2(values)}.items():
        (folder / name).write_bytes(data)
    (folder / "d.dng").write_bytes(camera_raw(_scene()[:32, :32]))
    (folder / "e.psd").write_bytes(b"x")
    assert run(["denoise", str(folder), "-o", str(tmp_path / "out"), "--sigma", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (sorted(said["done"]), said["left_out"]) == (["a.heic", "b.JXL", "c.jp2", "d.dng"], {".psd": 1})
    assert sorted(p.name for p in (tmp_path / "out").glob("[a-d].*")) == ["a.png", "b.png", "c.png", "d.tif"]
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "a.png").array.shape, (24, 24, 3))


def test_every_suffix_belongs_to_one_kind_and_counts_as_an_image() -> None:
    from nlrn.batch.plan import OTHER_IMAGES

    every = [suffix for kind in further.KINDS for suffix in kind.suffixes]
    assert len(every) == len(set(every))
    assert set(every) <= OTHER_IMAGES
    assert set(further.suffixes()) == set(every)  # all extras are here


def test_the_name_of_a_result_does_not_wait_for_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the file is opened, whose error names the extra; a name that cannot be written would come first."""
    from nlrn.batch.plan import written_as

    monkeypatch.setattr(further, "suffixes", dict)
    assert [written_as(suffix) for suffix in (".heic", ".JXL", ".dng")] == [".png", ".png", ".tif"]
