"""The folded network is the network: the same numbers, in memory that does not grow with its states."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from nlrn.errors import InputError
from nlrn.models.checkpoint import load_model
from nlrn.models.folded import FoldedNLRN
from nlrn.models.nlrn import NLRN, NLRNConfig

NARROW = {"channels": 6, "embed_channels": 3, "window": 5}


def random_model(config: NLRNConfig) -> NLRN:
    """Nothing at zero or one: every parameter and statistic is drawn."""
    torch.manual_seed(0)
    model = NLRN(config).eval()
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.dim() == 1:
            tensor.normal_().mul_(0.5).add_(1.0 if "norm" in name and "weight" in name else 0.0)
        elif tensor.is_floating_point():
            tensor.mul_(1.2) if bool(tensor.any()) else tensor.normal_().mul_(0.3)
    return model


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    "config",
    [
        NLRNConfig(states=1, **NARROW),
        NLRNConfig(states=4, **NARROW),
        NLRNConfig(states=3, propagation=False, **NARROW),
        NLRNConfig(states=3, in_channels=3, sigma_input=True, **NARROW),
        NLRNConfig(states=2, **{**NARROW, "window": None}),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_it_gives_what_the_network_gives(config: NLRNConfig, backend: str) -> None:
    model = random_model(config)
    model.block.non_local.backend = backend
    x = torch.rand(2, config.in_channels, 13, 18)
    levels: list[float | Tensor | None] = [None]
    if config.sigma_input:
        levels = [0.1, torch.tensor([0.05, 0.2]), torch.rand(1, 1, 13, 18)]
    folded = FoldedNLRN(model)
    for sigma in levels:
        with torch.no_grad():
            expected = model(x, sigma)
        assert float((expected - x).abs().max()) > 0.1
        found = folded(x, sigma)
        assert found.dtype == torch.float32
        assert distance(found, expected) <= 2e-5
        if config.window is not None:
            with torch.no_grad():
                other = model.reconfigured(window=3)(x, sigma)
            assert distance(folded.seeing(3)(x, sigma), other) <= 2e-5
            assert distance(other, expected) > 1e-3
    assert torch.equal(folded(x, sigma), found)  # nothing of it was changed


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_16_bits_leave_the_shipped_network_as_it_is(sigma: int) -> None:
    """The bf16 result lies at least 58 dB from the float32 one."""
    model = load_model("denoise-gray-small")
    rows = torch.linspace(0.2, 0.8, 96)
    x = (rows[:, None] * (1 + 0.2 * torch.sin(40 * rows)))[None, None]
    x = x + sigma / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    exact, low = (FoldedNLRN(model, dtype)(x, sigma / 255) for dtype in (torch.float32, torch.bfloat16))
    assert -10 * float(torch.log10((low - exact).square().mean())) >= 58


def test_the_callers_autocast_changes_nothing() -> None:
    model, x = load_model("denoise-gray-small"), torch.rand(1, 1, 24, 24)
    for dtype in (torch.float32, torch.bfloat16):
        folded = FoldedNLRN(model, dtype)
        alone = folded(x, 0.1)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(folded(x, 0.1), alone)


def test_a_model_in_training_mode_and_missing_levels_are_refused() -> None:
    model = random_model(NLRNConfig(states=1, sigma_input=True, **NARROW))
    with pytest.raises(InputError, match="noise level"):
        FoldedNLRN(model)(torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match="eval mode"):
        FoldedNLRN(model.train())


MEMORY = """
import sys
import torch
from nlrn.models.folded import FoldedNLRN
from nlrn.models.nlrn import NLRN, NLRNConfig

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
x = torch.rand(1, 1, 160, 160)
before = peak()
for states in (2, 12):
    model = NLRN(NLRNConfig(channels=16, embed_channels=8, states=states, window=15)).eval()
    FoldedNLRN(model, getattr(torch, sys.argv[1]))(x)
    print(peak() - before)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_does_not_grow_with_the_states(dtype: str) -> None:
    """Peaks of one process, which only rise. The allocator gives every block back at once: with its moving threshold
    the peak also counts the holes between blocks, which differ by tens of megabytes between calls of one model too.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", MEMORY, dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    two, twelve = map(int, done.stdout.split())
    state = 160 * 160 * 15 * 15 * 2
    assert two > state
    assert twelve - two < state / 2  # twelve states kept would be eleven more
