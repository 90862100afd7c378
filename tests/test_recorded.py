"""Training on noise that stands in files: what makes a batch, the loss of halves, and a short run of each kind."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from toy import CPU, sha256_of_tensors, trainer

import nlrn
from nlrn.cli import run
from nlrn.errors import ConfigError, InputError
from nlrn.models.nlrn import NLRN
from nlrn.training.config import TrainConfig, read_recipe
from nlrn.training.data import Batches
from nlrn.training.distributed import Processes
from nlrn.training.optim import batch_loss
from nlrn.training.pairs import HalvedBatch
from nlrn.training.recorded import NEIGHBORS

SIDE = 48
KINDS = {"pairs": "clean", "noise2noise": "again", "neighbor2neighbor": "noisy"}
RECIPE = """
name = "own"
loss = "mse"
validate_every = 100
norm_batches = 4

[model]
in_channels = {channels}
channels = 8
embed_channels = 4
states = 2
window = 5

[data]
folders = ["{folder}"]
{noisy}
validation = "{folder}"
{validation_noisy}
validation_images = 1
validation_size = 32

[noise]
kind = "{kind}"

[schedule]
steps = 40
warmup = 5

[[stages]]
start = 0
patch = 12
batch = 4

[[stages]]
start = 20
patch = 16
batch = 5
frozen = true
"""


def write(folder: Path, kind: str, channels: int = 1) -> Path:
    """The recipe of a kind, beside its data."""
    paired = kind != "neighbor2neighbor"
    path = folder / f"{kind}-{channels}.toml"
    path.write_text(
        RECIPE.format(
            kind=kind,
            channels=channels,
            folder=KINDS[kind],
            noisy='noisy = ["noisy"]' if paired else "",
            validation_noisy='validation_noisy = "noisy"' if paired else "",
        )
    )
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16-bit images whose clean value is 65,535 less the noisy one, and a second noisy one that is half of it."""
    root, random = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for name in ("noisy", "clean", "again"):
        (root / name).mkdir()
    for i in range(3):
        noisy = random.integers(0, 65536, (SIDE, SIDE + i)).astype(np.uint16)
        for name, image in (("noisy", noisy), ("clean", 65535 - noisy), ("again", noisy // 2)):
            tifffile.imwrite(root / name / f"{i}.tif", image)
    return root


def config_of(files: Path, kind: str, channels: int = 1, **changes: Any) -> TrainConfig:
    return dataclasses.replace(read_recipe(write(files, kind, channels)), **changes)


def batches(files: Path, kind: str, channels: int = 1, processes: Processes | None = None) -> Batches:
    return Batches(config_of(files, kind, channels), files, processes or Processes(CPU))


@pytest.mark.parametrize("channels", [1, 3])
def test_input_and_target_of_a_pair_are_of_one_place(files: Path, channels: int) -> None:
    """The same place and orientation, all 16 bits: their sum is 1 everywhere, and no 256 values suffice."""
    batch = batches(files, "pairs", channels)(3)
    assert batch.degraded.shape == batch.clean.shape == (4, channels, 12, 12)
    assert batch.sigma is None
    assert (batch.degraded + batch.clean - 1).abs().max() < 1e-6
    levels = batch.degraded * 255
    assert (levels - levels.round()).abs().max() > 0.4


def test_either_of_two_noisy_images_is_the_target(files: Path) -> None:
    """One is half of the other; which is the input is drawn."""
    make, darker = batches(files, "noise2noise"), []
    for step in range(60):
        batch = make(step)
        ratio = (batch.degraded.mean((1, 2, 3)) / batch.clean.mean((1, 2, 3))).numpy()
        assert np.all((np.abs(ratio - 0.5) < 1e-2) | (np.abs(ratio - 2) < 1e-2))
        darker += list(ratio < 1)
    assert 0.4 < np.mean(darker) < 0.6  # of 270; five standard deviations are 0.15


def test_halves_are_neighbours_of_each_cell(files: Path) -> None:
    """By loops over the definition: every pixel comes from its cell, two that share an edge, in all eight ways."""
    batch = batches(files, "neighbor2neighbor")(2)
    assert isinstance(batch, HalvedBatch)
    whole, first, second = batch.halves
    assert whole.shape == (4, 1, 24, 24)
    assert batch.degraded.shape == batch.clean.shape == (4, 1, 12, 12)
    ways = set()
    for b in range(4):
        for y in range(12):
            for x in range(12):
                at = [divmod(int(chosen[b, y, x]), 2) for chosen in (first, second)]
                assert abs(at[0][0] - at[1][0]) + abs(at[0][1] - at[1][1]) == 1
                ways.add((at[0], at[1]))
                for (dy, dx), half in zip(at, (batch.degraded, batch.clean), strict=True):
                    assert half[b, 0, y, x] == whole[b, 0, 2 * y + dy, 2 * x + dx]
    assert len(ways) == len(NEIGHBORS) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_see_the_batch_of_one(files: Path, kind: str) -> None:
    for step in (0, 30):  # 4 places, then 5
        whole = batches(files, kind)(step)
        parts = [batches(files, kind, processes=Processes(CPU, rank, 2))(step) for rank in range(2)]
        for name in ("degraded", "clean"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_the_loss_of_halves_by_hand(files: Path) -> None:
    """Equation 6 of the source, in float64; no gradient flows through the whole image."""
    config = config_of(files, "neighbor2neighbor")
    torch.manual_seed(0)
    model = NLRN(config.model).double().eval()
    seen = batches(files, "neighbor2neighbor")(0)
    assert isinstance(seen, HalvedBatch)
    batch = HalvedBatch.made_of(seen.halves._replace(whole=seen.halves.whole.double()))
    found = batch_loss(model, batch, config, nullcontext)
    found.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    halves = batch.halves.of(model(batch.halves.whole).detach())
    error = model(batch.degraded) - batch.clean
    expected = error.square().mean() + 2 * (error - (halves[0] - halves[1])).square().mean()
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_each_kind_resumes_to_the_same_bytes_and_its_weights_restore(
    files: Path, tmp_path: Path, kind: str
) -> None:
    recipe = write(files, kind)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(["train", str(recipe), "-o", str(whole), "--data", str(files), "-q"]) == 0
    subject = trainer(recipe, parts, checkpoint_minutes=0.0)
    parts.mkdir()
    subject.start(resume=False)
    while subject.step < 10:
        subject.train_step()
        subject.step += 1
    subject.save()
    assert run(["train", str(recipe), "-o", str(parts), "--data", str(files), "-q", "--resume"]) == 0
    assert sha256_of_tensors(whole / "own.safetensors") == sha256_of_tensors(parts / "own.safetensors")
    image = tifffile.imread(files / "noisy" / "0.tif")
    restored = nlrn.denoise(image, model=str(whole / "own.safetensors"))
    assert restored.shape == image.shape
    assert np.isfinite(restored).all()


def test_clean_images_of_16_bits(files: Path) -> None:
    """With white noise added: the image is not rounded to 8 bits. A narrow image is seen on its own range."""
    narrow = files / "narrow"
    narrow.mkdir()
    values = np.random.default_rng(1).integers(1000, 2001, (SIDE, SIDE)).astype(np.uint16)
    tifffile.imwrite(narrow / "a.tif", values)
    base = read_recipe(write(files, "pairs"))
    data = dataclasses.replace(base.data, folders=("narrow",), noisy=(), validation_noisy="", depth=16)
    noise = dataclasses.replace(base.noise, kind="gaussian", low=5.0, high=5.0)
    batch = Batches(dataclasses.replace(base, data=data, noise=noise), files, Processes(CPU))(0)
    spread = float(batch.clean.max() - batch.clean.min())
    assert 0.95 < spread < 1.05  # of the type's range it is 1.5 %
    levels = batch.clean * 255
    assert (levels - levels.round()).abs().max() > 0.4


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("pairs", {"data": {"noisy": ()}}, "data.noisy for each of data.folders"),
        ("pairs", {"data": {"validation_noisy": ""}}, "data.validation_noisy"),
        ("noise2noise", {"loss": "rms"}, "its targets are noisy"),
        ("neighbor2neighbor", {"loss": "rms"}, "its targets are noisy"),
        ("neighbor2neighbor", {"data": {"noisy": ("noisy",)}}, "no data.noisy"),
        ("neighbor2neighbor", {"noise": {"regularization": -1.0}}, "from 0 on, not -1"),
        ("pairs", {"model": {"sigma_input": True}}, "sigma_input = false"),
        ("pairs", {"noise": {"low": 5.0}}, "leave noise.low and noise.high out"),
        ("pairs", {"noise": {"kind": "gaussian", "low": 5.0, "high": 5.0}}, "for noise that stands in files"),
        ("pairs", {"image_range": 255}, "image_range"),
        ("pairs", {"data": {"depth": 12}}, "must be 8 or 16"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(files: Path, kind: str, changes: dict[str, Any], words: str) -> None:
    config = config_of(files, kind)
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(
            config,
            **{
                name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
                for name, value in changes.items()
            },
        )


def test_files_that_are_no_pairs_are_named(files: Path, tmp_path: Path) -> None:
    for name in ("noisy", "clean"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", np.zeros((SIDE, SIDE), np.uint16))
    tifffile.imwrite(tmp_path / "noisy" / "b.tif", np.zeros((SIDE, SIDE), np.uint16))
    config = config_of(files, "pairs")
    with pytest.raises(InputError, match="b is in only one of"):
        Batches(config, tmp_path, Processes(CPU))
    tifffile.imwrite(tmp_path / "clean" / "b.tif", np.zeros((SIDE, SIDE + 1), np.uint16))
    with pytest.raises(InputError, match=r"b is \(48, 48\)"):
        Batches(config, tmp_path, Processes(CPU))
    (tmp_path / "noisy" / "a.tiff").write_bytes((tmp_path / "noisy" / "a.tif").read_bytes())
    with pytest.raises(InputError, match="two files of the name a, with different endings"):
        Batches(config, tmp_path, Processes(CPU))


def test_two_exposures_of_other_brightness_are_no_pair(tmp_path: Path) -> None:
    """Of a target four times as bright half would be cut off."""
    random = np.random.default_rng(0)
    short = random.integers(20000, 30000, (SIDE, SIDE))
    for name, image in (("noisy", short // 4), ("clean", short)):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", image.astype(np.uint16))
    with pytest.raises(InputError, match=r"target of a lies far beyond the range of its input: .* equally bright"):
        Batches(config_of(tmp_path, "pairs"), tmp_path, Processes(CPU))
