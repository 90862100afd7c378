"""The page in a real Chromium: what a person does, and that nothing leaves the machine."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
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
    expect(found.locator("#status")).to_contain_text("A restored sample", timeout=60_000)
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

    to("[data-sample=photographer-25]")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("256")
    to("#strength")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#strength-said")).to_have_text("95 %")
    to("#go")
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_focused()  # not nowhere
    expect(page.locator("#save")).to_be_visible(timeout=60_000)
    expect(page.locator("#go")).to_be_focused()
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
    expect(page.locator("#status")).to_contain_text("to keep it: Noise first: Keep")
    page.select_option("#first", "false")
    expect(page.locator("#stale")).to_be_visible()
    page.click("#go")
    expect(page.locator("#stale")).to_be_hidden(timeout=60_000)
    kept = ["upscale", str(source), "-o", str(out), "-q", "-s", "3", "--keep-noise", "--overwrite"]
    assert run(kept) == 0
    expect(page.locator("#save")).to_have_text("Download")
    assert restored(page) == out.read_bytes()
    (tmp_path / "no.png").write_bytes(b"no image")
    page.set_input_files("#file", tmp_path / "no.png")
    expect(page.locator("#file-error")).to_contain_text("an image of a known format")
    expect(page.locator("#go")).to_be_disabled()
    (tmp_path / "large.tif").write_bytes(b"II*\0" + bytes(40 << 20))
    page.set_input_files("#file", tmp_path / "large.tif")
    expect(page.locator("#file-error")).to_have_text("The file has 42 MB; this service takes 34 MB.")
    page.set_input_files("#file", source)
    expect(page.locator("#file-error")).to_be_hidden()


@pytest.mark.parametrize("then", ["another", "stop"])
def test_what_comes_late_is_shown_for_no_other_image(page: Page, tmp_path: Path, then: str) -> None:
    """A TIFF is shown by way of a preview; while that is made, another image is chosen, or the work stopped."""
    held: list[Route] = []
    page.route("**/v1/preview", lambda route: held.append(route))
    choose(page, image_file(tmp_path / "a.png", size=(60, 40)))
    page.select_option("#format", "tif")
    page.click("#go")
    expect(page.locator("#save")).to_be_visible(timeout=60_000)  # it can be saved before it can be seen
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


def test_a_click_shows_which_similar_pixels_a_pixel_uses(page: Page, tmp_path: Path) -> None:
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
    page.click("#ask")  # and away with all of it
    expect(page.locator("#mark")).to_be_hidden()
    expect(page.locator("#maps canvas")).to_have_count(0)


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


def test_at_first_sight_a_sample_is_restored_and_all_is_above_the_fold(page: Page) -> None:
    """There is a line to move before anything is chosen; at 1280 x 800 nothing that matters needs scrolling."""
    expect(page.locator("#line")).to_be_visible()
    expect(page.locator("#tag-after")).to_have_text("after")
    assert page.evaluate("document.getElementById('after').naturalWidth") == 320
    height = page.viewport_size["height"]  # type: ignore[index]
    narrow = page.viewport_size["width"] < 600  # type: ignore[index]
    for selector in ("#view", "#compare") if narrow else ("#view", "#status", "#compare", "#ask"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= height, selector
    page.locator("#compare").fill("80")
    assert page.evaluate("document.getElementById('line').style.left") != ""
    words = page.inner_text("body")
    assert not any(odd in words for odd in ("the one for", "loses"))


@pytest.mark.parametrize("state", ["start", "error", "done"])
def test_axe_finds_nothing(page: Page, tmp_path: Path, state: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    if state == "error":
        (tmp_path / "no.png").write_bytes(b"no image")
        page.set_input_files("#file", tmp_path / "no.png")
        expect(page.locator("#file-error")).to_be_visible(timeout=60_000)
    if state == "done":
        page.set_input_files("#file", [image_file(tmp_path / f"{n}.png", size=(60, 40)) for n in "ab"])
        page.select_option("#model", label="toy")
        page.click("#go")
        expect(page.locator("#zip")).to_be_visible(timeout=60_000)
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_several_images_are_worked_through_and_come_as_one_zip(page: Page, folder: Path, tmp_path: Path) -> None:
    """The names are the originals'; one that is torn is named, and stops no other."""
    for number, name in enumerate(("a.png", "b.tif", "a.jpg")):
        image_file(tmp_path / name, "L", (60 + number, 40), seed=number)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    page.set_input_files("#file", [tmp_path / name for name in ("a.png", "torn.png", "b.tif", "a.jpg")])
    expect(page.locator("#list button")).to_have_count(4)
    page.select_option("#model", label="toy")
    expect(page.locator("#go")).to_have_text("Restore 4 images")
    page.click("#go")
    expect(page.locator("#zip")).to_be_visible(timeout=120_000)
    expect(page.locator("#list button").nth(1)).to_contain_text("cut off")
    expect(page.locator("#list button").nth(1)).to_have_class("bad")
    expect(page.locator("#list button").nth(0)).to_contain_text("kB")
    with page.expect_download() as download:
        page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a-restored.png", "b-restored.tif", "a-restored.jpg"]
        model = str(folder / "toy.safetensors")
        for name in ("a.png", "b.tif", "a.jpg"):
            out = tmp_path / f"out-{name}"
            assert run(["denoise", str(tmp_path / name), "-o", str(out), "--model", model, "-q"]) == 0
            stem, _, ending = name.partition(".")
            assert archive.read(f"{stem}-restored.{ending}") == out.read_bytes()
    page.locator("#list button").nth(0).click()
    expect(page.locator("#status")).to_contain_text("Done in")
    expect(page.locator("#save")).to_be_visible()


