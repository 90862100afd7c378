"""What people who try the package for the first time met with: each stumble, mended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from networks import random_model
from PIL import Image

import nlrn
from nlrn import cli
from nlrn.cli import run
from nlrn.functional.degradations import add_gaussian_noise
from nlrn.models.listing import shipped_models

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A PNG, a JPEG and a file that is torn, with noise of sigma 20."""
    folder = tmp_path / "album"
    folder.mkdir()
    noisy = np.clip(add_gaussian_noise(np.full((40, 50), 0.5), 20), 0, 1)
    image = Image.fromarray(np.rint(noisy * 255).astype(np.uint8))
    image.save(folder / "a.png")
    image.save(folder / "b.jpg", quality=95)
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:900])
    return folder


@pytest.mark.parametrize("workers", [[], pytest.param(["-j", "2", "--memory", "64"], marks=pytest.mark.slow)])
def test_a_folder_says_of_every_image_what_was_found(
    album: Path, weights: Path, capsys: pytest.CaptureFixture[str], workers: list[str]
) -> None:
    words = ["denoise", str(album), "--model", str(weights), *workers, "-o"]
    assert run([*words, str(album.with_name("out"))]) == 1
    shown = capsys.readouterr()
    lines = {line.partition(":")[0]: line for line in shown.out.splitlines()}
    assert lines["a.png"].startswith("a.png: estimated noise: sigma ")
    assert "JPEG hides noise" not in lines["a.png"]
    assert "; JPEG hides noise from the estimate" in lines["b.jpg"]
    assert all(lines[name].endswith(" s") for name in ("a.png", "b.jpg"))
    assert "torn.png" not in lines
    assert "torn.png: truncated" in shown.err
    assert run([*words, str(album.with_name("json")), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)["said"]
    assert said["b.jpg"][0].startswith("estimated noise")
    assert said["b.jpg"][1].startswith("JPEG hides")
    assert run([*words, str(album.with_name("quiet")), "-q"]) == 1
    assert capsys.readouterr().out == ""
    for name in ("out", "json"):  # what is printed is no part of the record
        assert "JPEG hides" not in (album.with_name(name) / "nlrn-manifest.jsonl").read_text()


def test_where_there_is_no_terminal_work_under_way_is_seen(
    album: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlrn.cli.shared.HEARTBEAT", 0.01)
    words = ["denoise", "--model", str(weights), "--sigma", "20"]
    assert run([*words, str(album), "-o", str(album.with_name("out"))]) == 1
    assert "denoising: 0 of 3 images after 0 s" in capsys.readouterr().err.splitlines()
    Image.effect_noise((300, 300), 60).save(album.with_name("large.png"))
    assert run([*words, str(album.with_name("large.png")), "-o", str(album.with_name("x.png")), "-t", "32"]) == 0
    shown = capsys.readouterr()
    assert "denoising" in shown.err
    assert "parts after" in shown.err
    assert "denoising" not in shown.out  # what another program reads
    assert run([*words, str(album.with_name("large.png")), "-o", str(album.with_name("y.png")), "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_a_stack_is_heard_of_while_its_noise_is_estimated(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlrn.cli.shared.HEARTBEAT", 0.001)
    planes = np.random.default_rng(0).integers(0, 4096, (3, 64, 64)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    assert run(["denoise", str(tmp_path / "s.tif"), "--model", str(weights)]) == 0
    assert "estimating range and noise after 0 s" in capsys.readouterr().err


MODEL = random_model()
SAMPLES = np.random.default_rng(0).integers(0, 256, (24, 20)).astype(np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        SAMPLES,
        SAMPLES.astype(np.uint16) * 257,
        np.dstack([SAMPLES] * 3),
        (SAMPLES / 255).astype(np.float32),
        Image.fromarray(SAMPLES),
        Image.merge("LA", [Image.fromarray(SAMPLES), Image.fromarray(SAMPLES).point(lambda v: 255 * (v > 60))]),
        torch.from_numpy(SAMPLES),
        torch.from_numpy(SAMPLES / 255)[None, None],
    ],
    ids=["uint8", "uint16", "colour", "floats", "PIL", "alpha", "tensor", "batch"],
)
def test_a_loaded_model_takes_what_the_call_takes(image: object) -> None:
    found = nlrn.load(MODEL).denoise(image, 25)  # type: ignore[type-var]
    expected = nlrn.denoise(image, 25, MODEL)  # type: ignore[type-var]
    assert type(found) is type(expected) is type(image)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    enlarger = random_model(task="sr", sigma_input=False)
    np.testing.assert_array_equal(
        np.asarray(nlrn.load(enlarger).upscale(image, 48, 40)),  # type: ignore[type-var]
        np.asarray(nlrn.upscale(image, 2, enlarger, denoise_first=False)),  # type: ignore[type-var]
    )


def test_what_neither_takes_is_refused_by_both_in_the_same_words() -> None:
    for wrong in (
        "photo.png",
        np.zeros((3, 3), np.int32),
        torch.zeros(3, 3, dtype=torch.int64),
        Image.new("P", (9, 9)),
    ):
        said = []
        for call in (nlrn.load(MODEL).denoise, lambda image, sigma: nlrn.denoise(image, sigma, MODEL)):
            with pytest.raises(nlrn.InputError) as error:
                call(wrong, 25)
            said.append(str(error.value))
        assert said[0] == said[1]


def test_scoring_without_the_sets_says_where_they_come_from(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NLRN_DATA", raising=False)
    for words, what in (([], "no data folder"), (["--data", ".", "--set", "set12"], "no folder set12")):
        assert run(["evaluate", "--model", str(weights), *words]) == 1
        shown = capsys.readouterr().err
        assert what in shown
        assert "docs/reproduce.md" in shown
    assert "| Set12" not in shown
    page = (ROOT / "docs" / "reproduce.md").read_text()
    assert all(f"`{name}" in page for name in ("set12`", "bsd68`", "cbsd68`", "set5/hr`", "bsd100/hr`"))


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["models"], ["denoise", "--sigma", "100"]])
def test_what_needs_no_network_does_not_wait_for_torch(words: list[str]) -> None:
    """0.05 to 0.1 s of processor time instead of 1.4; a time itself would be the machine's."""
    code = f"import sys; from nlrn.cli import run; run({words!r}); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stderr.splitlines()[-1]
    assert "'nlrn.cli'" in loaded
    for slow in ("torch", "numpy", "PIL", "rich", "asyncio"):
        assert f"'{slow}'" not in loaded, slow


def test_neither_does_the_help_of_any_command() -> None:
    names = [command.__name__.rpartition(".")[2] for command in cli.COMMANDS]
    code = f"import sys; from nlrn.cli import run\nfor name in {names!r}: run([name, '--help'])\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert done.stdout.count("usage: nlrn ") == len(names)


def test_the_list_without_torch_is_the_list() -> None:
    assert shipped_models() == nlrn.list_models()
