"""XMP packets: what no longer holds, and the place, taken out of them; every other byte stays.

The properties are those of Adobe's XMP specification, parts 1 and 2, and of what cameras and drones add.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

MAX_BYTES = 4 << 20  # of a packet that has to be parsed
Rule = Callable[[str, str, str], str | None]  # (namespace, name, value) -> the value to write, or None for none

_DEEPEST, _MOST_SPACES, _MOST_ELEMENTS = 100, 1000, 50_000  # in each other, namespaces, in all: a second or two
_META = "adobe:ns:meta/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_GEO = "http://www.w3.org/2003/01/geo/wgs84_pos#"
_PLACE = re.compile(r"gps|latitude|longt?itude|altitude|geotag", re.IGNORECASE)
_ORIENTATION = "Orientation"
# How the file's samples were stored, what is not carried over, and a preview of the image as it was.
_STORED = re.compile(
    r"(Compression|PhotometricInterpretation|PlanarConfiguration|YCbCr\w+|ReferenceBlackWhite|Thumbnails|NativeDigest"
    r"|HasExtendedXMP)\Z"
)
_PARTS = frozenset(  # of other images in the file, which is written with one
    {
        "http://ns.adobe.com/hdr-gain-map/1.0/",
        "http://ns.google.com/photos/1.0/camera/",
        "http://ns.google.com/photos/1.0/container/",
        "http://ns.apple.com/HDRGainMap/1.0/",
    }
)
_WIDTHS, _HEIGHTS = frozenset({"ImageWidth", "PixelXDimension"}), frozenset({"ImageLength", "PixelYDimension"})
_SAMPLES = frozenset({"BitsPerSample", "SamplesPerPixel"})
_TAG = re.compile(rb"<[^\s/>]+((?:\s+[^\s=<>/]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*)\s*/?>")
_ATTRIBUTE = re.compile(rb"\s+([^\s=<>/]+)\s*=\s*(\"[^\"]*\"|'[^']*')")
_HINTS = re.compile(  # without one of these words nothing is to be changed
    rb"gps|latitude|longt?itude|altitude|geotag|wgs84_pos|orientation|compression|photometric|planarconfig|ycbcr"
    rb"|referenceblack|thumbnails|nativedigest|extendedxmp|gain-?map|photos/1\.0|imagewidth|imagelength|dimension"
    rb"|bitspersample|samplesperpixel",
    re.IGNORECASE,
)


def orientation(packet: bytes) -> int | None:
    """The EXIF orientation that a packet gives, as Pillow finds it; None for none."""
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', packet)
    return int(found[1]) if found else None


def is_place(namespace: str, name: str) -> bool:
    """Whether a property gives the place where the image was made, or part of it."""
    return bool(_PLACE.search(name)) or namespace == _GEO


def upright(packet: bytes, *, gps: bool) -> bytes | None:
    """The packet of the upright image: without what was of the file's samples, and without the place unless `gps`.

    None where it cannot be parsed although something in it may have to go.
    """

    def rule(namespace: str, name: str, value: str) -> str | None:
        if _STORED.match(name) or namespace in _PARTS or (not gps and is_place(namespace, name)):
            return None
        return None if name == _ORIENTATION and value != "1" else value

    return edited(packet, rule)


def held_to(packet: bytes, size: tuple[int, int], depth: int) -> bytes | None:
    """The packet of an image of this (height, width) and so many bits a sample; None as for `upright`."""

    def rule(namespace: str, name: str, value: str) -> str | None:
        if name in _WIDTHS | _HEIGHTS:
            return str(size[name in _WIDTHS])
        numbers = re.findall(r"\d+", value)
        return None if name == "BitsPerSample" and set(numbers) != {str(depth)} else value

    return edited(packet, rule)


def edited(packet: bytes, rule: Rule) -> bytes | None:
    """The packet with the values that the rule gives; unchanged where it changes none.

    None for a packet that may hold such properties and is no XML in UTF-8, is over 4 MiB, or declares entities.
    """
    if not _HINTS.search(packet.replace(b"\0", b"")):
        return packet
    text = packet.rstrip(b"\0")
    walk = _Walk(text, rule)
    if len(text) > MAX_BYTES or not is_utf8(text) or b"\0" in text or not walk.parsed():
        return None
    out, place = [], 0
    for start, end, new in sorted(walk.edits):
        out += [packet[place:start], new]
        place = end
    return b"".join([*out, packet[place:]])


def is_utf8(text: bytes) -> bool:
    """Whether the bytes are text in UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass
class _Element:
    start: int
    inner: int  # the place behind its start tag
    name: tuple[str, str]
    spaces: Mapping[str, str]
    simple: bool = True  # no other element in it


@dataclass
class _Walk:
    """Finds in a packet what is to be changed: (start, end, new bytes) of each place."""

    text: bytes
    rule: Rule
    edits: list[tuple[int, int, bytes]] = field(default_factory=list)
    _open: list[_Element] = field(default_factory=list)
    _seen: int = 0

    def parsed(self) -> bool:
        """Whether all of it could be parsed."""
        self._parser = parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = self._begin, self._end
        parser.StartDoctypeDeclHandler = _refuse
        try:
            parser.Parse(self.text, True)
        except (expat.ExpatError, ValueError, LookupError):
            return False
        return True

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        place = self._parser.CurrentByteIndex
        tag = _TAG.match(self.text, place)
        if tag is None:
            raise ValueError("no tag")
        spaces = self._open[-1].spaces if self._open else {}
        if new := {key[6:]: value for key, value in attributes.items() if key == "xmlns" or key[:6] == "xmlns:"}:
            spaces = {**spaces, **new}
        self._seen += 1
        if len(self._open) > _DEEPEST or len(spaces) > _MOST_SPACES or self._seen > _MOST_ELEMENTS:
            raise ValueError("no packet of metadata")
        if self._open:
            self._open[-1].simple = False
        self._open.append(_Element(place, tag.end(), _expanded(name, spaces), spaces))
        for found in _ATTRIBUTE.finditer(self.text, tag.start(1), tag.end(1)):
            key = found[1].decode()
            if ":" not in key or key.startswith(("xmlns:", "xml:")):
                continue
            value = attributes[key]
            self._change(value, self.rule(*_expanded(key, spaces), value), found.span(), found.span(2), b'"')

    def _end(self, name: str) -> None:
        element, place = self._open.pop(), self._parser.CurrentByteIndex
        empty = self.text[element.inner - 2 : element.inner] == b"/>"
        end = element.inner if empty else self.text.index(b">", place) + 1
        inner = element.inner, element.inner if empty else place
        text = re.sub(rb"<[^>]*>", b" ", self.text[slice(*inner)]).decode(errors="replace")
        value = text.strip()
        if element.name[0] not in (_RDF, _META):
            new = self.rule(*element.name, value)
            if new is None or (element.simple and not empty):
                self._change(value, new, (element.start, end), inner, b"")

    def _change(self, old: str, new: str | None, whole: tuple[int, int], inside: tuple[int, int], mark: bytes) -> None:
        if new is None:  # with what was found inside
            while self.edits and self.edits[-1][0] >= whole[0]:
                self.edits.pop()
            self.edits.append((*whole, b""))
        elif new != old:
            self.edits.append((*inside, mark + new.encode() + mark))


def _expanded(name: str, spaces: Mapping[str, str]) -> tuple[str, str]:
    """(namespace, name without its prefix)."""
    prefix, colon, local = name.partition(":")
    return (spaces.get(prefix, ""), local) if colon else (spaces.get("", ""), name)


def _refuse(*_: object) -> None:
    raise ValueError("it declares entities")
