"""Image files: round trips of every mode and format, metadata, paths, limits."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imagefiles import FORMATS, LOSSY, WITH_ALPHA, chunk, file_of, image_of, levels, png, samples
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

from nlrn.errors import ConfigError, InputError, NLRNError
from nlrn.functional.metrics import quantize8
from nlrn.io.image import SUFFIXES, ImageData, check_output, encode_image, read_image, write_image

Count = Callable[[int], int]
ORIENTATION = ExifTags.Base.Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["AVIF", "PNG", "JPEG", "WEBP", "TIFF"])
def test_the_orientation_is_applied_and_reset_and_gps_dropped(form: str, orientation: int) -> None:
    upright = np.zeros((16, 24), dtype=np.uint8)
    upright[:8, :8], upright[:8, 16:], upright[8:, :8] = 255, 160, 80
    turned = {  # what a camera stores for this image
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION], exif[ExifTags.Base.Make] = orientation, "a camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] = 2.5
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    options = {"lossless": True} if form == "WEBP" else {}
    file = file_of(Image.fromarray(turned), form, exif=exif.tobytes(), **options)
    placed = Image.Exif()
    placed.load(read_image(file, gps=True).exif)
    assert placed.get_ifd(ExifTags.IFD.GPSInfo) == {ExifTags.GPS.GPSLatitudeRef: "N"}
    image = read_image(file)
    grey = image.array if image.array.ndim == 2 else image.array[..., 0]
    np.testing.assert_allclose(grey, upright / 255, atol=0.01)

    for suffix in (".png", ".jpg", ".webp", ".tif", ".avif"):
        if suffix == ".avif" and form != "AVIF" and orientation != 6:  # a process each
            continue
        again = read_image(encode_image(image, SUFFIXES[suffix]))
        assert again.array.shape[:2] == upright.shape
        found = Image.Exif()
        found.load(again.exif)
        assert found[ExifTags.Base.Make] == "a camera"
        assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] == 2.5
        assert not found.get_ifd(ExifTags.IFD.GPSInfo)
        assert found.get(ORIENTATION, 1) == 1


def test_exif_that_is_unreadable_or_would_fill_the_memory_is_left_out() -> None:
    values = samples((4, 5))
    tags = b"".join(struct.pack("<HHII", 1000 + k, 1, 100_000, 8) for k in range(9000))
    for block in (b"II*\0rubbish", b"II*\0" + struct.pack("<IH", 8, 9000) + tags + bytes(4)):
        image = read_image(file_of(Image.fromarray(values), "PNG", exif=b"Exif\0\0" + block))
        assert image.exif is None
        np.testing.assert_array_equal(levels(image), values)


def test_exif_in_the_text_form_of_imagemagick_is_read() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    block = exif.tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    assert read_image(file_of(Image.fromarray(samples((4, 5))), "PNG", pnginfo=text)).array.shape == (5, 4)


# -- round trips


@pytest.mark.pairwise
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("shape", [(5, 9), (5, 9, 3)])
@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_round_trips(tmp_path: Path, suffix: str, shape: tuple[int, ...], alpha: bool) -> None:
    values = samples(shape)
    opacity = samples(shape[:2], seed=1) if alpha else None
    if opacity is not None:
        opacity[0] = 0  # colours under full transparency are kept too
    file = tmp_path / f"image{suffix}"
    image = image_of(values, opacity)
    if alpha and SUFFIXES[suffix] not in WITH_ALPHA:
        with pytest.raises(InputError, match="hold no transparency; write PNG"):
            write_image(file, image)
        assert not list(tmp_path.iterdir())
        return
    assert write_image(file, image) == file
    again = read_image(file)
    assert again.format == SUFFIXES[suffix]
    found = levels(again)
    if suffix == ".webp" and len(shape) == 2:
        assert (found == found[..., :1]).all()
        found = found[..., 0]
    if SUFFIXES[suffix] in LOSSY:
        assert found.shape == values.shape
        assert np.abs(found - values.astype(int)).mean() < 8
    else:
        np.testing.assert_array_equal(found, values)
    np.testing.assert_equal(again.alpha, opacity)


@pytest.mark.parametrize("form", FORMATS)
def test_every_small_size_round_trips(form: str, count: Count) -> None:
    sizes = [(h, w) for h in range(1, 34) for w in range(1, 34)]
    number = count(len(sizes))
    if form == "AVIF" and number < len(sizes):  # whose encoder takes half a second
        number //= 12
    for height, width in sizes[:: len(sizes) // number]:
        values = samples((height, width, 3), seed=height)
        found = levels(read_image(encode_image(image_of(values), form)))
        assert found.shape == values.shape
        if form not in LOSSY:
            np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("form", FORMATS)
def test_long_and_thin_images(form: str) -> None:
    image = image_of(samples((65535, 1, 3)))
    if form in ("AVIF", "WEBP", "JPEG"):  # their own limits
        with pytest.raises(InputError, match=f"{form} files have sides of at most"):
            encode_image(image, form)
        return
    np.testing.assert_array_equal(read_image(encode_image(image, form)).array, image.array)


@pytest.mark.parametrize("form", ["PNG", "PPM", "TIFF"])
def test_16_bits_are_written_exactly(form: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    again = read_image(encode_image(image_of(values), form))
    assert again.depth == 16
    np.testing.assert_array_equal(levels(again), values)
    if form == "PPM":
        with pytest.raises(InputError, match="would cut the image's 16 bits"):
            encode_image(image_of(samples((4, 4, 3), top=65535)), form)
        with pytest.raises(InputError, match="hold no transparency"):
            encode_image(image_of(values, values), form)


TABLE = [  # every lossless cell: format, bits, colour, alpha, orientation
    cell
    for cell in itertools.product(
        ("BMP", "PNG", "PPM", "TIFF", "WEBP"), (8, 16), (False, True), (False, True), range(1, 9)
    )
    if (cell[1] == 8 or cell[0] in ("PNG", "TIFF") or (cell[0] == "PPM" and not cell[2]))
    and (not cell[3] or cell[0] in WITH_ALPHA)
    and (cell[4] == 1 or cell[0] not in ("BMP", "PPM"))  # they hold no EXIF
]


@pytest.mark.pairwise
@pytest.mark.parametrize(("form", "bits", "colour", "alpha", "orientation"), TABLE)
def test_the_table_of_round_trips(form: str, bits: int, colour: bool, alpha: bool, orientation: int) -> None:
    """Samples, alpha, profile and EXIF of every kind that a format has; what a camera turned comes upright, and is
    written so."""
    shape, top = (5, 7, 3) if colour else (5, 7), 2**bits - 1
    values, opacity = samples(shape, top=top), samples((5, 7), 1, top) if alpha else None
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ORIENTATION], exif[ExifTags.Base.Make] = orientation, "a camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] = 2.5
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    turned = image_of(values, opacity, icc=profile, exif=exif.tobytes())
    image = read_image(encode_image(turned, form))

    def upright(stored: np.ndarray) -> np.ndarray:
        """By Pillow, in 8 bits: where every pixel goes."""
        places = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
        places.getexif()[ORIENTATION] = orientation
        order = np.asarray(ImageOps.exif_transpose(places))
        return stored.reshape(35, *stored.shape[2:])[order]

    for found in (image, read_image(encode_image(image, form))):
        assert found.depth == bits
        turns_colour = form == "WEBP" and not colour
        np.testing.assert_array_equal(levels(found)[..., 0] if turns_colour else levels(found), upright(values))
        np.testing.assert_equal(found.alpha, None if opacity is None else upright(opacity))
        if form in ("BMP", "PPM"):
            assert (found.icc, found.exif) == (None, None)
            continue
        assert found.icc == (profile if colour or turns_colour else None)
        tags = Image.Exif()
        assert found.exif is not None
        tags.load(found.exif)
        assert tags[ExifTags.Base.Make] == "a camera"
        assert tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] == 2.5
        assert not tags.get_ifd(ExifTags.IFD.GPSInfo)
        assert tags.get(ORIENTATION, 1) == 1


def _stored(form: str, bits: int, orientation: int) -> bytes:
    """An image by Pillow, or of 16 bits by hand, of 300 x 150 pixels per inch as it is stored."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if form == "PNG" and bits == 16:
        metres = chunk(b"pHYs", struct.pack(">IIB", 11811, 5906, 1))
        return png(
            7, 5, 16, 2, (b"\0" + bytes(42)) * 5, metres, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        )
    if bits == 16:
        exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = 300 / 2.54, 150 / 2.54
        exif[ExifTags.Base.ResolutionUnit] = 3  # centimetres
        return encode_image(image_of(samples((5, 7, 3), top=65535), exif=exif.tobytes()), form)
    more = {"exif": exif} if orientation > 1 else {}
    return file_of(Image.fromarray(samples((5, 7, 3))), form, dpi=(300, 150), **more)


