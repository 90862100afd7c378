"""The fused CPU kernel against the definition in float64: every instruction set, shape, type and gradient."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nlrn.errors import BackendError
from nlrn.models.checkpoint import load_model
from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.ops import (
    correlation_statistics,
    correlation_to_dense,
    cpu,
    neighborhood_attention,
    reference,
    select_backend,
    state_bytes,
)
from nlrn.ops.interface import Queries

# batch, height, width, Cm, C, window: one pixel, single rows and columns, primes, a window wider than the image,
# more rows than a tile, more columns than a vector; channels with and without a remainder
SHAPES = [
    (1, 1, 1, 4, 8, 3),
    (1, 1, 37, 3, 5, 5),
    (2, 41, 1, 16, 16, 7),
    (2, 5, 3, 16, 18, 45),
    (1, 13, 37, 32, 64, 15),
    (3, 23, 19, 20, 24, 7),
    (1, 20, 50, 17, 33, 1),
    (2, 9, 21, 8, 16, None),
]
HERE = list(cpu.INSTRUCTION_SETS)
TYPES = [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)]


@dataclass
class Case:
    """Inputs of some states in sequence, values that bf16 holds, and the weights of the loss on their outputs."""

    window: int | None
    states: list[tuple[Tensor, Tensor, Tensor]]
    weights: list[Tensor]

    @staticmethod
    def draw(shape: tuple[int | None, ...], count: int, scale: float = 0.7, seed: int = 0) -> Case:
        *size, cm, c, window = shape
        chance = torch.Generator().manual_seed(seed)

        def normal(channels: int, size: tuple[int, ...] = tuple(size), by: float = 1.0) -> Tensor:
            return (torch.randn(*size, channels, generator=chance) * by).bfloat16().double()

        by = scale * (16 / cm) ** 0.25
        states = [(normal(cm, by=by), normal(cm, by=by), normal(c)) for _ in range(count)]
        return Case(window, states, [normal(c) for _ in range(count)])

    def exact(self) -> Results:
        """By the definition, in float64, through autograd; and the floor under the norm of every gradient."""
        leaves = [x.clone().requires_grad_() for state in self.states for x in state]
        outs, carried = [], None
        for q, k, v in zip(*[iter(leaves)] * 3, strict=True):
            out, carried = reference.attend(q, k, v, self.window, carried, True)
            outs.append(out)
        loss = sum((w * out).sum() for w, out in zip(self.weights, outs, strict=True))
        gradients = list(torch.autograd.grad(loss, leaves))
        assert carried is not None
        return Results([x.detach() for x in outs], gradients, carried.detach())

    def found(self, dtype: torch.dtype, carry: bool = True, loss_scale: float = 1.0) -> Results:
        """By the kernel."""
        leaves = [x.to(dtype).requires_grad_() for state in self.states for x in state]
        outs, carried = [], None
        for q, k, v in zip(*[iter(leaves)] * 3, strict=True):
            found = neighborhood_attention(
                q, k, v, window=self.window, correlation=carried, return_correlation=carry, backend="cpu"
            )
            out, carried = found if isinstance(found, tuple) else (found, None)
            outs.append(out)
        loss = sum((w * out.double()).sum() for w, out in zip(self.weights, outs, strict=True)) * loss_scale
        gradients = list(torch.autograd.grad(loss, leaves))
        return Results([x.detach() for x in outs], gradients, None if carried is None else carried.detach())

    def floors(self) -> list[float]:
        """1e-2 |p| |dout| |v| for every gradient: below it a norm says nothing (a window of one has dq = 0)."""
        pairs = zip(self.weights, self.states, strict=True)
        norms = [float(w.norm() * v.norm()) / v[..., 0].numel() ** 0.5 for w, (_, _, v) in pairs]
        return [1e-2 * norm for norm in norms for _ in range(3)]


@dataclass
class Results:
    outs: list[Tensor]
    gradients: list[Tensor]
    correlation: Tensor | None


def error(found: Tensor, exact: Tensor, floor: float = 0.0) -> float:
    """Relative Frobenius error."""
    return float((found.double() - exact).norm()) / max(float(exact.norm()), floor)


def dense(correlation: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    batch, height, width, *_, window = shape
    return correlation_to_dense(correlation, batch=batch, height=height, width=width, window=window, backend="cpu")


@pytest.mark.pairwise
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_state_and_its_gradients(
    instruction_set: str, shape: tuple[int | None, ...], dtype: torch.dtype, tolerance: float
) -> None:
    case = Case.draw(shape, 1)
    exact, found = case.exact(), case.found(dtype, carry=False)
    assert found.outs[0].dtype == found.gradients[0].dtype == dtype
    assert error(found.outs[0], exact.outs[0]) <= tolerance
    for a, b, floor in zip(found.gradients, exact.gradients, case.floors(), strict=True):
        assert error(a, b, floor) <= tolerance


@pytest.mark.pairwise
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_three_carried_states_and_their_gradients(
    instruction_set: str, shape: tuple[int | None, ...], dtype: torch.dtype, tolerance: float
) -> None:
    case = Case.draw(shape, 3)
    exact, found = case.exact(), case.found(dtype)
    for a, b in zip(found.outs, exact.outs, strict=True):
        assert error(a, b) <= tolerance
    for a, b, floor in zip(found.gradients, exact.gradients, case.floors(), strict=True):
        assert error(a, b, floor) <= tolerance
    assert found.correlation is not None
    assert found.correlation.dtype == torch.float32
    assert bool(found.correlation.isfinite().all())
    carried = dense(found.correlation, shape)
    assert error(carried, exact.correlation) <= 1e-5
    assert bool((carried[exact.correlation == 0] == 0).all())  # outside the image


@functools.cache  # for each instruction set
def _twelve(shape: tuple[int | None, ...]) -> tuple[Case, Results]:
    case = Case.draw(shape, 12, scale=0.5)
    return case, case.exact()


@pytest.mark.parametrize("shape", SHAPES[3:6])
def test_twelve_states_without_gradients_carry_float16(instruction_set: str, shape: tuple[int | None, ...]) -> None:
    """As inference does: bf16, one correlation overwritten from state to state."""
    (case, exact), carried, first = _twelve(shape), None, None
    for (q, k, v), out in zip(case.states, exact.outs, strict=True):
        found, carried = neighborhood_attention(
            q.bfloat16(), k.bfloat16(), v.bfloat16(), window=case.window, correlation=carried,
            return_correlation=True, overwrite=True, backend="cpu",
        )  # fmt: skip
        first = carried if first is None else first
        assert carried.data_ptr() == first.data_ptr()
        assert carried.dtype == torch.float16
        assert error(found, out) <= 5e-3
    assert bool(carried.isfinite().all())


def test_a_correlation_is_overwritten_only_when_that_was_allowed() -> None:
    case = Case.draw(SHAPES[4], 2)
    (q, k, v), (q2, k2, v2) = ([x.float() for x in state] for state in case.states)
    _, first = neighborhood_attention(q, k, v, window=15, return_correlation=True, backend="cpu")
    before = first.clone()
    kept, second = neighborhood_attention(
        q2, k2, v2, window=15, correlation=first, return_correlation=True, backend="cpu"
    )
    assert torch.equal(first, before)
    alone = neighborhood_attention(q2, k2, v2, window=15, correlation=first, backend="cpu")
    over, same = neighborhood_attention(
        q2, k2, v2, window=15, correlation=first, return_correlation=True, overwrite=True, backend="cpu"
    )
    assert same is first
    assert torch.equal(same, second)
    assert torch.equal(over, kept)
    assert torch.equal(alone, kept)


def test_logits_of_any_size_neither_overflow_nor_lose_the_winner(instruction_set: str) -> None:
    q, k, v = (x.float() for x in Case.draw(SHAPES[4], 1).states[0])
    for scale in (1e2, 1e4, 1e7):
        exact, _ = reference.attend(*((scale * x).double() for x in (q, k)), v.double(), 15, None, False)
        assert error(neighborhood_attention(scale * q, scale * k, v, window=15, backend="cpu"), exact) <= 1e-4


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("carry", [False, True])
def test_gradients_at_large_logits_where_keys_tie(instruction_set: str, scale: float, carry: bool) -> None:
    """Equal keys share their weight; a log-sum-exp rounded at the size of the logits would lose the share."""
    q, k, v = (x.float() for x in Case.draw((1, 9, 20, 8, 16, 5), 1).states[0])
    k[:, :, 1::2] = k[:, :, 0::2]
    inputs = [scale * q, scale * k, v]
    weight, found = torch.randn(v.shape, generator=torch.Generator().manual_seed(1)), {}
    for backend, dtype in (("reference", torch.float64), ("tiled", torch.float32), ("cpu", torch.float32)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        result = neighborhood_attention(*leaves, window=5, return_correlation=carry, backend=backend)
        out = result[0] if carry else result
        found[backend] = torch.autograd.grad((out * weight).sum(), leaves)
    floor = float(weight.norm())
    for exact, dense_torch, kernel in zip(*found.values(), strict=True):
        assert error(kernel, exact, floor) <= 2 * error(dense_torch, exact, floor) + 1e-5


def test_float16_states_are_clamped_and_the_winner_is_kept() -> None:
    q, k, v = (x.bfloat16() for x in Case.draw(SHAPES[4], 1).states[0])
    out, state = neighborhood_attention(1000 * q, 1000 * k, v, window=15, return_correlation=True, backend="cpu")
    assert float(state.abs().max()) == 65504
    assert bool(out.isfinite().all())
    exact, _ = reference.attend((1000 * q).double(), (1000 * k).double(), v.double(), 15, None, False)
    out = neighborhood_attention(1000 * q, 1000 * k, v, window=15, backend="cpu")
    assert error(out, exact) <= 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_do_not_depend_on_the_number_of_threads(instruction_set: str, dtype: torch.dtype) -> None:
    case, before = Case.draw((5, 17, 37, 16, 24, 9), 3), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(case.found(dtype))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0].outs + results[0].gradients, other.outs + other.gradients, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)])
def test_gradients_scale_with_the_loss(dtype: torch.dtype, tolerance: float) -> None:
    case, factor = Case.draw(SHAPES[4], 3), 2.0**-20
    whole, small = case.found(dtype), case.found(dtype, loss_scale=factor)
    for a, b, floor in zip(small.gradients, whole.gradients, case.floors(), strict=True):
        assert error(a, factor * b.double(), factor * floor) <= tolerance


def test_slices_of_one_convolution_are_taken_as_they_lie() -> None:
    fused = torch.randn(2, 70, 13, 17).to(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    slices = torch.split(fused, [20, 20, 30], -1)
    assert not slices[0].is_contiguous()
    assert cpu._pixels(slices[1]) == (slices[1], 70)
    views = [x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3) for x in slices]  # columns before rows
    assert cpu._pixels(views[0])[0] is not views[0]
    apart = [x.contiguous() for x in slices]
    expected = neighborhood_attention(*apart, window=7, backend="cpu")
    for arranged in (slices, views):
        assert torch.equal(neighborhood_attention(*arranged, window=7, backend="cpu"), expected)


def test_the_statistics_of_a_whole_image_are_those_of_the_definition() -> None:
    q, k, v = (x.float() for x in Case.draw((2, 9, 21, 8, 16, None), 1).states[0])
    found = []
    for backend in ("cpu", "reference"):
        _, state = neighborhood_attention(q, k, v, window=None, return_correlation=True, backend=backend)
        found.append(correlation_statistics(state, batch=2, height=9, width=21, window=None, backend=backend))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=0)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 5)])
def test_strides_of_sides_of_length_one_say_nothing(size: tuple[int, int]) -> None:
    planes = torch.randn(3, 16, *size)  # channels first: as [B, H, W, C], contiguous with odd strides, or not
    q, k, v = (x.permute(0, 2, 3, 1) for x in (planes, 2 * planes, planes + 1))
    expected = neighborhood_attention(q, k, v, window=3, backend="reference")
    found = neighborhood_attention(q, k, v, window=3, backend="cpu")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_correlation_that_lies_apart_is_read_as_it_is_and_nothing_beside_it_written() -> None:
    case = Case.draw(SHAPES[4], 2)
    (q, k, v), (q2, k2, v2) = ([x.float() for x in state] for state in case.states)
    _, first = neighborhood_attention(q, k, v, window=15, return_correlation=True, backend="cpu")
    expected = neighborhood_attention(q2, k2, v2, window=15, correlation=first, backend="cpu")
    apart = torch.stack([first, torch.full_like(first, 7.0)], 1)
    for keep in (False, True):
        for leaf in (q2, q2.clone().requires_grad_()):
            found = neighborhood_attention(
                leaf, k2, v2, window=15, correlation=apart[:, 0], return_correlation=keep, overwrite=True, backend="cpu"
            )
            assert torch.equal(found[0] if keep else found, expected)
    assert bool((apart[:, 1] == 7).all())


@pytest.mark.pairwise
@pytest.mark.parametrize(("grad_dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize("shape", SHAPES[3:])
def test_a_gradient_of_the_correlation_goes_in_and_comes_out(
    instruction_set: str, shape: tuple[int | None, ...], grad_dtype: torch.dtype, tolerance: float
) -> None:
    """By float32 or bfloat16 numbers; the loss is on out and on the correlation itself."""
    case, window = Case.draw(shape, 1), shape[-1]
    inputs, weight = [x.float() for x in case.states[0]], case.weights[0]
    batch, height, width = shape[:3]
    state = torch.empty(cpu.state_elements(Queries(batch, height, width, window)))
    norms = torch.empty(2, batch, height, width)
    out = cpu.forward(*inputs, window, None, state, norms)
    later = torch.randn(state.shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    later *= dense_mask(shape, state)
    *found, before = cpu.backward(
        *inputs, out, weight.float(), norms, window, state, later.to(grad_dtype), grad_dtype=grad_dtype
    )
    assert before.dtype == grad_dtype
    leaves = [x.clone().requires_grad_() for x in case.states[0]]
    start = torch.zeros_like(dense(state, shape)).double().requires_grad_()
    expected_out, expected_after = reference.attend(*leaves, window, start, True)
    loss = (expected_out * weight).sum() + (expected_after * dense(later, shape)).sum()
    *exact, exact_before = torch.autograd.grad(loss, [*leaves, start])
    for a, b, floor in zip(found, exact, case.floors(), strict=True):
        assert error(a, b, floor) <= tolerance
    assert error(dense(before, shape), exact_before) <= tolerance


def dense_mask(shape: tuple[int | None, ...], state: Tensor) -> Tensor:
    """1 at the entries of a correlation of that shape that lie in the image."""
    batch, height, width, *_, window = shape
    q = torch.ones(batch, height, width, 1)
    ones = torch.empty_like(state)
    cpu.forward(q, q, q, window, None, ones)
    return ones


def test_a_gradient_of_the_correlation_in_float16_is_refused() -> None:
    q = torch.rand(1, 3, 3, 2)
    state, norms = torch.zeros(cpu.state_elements(Queries(1, 3, 3, 3))), torch.zeros(2, 1, 3, 3)
    with pytest.raises(BackendError, match=r"not in torch\.float16"):
        cpu.backward(q, q, q, q, q, norms, 3, state, None, grad_dtype=torch.float16)


def test_a_float16_correlation_meets_gradients() -> None:
    """Made without gradients from 16-bit queries, then carried on with them."""
    case = Case.draw(SHAPES[4], 2)
    (q, k, v), second = ([x.bfloat16() for x in state] for state in case.states)
    _, state = neighborhood_attention(q, k, v, window=15, return_correlation=True, backend="cpu")
    assert state.dtype == torch.float16
    leaves = [x.float().requires_grad_() for x in second]
    out, after = neighborhood_attention(*leaves, window=15, correlation=state, return_correlation=True, backend="cpu")
    exact = [x.double().requires_grad_() for x in second]
    before = dense(state, SHAPES[4]).double()
    expected, expected_after = reference.attend(*exact, 15, before, True)
    assert error(dense(after.detach(), SHAPES[4]), expected_after.detach()) <= 1e-5
    weight = case.weights[1]
    found = torch.autograd.grad((out.double() * weight).sum(), leaves)
    for a, b in zip(found, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        assert error(a, b) <= 1e-5


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_number_lost_is_not_hidden(instruction_set: str, lost: float) -> None:
    q, k, v = (x.float() for x in Case.draw((1, 5, 20, 4, 8, 3), 1).states[0])
    q[0, 2, 7, 1] = lost
    k = k.abs() + 0.1  # so that an infinite query gives infinite logits
    for carry in (False, True):
        found = neighborhood_attention(q, k, v, window=3, return_correlation=carry, backend="cpu")
        out = found[0] if carry else found
        assert bool(out[0, 2, 7].isnan().all())
        assert int(out.isnan().any(-1).sum()) == 1


def test_random_problems(count: Callable[[int], int]) -> None:
    chance = np.random.default_rng(0)
    for seed in range(count(200)):
        size = (int(n) for n in chance.integers(1, (4, 40, 40)))
        channels = (int(n) for n in chance.integers(1, 40, 2))
        case = Case.draw((*size, *channels, int(chance.choice(range(1, 30, 2)))), 2, seed=seed)
        exact, found = case.exact(), case.found(torch.float32)
        for a, b, floor in zip(
            found.outs + found.gradients, exact.outs + exact.gradients, [0.0, 0.0, *case.floors()], strict=True
        ):
            assert error(a, b, floor) <= 1e-5


# ---------------------------------------------------------------------------------------- inside PyTorch
def samples() -> Iterator[tuple[torch._ops.OpOverload, tuple[object, ...]]]:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (x.to(dtype).requires_grad_() for x in Case.draw((2, 9, 20, 8, 16, 5), 1).states[0])
        before = torch.randn(cpu.state_elements(Queries(2, 9, 20, 5))).requires_grad_()
        for carried in (None, before):
            for carry in (False, True):
                yield torch.ops.nlrn.attention.default, (q, k, v, carried, 5, carry, "cpu")
        plain = [x.detach() for x in (q, k, v, before)]
        for follows in (False, True):
            for carry in (False, True):
                yield torch.ops.nlrn.attention_.default, (*plain[:3], plain[3].clone(), follows, carry, 5, "cpu")


@pytest.mark.once
@pytest.mark.parametrize(("operator", "arguments"), list(samples()))
def test_the_operators_keep_pytorchs_rules(operator: torch._ops.OpOverload, arguments: tuple[object, ...]) -> None:
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


@pytest.fixture(scope="module")
def network() -> NLRN:
    """Small, with nothing at zero."""
    torch.manual_seed(0)
    model = NLRN(NLRNConfig(channels=16, embed_channels=8, states=3, window=5)).eval()
    torch.nn.init.normal_(model.block.non_local.g.weight, std=0.2)
    return model


def test_the_network_runs_on_it_and_gives_what_the_others_give(network: NLRN) -> None:
    x = torch.rand(1, 1, 33, 21)
    assert network.backend(33, 21) == "cpu"
    results = {}
    for name in ("cpu", "tiled"):
        network.block.non_local.backend = name
        with torch.no_grad():
            plain = network(x)
        network.zero_grad()
        network(x).square().sum().backward()
        results[name] = [plain, *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
    network.block.non_local.backend = "auto"
    largest = max(float(x.norm()) for x in results["tiled"][1:])
    for a, b in zip(results["cpu"], results["tiled"], strict=True):
        assert float((a - b).norm()) <= 1e-5 * max(float(b.norm()), 1e-3 * largest)


def test_a_correlation_that_is_only_read_stays_as_it_was_for_its_gradient() -> None:
    case = Case.draw(SHAPES[4], 2)
    (q, k, v), second = ([x.float() for x in state] for state in case.states)
    leaf = q.clone().requires_grad_()
    expected, _ = neighborhood_attention(leaf, k, v, window=15, return_correlation=True, backend="cpu")
    (wanted,) = torch.autograd.grad(expected.sum(), leaf)
    out, first = neighborhood_attention(leaf, k, v, window=15, return_correlation=True, backend="cpu")
    with torch.no_grad():
        neighborhood_attention(*second, window=15, correlation=first, backend="cpu")
    (found,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("backend", ["cpu", "tiled", "reference"])
def test_second_derivatives_are_refused_or_right(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 6, 7, 4, dtype=torch.float32, requires_grad=True) for _ in range(3))

    def penalty(name: str, dtype: torch.dtype) -> Tensor:
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        out = neighborhood_attention(*leaves, window=3, backend=name)
        gradients = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        torch.stack([g.square().sum() for g in gradients]).sum().backward()
        assert leaves[0].grad is not None
        return leaves[0].grad

    if backend == "reference":
        exact = penalty(backend, torch.float64)
        assert float((penalty(backend, torch.float32) - exact).norm()) < 1e-4 * float(exact.norm())
    else:
        with pytest.raises(RuntimeError, match=r"no second derivatives|differentiate twice"):
            penalty(backend, torch.float32)


@pytest.mark.filterwarnings("ignore")  # the compiler warns of what it does itself
def test_the_network_exports_and_compiles_whole(network: NLRN) -> None:
    x = torch.rand(1, 1, 33, 21)
    with torch.no_grad():
        expected = network(x)
        program = torch.export.export(network, (x,))
        assert any("nlrn.attention" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x), expected)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
    network.zero_grad()
    compiled(x).square().sum().backward()
    found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    network(x).square().sum().backward()
    exact = [p.grad for p in network.parameters() if p.grad is not None]
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_16_bits_leave_the_shipped_network_as_it_is() -> None:
    """At sigma 25 the bf16 result lies at least 58 dB from the float32 one."""
    model = load_model("denoise-gray-small").eval()
    rows = torch.linspace(0.2, 0.8, 96)
    x = (rows[:, None] * (1 + 0.2 * torch.sin(40 * rows)))[None, None]
    x = x + 25 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(x, 25 / 255)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(x, 25 / 255)
    assert -10 * float(torch.log10((low - exact).square().mean())) >= 58


# --------------------------------------------------------------------------------------------- refusals
def test_what_it_cannot_run_it_says() -> None:
    q = torch.rand(1, 4, 4, 3)
    assert select_backend(q, 3) == "cpu"
    for x, window, reason in [
        (q.double(), 3, "takes float32 and bfloat16, not float64"),
        (q.half(), 3, "not float16"),
        (torch.rand(1, 2, 65, 3), None, "needs a window for images of more than 64 x 64"),
        (q.to("meta"), 3, "on meta, not on the CPU"),
    ]:
        assert select_backend(x, window) == "tiled"
        with pytest.raises(BackendError, match=reason):
            select_backend(x, window, "cpu")
    narrow = cpu.state_elements(Queries(1, 4, 4, 7))
    assert state_bytes(batch=1, height=4, width=4, window=45, backend="cpu") == narrow * 4


def test_an_unknown_instruction_set_is_named() -> None:
    with pytest.raises(BackendError, match=r"'sse9'.* portable"):
        cpu.use_instruction_set("sse9")


NAMED = """
import torch
from nlrn.errors import BackendError
from nlrn.ops import cpu, neighborhood_attention
q = torch.rand(1, 9, 9, 3)
try:
    neighborhood_attention(q, q, q, window=3)
    print(cpu.instruction_set())