def test_progress_that_comes_late_is_shown_for_no_image_that_is_done(page: Page, tmp_path: Path) -> None:
    """The first image's progress arrives while the second is worked on."""
    late: list[Route] = []
    work: list[Route] = []
    page.route("**/v1/progress/*", lambda route: late.append(route))
    page.route("**/v1/denoise", lambda route: work.append(route))
    page.set_input_files("#file", [image_file(tmp_path / f"{n}.png", size=(60, 40)) for n in "ab"])
    page.select_option("#model", label="toy")
    page.click("#go")
    with page.expect_request("**/v1/progress/*"):
        pass
    work[-1].continue_()
    first = page.locator("#list button").nth(0)
    expect(first).to_contain_text("kB", timeout=60_000)
    late[0].fulfill(json={"state": "running", "done": 0, "total": 1})
    expect(page.locator("#status")).to_contain_text("Image 2 of 2: Sending")
    page.evaluate("new Promise((done) => setTimeout(done))")
    expect(first).to_contain_text("kB")
    expect(page.locator("#status")).to_contain_text("Image 2 of 2: Sending")


def test_restore_waits_for_an_image_that_is_still_opened(page: Page, tmp_path: Path) -> None:
    """Of several the button is ready at once; a TIFF is opened by way of a preview."""
    held: list[Route] = []
    opens: list[str] = []
    page.route("**/v1/preview", lambda route: route.continue_() if opens else held.append(route))
    image_file(tmp_path / "a.tif", size=(60, 40))
    with page.expect_request("**/v1/preview"):
        page.set_input_files("#file", [tmp_path / "a.tif", image_file(tmp_path / "b.png", size=(60, 40))])
    page.select_option("#model", label="toy")
    page.click("#go")
    expect(page.locator("#list button").nth(0)).not_to_contain_text("waiting")
    opens.append("now")
    for route in held:
        route.continue_()
    expect(page.locator("#zip")).to_be_visible(timeout=20_000)
    expect(page.locator("#list .bad")).to_have_count(0)


def test_names_that_are_twice_there_become_two(page: Page) -> None:
    names = page.evaluate("import('/zip.js').then(zip => zip.distinct(['a.png', 'a.png', 'A.png', 'b', 'b']))")
    assert names == ["a.png", "a (2).png", "A (3).png", "b", "b (2)"]
    assert page.evaluate("import('/zip.js').then(z => z.crc32(new TextEncoder().encode('123456789')))") == 0xCBF43926


def test_an_image_is_taken_from_the_clipboard(page: Page) -> None:
    page.evaluate("""async () => {
        const canvas = Object.assign(document.createElement('canvas'), { width: 70, height: 30 });
        canvas.getContext('2d');
        const blob = await new Promise(done => canvas.toBlob(done));
        const data = new DataTransfer();
        data.items.add(new File([blob], 'pasted.png', { type: 'image/png' }));
        document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
    }""")
    expect(page.locator("#status")).to_contain_text("70 \u00d7 30 pixels")
    expect(page.locator("#chosen")).to_have_text("pasted.png")


def test_settings_that_change_mark_the_result_and_are_previewed(page: Page, tmp_path: Path) -> None:
    choose(page, image_file(tmp_path / "p.png", size=(300, 260)))
    page.click("#go")
    expect(page.locator("#save")).to_have_text("Download", timeout=60_000)
    expect(page.locator("#stale")).to_be_hidden()
    page.select_option("#noise", "given")
    page.locator("#sigma").fill("60")
    expect(page.locator("#stale")).to_be_visible()
    expect(page.locator("#save")).to_have_text("Download (previous settings)")
    expect(page.locator("#patch")).to_be_visible(timeout=60_000)
    assert page.evaluate("document.getElementById('patch').naturalWidth") == 192
    page.select_option("#noise", "auto")
    expect(page.locator("#stale")).to_be_hidden()
    expect(page.locator("#patch")).to_be_hidden()
    expect(page.locator("#save")).to_have_text("Download")


