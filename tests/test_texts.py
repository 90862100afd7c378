"""XMP, IPTC, PNG's texts and JPEG's comments: kept as bytes where the format has a place, named where it has none.

What is in a file is read by Pillow, tifffile and a walk over the bytes here, not by nlrn.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from furtherfiles import box
from imagefiles import chunk, file_of, image_of, levels, samples
from PIL import Image
from PIL.IptcImagePlugin import getiptcinfo
from PIL.PngImagePlugin import PngInfo

from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.io import xmp
from nlrn.io.image import ImageData, encode_image, left_out_by, read_image
from nlrn.io.metadata import TURNS
from nlrn.io.texts import MOST_BYTES

NAMES = {"dc": "http://purl.org/dc/elements/1.1/", "exif": "http://ns.adobe.com/exif/1.0/",
         "tiff": "http://ns.adobe.com/tiff/1.0/", "drone-dji": "http://www.dji.com/drone-dji/1.0/",
         "geo": "http://www.w3.org/2003/01/geo/wgs84_pos#", "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
         "other": "http://ns.adobe.com/exif/1.0/"}  # fmt: skip
Count = Callable[[int], int]
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
IPTC = b"".join(b"\x1c" + struct.pack(">BBH", 2, kind, len(text)) + text for kind, text in
                ((120, "Bär, 1 µm".encode()), (90, b"Oslo"), (25, b"a"), (25, b"b")))  # fmt: skip
FORMS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")


def packet(*elements: str, **attributes: str) -> bytes:
    """XMP as programs write it; attributes: prefix_name="value"."""
    spaces = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in NAMES.items())
    values = "".join(f' {name.replace("_", ":")}="{value}"' for name, value in attributes.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="{RDF}">'
        f'<rdf:Description rdf:about=""{spaces}{values}>{"".join(elements)}</rdf:Description></rdf:RDF></x:xmpmeta>\n'
        + " " * 40
        + '<?xpacket end="w"?>'
    ).encode()


PLAIN = packet("<dc:title><rdf:Alt><rdf:li xml:lang='x-default'>Ærø 1 &lt; 2</rdf:li></rdf:Alt></dc:title>")


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    place, found = 8, []
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        assert zlib.crc32(data[place + 4 : place + 8 + size]) == int.from_bytes(data[place + 8 + size :][:4], "big")
        place += 12 + size
    return found


def texts_in(data: bytes) -> list[tuple[bytes, bytes]]:
    return [part for part in chunks_of(data) if part[0] in (b"tEXt", b"zTXt", b"iTXt")]


def xmp_in(data: bytes) -> bytes | None:
    """By Pillow; by tifffile of a TIFF."""
    import tifffile

    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            tag = file.pages.first.tags.get(700)
            return None if tag is None else bytes(tag.value)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.info.get("xmp")


def iptc_in(data: bytes) -> dict[tuple[int, int], Any] | None:
    with Image.open(io.BytesIO(data)) as image:
        return getiptcinfo(image)


def with_iptc(data: bytes, *, others: bytes = b"") -> bytes:
    """A JPEG with IPTC in Photoshop's resources, in two segments, before and after another."""
    size = struct.pack(">HHI", 0x0404, 0, len(IPTC))
    body = others + b"8BIM" + size + IPTC + bytes(len(IPTC) % 2)
    half = len(body) // 2
    parts = [b"Photoshop 3.0\0" + part for part in (body[:half], body[half:])]
    return data[:2] + b"".join(b"\xff\xed" + struct.pack(">H", len(p) + 2) + p for p in parts) + data[2:]


def source(form: str, text: bytes) -> bytes:
    """A file of 32 x 24 with XMP."""
    image = Image.fromarray(samples((24, 32, 3)))
    if form == "PNG":
        plain = file_of(image, "PNG")
        return plain[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + text) + plain[33:]
    if form == "TIFF":
        import tifffile

        file = io.BytesIO()
        tifffile.imwrite(
            file,
            np.asarray(image),
            photometric="rgb",
            metadata=None,
            software=False,
            extratags=[(700, 1, len(text), text, True)],
        )
        return file.getvalue()
    return file_of(image, form, xmp=text)


