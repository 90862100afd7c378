"""The released weights: the files that were scored, whole, inside the wheel, and as good as the results say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nlrn.errors import CheckpointError
from nlrn.evaluation.protocols import denoising, evaluate, super_resolution
from nlrn.functional.camera import noisy_at
from nlrn.inference.restorer import Restorer, Settings
from nlrn.io.datasets import scoring_set
from nlrn.models import checkpoint
from nlrn.models.checkpoint import list_models, load_model

ROOT = Path(__file__).resolve().parents[1]
EXACT = Settings(precision="fp32", tile=0)


def result(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((ROOT / "results" / f"{name}.json").read_text())
    return found


def test_every_shipped_file_is_the_one_that_was_released_and_scored() -> None:
    models = list_models()
    assert {m.path.name: m.sha256 for m in models} == checkpoint.released()
    for model in models:
        assert result(model.name)["sha256"] == model.sha256


def test_a_file_changed_after_its_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in checkpoint.WEIGHTS.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    load_model("denoise-gray-small")
    path = tmp_path / "denoise-gray-small.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="not the file that was released"):
        load_model("denoise-gray-small")


@pytest.mark.parametrize("name", ["02", pytest.param("05", marks=pytest.mark.slow)])
def test_the_scores_come_out_again(data_root: Path, name: str) -> None:
    """Two images of Set12 at every level: to 0.001 dB in float32, to 0.01 dB in bf16."""
    images = [(stem, image) for stem, image in scoring_set(data_root, "set12") if stem == name]
    published = result("denoise-gray-small")["scores"]["set12"]  # type: ignore[index]
    for settings, tolerance in ((EXACT, 0.001), (Settings(precision="bf16", tile=0), 0.01)):
        restorer = Restorer("denoise-gray-small", device="cpu", settings=settings)
        found = evaluate(restorer, {"set12": images}, denoising([15.0, 25.0, 50.0]))["set12"]
        for sigma in ("15", "25", "50"):
            again, then = (scores[sigma]["images"][name] for scores in (found, published))
            assert again[0] == pytest.approx(then[0], abs=tolerance)
            assert again[1] == pytest.approx(then[1], abs=tolerance / 10)


def test_the_scores_of_colour_and_of_super_resolution_come_out_again(data_root: Path) -> None:
    name, image = scoring_set(data_root, "cbsd68")[0]
    ways = [("denoise-color-small", "cbsd68", name, image, denoising([25.0]))]
    name, image = scoring_set(data_root, "set5")[1]
    ways.append(("sr-small", "set5", name, image, super_resolution([4])))
    for model, set_name, stem, chosen, conditions in ways:
        published = result(model)["scores"][set_name]  # type: ignore[index]
        restorer = Restorer(model, device="cpu", settings=EXACT)
        found = evaluate(restorer, {set_name: [(stem, chosen)]}, conditions)[set_name]
        for condition in conditions:
            again, then = (scores[condition.name]["images"][stem] for scores in (found, published))
            assert again == pytest.approx(then, abs=0.001)


def test_a_clean_image_stays_as_it_is_and_half_maps_are_their_halves(data_root: Path) -> None:
    """sigma = 0 keeps at least 45 dB; a map that is half 15, half 50 is within 0.1 dB of each half alone."""
    clean = dict(scoring_set(data_root, "set12"))["02"] / 255.0
    restorer = Restorer("denoise-gray-small", device="cpu", settings=EXACT)
    error = np.mean((restorer.denoise(clean, 0) - clean) ** 2)
    assert -10 * np.log10(error) >= 45
    half, noise = clean.shape[1] // 2, np.random.RandomState(0).normal(0, 1 / 255, clean.shape)
    level = np.where(np.arange(clean.shape[1]) < half, 15.0, 50.0)[None].repeat(clean.shape[0], axis=0)
    mixed = restorer.denoise(clean + noise * level, level)
    for sigma, side in ((15, slice(0, half)), (50, slice(half, None))):
        alone = restorer.denoise(clean + noise * sigma, sigma)
        one, two = (-10 * np.log10(np.mean((x - clean)[:, side] ** 2)) for x in (mixed, alone))
        assert abs(one - two) <= 0.1


@pytest.mark.parametrize("model", [info.name for info in list_models()])
@pytest.mark.parametrize("sigma", [50, *(pytest.param(sigma, marks=pytest.mark.slow) for sigma in (25, 75))])
def test_flat_images_come_back_flat(model: str, sigma: int) -> None:
    """Within 5 of 255 of every grey, the mean within 3: states that feed themselves once turned bright to white."""
    restorer = Restorer(model, device="cpu", settings=EXACT)
    config = restorer.model.config
    for grey in (0.0, 0.15, 0.5, 0.85, 1.0):
        if config.task == "sr":
            restored = restorer.upscale(np.full((sigma, 40), grey), 2 * sigma, 100)
        elif config.noise == "camera":  # which black and white clip
            noisy = noisy_at(np.full((96, 96, 3), grey), sigma / 10)
            restored = restorer.denoise(noisy, 255 * (noisy - grey).std()) - (noisy.mean() - grey)
        else:
            noise = np.random.RandomState(sigma).normal(0, sigma / 255, (96, 96, config.in_channels))
            restored = restorer.denoise(grey + noise, sigma)
        assert abs(restored.mean() - grey) < 3 / 255
        assert np.abs(restored[8:-8, 8:-8] - grey).mean() < 5 / 255


@pytest.mark.slow  # all of the kernel is compiled
def test_the_wheel_holds_weights_digests_types_the_kernel_and_the_page(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("src", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("nlrn-*.whl"))) as wheel:
        names = set(wheel.namelist())
    wanted = {f"nlrn/models/weights/{f.name}" for f in checkpoint.WEIGHTS.iterdir()} | {
        "nlrn/py.typed",
        "nlrn/ops/tiled.py",
    }
    wanted.add("nlrn/ops/libnlrn_cpu.so")
    page = checkpoint.WEIGHTS.parents[1] / "web" / "page"
    wanted |= {f"nlrn/web/page/{f.relative_to(page).as_posix()}" for f in page.rglob("*") if f.is_file()}
    assert wanted <= names