except BackendError as error:
    print(error)
assert neighborhood_attention(q, q, q, window=3, backend="tiled").shape == q.shape
"""


@pytest.mark.once
@pytest.mark.parametrize(
    "name", [*HERE[-1:], "sse9", *(pytest.param(n, marks=pytest.mark.slow) for n in (*HERE[:-1], ""))]
)
def test_the_instruction_set_that_the_environment_names_runs_or_is_refused(name: str) -> None:
    source = str(Path(cpu.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, cpu.VARIABLE: name}
    done = subprocess.run([sys.executable, "-c", NAMED], check=True, capture_output=True, text=True, env=environment)
    if name == "sse9":
        assert done.stdout.startswith("NLRN_INSTRUCTION_SET is 'sse9'; this processor has ")
        assert done.stdout.strip().endswith("portable: set one of them, or none")
    else:
        assert done.stdout.strip() == (name or next(iter(cpu.INSTRUCTION_SETS)))


WITHOUT = """
import sys, torch
from pathlib import Path
from nlrn.ops import cpu, neighborhood_attention, select_backend, unsupported
cpu._library, cpu.INSTRUCTION_SETS, cpu._problem_found = cpu._load(Path(sys.argv[1]))
q = torch.rand(1, 4, 4, 3)
print(select_backend(q, 3), unsupported("cpu", q, 3))
neighborhood_attention(q, q, q, window=3)
"""


@pytest.mark.once
@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "was not built"), pytest.param(b"not a library", "cannot be loaded", marks=pytest.mark.slow)],
)
def test_without_the_library_the_tiled_operator_runs_and_says_why(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "libnlrn_cpu.so"
    if content is not None:
        path.write_bytes(content)
    environment = {**os.environ, "PYTHONPATH": str(Path(cpu.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(path)], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith("tiled ")
    assert reason in done.stdout
