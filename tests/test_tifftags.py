"""What a TIFF says besides its pixels, as Pillow and tifffile read it: profile, resolution, EXIF, layers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from PIL.ExifTags import IFD

from nlrn.io.image import encode_image, read_image

RNG = np.random.default_rng(0)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("compression", "order"), [(None, "<"), ("zlib", ">"), ("lzw", "<"), ("packbits", ">"), ("jpeg", "<")]
)
def test_large_layers_take_nothing_with_them(compression: str | None, order: str) -> None:
    """96 MiB of them, in the process whose memory is limited: all but they is read, and a line names them."""
    colour, file = RNG.integers(0, 256, (96, 64, 3), np.uint8), io.BytesIO()
    layers = b"Adobe Photoshop Document Data Block\0".ljust(96 << 20, b"\0")
    tags = [(37724, 7, len(layers), layers, True), (274, 3, 1, 6, True), (271, 2, 0, "Canon", True)]
    tifffile.imwrite(
        file, colour, photometric="rgb", resolution=(300, 200), resolutionunit=2, iccprofile=PROFILE, metadata=None,
        compression=compression, extratags=tags, byteorder=order, rowsperstrip=16,
    )  # fmt: skip
    image = read_image(file.getvalue())
    assert (image.icc, image.dpi) == (PROFILE, (200, 300))
    assert image.notes == ("left out of the metadata: layers",)
    exif = Image.Exif()
    exif.load(image.exif or b"")
    assert exif[271] == "Canon"
    file.seek(0)
    wanted = np.rot90(tifffile.imread(file), -1)
    assert np.abs(np.rint(image.array * 255) - wanted).max() <= (compression == "jpeg")


def described() -> Any:
    exif = Image.Exif()
    exif[271] = "Canon"
    exif[IFD.Exif] = {33434: 0.008, 36867: "2020:01:01 00:00:00", 42036: "a lens", 37510: b"ASCII\0\0\0hello"}
    exif[IFD.GPSInfo] = {1: "N", 2: (1.0, 2.0, 3.5)}
    loaded = Image.Exif()
    loaded.load(exif.tobytes())
    return loaded


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("gps", [False, True])
def test_exif_and_the_place_are_kept_of_a_bigtiff_too(tmp_path: Path, big: bool, gps: bool) -> None:
    source = tmp_path / "in.tif"
    Image.fromarray(RNG.integers(0, 256, (24, 32, 3), np.uint8)).save(source, exif=described(), big_tiff=big)
    with tifffile.TiffFile(source) as file:
        assert file.is_bigtiff == big
        assert file.pages.first.tags[34665].value["LensModel"] == "a lens"
    (tmp_path / "out.tif").write_bytes(encode_image(read_image(source, gps=gps), "TIFF"))
    with Image.open(source) as before, Image.open(tmp_path / "out.tif") as after:
        was, found = before.getexif(), after.getexif()
        assert found[271] == "Canon"
        assert found.get_ifd(IFD.Exif) == was.get_ifd(IFD.Exif) != {}
        assert found.get_ifd(IFD.GPSInfo) == (was.get_ifd(IFD.GPSInfo) if gps else {})


def test_what_imagej_says_of_an_image_is_named_where_it_goes(tmp_path: Path) -> None:
    """Texts and overlays of a single plane; without any there is no line."""
    grey, source, out = RNG.integers(0, 4096, (24, 32), np.uint16), tmp_path / "in.tif", tmp_path / "out.tif"
    for said, notes in (({"Info": "hello"}, ("left out of the metadata: ImageJ's metadata",)), ({}, ())):
        tifffile.imwrite(source, grey, imagej=True, metadata=said)
        image = read_image(source)
        assert image.notes == notes
        out.write_bytes(encode_image(image, "TIFF"))
        with tifffile.TiffFile(source) as before, tifffile.TiffFile(out) as after:
            assert (50839 in before.pages.first.tags) == bool(said)
            assert 50839 not in after.pages.first.tags


@pytest.mark.parametrize("resolution", [1e4, 1e7, 2e8])
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_the_resolution_of_a_microscope_grows_however_fine_it_is(
    tmp_path: Path, resolution: float, suffix: str
) -> None:
    """Pixels per centimetre of a single plane of OME's, made 2 times as wide and 3 times as high."""
    source, out = tmp_path / "in.ome.tif", tmp_path / f"out.{suffix}"
    size: dict[str, Any] = {"PhysicalSizeX": 1e4 / resolution, "PhysicalSizeY": 1e4 / resolution}
    tifffile.imwrite(
        source, RNG.integers(0, 4096, (24, 32), np.uint16), ome=True, resolution=(resolution, resolution),
        resolutionunit="CENTIMETER", metadata={"axes": "YX", **size},
    )  # fmt: skip
    image = read_image(source).of_size(72, 64)
    out.write_bytes(encode_image(image, suffix.upper().replace("TIF", "TIFF")))
    with Image.open(out) as after:
        tags = after.getexif()
    inches = {2: 1.0, 3: 2.54}[tags[296]]
    assert float(tags[282]) * inches == pytest.approx(2 * 2.54 * resolution)
    assert float(tags[283]) * inches == pytest.approx(3 * 2.54 * resolution)
