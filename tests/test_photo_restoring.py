"""A model that finds the noise itself: a level instead of a sigma, from every entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nlrn
from nlrn.cli import run as command
from nlrn.errors import ConfigError, InputError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.inference.restorer import Restorer, Settings
from nlrn.models.checkpoint import save_model
from nlrn.models.folded import FoldedNLRN
from nlrn.models.nlrn import NLRN, NLRNConfig

ONE = 12.0


@pytest.fixture(scope="module")
def model() -> NLRN:
    """Nobody trained it; every number counts."""
    torch.manual_seed(0)
    config = NLRNConfig(3, 8, 4, states=2, window=5, sigma_input=True, level_one=ONE)
    network = NLRN(config).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.normal_().mul_(0.2)
    return network


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).random((24, 20, 3), np.float32)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0, 2.0])
def test_the_level_is_the_plane_that_the_network_sees(model: NLRN, image: np.ndarray, level: float) -> None:
    restorer = Restorer(model, settings=Settings(precision="fp32", level=level))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = FoldedNLRN(model)(planes, level * ONE / 255)[0].permute(1, 2, 0).numpy()
    found = restorer.denoise(image)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))
    assert restorer.noise_level(image, "auto") == level * ONE
    other = Restorer(model, settings=Settings(precision="fp32", level=level + 0.01 if level < 2 else 1.9))
    assert np.abs(other.denoise(image) - found).max() > 1e-4  # it is used


def test_values_beyond_the_range_keep_the_level(model: NLRN, image: np.ndarray) -> None:
    wide = image * 3 - 1
    planes = torch.from_numpy((wide - wide.min()) / np.ptp(wide)).permute(2, 0, 1)[None]
    expected = FoldedNLRN(model)(planes, ONE / 255)[0].permute(1, 2, 0).numpy() * np.ptp(wide) + wide.min()
    found = Restorer(model, settings=Settings(precision="fp32")).denoise(wide)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * float(np.abs(expected).max()))


def test_a_sigma_is_refused(model: NLRN, image: np.ndarray) -> None:
    for sigma in (25, np.full(image.shape[:2], 25.0)):
        with pytest.raises(InputError, match="finds the noise itself"):
            nlrn.denoise(image, sigma, model)
    with pytest.raises(InputError, match="'loud'"):
        nlrn.denoise(image, "loud", model)
    with pytest.raises(ConfigError, match="receives the noise level"):
        nlrn.denoise(image, PoissonNoise(1.0), model)
    for level in (-0.1, 2.1, float("nan")):
        with pytest.raises(ConfigError, match="level must lie in"):
            nlrn.load(model, level=level)


def test_the_command_takes_a_level(
    model: NLRN, image: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "photo.safetensors", model, {"steps": "0"})
    Image.fromarray((255 * image).astype(np.uint8)).save(tmp_path / "in.png")
    words = ["denoise", str(tmp_path / "in.png"), "--model", str(tmp_path / "photo.safetensors"), "--precision", "fp32"]
    assert command([*words, "-o", str(tmp_path / "out.png"), "--level", "0.5"]) == 0
    assert "finds the noise itself; level 0.5" in capsys.readouterr().out
    restorer = nlrn.load(model, precision="fp32", level=0.5)
    expected = restorer.denoise(np.asarray(Image.open(tmp_path / "in.png")) / np.float32(255))
    found = np.asarray(Image.open(tmp_path / "out.png")) / 255
    np.testing.assert_allclose(found, expected.clip(0, 1), rtol=0, atol=0.51 / 255)
    assert command([*words, "-o", str(tmp_path / "no.png"), "--level", "3"]) == 2
    assert command([*words, "-o", str(tmp_path / "no.png"), "--sigma", "9"]) == 1
    assert not (tmp_path / "no.png").exists()
