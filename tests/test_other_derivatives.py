"""Derivatives that the fast paths lack are refused, never left out; those they have survive checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_model
from torch import Tensor
from torch.autograd.functional import hvp
from torch.utils.checkpoint import checkpoint

from nlrn.errors import BackendError, InputError
from nlrn.models.checkpoint import load_model, save_model
from nlrn.models.nlrn import NLRN, NLRNConfig, NonLocal2d
from nlrn.ops import cpu, neighborhood_attention
from nlrn.training.norms import freeze_norms


def module(distance: str, dtype: torch.dtype = torch.float64) -> tuple[NonLocal2d, Tensor]:
    torch.manual_seed(4)
    found = NonLocal2d(3, 2, window=3, distance=distance).to(dtype)
    torch.nn.init.normal_(found.g.weight)
    return found, torch.randn(1, 3, 4, 5, dtype=dtype)


@pytest.mark.parametrize("distance", ["embedded_gaussian", "embedded_dot_product", "dot_product"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_with_the_hessian_is_refused_or_right(distance: str, dtype: torch.dtype) -> None:
    """Where no plain backward() runs through the second graph, its part was left out; by differences of gradients."""
    found, x = module(distance, dtype)

    def energy(x: Tensor) -> Tensor:
        return found(x).square().sum()

    with pytest.raises(RuntimeError, match="no second derivatives"):
        hvp(energy, x, torch.ones_like(x))
    found.backend = "reference"
    result = hvp(energy, x, torch.ones_like(x))[1]
    wide, step = found.double(), 1e-4
    gradients = []
    for sign in (1, -1):
        at = (x.double() + sign * step).requires_grad_()
        gradients.append(torch.autograd.grad(wide(at).square().sum(), at)[0])
    expected = (gradients[0] - gradients[1]) / (2 * step)
    assert float((result - expected).norm()) < (1e-6 if dtype == torch.float64 else 1e-4) * float(expected.norm())


@pytest.mark.parametrize("distance", ["embedded_dot_product", "dot_product"])
def test_the_definition_of_the_dot_products_is_a_backend(distance: str) -> None:
    found, x = module(distance)
    fast = found(x)
    found.backend = "reference"
    torch.testing.assert_close(found(x), fast, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # torch imports what it deprecates
@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_forward_mode_is_refused(backend: str) -> None:
    q, k, v = (torch.randn(1, 6, 7, c) for c in (4, 4, 5))

    def attended(q: Tensor, name: str) -> Tensor:
        out = neighborhood_attention(q, k, v, window=5, backend=name)
        assert isinstance(out, Tensor)
        return out

    with pytest.raises(RuntimeError, match=r"no forward-mode derivatives|setup_context"):
        torch.func.jvp(lambda q: attended(q, backend), (q,), (q,))
    assert float(torch.func.jvp(lambda q: attended(q, "reference"), (q,), (q,))[1].norm()) > 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_of_a_state_changes_no_gradient(reentrant: bool) -> None:
    """Its first pass runs without a gradient, where a state was overwritten that the second one reads again."""
    torch.manual_seed(0)
    network = NLRN(NLRNConfig(channels=8, embed_channels=4, states=3, window=5)).eval()
    torch.nn.init.normal_(network.block.non_local.g.weight, std=0.3)
    for embedding in network.block.non_local.embeddings:
        embedding.weight.data.mul_(4)
    x, plain = torch.rand(2, 1, 12, 13), network.block.forward

    def gradient() -> Tensor:
        network.zero_grad()
        network(x).square().mean().backward()
        found = network.block.non_local.theta.weight.grad
        assert found is not None
        return found.clone()

    expected = gradient()
    network.block.forward = lambda *given: checkpoint(plain, *given, use_reentrant=reentrant)  # type: ignore[method-assign]
    found = gradient()
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())


def test_a_state_of_another_processor_is_refused() -> None:
    """An exported program holds the size of the state; one that is too small overflowed."""
    q, k, v = (torch.randn(1, 6, 7, 4) for _ in range(3))
    with pytest.raises(BackendError, match="entries, and this processor's kernel"):
        cpu.forward(q, k, v, 5, torch.zeros(11), torch.zeros(11))


@torch.no_grad()
def test_offsets_cost_the_euclidean_distance_no_digits() -> None:
    """Only differences count, also where all features are near 1000."""
    torch.manual_seed(0)
    found = NonLocal2d(16, window=5, distance="euclidean")
    torch.nn.init.normal_(found.g.weight)
    found.g.weight -= found.g.weight.mean(1, keepdim=True)
    x = 1000 + 0.3 * torch.randn(1, 16, 9, 10)
    exact = copy.deepcopy(found).double()(x.double()) - x.double()
    result = found(x).double() - x.double()
    assert float((result - exact).std()) < 1e-3 * float((exact - exact.mean((2, 3), keepdim=True)).std())


@pytest.mark.parametrize("window", [5, None])
@pytest.mark.parametrize("distance", ["embedded_gaussian", "euclidean", "dot_product"])
def test_shapes_are_found_without_numbers_and_nothing_is_refused(distance: str, window: int | None) -> None:
    found = NonLocal2d(4, window=None if window is None else np.int64(window), distance=distance)  # type: ignore[arg-type]
    assert found.to("meta")(torch.empty(1, 4, 6, 7, device="meta")).shape == (1, 4, 6, 7)
    with pytest.raises(InputError, match=r"filled \[B, C, H, W\]"):
        NonLocal2d(4, window=window, distance=distance)(torch.empty(0, 4, 6, 7))


@pytest.mark.filterwarnings("ignore")  # torch imports what it deprecates
def test_a_compiled_network_is_saved_as_it_was(tmp_path: Path) -> None:
    model = random_model()
    save_model(tmp_path / "m.safetensors", torch.compile(model))  # type: ignore[arg-type]
    found = load_model(tmp_path / "m.safetensors").state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items() if name in found)


def test_frozen_norms_stay_frozen_under_another_window() -> None:
    model = random_model().train()
    freeze_norms(model)
    before = model.head_norm.running_mean
    assert before is not None
    before = before.clone()
    other = model.reconfigured(window=7)
    other(torch.rand(1, 1, 8, 8), 0.1)
    assert other.training
    assert not other.head_norm.training
    assert model.head_norm.running_mean is not None
    assert torch.equal(model.head_norm.running_mean, before)
