"""The service beside the command line: the same bytes; and what it tells."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import tifffile
from networks import random_model
from PIL import Image, ImageCms
from webserver import Service, image_file

from nlrn import __version__
from nlrn.cli import run
from nlrn.evaluation.explain import correlation_maps
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera
from nlrn.inference.restorer import Restorer
from nlrn.io.image import ImageData, encode_image, read_image, write_image
from nlrn.models.checkpoint import save_model
from nlrn.web.app import application
from nlrn.web.limits import Limits
from nlrn.web.queue import Jobs


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    """By name, one of every kind that is kept: depths, alpha, a profile, floats."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    random = np.random.RandomState(5)
    wide = ImageData(
        random.rand(20, 24, 3).astype(np.float32), random.randint(0, 65536, (20, 24)).astype(np.uint16), 16
    )
    floats = ImageData(random.rand(20, 24).astype(np.float32), depth=32)
    plain = {"grey.png": "L", "colour.jpg": "RGB", "colour.bmp": "RGB", "deep.png": "I;16", "deep.tif": "I;16"}
    plain |= {"alpha.png": "RGBA", "alpha.webp": "RGBA", "colour.ppm": "RGB", "some.gif": "L", "some.avif": "RGB"}
    found = {name: image_file(folder / name, mode, seed=i) for i, (name, mode) in enumerate(plain.items())}
    found["wide.png"] = write_image(folder / "wide.png", wide)
    found["wide.tif"] = write_image(folder / "wide.tif", wide)
    found["floats.tif"] = write_image(folder / "floats.tif", floats)
    with Image.open(found["alpha.png"]) as image:
        image.save(folder / "profile.png", icc_profile=srgb)
    return found | {"profile.png": folder / "profile.png"}


KINDS = ("grey.png", "colour.jpg", "colour.bmp", "deep.png", "deep.tif", "alpha.png", "alpha.webp", "colour.ppm")
KINDS += ("some.gif", "some.avif", "wide.png", "wide.tif", "floats.tif", "profile.png")
OPTIONS: list[dict[str, str]] = [
    {"sigma": "25"},
    {},
    {"sigma": "12.5", "strength": "0.4"},
    {"noise": "gaussian"},
    {"noise": "poisson", "gain": "4", "read_noise": "2"},
    {"mode": "patch", "sigma": "30"},
    {"tile": "32", "overlap": "8", "sigma": "25", "precision": "fp32"},
    {"tta": "true", "sigma": "25"},
    {"sigma": "25", "depth": "16", "format": "png"},
    {"sigma": "25", "depth": "8", "format": "tif"},
]
ENDINGS = {".gif": ".png"}


def arguments(options: dict[str, str]) -> list[str]:
    """The same for the command line."""
    given = {k: v for k, v in options.items() if k not in ("format", "tta", "denoise_first")}
    words = [word for k, v in given.items() for word in (f"--{k.replace('_', '-')}", v)]
    first = {"true": ["--denoise-first"], "false": ["--keep-noise"]}.get(options.get("denoise_first", ""), [])
    return [*words, *first, *(["--tta"] if options.get("tta") == "true" else [])]


def by_command_line(command: str, source: Path, model: Path, options: dict[str, str], out: Path) -> bytes:
    suffix = f".{options['format']}" if "format" in options else ENDINGS.get(source.suffix, source.suffix)
    out = out.with_suffix(suffix)
    words = [command, str(source), "-o", str(out), "--model", str(model), "-q", *arguments(options)]
    assert run(words) == 0, words
    return out.read_bytes()


def ask(client: httpx.Client, path: str, source: Path, **fields: str) -> httpx.Response:
    return client.post(path, files={"image": (source.name, source.read_bytes())}, data=fields)


def test_the_former_name_of_the_field_is_accepted(client: httpx.Client, files: dict[str, Path]) -> None:
    """Requests to 0.2 sent the file as `picture`."""  # codespell:ignore
    data, options = files["grey.png"].read_bytes(), {"model": "toy", "sigma": "25"}
    former = client.post("/v1/denoise", files={"picture": ("grey.png", data)}, data=options)  # codespell:ignore
    assert former.status_code == 200, former.text
    assert former.content == ask(client, "/v1/denoise", files["grey.png"], **options).content
    twice = [("picture", ("a.png", data)), ("image", ("b.png", data))]  # codespell:ignore
    both = client.post("/v1/denoise", files=twice, data=options)
    assert both.status_code == 400


