"""What people pass by mistake, and what they may pass: one clear sentence, or the result; nothing raw from below."""

from __future__ import annotations

import logging
import multiprocessing
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import random_model
from PIL import Image

import nlrn
from nlrn.cli import run
from nlrn.errors import BackendError, NLRNError
from nlrn.inference.restorer import Restorer, Settings
from nlrn.integrations.deepinv import NLRNDenoiser
from nlrn.models.checkpoint import save_model
from nlrn.system.atomic import publish

IMAGE = np.random.default_rng(0).normal(0.5, 0.1, (24, 20)).astype(np.float32)
MODEL = random_model()


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": None},
        {"sigma": True},
        {"sigma": "25"},
        {"sigma": [1, [2]]},
        {"sigma": {"sigma": 25}},
        {"sigma": 1 + 2j},
        {"sigma": torch.tensor([[1.0, 2.0]])},
        {"sigma": torch.tensor(float("nan"), requires_grad=True)},
        {"strength": "1"},
        {"strength": None},
        {"strength": np.ones(3)},
        {"level": "1"},
        {"level": None},
        {"mode": ["window"]},
        {"mode": None},
        {"noise": 3},
        {"noise": ["auto"]},
    ],
    ids=str,
)
def test_an_option_of_another_type_is_one_of_our_errors(options: dict[str, Any]) -> None:
    with pytest.raises(NLRNError) as error:
        nlrn.denoise(IMAGE, **{"sigma": 25, "model": MODEL, **options})
    assert next(iter(options)) in str(error.value)


@pytest.mark.parametrize(
    "setting", [{"tile": "32"}, {"overlap": "8"}, {"memory": "1"}, {"level": "1"}, {"tile": 32.5}, {"memory": None}]
)
def test_a_setting_of_another_type_is_one_of_our_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(NLRNError, match=next(iter(setting))):
        Settings(**setting)


@pytest.mark.parametrize(
    "sigma",
    [
        torch.tensor(25.0, requires_grad=True),
        torch.tensor([25.0]).squeeze(),
        torch.tensor(25.0, dtype=torch.bfloat16),
        torch.full((24, 20), 25.0, requires_grad=True),
        np.float32(25),
        np.int64(25),
    ],
    ids=str,
)
def test_a_level_may_be_any_number_or_map(sigma: Any) -> None:
    expected = nlrn.denoise(IMAGE, 25, MODEL)
    assert np.allclose(nlrn.denoise(IMAGE, sigma, MODEL), expected, atol=1e-5)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("kind", ["float32", "float64", "uint8", "colour", "columns", "mapped", "a map of levels"])
def test_what_may_not_be_written_draws_no_warning(tmp_path: Path, kind: str) -> None:
    sigma: Any = 25
    if kind == "mapped":
        np.save(tmp_path / "a.npy", IMAGE)
        image = np.load(tmp_path / "a.npy", mmap_mode="r")
    elif kind == "colour":
        image = _read_only(np.stack([IMAGE] * 3, -1))
    elif kind == "columns":
        image = _read_only(np.asfortranarray(IMAGE))
    elif kind == "a map of levels":
        image, sigma = IMAGE.copy(), _read_only(np.full(IMAGE.shape, 25, np.float32))
    else:
        image = _read_only((IMAGE * (255 if kind == "uint8" else 1)).astype(kind))
    before = image.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = nlrn.denoise(image, sigma, MODEL)
    assert found.shape == image.shape
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((), "()"),
        ((24,), "(24,)"),
        ((5, 24, 20), "(5, 24, 20)"),
        ((24, 20, 3), "(24, 20, 3); this looks like HWC"),
        ((2, 24, 20, 3), "(2, 24, 20, 3); this looks like BHWC"),
        ((1, 2, 24, 20), "(1, 2, 24, 20)"),
        ((1, 1, 1, 24, 20), "(1, 1, 1, 24, 20)"),
    ],
)
def test_a_tensor_that_is_refused_is_named_by_its_own_shape(shape: tuple[int, ...], words: str) -> None:
    for call in (lambda x: nlrn.denoise(x, 25), lambda x: nlrn.upscale(x, 2)):
        with pytest.raises(NLRNError) as error:
            call(torch.zeros(shape))
        assert words in str(error.value)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(NLRNError, match=str(dtype)):
            nlrn.denoise(torch.zeros(24, 20, dtype=dtype), 25)