@pytest.mark.parametrize(
    ("form", "bits", "orientation"),
    [("BMP", 8, 1), *((f, 8, o) for f in ("JPEG", "PNG", "TIFF") for o in (1, 6)), ("PNG", 16, 6), ("TIFF", 16, 6)],
)
def test_the_resolution_is_kept_and_turned_with_the_image(form: str, bits: int, orientation: int) -> None:
    """Against Pillow, which reads it from what was written."""
    wanted = (300, 150) if orientation == 1 else (150, 300)
    image = read_image(_stored(form, bits, orientation))
    np.testing.assert_allclose(image.dpi, wanted, atol=0.02)
    for result in ("BMP", "JPEG", "PNG", "TIFF") if bits == 8 else ("PNG", "TIFF"):
        data = encode_image(image, result)
        if bits == 8:
            seen = [float(x) for x in Image.open(io.BytesIO(data)).info["dpi"]]
            np.testing.assert_allclose(seen, wanted, atol=0.02)
        np.testing.assert_allclose(read_image(data).dpi, wanted, atol=0.02)
        assert read_image(encode_image(image.of_size(10, 10), result)).dpi == read_image(data).dpi


def test_what_is_no_resolution_is_none_and_none_is_made_up() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    values = samples((4, 5))
    camera = file_of(Image.fromarray(values), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(camera)).info["dpi"] == (72, 72)  # a guess
    assert read_image(camera).dpi is None
    for form in ("AVIF", "PNG", "TIFF", "WEBP"):
        assert read_image(file_of(Image.fromarray(values), form)).dpi is None
    for x, y, unit in ((0, 0, 1), (1 << 31, 1, 1), (4000, 4000, 0)):
        odd = png(5, 4, 8, 0, (b"\0" + bytes(5)) * 4, chunk(b"pHYs", struct.pack(">IIB", x, y, unit)))
        assert read_image(odd).dpi is None
    for value in (IFDRational(0, 0), IFDRational(1, 0), 0.0, 1e9):
        exif[ExifTags.Base.XResolution] = exif[ExifTags.Base.YResolution] = value
        assert read_image(file_of(Image.fromarray(values), "JPEG", exif=exif)).dpi is None
        exif[ExifTags.Base.XResolution] = 300.0  # one of them is enough
        image = read_image(file_of(Image.fromarray(values), "JPEG", exif=exif))
        assert image.dpi is None
        assert read_image(encode_image(image, "PNG")).dpi is None
    high = image_of(values, dpi=(9e5, 9e5))
    assert read_image(encode_image(high, "JPEG")).dpi is None  # whose field has two bytes
    np.testing.assert_allclose(read_image(encode_image(high, "PNG")).dpi, (9e5, 9e5), rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_pngs_gamma_and_primaries_go_into_png(bits: int) -> None:
    gamma, primaries = chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"cHRM", bytes(range(32)))
    also = [chunk(b"sRGB", b"\0"), chunk(b"cICP", bytes((9, 16, 0, 1))), chunk(b"gAMA", struct.pack(">I", 45_455))]
    rows = (b"\0" + bytes(15 * bits // 8)) * 4
    image = read_image(png(5, 4, bits, 2, rows, gamma, primaries, *also))
    assert sorted(image.colours.count(kind) for kind in (b"gAMA", b"cHRM", b"sRGB", b"cICP")) == [1, 1, 1, 1]
    assert gamma in image.colours  # the first of two
    for again in (encode_image(image, "PNG"), encode_image(image.of_size(9, 9), "PNG")):
        assert again.index(b"gAMA") < again.index(b"IDAT")
        assert Image.open(io.BytesIO(again)).info["gamma"] == 1.0
        assert read_image(again).colours == image.colours
    assert b"gAMA" not in encode_image(image, "TIFF")
    assert read_image(encode_image(image, "PNG"), apart=True).colours == image.colours
    plain = png(5, 4, bits, 2, rows)
    for behind in (b"\0\0\0\x04gAMA\0\0", chunk(b"gAMA", bytes(4)), chunk(b"eXIf", b"II*\0")):  # is no part of it
        found = read_image(plain + behind)
        assert (found.colours, found.exif) == (b"", None)
        np.testing.assert_array_equal(Image.open(io.BytesIO(encode_image(found, "PNG"))).size, (5, 4))


def test_floats_round_trip_as_they_are_and_go_into_tiff_alone(tmp_path: Path) -> None:
    for shape in ((5, 7), (5, 7, 3)):
        image = ImageData(np.random.RandomState(0).normal(0.5, 1, shape).astype(np.float32), depth=32)
        again = read_image(write_image(tmp_path / f"{len(shape)}.tif", image))
        assert again.depth == 32
        np.testing.assert_array_equal(again.array, image.array)
        for form in ("AVIF", "PNG", "JPEG", "PPM"):
            with pytest.raises(InputError, match="hold no floats"):
                encode_image(image, form)
        assert read_image(encode_image(image.with_depth(16), "PNG")).depth == 16


def test_a_strange_profile_is_kept_and_no_traceback(tmp_path: Path) -> None:
    """libpng dislikes it; Pillow's 8-bit PNGs carry it, and so do those of 16 bits."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:300]
    deep = image_of(samples((4, 5, 3), top=65535), icc=profile)
    for form in ("PNG", "TIFF"):
        assert read_image(encode_image(deep, form)).icc == profile


def test_a_tiff_beyond_4_gib_is_refused_before_it_is_made() -> None:
    large = ImageData(np.zeros((1, 1, 3), np.float32), depth=32).of_size(20_000, 20_000)
    with pytest.raises(InputError, match="4 GiB"):
        check_output("large.tif", overwrite=False, image=large)


def test_another_depth_takes_the_alpha_along() -> None:
    opacity = np.array([[0, 1, 128, 255]], np.uint8)
    image = image_of(samples((1, 4, 3)), opacity)
    deep = image.with_depth(16)
    np.testing.assert_array_equal(deep.alpha, opacity.astype(np.uint16) * 257)
    np.testing.assert_array_equal(deep.with_depth(8).alpha, opacity)
    again = read_image(encode_image(deep, "PNG"))
    np.testing.assert_array_equal(again.alpha, deep.alpha)
    np.testing.assert_array_equal(levels(again), levels(image) * 257)


@pytest.mark.parametrize("suffix", [".avif", ".bmp", ".jpg", ".webp"])
def test_16_bits_are_not_cut_to_8_without_a_word(tmp_path: Path, suffix: str) -> None:
    image = image_of(samples((4, 5), top=65535))
    reason = r"would cut the image's 16 bits to 8; these suffixes keep them: \.pgm, \.png, .*\.tiff"
    with pytest.raises(InputError, match=reason):
        check_output(tmp_path / f"a{suffix}", overwrite=False, image=image)
    with pytest.raises(InputError, match=reason):
        write_image(tmp_path / f"a{suffix}", image)
    assert not list(tmp_path.iterdir())
    write_image(tmp_path / f"a{suffix}", dataclasses.replace(image, depth=8))  # asked for, it is written


def test_values_are_clipped_and_rounded_as_they_are_scored() -> None:
    array = np.float32([[-1, -0.001, 0.5, 0.999, 2, 0.1234]])
    found = levels(read_image(encode_image(ImageData(array), "PNG")))
    np.testing.assert_array_equal(found[0], quantize8(array)[0] * 255)
    assert found[0, 2] == 128  # 127.5, to even


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_before_anything_is_written(tmp_path: Path, value: float) -> None:
    array = np.zeros((4, 4), dtype=np.float32)
    array[2, 3] = value
    with pytest.raises(InputError, match="not finite"):
        write_image(tmp_path / "a.png", ImageData(array))
    assert not list(tmp_path.iterdir())


def test_a_profile_is_kept_where_it_fits() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = image_of(samples((4, 5, 3)), icc=profile)
    for form in FORMATS:
        kept = read_image(encode_image(image, form)).icc
        assert kept == (None if form in ("BMP", "PPM") else profile)
    grey = image.with_array(image.array[..., 0])
    assert read_image(encode_image(grey, "PNG")).icc is None


def test_exif_too_long_for_jpeg_is_left_out() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    image = image_of(samples((4, 5)), exif=exif.tobytes())
    assert read_image(encode_image(image, "JPEG")).exif is None
    assert len(read_image(encode_image(image, "PNG")).exif) > 70_000


# -- paths and limits


def test_limits_name_the_value_and_what_raises_them(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a.png", image_of(samples((10, 20))))
    with pytest.raises(InputError, match="20 x 10 is 200 pixels; the limit is 199, raised by --max-pixels"):
        read_image(file, max_pixels=199)
    read_image(file, max_pixels=200, max_bytes=file.stat().st_size)
    for source in (file, file.read_bytes()):
        with pytest.raises(InputError, match="max_bytes"):
            read_image(source, max_bytes=file.stat().st_size - 1)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, reason in {
        "pipe.png": "no regular file",
        ".": "no regular file",
        "none.png": "no file",
        "empty.png": "not an image",
        "text.png": "not an image",
        "loop.png": "cannot read",
        "a\0b.png": "cannot read",
        "n" * 300: "cannot read",
    }.items():
        with pytest.raises(InputError, match=reason):
            read_image(tmp_path / name)


def test_outputs_are_checked_before_any_work(tmp_path: Path) -> None:
    source = write_image(tmp_path / "in.png", image_of(samples((4, 4))))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").hardlink_to(source)
    for name, overwrite, reason in (
        ("a.xyz", False, "suffix '.xyz' is unknown; known are .avif, .bmp"),
        ("a", False, "no suffix"),
        ("none/a.png", False, "no folder"),
        ("/proc/a.png", False, "cannot write"),
        ("in.png", False, "is an input"),
        ("in.png", True, "is an input"),
        ("../" + tmp_path.name + "/in.png", True, "is an input"),
        ("link.png", True, "is an input"),
        ("folder.png", True, "is not a file"),
        ("folder.png", False, "exists already"),
        ("n" * 300 + ".png", False, "cannot write"),
    ):
        with pytest.raises(InputError, match=reason):
            check_output(tmp_path / name, overwrite=overwrite, inputs=(source,))
    check_output(tmp_path / "new.JPG", overwrite=False, inputs=(source,))
    check_output(source, overwrite=True)
    with pytest.raises(InputError, match="hold no transparency"):
        check_output(tmp_path / "new.jpg", overwrite=False, image=image_of(samples((4, 4)), samples((4, 4))))


def test_files_are_replaced_only_when_asked(tmp_path: Path) -> None:
    first, second = (image_of(samples((4, 4), seed)) for seed in range(2))
    file = write_image(tmp_path / "a.png", first)
    with pytest.raises(InputError, match="exists already"):
        write_image(file, second)
    np.testing.assert_array_equal(read_image(file).array, first.array)
    write_image(file, second, overwrite=True)
    np.testing.assert_array_equal(read_image(file).array, second.array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_name_without_suffix_takes_the_format_given_or_the_images_own(tmp_path: Path) -> None:
    image = image_of(samples((4, 4)), format="TIFF")
    assert read_image(write_image(tmp_path / "a", image)).format == "TIFF"
    assert read_image(write_image(tmp_path / "b", image, format="BMP")).format == "BMP"
    with pytest.raises(InputError, match="cannot write 'GIF'"):
        write_image(tmp_path / "c", image, format="GIF")
    with pytest.raises(ConfigError, match="quality"):
        write_image(tmp_path / "d.jpg", image, quality=101)


def test_images_are_checked_where_they_are_made() -> None:
    good = np.zeros((4, 5), dtype=np.float32)
    for array in (good[0], good[:0], np.zeros((4, 5, 2), np.float32), good.astype(np.uint8)):
        with pytest.raises(NLRNError):
            ImageData(array)
    for alpha in (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint16)):
        with pytest.raises(InputError, match="alpha"):
            ImageData(good, alpha)
    with pytest.raises(InputError, match="depth"):
        ImageData(good, depth=12)
    with pytest.raises(InputError, match="expected uint16"):
        ImageData(good, np.zeros((4, 5), np.uint8), depth=16)
    with pytest.raises(InputError, match="floats have no alpha"):
        ImageData(good, np.zeros((4, 5), np.uint8), depth=32)
    image = ImageData(good, np.zeros((4, 5), np.uint8), exif=b"e")
    other = image.with_array(np.ones((4, 5, 1), np.float32))
    assert (other.array.shape, other.exif) == ((4, 5), b"e")
    with pytest.raises(InputError, match="alpha"):
        image.with_array(np.ones((8, 10), np.float32))
