"""The site: built from the pages, the docstrings and the command line, every warning an error."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHROMIUM
from playwright.sync_api import expect, sync_playwright

import nlrn
from nlrn import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import extension  # noqa: E402


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(source), str(site)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_holds_every_public_name_and_no_other(site: Path) -> None:
    page = (site / "api.html").read_text()
    assert set(re.findall(r'<dt [^>]*id="nlrn\.(\w+)"', page)) == set(nlrn.__all__)
    for name in ("Restorer.denoise", "NLRN.receptive_radius", "PoissonNoise.add"):
        assert f'id="nlrn.{name}"' in page
    assert re.search(r'Raises <a [^>]*href="#nlrn.InputError"', page)  # as prose says it, with a link
    words = html.unescape(re.sub("<[^>]*>", "", page))
    assert "``" not in words
    assert not re.search(r":\w+:`", words)


def test_every_command_shows_all_of_its_options(site: Path) -> None:
    words = html.unescape(re.sub("<[^>]*>", "", (site / "commands.html").read_text()))
    for command in cli.COMMANDS:
        assert f"usage: nlrn {command.__name__.rpartition('.')[2]} " in words
    for option in ("--sigma-map FILE", "--overlap PIXELS", "--tensorboard", "--propagation", "--cpu-minutes"):
        assert option in words


def test_every_page_stands_in_the_side_bar(site: Path) -> None:
    bar = (site / "index.html").read_text().partition('<div class="sidebar-tree">')[2].partition("</ul>\n</div>")[0]
    found = set(re.findall(r'href="([\w-]+)\.html"', bar))
    assert found == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}


def test_the_four_doors_and_a_search_that_needs_no_server(site: Path) -> None:
    """The index of the search is a script of the site, so that it works from a folder, too."""
    first = (site / "index.html").read_text()
    table = first.partition("<table")[2].partition("</table>")[0]
    for door in ("photographs", "microscopy", "reproduce", "serve"):
        assert f'href="{door}.html"' in table
    assert "searchindex.js" in (site / "search.html").read_text()
    index = (site / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    assert all(word in index for word in ("microscopi", "how-it-works", "gallery"))


# As test_web_page.py: where there is no browser, this is not collected, and the report says so.
if Path(CHROMIUM).exists():

    def test_the_search_finds_without_a_network_and_tables_fit(site: Path) -> None:
        """From the folder, offline; at 1280 pixels the digests of the models are seen whole."""
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            context.set_offline(True)
            page = context.new_page()
            asked: list[str] = []
            page.on("request", lambda one: asked.append(one.url))
            page.goto(site.joinpath("index.html").as_uri())
            page.fill("input[name=q]", "stack of planes")
            page.keyboard.press("Enter")
            expect(page.locator("#search-results")).to_contain_text("Microscopy and frames", timeout=60_000)
            page.goto(site.joinpath("models.html").as_uri())
            hidden = "[...document.querySelectorAll('.table-wrapper')].map(t => t.scrollWidth - t.clientWidth)"
            assert max(page.evaluate(hidden)) == 0
            for one in sorted(site.glob("*.html")):
                page.goto(one.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, one.name
            page.set_viewport_size({"width": 390, "height": 844})
            page.goto(site.joinpath("index.html").as_uri())
            assert page.evaluate(hidden) == [0]  # all four doors
            browser.close()
        assert all(url.startswith("file:") for url in asked)


def test_pages_ask_no_other_host(site: Path) -> None:
    for page in site.glob("*.html"):
        assert not re.findall(r'(?:src|<link [^>]*href)="(?:https?:)?//[^"]*"', page.read_text()), page.name


def test_a_link_that_leads_nowhere_fails(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "_static", tmp_path / "_static")
    for name in ("conf.py", "extension.py"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    (tmp_path / "index.md").write_text("# A page\n\n[an image](_static/site.css), [a heading](#a-page)\n")
    assert build(tmp_path, tmp_path / "good").returncode == 0
    (tmp_path / "index.md").write_text("# A page\n\n[gone](gone.md), [no such heading](#nothing)\n")
    done = build(tmp_path, tmp_path / "bad")
    assert done.returncode == 1
    assert "gone.md" in done.stderr
    assert "nothing" in done.stderr


def test_docstrings_in_prose_become_lists_of_parameters() -> None:
    text = (
        "What it does: a thing.\n\nfirst: one\nthing. second, third: others, 0..1. Raises InputError, or ConfigError."
    )
    assert extension.as_rest(text, ["first", "second", "third"]) == (
        "What it does: a thing.\n\n**first**\n   one thing.\n\n**second, third**\n   others, 0..1.\n\n"
        "Raises :py:exc:`~nlrn.InputError`, or :py:exc:`~nlrn.ConfigError`."
    )
    assert (
        extension.as_rest("first: one; second: two.", ["first", "second"]) == "**first**\n   one\n\n**second**\n   two."
    )
    assert extension.as_rest(">>> first: int = 3", ["first"]) == ">>> first: int = 3"
    assert ":param first: one." in extension.as_rest("Short.\n\nArgs:\n    first: one.", ["first"])