@pytest.mark.parametrize("name", KINDS)
def test_every_format_comes_back_as_the_command_line_writes_it(
    name: str, client: httpx.Client, files: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    options = {"sigma": "25"}
    answer = ask(client, "/v1/denoise", files[name], model="toy", **options)
    assert answer.status_code == 200, answer.text
    expected = by_command_line("denoise", files[name], folder / "toy.safetensors", options, tmp_path / "out")
    assert answer.content == expected
    kept, before = read_image(answer.content), read_image(files[name])
    assert (kept.depth, kept.icc, kept.alpha is None) == (before.depth, before.icc, before.alpha is None)
    suffix = ENDINGS.get(files[name].suffix, files[name].suffix)
    kind = {".jpg": "jpeg", ".tif": "tiff", ".ppm": "x-portable-anymap"}.get(suffix, suffix[1:])
    assert answer.headers["content-type"] == f"image/{kind}"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "usual")
@pytest.mark.parametrize("name", ["grey.png", "deep.tif"])
def test_every_option_means_what_it_means_there(
    name: str, options: dict[str, str], client: httpx.Client, files: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    answer = ask(client, "/v1/denoise", files[name], model="toy", **options)
    assert answer.status_code == 200, answer.text
    assert answer.content == by_command_line(
        "denoise", files[name], folder / "toy.safetensors", options, tmp_path / "out"
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grey.png", {}),
        ("grey.png", {"denoise_first": "true"}),
        ("grey.png", {"denoise_first": "false"}),
        ("wide.png", {"scale": "1.5"}),
        ("alpha.webp", {"width": "90"}),
        ("colour.jpg", {"height": "60", "width": "90", "format": "webp"}),
        ("deep.tif", {"scale": "5", "tile": "64"}),
    ],
)
def test_enlarging_too(
    name: str, options: dict[str, str], client: httpx.Client, files: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    model = folder / "toy-sr.safetensors"
    expected = by_command_line("upscale", files[name], model, options, tmp_path / "out")
    assert ask(client, "/v1/upscale", files[name], **options, model="toy-sr").content == expected


def test_the_shipped_model_is_the_usual_one_and_what_is_said_is_said(
    client: httpx.Client, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jpg"
    assert run(["denoise", str(files["colour.jpg"]), "-o", str(out)]) == 0
    answer = ask(client, "/v1/denoise", files["colour.jpg"])
    assert answer.content == out.read_bytes()
    assert answer.headers["nlrn-said"].split("; ") == capsys.readouterr().out.splitlines()[:-1]
    assert answer.headers["content-disposition"] == 'attachment; filename="restored.jpg"'


def test_camera_noise_is_found_there_too(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    clean = np.full((192, 192, 3), 0.5) * np.linspace(0.6, 1.4, 192)[:, None]
    random = np.random.default_rng(1)
    noisy = add_camera_noise(clean, at_level(draw_camera(random), 8.0), random)
    Image.fromarray(np.rint(noisy * 255).astype(np.uint8)).save(tmp_path / "photograph.png")
    answer = ask(client, "/v1/denoise", tmp_path / "photograph.png", model="toy")
    expected = by_command_line(
        "denoise", tmp_path / "photograph.png", folder / "toy.safetensors", {}, tmp_path / "restored"
    )
    assert answer.content == expected
    assert "camera-like noise" in answer.headers["nlrn-said"]


def test_a_preview_is_the_image_itself_in_8_bits(client: httpx.Client, files: dict[str, Path]) -> None:
    for name in ("deep.tif", "wide.tif", "alpha.png", "floats.tif"):
        answer = ask(client, "/v1/preview", files[name])
        assert answer.content == encode_image(read_image(files[name]).with_depth(8), "PNG"), name


def test_floats_that_are_counts_are_shown_as_they_are_restored(client: httpx.Client, tmp_path: Path) -> None:
    """0..4000 is of 16 bits: dark, and not white."""
    counts = np.linspace(0, 4000, 48 * 40, dtype=np.float32).reshape(48, 40)
    tifffile.imwrite(tmp_path / "counts.tif", counts)
    shown = np.asarray(Image.open(io.BytesIO(ask(client, "/v1/preview", tmp_path / "counts.tif").content)))
    np.testing.assert_array_equal(shown, np.rint(counts / 65535 * 255))
    found = ask(client, "/v1/explain", tmp_path / "counts.tif", x="7", y="11", sigma="20", model="toy")
    assert found.status_code == 200


def test_tiles_are_refused_with_patches_as_by_the_command(client: httpx.Client, files: dict[str, Path]) -> None:
    answer = ask(client, "/v1/denoise", files["grey.png"], sigma="20", mode="patch", tile="64")
    assert answer.status_code == 422
    assert "tiles are for window mode" in answer.json()["error"]


def test_a_map_is_the_one_that_nlrn_explain_draws(client: httpx.Client, files: dict[str, Path], folder: Path) -> None:
    found = ask(client, "/v1/explain", files["grey.png"], x="7", y="11", sigma="20", model="toy").json()
    image = read_image(files["grey.png"]).array
    expected = correlation_maps(Restorer(folder / "toy.safetensors"), image, (7, 11), 20.0)
    np.testing.assert_allclose(found["states"], expected.states, rtol=1e-3)
    np.testing.assert_allclose(found["neighbours"], expected.neighbours, atol=0.01)
    assert (tuple(found["centre"]), found["sigma"]) == (expected.centre, 20)
    outside = ask(client, "/v1/explain", files["grey.png"], x="40", y="11", model="toy")
    assert outside.status_code == 422
    assert "lies outside" in outside.json()["error"]


def test_it_tells_its_models_and_not_where_they_lie(client: httpx.Client, folder: Path) -> None:
    found = client.get("/v1/models")
    assert {"denoise-gray-small", "toy", "toy-sr"} <= {model["name"] for model in found.json()}
    assert str(folder) not in found.text
    assert client.get("/healthz").json() == {"status": "ok", "version": __version__}


def test_it_counts_by_route_and_status(client: httpx.Client, files: dict[str, Path]) -> None:
    def shown(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    counted = 'nlrn_requests_total{route="/v1/denoise",status="200"}', 'nlrn_job_seconds_count{kind="denoise"}'
    before = [shown(name) for name in counted]
    assert ask(client, "/v1/denoise", files["grey.png"], model="toy", sigma="5").status_code == 200
    client.get("/no-such-route")
    assert [shown(name) for name in counted] == [n + 1 for n in before]
    assert "no-such-route" not in client.get("/metrics").text


def test_progress_is_told_by_the_word_that_was_sent_alone(client: httpx.Client, files: dict[str, Path]) -> None:
    word = "a-word-of-16-letters-and-more"
    assert client.get(f"/v1/progress/{word}").json() == {"state": "unknown"}
    assert ask(client, "/v1/denoise", files["grey.png"], model="toy", watch=word).status_code == 200
    assert client.get(f"/v1/progress/{word}").json() == {"state": "unknown"}  # nothing is left of a job
    assert ask(client, "/v1/denoise", files["grey.png"], watch="short").status_code == 422


def test_the_document_describes_every_route_and_asks_no_other_host(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/denoise", "/v1/upscale", "/v1/preview", "/v1/explain", "/v1/models", "/v1/limits", "/v1/progress/{watch}",
        "/healthz", "/metrics",
    }  # fmt: skip
    assert list(document["paths"]["/v1/denoise"]["post"]["requestBody"]["content"]) == ["multipart/form-data"]
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--model", "missing.safetensors"), 3, "no model and no file is called"),
        (("--model", "README"), 3, "cannot be read as safetensors|not a safetensors file"),
        (("--model", "a/twin.safetensors", "--model", "b/twin.safetensors"), 3, "two models are called twin"),
        (("--port", "taken"), 3, "cannot listen on 127.0.0.1, port"),
        (("--host", "no-such-host.invalid"), 3, "cannot listen on"),
        (("--queue", "0"), 2, "queue must be above 0"),
        (("--held-bytes", "1000"), 2, "held_bytes must be at least twice max_bytes, 33554432, not 1000"),
        (("--port", "70000"), 2, "outside 0..65535"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_where_it_cannot_start_it_says_why_in_one_line(
    words: tuple[str, ...], code: int, said: str, running: Service, tmp_path: Path
) -> None:
    (tmp_path / "README").write_text("no weights")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_model(tmp_path / folder / "twin.safetensors", random_model())
    given = [str(running.port) if word == "taken" else word for word in words]
    port = [] if "--port" in given else ["--port", "0"]
    command = [sys.executable, "-m", "nlrn", "serve", *port, *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == code
    assert re.search(said, done.stderr)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['uvicorn'] = None; from nlrn.cli import run; sys.exit(run(['serve']))"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "nlrn serve needs uvicorn: pip install 'nlrn[web]'" in done.stderr


def test_what_was_not_foreseen_is_a_503_and_the_log_has_the_error(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        @property
        def models(self) -> None:
            raise ValueError("not foreseen")

    limits = Limits()
    app = application(Jobs(cast(Any, Broken()), limits), limits)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get("/v1/models")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json() == {"error": "the service failed; its log has the error"}
    assert answer.headers["x-frame-options"] == "DENY"
    (record,) = caplog.records
    assert record.exc_info
    assert str(record.exc_info[1]) == "not foreseen"
