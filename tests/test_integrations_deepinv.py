"""The denoiser under deepinv's convention: the network itself, gradients, and a real plug-and-play deblurring."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vision  # noqa: F401  # what deepinv imports
from networks import random_model

from nlrn.errors import ConfigError, InputError
from nlrn.integrations.deepinv import NLRNDenoiser
from nlrn.models.checkpoint import load_model, save_model

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "plug_and_play.py"


def test_it_is_the_network_with_sigma_on_the_same_scale() -> None:
    model = random_model().eval()
    denoiser, y = NLRNDenoiser(model), torch.rand(2, 1, 9, 8)
    with torch.no_grad():
        for sigma in (0.1, torch.tensor(0.1), torch.tensor([0.1]), torch.tensor([[0.1]])):
            assert torch.equal(denoiser(y, sigma), model(y, 0.1))
        each = torch.tensor([0.05, 0.2])
        for sigma in (each, each.view(2, 1, 1, 1)):
            assert torch.equal(denoiser(y, sigma), model(y, each))
        assert torch.allclose(denoiser(y, each)[1], model(y[1:], 0.2)[0], atol=1e-6)
        assert denoiser(y.double(), 0.1).dtype == torch.float64


def test_colour_goes_channel_by_channel_through_a_grey_model() -> None:
    model, y, sigma = random_model().eval(), torch.rand(2, 3, 9, 8), torch.tensor([0.05, 0.2])
    with torch.no_grad():
        found = NLRNDenoiser(model)(y, sigma)
        for c in range(3):
            assert torch.allclose(found[:, c : c + 1], model(y[:, c : c + 1], sigma), atol=1e-6)
        colour = random_model(in_channels=3).eval()
        assert torch.equal(NLRNDenoiser(colour)(y, sigma), colour(y, sigma))


def test_gradients_reach_the_image_the_level_and_the_weights() -> None:
    """In float64, against finite differences, as an unfolded network needs them."""
    denoiser = NLRNDenoiser(random_model().eval().double())
    y, sigma = torch.rand(1, 2, 5, 4, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    assert torch.autograd.gradcheck(denoiser, (y.requires_grad_(), sigma.requires_grad_()))
    denoiser(y, sigma).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in denoiser.parameters())


def test_models_come_by_name_and_file_and_others_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "w.safetensors", random_model())
    y = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        found = NLRNDenoiser(tmp_path / "w.safetensors")(y, 0.1)
        assert torch.equal(found, load_model(tmp_path / "w.safetensors")(y, 0.1))
        assert torch.equal(NLRNDenoiser()(y, 0.1), load_model("denoise-gray-small")(y, 0.1))
    for changes in ({"sigma_input": False}, {"sigma_input": False, "task": "sr"}):
        with pytest.raises(ConfigError, match="receives the noise level"):
            NLRNDenoiser(random_model(**changes))
    with pytest.raises(InputError, match=r"\[B, C, H, W\]"):
        NLRNDenoiser()(y[0], 0.1)
    with pytest.raises(InputError, match="sigma must be a number"):
        NLRNDenoiser()(y, torch.tensor([0.1, 0.2]))


@pytest.mark.slow
def test_deblurring_beats_total_variation_tuned_on_the_answer() -> None:
    """deepinv's own solver and physics; the prior is the only difference, and TV's strength is the best for truth."""
    spec = importlib.util.spec_from_file_location("plug_and_play", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = sys.modules["plug_and_play"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    truth = example.photograph(size=96)
    found = example.deblurred(truth, sigma=2.0)
    assert truth.shape == (96, 96)
    assert found.strengths[0] < found.strength < found.strengths[-1]  # the best lies inside the grid
    assert found.tv >= found.tv_converged - 0.5  # TV's solver is not what holds it back
    assert found.ours >= max(found.tv, found.tv_converged) + 0.5
    assert found.tv >= found.blurred + 2
    assert np.isfinite(found.images[2][1]).all()


def test_a_narrow_image_is_restored_on_its_own_range() -> None:
    """The same law as of nlrn.denoise, image by image of a batch, and with gradients."""
    denoiser = NLRNDenoiser()
    random = torch.Generator().manual_seed(0)
    x = 0.1 * torch.rand(1, 3, 24, 24, generator=random, dtype=torch.float64).cumsum(-1) / 24 + 0.3
    with torch.no_grad():
        first = denoiser(x, 0.01)
        for a, b in ((0.5, 0.2), (1e-2, 0.5), (1e-3, 0.0)):
            assert ((denoiser(a * x + b, 0.01 * a) - b) / a - first).abs().max() < 1e-4 + 1e-6 / a
        wide = torch.rand(1, 3, 24, 24, generator=random, dtype=torch.float64)
        both = denoiser(torch.cat([x, wide]), torch.tensor([0.01, 0.1]))
        assert (both[:1] - first).abs().max() < 1e-4
        assert (both[1:] - denoiser(wide, 0.1)).abs().max() < 1e-4
        hot = x.clone()
        hot[..., 3, 3] = 4.0
        assert (denoiser(hot, 0.01) - first)[..., 12:].abs().max() < 0.01
    x.requires_grad_()
    denoiser(x, 0.01).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