@pytest.mark.parametrize(
    ("sigma", "hint"),
    [(0.1, "25.5"), (np.float32(0.02), "5.1"), (np.full(IMAGE.shape, 0.5), "127.5"), (25, ""), (1.0, ""), (0, "")],
    ids=["0.1", "0.02", "map", "25", "1", "0"],
)
def test_a_level_on_the_scale_of_the_image_draws_a_hint(
    sigma: Any, hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "nlrn"):
        nlrn.denoise(IMAGE, sigma, MODEL)
    assert (hint in caplog.text and "0-255" in caplog.text) if hint else not caplog.text


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((24, 20), 60).save("p.png")
    return tmp_path


def test_the_hint_is_printed_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["denoise", "p.png", "-o", "q.png", "--sigma", "0.1"]) == 0
    assert "25.5" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["-dash.png", "--two.png", "-q.png", "-d.png", "-o.png", "--sigma.png"])
def test_a_name_that_begins_with_a_dash_is_a_file(here: Path, name: str) -> None:
    (here / "p.png").rename(here / name)
    assert run(["denoise", name, "-o", "out.png", "--sigma", "25", "-q"]) == 0
    assert run(["upscale", "-q", name, "-o", "large.png"]) == 0
    assert (here / "out.png").exists()


@pytest.mark.parametrize("words", [["-none.png", "-o", "q.png"], ["p.png", "-o", "-q.png"], ["-in", "-o", "out"]])
def test_one_that_is_not_there_says_how_to_write_it(
    here: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["denoise", *words, "--sigma", "25"]) == 2
    assert "./-NAME" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["out", "out/", "./out", "{here}/out", "link"])
def test_a_folder_takes_the_result_of_one_file(here: Path, output: str) -> None:
    (here / "out").mkdir()
    (here / "link").symlink_to("out")
    assert run(["denoise", "p.png", "-o", output.format(here=here), "--sigma", "25", "-q"]) == 0
    assert [path.name for path in (here / "out").iterdir()] == ["p.png"]
    with Image.open(here / "out" / "p.png") as image:
        assert image.size == (24, 20)


def test_a_folder_does_not_take_what_would_replace(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "p.png").read_bytes()
    for output, more in ((".", []), (".", ["--overwrite"]), (str(here), ["--overwrite"])):
        assert run(["denoise", "p.png", "-o", output, "--sigma", "25", *more]) == 1
        assert "is an input" in capsys.readouterr().err
    assert (here / "p.png").read_bytes() == before
    (here / "out").mkdir()
    (here / "out" / "p.png").write_bytes(b"mine")
    assert run(["upscale", "p.png", "-o", "out"]) == 1
    assert "exists already" in capsys.readouterr().err
    Image.effect_noise((24, 20), 60).save("g.gif")
    assert run(["denoise", "g.gif", "-o", "out", "--sigma", "25", "-q"]) == 0
    assert sorted(path.name for path in (here / "out").iterdir()) == ["g.png", "p.png"]


# -- rights --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="rights are others there")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o664, 0o755, 0o606, 0o000])
def test_a_file_that_is_replaced_keeps_its_rights(here: Path, mode: int) -> None:
    target = here / "q.png"
    target.touch()
    target.chmod(mode)
    assert run(["denoise", "p.png", "-o", "q.png", "--sigma", "25", "-q", "--overwrite"]) == 0
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert target.stat().st_size > 0


@pytest.mark.skipif(os.name == "nt", reason="rights are others there")
def test_special_bits_are_not_kept_and_a_link_has_none(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(0o4700)
    publish(tmp_path / "a", b"new", overwrite=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    publish(tmp_path / "link", b"new", overwrite=True)
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "link").lstat().st_mode) == 0o666 & ~before
    assert (tmp_path / "secret").read_bytes() == b""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_is_kept_where_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0o640)
    os.chown(tmp_path / "a", 1234, 4321)
    publish(tmp_path / "a", b"new", overwrite=True)
    found = (tmp_path / "a").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o640)


# -- fork ----------------------------------------------------------------------------------------------------------