# -- XMP ----------


@pytest.mark.parametrize("into", FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_xmp_is_kept_byte_for_byte(form: str, into: str) -> None:
    text = PLAIN if into != form else packet("<exif:PixelXDimension>32</exif:PixelXDimension>", tiff_ImageLength="24")
    image = read_image(source(form, text))
    assert image.notes == ()
    written = encode_image(image, into)
    assert xmp_in(written) == text
    assert read_image(written).texts.xmp == text
    assert left_out_by(image, into) == ()
    assert left_out_by(image, "BMP") == ("left out of the BMP: XMP",)


def test_16_bits_keep_their_texts_and_turn_by_xmp() -> None:
    values = samples((5, 7, 3), top=65535)
    plain = encode_image(image_of(values), "PNG")
    turned = plain[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + packet(tiff_Orientation="6")) + plain[33:]
    image = read_image(turned + b"")
    np.testing.assert_array_equal(levels(image), np.rot90(values, -1))
    again = encode_image(image, "PNG")
    assert xmp_in(again) == packet()
    assert read_image(again).array.shape == (7, 5, 3)


@pytest.mark.parametrize("orientation", [3, 6, 7])
@pytest.mark.parametrize("form", FORMS)
def test_who_turns_an_image_by_its_xmp(form: str, orientation: int) -> None:
    """Pillow does, where EXIF is silent; not an AVIF, which only its container turns, nor a TIFF, which has a tag."""
    image = read_image(source(form, packet(tiff_Orientation=str(orientation))))
    upright = np.asarray(Image.fromarray(samples((24, 32, 3))))
    turned = TURNS[orientation](upright) if form not in ("AVIF", "TIFF") else upright
    assert image.array.shape == turned.shape
    if form not in ("AVIF", "JPEG", "WEBP"):
        np.testing.assert_array_equal(levels(image), turned)
    assert b"Orientation" not in (xmp_in(encode_image(image, form)) or b"Orientation")


PLACES = {
    "attributes": packet(exif_GPSLatitude="48,8.5N", exif_GPSLongitude="11,34E", dc_rights="me"),
    "elements": packet("<exif:GPSAltitude>5/1</exif:GPSAltitude>", "<exif:GPSTimeStamp/>", dc_rights="me"),
    "a drone": packet(**{"drone-dji_GpsLongtitude": "+11.5", "drone-dji_AbsoluteAltitude": "+5", "dc_rights": "me"}),
    "another prefix": packet("<other:GPSMapDatum>WGS-84</other:GPSMapDatum>", other_GPSDOP="3", dc_rights="me"),
    "points": packet("<geo:lat>48.1</geo:lat><geo:long>11.5</geo:long>", dc_rights="me"),
    "below": packet(
        "<dc:relation><rdf:Bag><rdf:li rdf:parseType='Resource'><exif:GPSLatitude>48,1N</exif:GPSLatitude>"
        "<dc:title>hut</dc:title></rdf:li></rdf:Bag></dc:relation>", dc_rights="me",
    ),
    "a structure": packet("<exif:GPSDest rdf:parseType='Resource'><dc:title>48.1</dc:title></exif:GPSDest>",
                          dc_rights="me"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_the_place_in_xmp_goes_unless_it_is_asked_for(form: str, name: str) -> None:
    text = PLACES[name]
    found = xmp_in(encode_image(read_image(source(form, text)), form))
    assert found is not None
    assert not re.search(rb"48|11|WGS|[+]5|GPSTime|DOP=|GPSAltitude", found.split(b"xmlns:other")[1].split(b">", 1)[1])
    assert (b"hut" in found) == (name == "below")
    (described,) = ET.fromstring(found).iter(f"{{{RDF}}}Description")  # it is still XML
    assert described.attrib[f"{{{NAMES['dc']}}}rights"] == "me"
    assert xmp_in(encode_image(read_image(source(form, text), gps=True), form)) == text


@pytest.mark.parametrize(
    "text",
    [
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'>GPS".encode("utf-16"),
        b"<a exif:GPSLatitude='48'>",
        b"<!DOCTYPE a [<!ENTITY b 'GPS'>]><a>&b;</a>",
        b"<a>" * 200 + b"<GPS/>" + b"</a>" * 200,
        b"<a>" + b"<GPSa/>" * 60_000 + b"</a>",
    ],
)
def test_xmp_that_cannot_be_read_and_may_hold_a_place_goes_with_a_line(text: bytes) -> None:
    image = read_image(source("TIFF", text))
    assert image.texts.xmp == b""
    assert image.notes == ("left out of the metadata: XMP that cannot be read",)


def test_packets_that_are_mutated_raise_nothing_and_keep_no_place(count: Count) -> None:
    random = np.random.default_rng(0)
    wholes = [b'<?xml version="1.0" encoding="latin-1"?>' * (i % 2) + text for i, text in enumerate(PLACES.values())]
    for i in range(count(700)):
        text = bytearray(wholes[i % len(wholes)])
        for place in random.integers(0, len(text), 1 + i % 4):
            text[place : place + int(random.integers(0, 3))] = random.integers(32, 256, 1 + i % 3, np.uint8).tobytes()
        found = xmp.upright(bytes(text), gps=False)
        if found is None:
            continue
        with contextlib.suppress(ET.ParseError):
            names = [name for element in ET.fromstring(found).iter() for name in (element.tag, *element.attrib)]
            assert not any(re.search(r"GPS|Longt?itude|Altitude", name.rpartition("}")[2]) for name in names)


def test_xmp_that_cannot_be_read_and_holds_no_place_is_kept() -> None:
    for text in (b"no XML", PLAIN[:-40], PLAIN + bytes(7), "<a>é</a>".encode("utf-16")):
        image = read_image(source("TIFF", text))
        assert xmp_in(encode_image(image, "TIFF")) == text
        assert left_out_by(image, "PNG") == (("left out of the PNG: XMP",) if b"\xff\xfe" in text[:2] else ())
    assert xmp_in(encode_image(read_image(source("TIFF", PLAIN + bytes(7))), "PNG")) == PLAIN


def test_what_no_longer_holds_goes_out_of_xmp_or_is_brought_up_to_date() -> None:
    text = packet(
        "<tiff:BitsPerSample><rdf:Seq><rdf:li>8</rdf:li><rdf:li>8</rdf:li></rdf:Seq></tiff:BitsPerSample>",
        "<exif:PixelYDimension>32</exif:PixelYDimension>", exif_PixelXDimension="24", tiff_Orientation="8",
        tiff_Compression="5", hdrgm_Version="1.0", tiff_Make="a camera",
    )  # fmt: skip
    image = read_image(source("JPEG", text))
    assert image.array.shape == (32, 24, 3)
    found = xmp_in(encode_image(image, "JPEG")) or b""
    assert all(word not in found for word in (b"Orientation", b"Compression", b"hdrgm:Version"))
    assert all(word in found for word in (b"BitsPerSample", b'PixelXDimension="24"', b"Dimension>32<", b"a camera"))
    larger = xmp_in(encode_image(image.of_size(64, 48), "PNG")) or b""
    assert b'PixelXDimension="48"' in larger
    assert b"<exif:PixelYDimension>64</exif:PixelYDimension>" in larger
    assert b"BitsPerSample" in larger
    assert b"BitsPerSample" not in (xmp_in(encode_image(image.with_depth(16), "PNG")) or b"BitsPerSample")
    assert b"Orientation" in (xmp.upright(text.replace(b'"8"', b'"1"'), gps=False) or b"")


def test_extended_and_second_packets_are_named() -> None:
    data = source("JPEG", PLAIN)
    more = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40
    segments = b"".join(
        b"\xff\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in (more, b"http://ns.adobe.com/xap/1.0/\0<a/>")
    )
    place = data.index(b"\xff\xdb")
    image = read_image(data[:place] + segments + data[place:])
    assert image.texts.xmp == PLAIN
    assert image.notes == ("left out of the metadata: a second XMP, extended XMP",)


def test_compressed_xmp_of_a_png_is_inflated_to_a_limit() -> None:
    plain = file_of(Image.fromarray(samples((8, 8))), "PNG")
    for text, kept in ((PLAIN, PLAIN), (packet(dc_rights="x" * 900_000),) * 2, (b"", b"")):
        body = b"XML:com.adobe.xmp\0\1\0\0\0" + (zlib.compress(text) if text else b"rubbish")
        image = read_image(plain[:33] + chunk(b"iTXt", body) + plain[33:])
        assert image.texts.xmp == kept
        assert image.notes == (() if kept else ("left out of the metadata: XMP that cannot be read",))
    bomb = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(64 << 20)))
    with pytest.raises(InputError, match="too large"):
        read_image(plain[:33] + bomb + plain[33:])


# -- IPTC ----------


def tiff_with_iptc(how: str) -> bytes:
    """how: the type of the tag, "swapped" for numbers of a writer of the other byte order, or Photoshop's tag."""
    import tifffile

    whole = IPTC + bytes(-len(IPTC) % 4)
    numbers = np.frombuffer(whole, ">u4" if how == "swapped" else "<u4").astype("<u4")
    size = struct.pack(">HHI", 0x0404, 0, len(IPTC))
    tag: Any = {
        "undefined": (33723, 7, len(IPTC), IPTC, True), "byte": (33723, 1, len(IPTC), IPTC, True),
        "long": (33723, 4, len(numbers), tuple(numbers.tolist()), True),
        "swapped": (33723, 4, len(numbers), tuple(numbers.tolist()), True),
        "photoshop": (34377, 7, len(IPTC) + 12, b"8BIM" + size + IPTC, True),
    }[how]  # fmt: skip
    file = io.BytesIO()
    tifffile.imwrite(file, samples((9, 11)), metadata=None, software=False, extratags=[tag])
    return file.getvalue()


@pytest.mark.parametrize("how", ["JPEG", "undefined", "byte", "long", "swapped", "photoshop"])
@pytest.mark.parametrize("into", ["JPEG", "TIFF"])
def test_iptc_is_kept_in_jpeg_and_tiff(how: str, into: str) -> None:
    data = tiff_with_iptc(how) if how != "JPEG" else with_iptc(file_of(Image.fromarray(samples((9, 11))), "JPEG"))
    image = read_image(data)
    assert image.notes == ()
    found = iptc_in(encode_image(image, into))
    assert found == {(2, 120): "Bär, 1 µm".encode(), (2, 90): b"Oslo", (2, 25): [b"a", b"b"]}
    assert left_out_by(image, "PNG") == ("left out of the PNG: IPTC",)
    assert left_out_by(image, into) == ()


def test_other_resources_of_photoshop_are_named() -> None:
    thumbnail = b"8BIM" + struct.pack(">H", 0x040C) + b"\x03abc" + struct.pack(">I", 3) + b"xyz\0"
    image = read_image(with_iptc(file_of(Image.fromarray(samples((9, 11))), "JPEG"), others=thumbnail))
    assert image.texts.iptc == IPTC
    assert image.notes == ("left out of the metadata: Photoshop's data",)
    cut = with_iptc(file_of(Image.fromarray(samples((9, 11))), "JPEG"), others=thumbnail[:-3])
    assert read_image(cut).texts.iptc == b""


# -- texts of PNG, comments of JPEG ----------


def some_texts() -> PngInfo:
    texts = PngInfo()
    texts.add_text("Author", "José")
    texts.add_text("parameters", "steps: 20, seed: 1" * 90, zip=True)
    texts.add_itxt("Title", "日本語", "ja", "Überschrift")
    texts.add_text("Comment", "")
    return texts


@pytest.mark.parametrize("depth", [8, 16])
def test_texts_of_a_png_stay_as_they_are(depth: int) -> None:
    data = file_of(Image.fromarray(samples((6, 7))), "PNG", pnginfo=some_texts())
    behind = data[:-12] + chunk(b"tEXt", b"Source\0behind the rows") + data[-12:]
    image = read_image(behind).with_depth(depth)
    written = encode_image(image, "PNG")
    assert len(texts_in(behind)) == 5
    assert texts_in(written) == texts_in(behind)
    before, after = (Image.open(io.BytesIO(d)) for d in (behind, written))
    before.load(), after.load()
    assert before.text == after.text
    assert left_out_by(image, "PNG") == ()
    assert left_out_by(image, "TIFF") == ("left out of the TIFF: 5 texts",)


def test_texts_that_copy_profiles_or_give_a_place_go() -> None:
    texts = some_texts()
    texts.add_text("Raw profile type exif", "\nexif\n 4\n00000000\n", zip=True)
    texts.add_text("exif:GPSInfo", "1234")
    texts.add_itxt("GPS position", "48.1 11.5")
    data = file_of(Image.fromarray(samples((6, 7))), "PNG", pnginfo=texts)
    image = read_image(data)
    assert image.notes == ("left out of the metadata: a copy of a profile",)
    assert len(texts_in(encode_image(image, "PNG"))) == 4
    assert len(texts_in(encode_image(read_image(data, gps=True), "PNG"))) == 5


def test_comments_of_a_jpeg_stay_as_they_are() -> None:
    data = file_of(Image.fromarray(samples((16, 16))), "JPEG", comment=b"\xff\xd8 in Latin-1: \xe6\0")
    data = data[:2] + b"\xff\xfe\0\x0afirst\xc3\xa6\0" + data[2:]
    image = read_image(data)
    written = encode_image(image, "JPEG")
    assert written.count(b"\xff\xfe\0\x0afirst\xc3\xa6\0") == 1
    assert Image.open(io.BytesIO(written)).info["comment"] == b"\xff\xd8 in Latin-1: \xe6\0"
    assert read_image(written).texts == image.texts
    assert left_out_by(image, "PNG") == ("left out of the PNG: a comment",)


def test_what_other_formats_hold_is_named() -> None:
    image = Image.fromarray(samples((8, 8)))
    for text in (b"P5\n# Made by hand\n8 8\n255\n", b"P5 8 #x\n8 255\n"):
        assert read_image(text + bytes(64)).notes == ("left out of the metadata: a comment",)
    assert read_image(b"P5 8 8 255\n" + b"#" * 64).notes == ()
    gif = file_of(image, "GIF", comment=b"hello")
    assert read_image(gif).notes == ("left out of the metadata: a comment",)
    assert read_image(file_of(image, "GIF")).notes == ()


def test_what_does_not_fit_is_named() -> None:
    long = packet(dc_rights="x" * 70_000)
    image = read_image(source("PNG", long))
    assert left_out_by(image, "JPEG") == ("left out of the JPEG: XMP",)
    assert xmp_in(encode_image(image, "JPEG")) is None
    assert xmp_in(encode_image(image, "WEBP")) == long
    fits = packet(dc_rights="x" * (65504 - len(packet(dc_rights=""))))
    assert xmp_in(encode_image(read_image(source("PNG", fits)), "JPEG")) == fits
    assert xmp_in(encode_image(read_image(source("PNG", fits + b" ")), "JPEG")) is None
    texts = PngInfo()
    texts.add_text("a", "x" * MOST_BYTES)
    large = read_image(file_of(Image.fromarray(samples((8, 8))), "PNG", pnginfo=texts), apart=True)
    assert large.notes == ("left out of the metadata: texts of over 16 MiB",)


def test_exif_and_profiles_without_a_place_in_the_format_are_named() -> None:
    array = np.zeros((4, 5, 3), np.float32)
    exif = Image.Exif()
    exif[271] = "a camera"
    image = ImageData(array, exif=exif.tobytes(), icc=bytes(16) + b"CMYK", colours=chunk(b"gAMA", bytes(4)))
    assert left_out_by(image, "PPM") == ("left out of the PPM: EXIF, the colour profile, gamma and primaries",)
    assert left_out_by(image, "PNG") == ("left out of the PNG: the colour profile",)


# -- by every entry ----------


def test_the_same_decoded_apart() -> None:
    for form in ("PNG", "JPEG", "TIFF"):
        data = source(form, PLACES["attributes"])
        data = with_iptc(data) if form == "JPEG" else data
        assert read_image(data, apart=True).texts == read_image(data, apart=False).texts
    data = file_of(Image.fromarray(samples((6, 7))), "PNG", pnginfo=some_texts())
    assert read_image(data, apart=True).texts == read_image(data, apart=False).texts


def test_the_command_and_folders_say_what_they_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(file_of(Image.fromarray(samples((24, 24))), "PNG", pnginfo=some_texts()))
    out = tmp_path / "b.webp"
    assert run(["denoise", str(folder / "a.png"), "-o", str(out), "--sigma", "5"]) == 0
    assert "left out of the WEBP: 4 texts" in capsys.readouterr().out
    assert run(["denoise", str(folder), "-o", str(tmp_path / "out"), "--sigma", "5", "--format", "tif", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["said"]
    assert said == {"a.png": [*said["a.png"][:-1], "left out of the TIFF: 4 texts"]}
    lines = (tmp_path / "out/nlrn-manifest.jsonl").read_text()
    assert '"left out of the TIFF: 4 texts"' in lines


def test_the_place_goes_out_of_stacks_too(tmp_path: Path) -> None:
    import tifffile

    text = PLACES["attributes"]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(2):
            file.write(samples((24, 32), top=65535), extratags=[(700, 1, len(text), text, True)], metadata=None)
    assert run(["denoise", str(tmp_path / "a.tif"), "-o", str(tmp_path / "b.tif"), "--sigma", "5", "-q"]) == 0
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        for page in file.pages:
            assert b"GPSL" not in page.tags[700].value
            assert b'dc:rights="me"' in page.tags[700].value


def further(form: str, text: bytes) -> bytes:
    """A file of a kind that an extra reads, with XMP; IPTC in JPEG 2000."""
    values = samples((40, 56, 3))
    if form == "HEIC":
        heif = pytest.importorskip("pillow_heif")
        file, out = heif.from_bytes("RGB", values.shape[1::-1], values.tobytes()), io.BytesIO()
        file.save(out, quality=-1, chroma=444, xmp=text)
        return out.getvalue()
    codecs = pytest.importorskip("imagecodecs")
    if form == "JPEG 2000":
        uuids = ("be7acfcb97a942e89c71999491e3afac", "33c7a4d2b81d4723a0baf1a3e097ad38")
        boxes = b"".join(box(b"uuid", bytes.fromhex(u) + t) for u, t in zip(uuids, (text, IPTC), strict=True))
        return bytes(codecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="jp2")) + boxes
    pytest.importorskip("pillow_jxl")
    if form == "JPEG XL of a JPEG":
        return bytes(codecs.jpegxl_encode_jpeg(with_iptc(source("JPEG", text)), usecontainer=True))
    return bytes(codecs.jpegxl_encode(values, lossless=True, usecontainer=True)) + box(b"xml ", text)


@pytest.mark.parametrize("form", ["HEIC", "JPEG 2000", "JPEG XL", "JPEG XL of a JPEG"])
def test_texts_of_kinds_that_extras_read_are_kept(form: str) -> None:
    image = read_image(further(form, PLAIN))
    assert image.notes == ()
    assert xmp_in(encode_image(image, "TIFF")) == PLAIN
    assert (image.texts.iptc == IPTC) == (form in ("JPEG 2000", "JPEG XL of a JPEG"))
    placed = encode_image(read_image(further(form, PLACES["attributes"])), "PNG")
    assert b"GPSL" not in (xmp_in(placed) or b"GPSL")