def test_the_opening_sample_is_marked_by_settings_that_change(page: Page) -> None:
    """It was restored by the automatic settings, by the page before any work: as a result of the service's."""
    expect(page.locator("#stale")).to_be_hidden()
    page.select_option("#noise", "given")
    page.locator("#sigma").fill("60")
    expect(page.locator("#stale")).to_be_visible()
    expect(page.locator("#patch")).to_be_visible(timeout=60_000)
    page.reload()  # the settings of the earlier visit, and the sample by the automatic ones
    expect(page.locator("#status")).to_contain_text("A restored sample", timeout=60_000)
    assert page.input_value("#sigma") == "60"
    expect(page.locator("#stale")).to_be_visible()
    page.select_option("#noise", "auto")
    expect(page.locator("#stale")).to_be_hidden()
    expect(page.locator("#patch")).to_be_hidden()
    expect(page.locator("#tag-after")).to_have_text("after")


def test_settings_are_previewed_before_there_is_a_result(page: Page, tmp_path: Path) -> None:
    """The whole crop, on the image itself: there is no line yet."""
    Image.new("L", (300, 260), 40).save(tmp_path / "dark.png")
    choose(page, tmp_path / "dark.png")
    page.select_option("#noise", "given")
    page.locator("#sigma").fill("60")
    expect(page.locator("#patch")).to_be_visible(timeout=60_000)
    expect(page.locator("#tag-after")).to_contain_text("framed: the new settings")
    assert page.locator("#stale, #line, #after, #tag-before, #save").locator("visible=true").count() == 0
    box = page.locator("#view")
    box.evaluate("element => element.scrollIntoView({block: 'center'})")
    shot = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("RGB")).astype(int)
    pink = np.argwhere((shot[..., 0] > 200) & (shot[..., 1] < 120))
    (top, left), (bottom, right) = pink.min(0), pink.max(0)
    scale = page.evaluate("document.getElementById('stage').getBoundingClientRect().width") / 300
    assert abs(right - left + 1 - 192 * scale) <= 3  # all of its frame
    assert abs(bottom - top + 1 - 192 * scale) <= 3
    page.check("input[value=upscale]")
    expect(page.locator("#patch")).to_be_hidden()
    expect(page.locator("#tag-after")).to_be_hidden()


def test_settings_are_kept_by_the_browser(page: Page) -> None:
    page.select_option("#noise", "given")
    page.locator("#sigma").fill("33")
    page.select_option("#format", "jpg")
    page.select_option("#model", label="toy")
    page.reload()
    expect(page.locator("#status")).to_contain_text("A restored sample", timeout=60_000)
    found = [page.input_value(f"#{name}") for name in ("noise", "sigma", "format", "model")]
    assert found == ["given", "33", "jpg", "toy"]
    expect(page.locator("#sigma-row")).to_be_visible()
    page.evaluate('localStorage.setItem(\'nlrn-settings\', \'{"noise": "gone", "task": 7}\')')
    page.reload()
    expect(page.locator("#noise")).to_have_value("auto")


def test_what_is_too_large_is_refused_before_it_is_sent(page: Page, tmp_path: Path) -> None:
    """25 megapixels in, 100 out: beside the file, and beside the scale."""
    sent: list[str] = []
    page.on("request", lambda one: sent.append(one.url) if one.method == "POST" else None)
    Image.new("L", (6000, 5000)).save(tmp_path / "large.png")
    page.set_input_files("#file", tmp_path / "large.png")
    expect(page.locator("#file-error")).to_have_text(
        "The image has 30 megapixels; this service takes 25 megapixels.", timeout=30_000
    )
    expect(page.locator("#go")).to_be_disabled()
    page.set_input_files("#file", image_file(tmp_path / "wide.png", size=(1200, 900)))
    expect(page.locator("#status")).to_contain_text("1200")
    page.check("input[value=upscale]")
    page.locator("#scale").fill("16")
    page.click("#go")
    expect(page.locator("#scale-error")).to_contain_text("276 megapixels")
    assert page.get_attribute("#scale", "aria-describedby") == "scale-error"
    page.locator("#scale").fill("2")
    expect(page.locator("#scale-error")).to_have_count(0)
    assert not sent


