"""The page in a real Chromium: what a person does, and that nothing leaves the machine."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import CHROMIUM
from PIL import Image
from playwright.sync_api import Browser, Error, Page, Route, expect, sync_playwright
from webserver import Service, image_file

from nlrn.cli import run
from nlrn.io.image import ImageData, write_image

SIZES = {"wide": (1280, 800), "phone": (390, 844)}
IMAGES = os.environ.get("NLRN_SCREENSHOTS")  # a folder to look at them in


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Browser, running: Service) -> Iterator[Page]:
    """The page, opened; whatever it asked for came from the service, and it said nothing to the console."""
    width, height = SIZES[request.param]
    scheme = "dark" if request.param == "phone" else "light"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    found = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    found.on("request", lambda one: asked.append(one.url))
    found.on("console", lambda one: said.append(one.text) if "status of 4" not in one.text else None)
    found.on("pageerror", lambda one: said.append(str(one)))
    found.goto(running.url)
    expect(found.locator("#model option").first).to_be_attached()
    yield found
    if IMAGES:
        found.screenshot(path=f"{IMAGES}/{request.node.name}.png", full_page=True)
    wide = found.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert asked
    assert all(url.startswith((running.url, f"blob:{running.url}")) for url in asked), asked
    assert not said
    assert wide == 0  # nothing to scroll to the side


def choose(page: Page, path: Path, model: str = "toy") -> None:
    page.set_input_files("#file", path)
    expect(page.locator("#status")).to_contain_text("pixels")
    page.select_option("#model", label=model)


def restored(page: Page) -> bytes:
    """The bytes that the page saves."""
    expect(page.locator("#save")).to_be_visible(timeout=60_000)
    with page.expect_download() as download:
        page.click("#save")
    return Path(download.value.path()).read_bytes()


def test_an_image_goes_in_and_the_command_lines_bytes_come_out(page: Page, folder: Path, tmp_path: Path) -> None:
    source, out = image_file(tmp_path / "p.png", "RGBA", (300, 200)), tmp_path / "out.png"
    choose(page, source)
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("estimated noise", ignore_case=True, timeout=60_000)
    model = str(folder / "toy.safetensors")
    assert run(["denoise", str(source), "-o", str(out), "--model", model, "-q"]) == 0
    assert restored(page) == out.read_bytes()
    inside = page.evaluate("['before', 'upper'].map(id => document.getElementById(id).style.clipPath)")
    assert all(shape.startswith("inset(0px") for shape in inside)  # neither shows through the other's holes


def test_what_a_browser_cannot_show_is_shown_and_kept_whole(page: Page, folder: Path, tmp_path: Path) -> None:
    """16 bits, colour and alpha, in a TIFF."""
    random = np.random.RandomState(0)
    alpha = random.randint(0, 65536, (80, 120)).astype(np.uint16)
    deep = ImageData(random.rand(80, 120, 3).astype(np.float32), alpha, 16, "TIFF")
    source, out = write_image(tmp_path / "deep.tif", deep), tmp_path / "out.tif"
    choose(page, source)
    assert page.evaluate("document.getElementById('before').naturalWidth") == 120
    page.select_option("#noise", "given")
    page.locator("#sigma").fill("30")
    page.click("#go")
    model = str(folder / "toy.safetensors")
    assert run(["denoise", str(source), "-o", str(out), "--model", model, "-q", "--sigma", "30"]) == 0
    assert restored(page) == out.read_bytes()


def test_the_keyboard_alone_is_enough(page: Page, tmp_path: Path) -> None:
    """Sample, restore and the line between before and after, by Tab, Enter and arrows; the focus can be seen."""

    def to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    to("[data-sample]")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("256")
    to("#strength")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#strength-said")).to_have_text("95 %")
    to("#go")
    page.keyboard.press("Enter")
    expect(page.locator("#save")).to_be_visible(timeout=60_000)
    to("#view")
    before = page.evaluate("document.getElementById('stage').style.width")
    page.keyboard.press("+")
    assert page.evaluate("document.getElementById('stage').style.width") != before
    page.keyboard.press("0")
    to("#compare")
    shape = page.evaluate("document.getElementById('upper').style.clipPath")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.input_value("#compare") == "60"
    assert page.evaluate("document.getElementById('upper').style.clipPath") != shape


def test_the_line_shows_one_image_on_each_side(page: Page, tmp_path: Path) -> None:
    """The screen itself: left of the line the image's own colours, right of it the result's; at 100 %, pixel by
    pixel."""
    values = np.full((900, 1400), 40, np.uint8)
    Image.fromarray(values).save(tmp_path / "dark.png")
    choose(page, tmp_path / "dark.png")
    page.select_option("#noise", "given")
    page.click("#go")
    after = np.asarray(Image.open(io.BytesIO(restored(page))))
    page.click("#full")
    expect(page.locator("#full")).to_have_attribute("aria-pressed", "true")
    box = page.locator("#view")
    box.evaluate("element => element.scrollIntoView({block: 'center'})")
    shot = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("L")).astype(int)
    height, width = shot.shape
    assert abs(int(np.median(shot[: height // 2, 4 : width // 2 - 8])) - 40) <= 1
    assert abs(int(np.median(shot[: height // 2, width // 2 + 8 : -4])) - int(np.median(after))) <= 1
    assert int(np.median(after)) != 40
    assert page.evaluate("document.getElementById('stage').getBoundingClientRect().width") == 1400


def test_enlarging_and_an_error_that_is_said(page: Page, tmp_path: Path) -> None:
    source, out = image_file(tmp_path / "p.png", size=(60, 40)), tmp_path / "out.png"
    page.set_input_files("#file", source)
    expect(page.locator("#status")).to_contain_text("60")
    page.check("input[value=upscale]")
    page.locator("#scale").fill("3")
    page.click("#go")
    assert run(["upscale", str(source), "-o", str(out), "-q", "-s", "3"]) == 0  # the shipped model, in both
    assert restored(page) == out.read_bytes()
    (tmp_path / "no.png").write_bytes(b"no image")
    page.set_input_files("#file", tmp_path / "no.png")
    expect(page.locator("#status")).to_contain_text("not an image of a known format")
    expect(page.locator("#go")).to_be_disabled()
    (tmp_path / "large.tif").write_bytes(b"II*\0" + bytes(40 << 20))
    page.set_input_files("#file", tmp_path / "large.tif")
    expect(page.locator("#status")).to_contain_text("over 33,554,432 bytes", timeout=20_000)


@pytest.mark.parametrize("then", ["another", "stop"])
def test_what_comes_late_is_shown_for_no_other_image(page: Page, tmp_path: Path, then: str) -> None:
    """A TIFF is shown by way of a preview; while that is made, another image is chosen, or the work stopped."""
    held: list[Route] = []
    page.route("**/v1/preview", lambda route: held.append(route))
    choose(page, image_file(tmp_path / "a.png", size=(60, 40)))
    page.select_option("#format", "tif")
    page.click("#go")
    expect(page.locator("#save")).to_be_visible(timeout=20_000)  # it can be saved before it can be seen
    page.wait_for_function("document.getElementById('stop').hidden === false")
    if then == "another":
        page.set_input_files("#file", image_file(tmp_path / "b.png", size=(80, 40)))
        expect(page.locator("#status")).to_contain_text("80 \u00d7 40")
    else:
        page.click("#stop")
        expect(page.locator("#status")).to_have_text("Stopped.")
    for route in held:
        with contextlib.suppress(Error):  # the request is gone
            route.continue_()
    page.wait_for_timeout(500)
    assert page.locator("#after").get_attribute("src") is None
    expect(page.locator("#stop")).to_be_hidden()
    if then == "another":
        expect(page.locator("#save")).to_be_hidden()
        expect(page.locator("#status")).to_contain_text("80 \u00d7 40")


def test_a_click_shows_where_a_pixel_finds_its_look_alikes(page: Page, tmp_path: Path) -> None:
    page.click("[data-sample=photographer-25]")
    expect(page.locator("#status")).to_contain_text("256")
    page.click("#ask")
    page.locator("#view").click(position={"x": 150, "y": 200})
    expect(page.locator("#maps canvas")).to_have_count(6, timeout=60_000)
    expect(page.locator("#mark")).to_be_visible()
    page.fill("#x", "10")
    page.fill("#y", "20")
    page.click("#look")
    expect(page.locator("#maps p")).to_contain_text("pixel 10, 20", timeout=60_000)


def test_work_can_be_stopped_and_progress_is_seen(page: Page, tmp_path: Path) -> None:
    """Several tiles would take 4 GiB: the shipped model in an image large enough to see it work."""
    choose(page, image_file(tmp_path / "l.png", size=(1200, 1000)), "denoise-gray-small")
    page.click("#go")
    expect(page.locator("#progress")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Working", timeout=30_000)
    page.click("#stop")
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#go")).to_be_enabled()
    expect(page.locator("#progress")).to_be_hidden()
