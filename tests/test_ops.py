"""The operator against the oracle's dense masked softmax: values, gradients, precision, memory, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

from nlrn.errors import BackendError, InputError
from nlrn.ops import (
    BACKENDS,
    correlation_of_pixel,
    correlation_statistics,
    correlation_to_dense,
    neighborhood_attention,
    reference,
    select_backend,
    state_bytes,
    unsupported,
)
from nlrn.ops.tiled import BLOCK, strips

NAMES = ["reference", "tiled"]  # the ones in plain torch, float64-capable; the fused kernel has tests of its own
SHAPES = [(1, 1, 1), (2, 1, 19), (1, 31, 1), (3, 7, 5), (1, 17, 8), (2, 9, 16), (1, 23, 41)]  # B, H, W
WINDOWS = [1, 3, 5, 7, 15, 45, None]
STEPS = 3
State = tuple[Tensor, Tensor, Tensor]


def draw(shape: tuple[int, ...], cm: int, c: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> State:
    """q, k, v whose logits reach about 20; values that float16 and wider types hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(*shape, n, generator=generator, dtype=torch.float64) for n in (cm, cm, c))
    return tuple((x * scale).bfloat16().to(dtype) for x, scale in ((q, 1.5), (k, 1.5), (v, 1)))


def run(inputs: list[State], window: int | None, backend: str) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and correlations of consecutive states, the correlation carried from each to the next."""
    outputs, states, carried = [], [], None
    for q, k, v in inputs:
        out, carried = neighborhood_attention(
            q, k, v, window=window, correlation=carried, return_correlation=True, backend=backend
        )
        outputs.append(out)
        states.append(carried)
    return outputs, states


def dense(correlation: Tensor, q: Tensor, window: int | None, backend: str) -> Tensor:
    batch, height, width = q.shape[:3]
    return correlation_to_dense(correlation, batch=batch, height=height, width=width, window=window, backend=backend)


@cache
def expected(shape: tuple[int, int, int], window: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The oracle's outputs and windowed S of STEPS states."""
    outputs, states, carried = [], [], None
    for step in range(STEPS):
        out, carried = oracle.attention(*(x.numpy() for x in draw(shape, 3, 4, step)), window, carried)
        outputs.append(out)
        states.append(oracle.windowed(carried, *shape[1:], window))
    return outputs, states