_FORKED = """
import multiprocessing, sys, numpy as np, torch, nlrn
torch.set_num_threads(2)
image = np.random.default_rng(0).normal(0.5, 0.1, (40, 40)).astype(np.float32)
def denoise(_):
    return float(nlrn.denoise(image, 25).sum())
def upscale(_):
    return float(nlrn.upscale(image, 2).sum())
def estimate(_):
    return float(nlrn.denoise(np.stack([image] * 3, -1) * np.float32([1, 0.5, 0.2]), "auto").sum())
def attention(_):
    q = torch.ones(1, 30, 30, 4)
    return float(nlrn.neighborhood_attention(q, q, q, window=5).sum())
def again(_):
    torch.set_num_threads(2)
    try:
        return nlrn.denoise(image, 25)
    except nlrn.BackendError as error:
        return str(error)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork")
def test_a_forked_process_computes_as_its_parent_did() -> None:
    code = _FORKED + (
        "calls = denoise, upscale, estimate, attention\n"
        "before = [call(0) for call in calls]\n"
        "for call, result in zip(calls, before):\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        found = pool.map_async(call, range(3)).get(120)\n"
        "    assert np.allclose(found, result, rtol=1e-5), (call, found, result)\n"
        "    assert abs(call(0) - result) < 1e-3 * abs(result), call\n"  # nor has the parent lost anything
        "assert torch.get_num_threads() == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork")
def test_more_threads_after_a_fork_are_refused_at_once() -> None:
    code = _FORKED + (
        "denoise(0)\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    print(pool.map_async(again, range(1)).get(120)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "get_context('spawn')" in done.stdout, done.stdout + done.stderr
    assert issubclass(BackendError, NLRNError)


# -- maps of levels under deepinv's convention ---------------------------------------------------------------------


def test_a_prior_takes_maps_of_levels() -> None:
    y = torch.rand(2, 1, 9, 8)
    denoiser, plain = NLRNDenoiser(MODEL.eval()), MODEL
    levels = 0.02 + 0.2 * torch.rand(2, 1, 9, 8)
    with torch.no_grad():
        assert torch.equal(denoiser(y, levels), plain(y, levels))
        assert torch.equal(denoiser(y, levels[:1]), plain(y, levels[:1]))
        assert torch.equal(denoiser(y, levels[0, 0]), plain(y, levels[:1]))
        assert torch.equal(denoiser(y, torch.full((2, 1, 9, 8), 0.1)), denoiser(y, 0.1))
        rows = torch.rand(1, 1, 9, 1) * 0.2
        assert torch.equal(denoiser(y, rows), plain(y, rows.expand(2, 1, 9, 8)))


def test_a_map_for_each_channel_goes_with_its_channel() -> None:
    y, denoiser = torch.rand(2, 3, 9, 8), NLRNDenoiser(MODEL.eval())
    levels = 0.02 + 0.2 * torch.rand(2, 3, 9, 8)
    with torch.no_grad():
        for given in (levels, levels[:1], levels[:, :1], levels[:, :, :1, :1]):
            found, full = denoiser(y, given), given.expand(2, 3, 9, 8)
            for c in range(3):
                expected = MODEL(y[:, c : c + 1], full[:, c : c + 1])
                assert torch.allclose(found[:, c : c + 1], expected, atol=1e-6)


def test_a_map_that_does_not_fit_is_refused_and_gradients_reach_one_that_does() -> None:
    y, denoiser = torch.rand(2, 1, 9, 8), NLRNDenoiser(MODEL.eval())
    for shape in ((3,), (9,), (8, 9), (2, 9, 8), (2, 1, 8, 8), (3, 1, 9, 8), (2, 3, 9, 8), (1, 2, 1, 9, 8)):
        with pytest.raises(NLRNError, match="sigma"):
            denoiser(y, torch.zeros(shape))
    colour = NLRNDenoiser(random_model(in_channels=3))
    with pytest.raises(NLRNError, match="sigma"):
        colour(torch.rand(2, 3, 9, 8), torch.zeros(2, 3, 9, 8))
    level = torch.full((2, 1, 9, 8), 0.1, requires_grad=True)
    denoiser(y, level).sum().backward()
    assert level.grad is not None
    assert bool((level.grad != 0).any())
    assert Restorer(MODEL).model is not MODEL


def test_a_model_of_another_task_is_named_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not its window, which has a default only for the mode of another, and no plan of tiles for what is refused."""
    weights, image = tmp_path / "whole.safetensors", tmp_path / "image.png"
    save_model(weights, random_model(window=None), {})
    Image.fromarray(np.rint(IMAGE.clip(0, 1) * 255).astype(np.uint8)).save(image)
    assert run(["evaluate", "--task", "sr", "--model", str(weights), "--set", "set5"]) == 2
    assert capsys.readouterr().err == "nlrn: this model is for denoise: give --task denoise\n"
    larger = tmp_path / "larger.png"
    assert run(["upscale", str(image), "-o", str(larger), "--model", str(weights), "--tile", "32"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "nlrn: this model is for denoise, not for sr: give another\n")
    assert not larger.exists()
