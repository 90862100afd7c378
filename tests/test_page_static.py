"""The page without a browser: what assistive programs read, colours that stand out, plain words."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from nlrn.io.further import KINDS
from nlrn.io.written import INSTEAD, SUFFIXES

PAGE = Path(__file__).resolve().parents[1] / "src" / "nlrn" / "web" / "page"
HTML, CSS = (PAGE / "index.html").read_text(), (PAGE / "page.css").read_text()
VOID = {"meta", "link", "input", "img", "br"}

Tag = tuple[str, dict[str, str | None], list[str]]


class Tags(HTMLParser):
    """Every tag with its attributes and its text; fails where one is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Tag] = []
        self.open: list[Tag] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes), f"an attribute of {tag} twice"
        one: Tag = (tag, dict(attributes), [])
        self.all.append(one)
        if tag not in VOID:
            self.open.append(one)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, words in self.open:
            words.append(data)


@pytest.fixture(scope="module")
def tags() -> list[Tag]:
    parser = Tags()
    parser.feed(HTML)
    parser.close()
    assert not parser.open
    return parser.all


def test_language_title_view_and_one_heading(tags: list[Tag]) -> None:
    assert HTML.startswith("<!doctype html>")
    assert [a["lang"] for tag, a, _ in tags if tag == "html"] == ["en"]
    assert ["".join(words) for tag, _, words in tags if tag == "title"] == ["nlrn: restore an image"]
    zoomable = next(a["content"] for tag, a, _ in tags if a.get("name") == "viewport")
    assert "maximum-scale" not in zoomable  # type: ignore[operator]
    assert "user-scalable" not in zoomable  # type: ignore[operator]
    levels = [int(tag[1]) for tag, _, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [tag for tag, _, _ in tags if tag in ("header", "main", "footer")] == ["header", "main", "footer"]


def test_names_of_everything_that_is_used(tags: list[Tag]) -> None:
    """Ids stand once; labels, descriptions and links lead to one; each field, button and image has a name."""
    ids = [a["id"] for _, a, _ in tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in tags:
        for name in ("for", "aria-describedby", "aria-labelledby"):
            assert set((attributes.get(name) or "").split()) <= set(ids), attributes
    labelled = {a["for"] for tag, a, _ in tags if tag == "label" and "for" in a}
    wrapped = re.findall(r"<label>\s*[^<]*<input[^>]*>", HTML)
    for tag, a, words in tags:
        if tag in ("input", "select", "progress"):
            inside = any(f'id="{a.get("id")}"' in one or f'value="{a.get("value")}"' in one for one in wrapped)
            assert a.get("id") in labelled or "aria-label" in a or inside, a
        if tag in ("button", "a"):
            assert "".join(words).strip() or a.get("aria-label"), a
            assert tag == "a" or a["type"] in ("button", "submit")
        if tag == "img":
            assert a["alt"]
    used = {name for file in PAGE.glob("*.js") for name in re.findall(r'\$\("([\w-]+)"\)', file.read_text())}
    assert used <= set(ids)


def test_what_is_loaded_is_there_and_of_this_service() -> None:
    files = re.findall(r'(?:src|href)="([^"#]+)"', HTML)
    for script in PAGE.glob("*.js"):
        files += re.findall(r'^import .* from "([^"]+)"', script.read_text(), re.MULTILINE)
        assert len(script.read_text().splitlines()) <= 400
    for file in files:
        assert file.startswith("/")
        assert (PAGE / file[1:]).is_file() or file == "/openapi.json", file
    for name in re.findall(r'data-sample="([\w-]+)"', HTML):
        assert (PAGE / "samples" / f"{name}.png").is_file()
    for name in ("cat-camera", "cat-camera-restored"):
        with Image.open(PAGE / "samples" / f"{name}.png") as image:
            assert image.size == (320, 240)


def test_whatever_is_read_can_be_chosen(tags: list[Tag]) -> None:
    """What a browser does not know as an image is named by its suffix; a file dialog hides the rest."""
    accepted = next(a["accept"] for tag, a, _ in tags if a.get("id") == "file")
    named = set((accepted or "").split(","))
    further = {suffix for kind in KINDS for suffix in kind.suffixes}
    usual = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"}
    assert named == {"image/*"} | further | ((SUFFIXES.keys() | INSTEAD.keys()) - usual)


def test_words_are_plain() -> None:
    shown = re.sub("<[^>]*>", " ", HTML)
    for word in ("Automatic", "Same as input", "JPEG (lossy)", "Download all (zip)"):
        assert word in shown
    scripts = "".join(file.read_text() for file in PAGE.glob("*.js"))
    assert not re.search(r"\bloses\b|the one for|[Ll]ook-?alike|I set|settings before", shown + scripts)


# -- colours -------------------------------------------------------------------------------------------------------

_LIGHT, _DARK = (
    dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
)
TEXT = [("ink", "back"), ("ink", "card"), ("soft", "back"), ("soft", "card"), ("accent", "back"), ("accent", "card")]
TEXT += [("bad", "card"), ("on-accent", "accent")]


def luminance(colour: str) -> float:
    """Of WCAG 2.2, from #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [_LIGHT, _DARK], ids=["light", "dark"])
def test_text_and_edges_stand_out(colours: dict[str, str]) -> None:
    """WCAG AA: 4.5 for text, 3 for the edges of fields and what marks the focus."""
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#777", "#fff") == pytest.approx(4.48, abs=0.01)
    for text, ground in TEXT:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for edge in ("edge", "accent", "bad"):
        assert contrast(colours[edge], colours["card"]) >= 3, edge