def test_animations_and_stacks_are_sent_to_the_command_line(page: Page, tmp_path: Path) -> None:
    """As soon as they are chosen; the browser shows their first frame. A single frame is an image."""
    sent: list[str] = []
    page.on("request", lambda one: sent.append(one.url) if one.method == "POST" else None)
    frames = [Image.effect_noise((50, 30), n) for n in (40, 60)]
    way = "stacks are for the command line: nlrn denoise FILE."
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        page.set_input_files("#file", tmp_path / name)
        expect(page.locator("#file-error")).to_have_text(f"The file has several frames; {way}")
        expect(page.locator("#go")).to_be_disabled()
        frames[0].save(tmp_path / name)
        page.set_input_files("#file", tmp_path / name)
        expect(page.locator("#status")).to_contain_text("50 \u00d7 30")
    assert not sent
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    page.set_input_files("#file", tmp_path / "a.tif")
    expect(page.locator("#file-error")).to_contain_text(f"expected a single image; {way}")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg"])
def test_a_file_that_is_cut_off_is_not_shown_in_half(page: Page, tmp_path: Path, name: str) -> None:
    whole = image_file(tmp_path / f"whole-{name}", size=(200, 200)).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    page.set_input_files("#file", tmp_path / name)
    expect(page.locator("#file-error")).to_have_text("The file is cut off: its end is missing.")
    expect(page.locator("#work")).to_be_hidden()
    if page.evaluate("innerWidth") >= 960:
        expect(page.locator(".empty")).to_be_visible()  # in its place
    (tmp_path / name).write_bytes(whole + b"appended by a camera")
    page.set_input_files("#file", tmp_path / name)
    expect(page.locator("#status")).to_contain_text("200 \u00d7 200")
    expect(page.locator(".empty")).to_be_hidden()


def test_the_maps_show_the_image_under_them(page: Page) -> None:
    """Far from where anything counts, a map has the grey of the image."""
    page.click("[data-sample=photographer-25]")
    expect(page.locator("#status")).to_contain_text("256")
    page.click("#ask")
    page.fill("#x", "100")
    page.fill("#y", "90")
    page.click("#look")
    expect(page.locator("#maps canvas")).to_have_count(6, timeout=60_000)
    correlation = page.evaluate("""() => {
        const map = document.querySelector('#maps canvas'), image = document.getElementById('before');
        const own = Object.assign(document.createElement('canvas'), { width: 256, height: 256 });
        const context = own.getContext('2d');
        context.drawImage(image, 0, 0);
        const [w, h] = [map.width, map.height], left = 100 - (w - 1) / 2, top = 90 - (h - 1) / 2;
        const grey = (d, i) => d[4 * i] + d[4 * i + 1] + d[4 * i + 2];
        const a = map.getContext('2d').getImageData(0, 0, w, h).data, b = context.getImageData(left, top, w, h).data;
        const xs = [...Array(w * h).keys()], mean = d => xs.reduce((s, i) => s + grey(d, i), 0) / xs.length;
        const [ma, mb] = [mean(a), mean(b)];
        const sum = f => xs.reduce((s, i) => s + f(grey(a, i) - ma, grey(b, i) - mb), 0);
        return sum((p, q) => p * q) / Math.sqrt(sum(p => p * p) * sum((p, q) => q * q));
    }""")
    assert correlation > 0.3


def test_a_photograph_goes_to_the_model_for_photographs_by_itself(page: Page) -> None:
    page.click("[data-sample=cat-camera]")
    expect(page.locator("#status")).to_contain_text("320")
    page.click("#go")
    expect(page.locator("#save")).to_be_visible(timeout=120_000)
    expect(page.locator("#status")).to_contain_text("camera-like noise")
    expect(page.locator("#status")).to_contain_text("by the model for photographs")
    expect(page.locator("#status")).to_contain_text(" kB.")


def test_two_fingers_zoom(browser: Browser, running: Service) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto(running.url)
    expect(page.locator("#status")).to_contain_text("A restored sample", timeout=60_000)
    width = "document.getElementById('stage').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.locator("#view").evaluate("""view => {
        const box = view.getBoundingClientRect();
        view.setPointerCapture = () => {}; // fingers that are not there cannot be captured
        const touch = (kind, id, x) => view.dispatchEvent(new PointerEvent(kind, {
            pointerId: id, pointerType: 'touch', bubbles: true, clientX: box.left + x, clientY: box.top + 80 }));
        touch('pointerdown', 11, 60);
        touch('pointerdown', 12, 100);
        for (let x = 100; x <= 180; x += 10) touch('pointermove', 12, x);
        touch('pointerup', 11, 60);
        touch('pointerup', 12, 180);
    }""")
    assert page.evaluate(width) == pytest.approx(3 * before, rel=0.02)  # 40 pixels apart became 120
    context.close()
