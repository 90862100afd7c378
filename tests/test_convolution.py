"""The gradient of 3 x 3 kernels: against torch's in float64, on every instruction set, and where it is taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlrn.errors import BackendError
from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.ops import convolution, convolve3, cpu

# batch, height, width, in, out: one pixel, single rows and columns, primes, more rows than a band, odd channels
SHAPES = [
    (1, 1, 1, 3, 5),
    (2, 1, 37, 16, 7),
    (3, 41, 1, 8, 64),
    (2, 2, 2, 33, 1),
    (2, 23, 40, 37, 64),
    (5, 48, 48, 64, 64),
    (1, 150, 90, 40, 13),
]


def draw(shape: tuple[int, ...], *, last: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and a gradient of what comes out; `last`: the maps channels-last."""
    batch, height, width, inputs, outputs = shape
    chance = torch.Generator().manual_seed(sum(shape))
    x, gradient = (torch.randn(batch, n, height, width, generator=chance) for n in (inputs, outputs))
    if last:
        x, gradient = (t.contiguous(memory_format=torch.channels_last) for t in (x, gradient))
    return x, torch.randn(outputs, inputs, 3, 3, generator=chance), torch.randn(outputs, generator=chance), gradient


def exact(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of x, the kernel and the bias by torch's own convolution in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    return torch.autograd.grad(F.conv2d(*leaves, padding=1), leaves, gradient.double())


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [True, False])
def test_the_kernel_is_torchs_gradient(instruction_set: str, shape: tuple[int, ...], last: bool) -> None:
    x, weight, bias, gradient = draw(shape, last=last)
    _, weights, biases = exact(x, weight, bias, gradient)
    found = cpu.weight_gradient(x, gradient)
    assert found[0].shape == weight.shape
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert error(found[0], weights) <= 1e-5
    assert error(found[1], biases) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_without_the_kernel_the_gradient_is_torchs(shape: tuple[int, ...]) -> None:
    x, weight, bias, gradient = draw(shape)
    _, *expected = exact(x, weight, bias, gradient)
    for found, right in zip(convolution.weight_gradient(x.double(), gradient.double()), expected, strict=True):
        assert error(found, right) <= 1e-12


def test_the_operator_passes_gradcheck() -> None:
    chance = torch.Generator().manual_seed(0)
    sizes = ((2, 3, 4, 5), (4, 3, 3, 3), (4,))
    leaves = [torch.randn(n, generator=chance, dtype=torch.float64).requires_grad_() for n in sizes]
    assert torch.autograd.gradcheck(torch.ops.nlrn.convolution, leaves)
    torch.library.opcheck(torch.ops.nlrn.convolution, [x.float().detach().requires_grad_() for x in leaves])


def test_the_bytes_do_not_depend_on_the_number_of_threads(instruction_set: str) -> None:
    x, _, _, gradient = draw(SHAPES[4])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(cpu.weight_gradient(x, gradient))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def used(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return "convolution" in str(convolve3(x, weight, bias).grad_fn).lower().replace("convolutionbackward0", "")


def test_it_is_taken_in_training_in_float32_where_it_pays(instruction_set: str) -> None:
    x, weight, bias, gradient = draw((2, 48, 48, 64, 64))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    assert used(*leaves)
    for found, right in zip(
        torch.autograd.grad(convolve3(*leaves), leaves, gradient), exact(*leaves, gradient), strict=True
    ):
        assert error(found, right) <= 1e-5
    assert not used(x, weight.detach(), bias)
    assert not used(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert not used(x[:, :3], weight[:, :3], bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert not used(*leaves)
    with torch.no_grad():
        assert convolve3(*leaves).grad_fn is None
    small = draw((2, 8, 8, 64, 64))[:3]
    small[1].requires_grad_()
    assert used(*small) == (cpu.lanes() < 16)


def test_a_network_learns_by_it_what_it_learns_by_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = NLRN(NLRNConfig(channels=64, embed_channels=8, states=2, window=5))
    x, found = torch.rand(2, 1, 41, 43), []
    for reason in ("not today", None):
        monkeypatch.setattr(convolution, "pays", lambda x, weight, reason=reason: reason)
        model.zero_grad()
        model(x).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    scale = max(float(g.norm()) for g in found[0])
    for a, b in zip(*found, strict=True):
        assert float((a - b).norm()) <= 1e-5 * max(float(a.norm()), 1e-2 * scale)  # of some, exactly 0


@pytest.mark.parametrize("of", [0, 1, 2])
def test_second_derivatives_are_those_of_torchs_in_float64(of: int) -> None:
    """Of the gradient of the image, the kernel, the bias, by each of them."""
    x, weight, bias, _ = draw(SHAPES[4])

    def second(dtype: torch.dtype, operator: bool) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        out = torch.ops.nlrn.convolution(*leaves) if operator else F.conv2d(*leaves, padding=1)
        (gradient,) = torch.autograd.grad(out.pow(3).sum(), leaves[of], create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaves)

    for found, expected in zip(second(torch.float32, True), second(torch.float64, False), strict=True):
        assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


def test_without_the_kernel_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, gradient = draw((2, 8, 8, 64, 64))
    monkeypatch.setattr(cpu, "_library", None)
    monkeypatch.setattr(cpu, "INSTRUCTION_SETS", {})
    assert not used(x.requires_grad_(), weight.requires_grad_(), bias)
    with pytest.raises(BackendError):
        cpu.weight_gradient(x, gradient)