def distance(a: Tensor, b: np.ndarray | Tensor) -> float:
    """max |a - b| / max |b|."""
    b = torch.as_tensor(b, dtype=torch.float64)
    return float((a.double() - b).abs().max() / b.abs().max())


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.pairwise
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", NAMES)
def test_three_carried_states_are_the_dense_masked_softmax(
    backend: str, shape: tuple[int, int, int], window: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    inputs = [draw(shape, 3, 4, step, dtype) for step in range(STEPS)]
    for out, state, out_expected, state_expected in zip(
        *run(inputs, window, backend), *expected(shape, window), strict=True
    ):
        assert out.dtype == state.dtype == dtype
        assert distance(out, out_expected) <= tolerance
        found = dense(state, inputs[0][0], window, backend)
        assert found.shape == state_expected.shape
        assert distance(found, state_expected) <= tolerance
        assert bool((found[torch.as_tensor(state_expected == 0)] == 0).all())  # outside the image


@pytest.mark.parametrize("backend", NAMES)
def test_random_sizes_and_windows(backend: str, count: Callable[[int], int]) -> None:
    random = np.random.default_rng(0)
    for seed in range(count(400)):
        batch, height, width = (int(n) for n in random.integers(1, (4, 26, 26)))
        cm, c = (int(n) for n in random.integers(1, 8, 2))
        window = random.choice([None, *range(1, 30, 2)])
        inputs = [draw((batch, height, width), cm, c, seed + step) for step in range(2)]
        outputs, states = run(inputs, window, backend)
        carried = None
        for state, out, qkv in zip(states, outputs, inputs, strict=True):
            exact, carried = oracle.attention(*(x.numpy() for x in qkv), window, carried)
            assert distance(out, exact) <= 1e-12
            found = dense(state, qkv[0], window, backend)
            assert distance(found, oracle.windowed(carried, height, width, window)) <= 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", NAMES)
def test_keeping_the_correlation_does_not_change_the_output(backend: str, shape: tuple[int, int, int]) -> None:
    q, k, v = draw(shape, 3, 4)
    for window in WINDOWS:
        out, state = neighborhood_attention(q, k, v, window=window, return_correlation=True, backend=backend)
        alone = neighborhood_attention(q, k, v, window=window, backend=backend)
        assert isinstance(alone, Tensor)
        torch.testing.assert_close(alone, out, rtol=0, atol=1e-14)
        again = neighborhood_attention(q, k, v, window=window, correlation=state, backend=backend)
        assert isinstance(again, Tensor)
        torch.testing.assert_close(again, run([(q, k, v)] * 2, window, backend)[0][1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", NAMES)
def test_a_window_that_covers_the_image_is_global_attention(backend: str) -> None:
    q, k, v = draw((2, 11, 6), 3, 4)
    covering, everything = (neighborhood_attention(q, k, v, window=window, backend=backend) for window in (21, None))
    flat = [x.flatten(1, 2) for x in (q, k, v)]
    torch_global = torch.nn.functional.scaled_dot_product_attention(*flat, scale=1.0).view(v.shape)
    assert distance(covering, everything) <= 1e-14
    assert distance(everything, torch_global) <= 1e-13


@pytest.mark.parametrize("backend", NAMES)
def test_a_window_of_one_returns_the_values(backend: str) -> None:
    q, k, v = draw((2, 19, 10), 3, 4)
    assert torch.equal(neighborhood_attention(q, k, v, window=1, backend=backend), v)


@pytest.mark.parametrize("window", [5, 45, None])
@pytest.mark.parametrize("backend", NAMES)
def test_the_carried_sum_is_one_dot_product_of_concatenated_embeddings(backend: str, window: int | None) -> None:
    inputs = [draw((2, 9, 19), 3, 4, step) for step in range(STEPS)]
    outputs, states = run(inputs, window, backend)
    q, k = (torch.cat([state[i] for state in inputs], -1) for i in (0, 1))
    (out,), (state,) = run([(q, k, inputs[-1][2])], window, backend)
    assert distance(outputs[-1], out) <= 1e-13
    assert distance(dense(states[-1], q, window, backend), dense(state, q, window, backend)) <= 1e-13


def test_large_logits_neither_overflow_nor_lose_the_winner() -> None:
    q, k, v = draw((1, 9, 9), 3, 4, dtype=torch.float32)
    for backend in NAMES:
        out = neighborhood_attention(1000 * q, 1000 * k, v, window=5, backend=backend)
        best, _ = oracle.attention(1000 * q.numpy(), 1000 * k.numpy(), v.numpy(), 5)
        assert distance(out, best) <= 1e-6


# --------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize(("shape", "window"), [((1, 9, 2), 3), ((2, 2, 3), 5), ((1, 3, 3), None), ((1, 2, 2), 1)])
@pytest.mark.parametrize("backend", NAMES)
def test_gradients_of_q_k_v_and_the_correlation(backend: str, shape: tuple[int, ...], window: int | None) -> None:
    _, (carried,) = run([draw(shape, 2, 2, 1)], window, backend)
    inputs = [x.requires_grad_() for x in (*(0.3 * x for x in draw(shape, 2, 2)), carried)]

    def both(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        out, after = run_one(q, k, v, s)
        return out, dense(after, q, window, backend)

    def run_one(q: Tensor, k: Tensor, v: Tensor, s: Tensor, keep: bool = True) -> tuple[Tensor, ...]:
        found = neighborhood_attention(q, k, v, window=window, correlation=s, return_correlation=keep, backend=backend)
        return found if isinstance(found, tuple) else (found,)

    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradcheck(lambda *x: run_one(*x, keep=False), inputs)
    assert torch.autograd.gradcheck(
        lambda q, k, v: neighborhood_attention(q, k, v, window=window, backend=backend), inputs[:3]
    )


def gradients(
    inputs: list[State], window: int | None, backend: str, scale: float = 1.0, autocast: bool = False
) -> list[Tensor]:
    """Of a loss over the outputs of three states and the last correlation, for every q, k, v."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        leaves = [[x.detach().requires_grad_() for x in state] for state in inputs]
        outputs, states = run(leaves, window, backend)
        loss = sum(((t + 1) * (x.double() - 0.3) ** 2).sum() for t, x in enumerate(outputs))
        loss = loss + 1e-3 * dense(states[-1], leaves[0][0], window, backend).double().square().sum()
        return list(torch.autograd.grad(loss * scale, [x for state in leaves for x in state]))


def strided(x: Tensor) -> Tensor:
    """The same values in another memory order."""
    return x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)


@pytest.mark.parametrize("layout", [torch.clone, strided])
@pytest.mark.parametrize("window", [3, 7, 45, None])
def test_tiled_gradients_are_those_of_the_definition(window: int | None, layout: object) -> None:
    inputs = [draw((2, 17, 21), 3, 4, step) for step in range(STEPS)]
    arranged = [tuple(layout(x) for x in state) for state in inputs]
    assert arranged[0][0].is_contiguous() == (layout is torch.clone)
    found = gradients(arranged, window, "tiled")
    for a, b in zip(found, gradients(inputs, window, "reference"), strict=True):
        assert distance(a, b) <= 1e-12


def test_a_map_of_several_blocks_and_a_batch_taken_apart() -> None:
    shape = (2, 29, 51)
    blocks = list(strips(*shape[1:], None))
    assert len(blocks) > 1
    assert blocks[0].queries * 29 * 51 * 2 > BLOCK
    inputs = [draw(shape, 2, 2, step) for step in range(2)]
    found = gradients(inputs, None, "tiled")
    for a, b in zip(found, gradients(inputs, None, "reference"), strict=True):
        assert distance(a, b) <= 1e-12


@pytest.mark.parametrize(
    ("dtype", "factor", "tolerance"), [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 2**-20, 3e-3)]
)
@pytest.mark.parametrize("backend", NAMES)
def test_gradients_scale_with_the_loss(backend: str, dtype: torch.dtype, factor: float, tolerance: float) -> None:
    inputs = [draw((1, 17, 12), 3, 4, step, dtype) for step in range(STEPS)]
    whole, small = gradients(inputs, 5, backend), gradients(inputs, 5, backend, scale=factor)
    for a, b in zip(small, whole, strict=True):
        assert distance(a, factor * b.double()) <= tolerance


def test_an_output_left_unused_gets_no_gradient() -> None:
    leaves = [x.requires_grad_() for x in draw((1, 9, 9), 3, 4)]
    for backend in NAMES:
        _, (state,) = run([tuple(leaves)], 5, backend)
        dq, dk, dv = torch.autograd.grad(dense(state, leaves[0], 5, backend).sum(), leaves, materialize_grads=True)
        assert min(float(dq.abs().max()), float(dk.abs().max())) > 0
        assert not dv.any()


# --------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("backend", NAMES)
def test_16_bit_inputs_cost_one_rounding_of_the_output(backend: str, dtype: torch.dtype, step: float) -> None:
    shape = (2, 9, 16)
    outputs, states = run([draw(shape, 3, 4, n, dtype) for n in range(STEPS)], 7, backend)
    for out, state, exact in zip(outputs, states, expected(shape, 7)[0], strict=True):
        assert (out.dtype, state.dtype) == (dtype, torch.float32)
        error = (out.double() - torch.as_tensor(exact)).abs()
        assert bool((error <= step * torch.as_tensor(exact).abs() + 2e-5).all())


@pytest.mark.parametrize("backend", NAMES)
def test_autocast_lowers_no_precision(backend: str) -> None:
    inputs = [draw((1, 9, 16), 3, 4, step, torch.float32) for step in range(STEPS)]
    plain = run(inputs, 5, backend)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(inputs, 5, backend)
    for a, b in zip((*plain[0], *plain[1]), (*cast[0], *cast[1]), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


def test_autocast_around_the_backward_pass_of_tiled_changes_nothing() -> None:
    inputs = [draw((1, 9, 16), 3, 4, step, torch.float32) for step in range(STEPS)]
    found = gradients(inputs, 5, "tiled", autocast=True)
    for a, b in zip(found, gradients(inputs, 5, "tiled"), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------ memory
MEMORY = """
import sys
import torch
from nlrn.ops import neighborhood_attention, tiled

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def work(height, width):
    q, k, v = (torch.rand(1, height, width, 4).requires_grad_() for _ in range(3))
    if sys.argv[1] == "attention":
        neighborhood_attention(q, k, v, window=45, backend="tiled").sum().backward()
    else:
        tiled.average(q, k, v, 45).sum().backward()

torch.set_num_threads(1)
work(96, 96)
for width in (128, 256):
    before = peak()
    work(128, width)
    print(peak() - before)
"""


@pytest.mark.parametrize("what", ["attention", pytest.param("average", marks=pytest.mark.slow)])
@pytest.mark.once
def test_tiled_memory_does_not_grow_with_the_window(what: str) -> None:
    """Forward and backward in a fresh process that has its masks: what larger images add to its peak."""
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # what is freed goes back at once, as in test_inference
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, what], check=True, capture_output=True, text=True, env=environment
    )
    first, doubled = (int(line) for line in done.stdout.split())
    logits = 128 * 128 * 45 * 45 * 4  # 133 MB were they kept, in forward or backward; inputs and outputs: 2 MB
    assert first < logits // 32
    assert doubled < logits // 32


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_state_bytes_are_the_bytes_that_are_carried(shape: tuple[int, int, int], backend: str) -> None:
    for window in WINDOWS:
        _, (state,) = run([draw(shape, 3, 4)], window, backend)
        batch, height, width = shape
        size = state_bytes(batch=batch, height=height, width=width, window=window, backend=backend, itemsize=8)
        assert size == state.numel() * state.element_size()


# --------------------------------------------------------------------------------------------- statistics
@pytest.mark.pairwise
@pytest.mark.parametrize("window", [1, 7, 45, None])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", NAMES)
def test_statistics_are_the_exponential_of_the_entropy_and_the_largest_logit(
    backend: str, shape: tuple[int, int, int], window: int | None
) -> None:
    batch, height, width = shape
    inputs = [draw(shape, 3, 4, step) for step in range(STEPS)]
    carried = None
    for q, k, v in inputs:
        _, carried = oracle.attention(q.numpy(), k.numpy(), v.numpy(), window, carried)
    p = oracle.masked_softmax(carried, oracle.neighbours(height, width, window))
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1).reshape(shape)
    effective, largest = correlation_statistics(
        run(inputs, window, backend)[1][-1],
        batch=batch, height=height, width=width, window=window, backend=backend,
    )  # fmt: skip
    np.testing.assert_allclose(effective.numpy(), np.exp(entropy), rtol=2e-5)
    mask = oracle.neighbours(height, width, window)
    assert largest == pytest.approx(abs(np.where(mask, carried, 0)).max(), rel=1e-6)


@pytest.mark.parametrize("window", [1, 5, 15, None])
@pytest.mark.parametrize("shape", [(2, 1, 19), (1, 17, 8), (1, 23, 41)])
@pytest.mark.parametrize("backend", [*NAMES, "cpu"])
def test_one_pixels_correlations_are_its_entry_of_the_dense_ones(
    backend: str, shape: tuple[int, int, int], window: int | None
) -> None:
    inputs = [draw(shape, 3, 4, 0, torch.float32)]
    state = run(inputs, window, backend)[1][0]
    expected = dense(state, inputs[0][0], window, backend)
    batch, height, width = shape
    sizes = {"batch": batch, "height": height, "width": width, "window": window, "backend": backend}
    for pixel in np.ndindex(shape):
        found = correlation_of_pixel(state, pixel, **sizes)
        assert found.shape == expected[pixel].shape
        if window is None:
            assert torch.equal(found, expected[pixel])
        else:
            valid = reference.valid_offsets(height, width, window, state.device)[pixel[1:]]
            assert torch.equal(found[valid], expected[pixel][valid])
            assert not found[~valid].any()
    for pixel in ((batch, 0, 0), (0, -1, 0), (0, 0, width)):
        with pytest.raises(InputError, match="outside"):
            correlation_of_pixel(state, pixel, **sizes)


# ----------------------------------------------------------------------------------------------- refusals
def test_backends_are_chosen_by_name_or_by_preference() -> None:
    q, _, _ = draw((1, 4, 4), 3, 4)
    for name in NAMES:
        assert unsupported(name, q, 3) is None
        assert select_backend(q, 3, name) == name
    assert select_backend(q, None) == "tiled"
    assert "'fast'" in str(unsupported("fast", q, 3))
    assert all(name in str(unsupported("fast", q, 3)) for name in BACKENDS)


def test_a_backend_that_does_not_exist_is_refused_everywhere() -> None:
    q, k, v = draw((1, 4, 4), 3, 4)
    sizes = {"batch": 1, "height": 4, "width": 4, "window": 3}
    for call in (
        lambda: select_backend(q, 3, "fast"),
        lambda: neighborhood_attention(q, k, v, window=3, backend="fast"),
        lambda: correlation_to_dense(q, **sizes, backend="fast"),
        lambda: correlation_statistics(q, **sizes, backend="fast"),
        lambda: state_bytes(**sizes, backend="fast"),
    ):
        with pytest.raises(BackendError, match="'fast'"):
            call()


@pytest.mark.parametrize("backend", NAMES)
def test_bad_inputs_are_refused_by_value(backend: str) -> None:
    q, k, v = draw((2, 5, 6), 3, 4)
    cases: list[tuple[State, int | None, str]] = [
        ((q[0], k, v), 3, r"q must be .* \(5, 6, 3\)"),
        ((q, k, v[:, :0]), 3, r"v must be .* \(2, 0, 6, 4\)"),
        ((q, k.float(), v), 3, "k is torch.float32 on cpu"),
        ((q.long(), k.long(), v.long()), 3, "q is torch.int64"),
        ((q, k, v.to("meta")), 3, "v is torch.float64 on meta"),
        ((q, k[..., :2], v), 3, r"\(2, 5, 6, 3\), \(2, 5, 6, 2\), \(2, 5, 6, 4\)"),
        ((q, k[:, :4], v), 3, r"\(2, 4, 6, 3\)"),
        ((q, k, v[:1]), 3, r"\(1, 5, 6, 4\)"),
        ((q, k, v), 4, "not 4"),
        ((q, k, v), 0, "not 0"),
        ((q, k, v), -3, "not -3"),
    ]
    for (a, b, c), window, message in cases:
        with pytest.raises(InputError, match=message):
            neighborhood_attention(a, b, c, window=window, backend=backend)


@pytest.mark.parametrize("backend", NAMES)
def test_a_correlation_that_does_not_belong_is_refused(backend: str) -> None:
    q, k, v = draw((1, 9, 11), 3, 4)
    _, (state,) = run([(q, k, v)], 5, backend)
    _, (other,) = run([(q, k, v)], 7, backend)
    refused = [
        (other, f"{other.numel()} entries.* {state.numel()}"),
        (state.flatten()[1:], f"{state.numel() - 1} entries"),
        (state.float(), "torch.float32 on cpu.* torch.float64"),
        (state.half(), "torch.float16"),
        (state.to("meta"), "on meta"),
    ]
    for wrong, message in refused:
        with pytest.raises(InputError, match=message):
            neighborhood_attention(q, k, v, window=5, correlation=wrong, backend=backend)
    for read in (correlation_to_dense, correlation_statistics):
        with pytest.raises(InputError, match=f"{other.numel()} entries"):
            read(other, batch=1, height=9, width=11, window=5, backend=backend)


def test_a_correlation_of_another_backend_is_refused() -> None:
    q, k, v = draw((1, 9, 11), 3, 4)
    for backend, other in pairwise([*NAMES, NAMES[0]]):
        _, (state,) = run([(q, k, v)], 5, other)
        with pytest.raises(InputError, match=f"{state.numel()} entries"):
            neighborhood_attention(q, k, v, window=5, correlation=state, backend=backend)


@pytest.mark.parametrize("block", [1, 3000, 7000, 1 << 20])
def test_how_many_tiles_are_worked_on_together_changes_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """From one tile of one image at a time to whole strips of the batch."""
    shape, inputs = (3, 11, 61), [draw((3, 11, 61), 3, 4, step) for step in range(STEPS)]
    monkeypatch.setattr("nlrn.ops.tiled.BLOCK", block)
    assert max(strip.count for strip in strips(*shape[1:], 5)) >= 5
    found = gradients(inputs, 5, "tiled")
    for a, b in zip(found, gradients(inputs, 5, "reference"), strict=True):
        assert distance(a, b) <= 1e-12
