"""The Triton passes against the definition: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import interpreter
import numpy as np
import oracle
import pytest
import torch
from interpreter import DEVICE
from torch import Tensor

from nlrn.errors import InputError
from nlrn.ops import reference
from nlrn.ops import triton as kernel
from nlrn.ops.interface import MASKED, Queries

STEPS = 3
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SHAPES = [  # (batch, height, width), window, Cm, C: one pixel; lines; a window over all; tiles cut both ways
    ((1, 1, 1), 3, 4, 8),
    ((2, 1, 7), 5, 16, 16),
    ((1, 5, 3), 9, 20, 24),
    ((2, 7, 11), 7, 4, 8),
    ((1, 6, 20), 3, 16, 16),
    ((1, 17, 9), 5, 20, 24),
]


@pytest.fixture(autouse=True, scope="module")
def _usable() -> None:
    interpreter.repair()  # fails where Triton is not installed


@pytest.fixture(autouse=True)
def _uncounted() -> Iterator[None]:
    """Counted for the coverage, the lines that the interpreter runs for every tile take twice as long."""
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


@dataclass
class Chain:
    """STEPS states with a carried correlation: what goes in, in a dtype, and the gradients that come from above."""

    shape: tuple[int, int, int]
    window: int
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    dout: list[Tensor]
    start: Tensor  # the correlation before the first step
    slope: Tensor  # the gradient of the last one

    def new_state(self, dtype: torch.dtype) -> Tensor:
        """Room with rubbish in it: forward has to define every entry."""
        return torch.full((*self.shape, self.window, self.window), float("nan"), device=DEVICE, dtype=dtype)


def draw(
    shape: tuple[int, int, int], window: int, cm: int, c: int, dtype: torch.dtype = F32, state: torch.dtype = F32
) -> Chain:
    """Logits of about 1, and more with every step; values that the dtypes hold exactly."""
    random = np.random.default_rng(7)

    def normal(*size: int, scale: float = 1.0, kind: torch.dtype = dtype) -> Tensor:
        return torch.from_numpy(random.normal(0, scale, size)).to(kind).to(DEVICE)

    def several(channels: int, scale: float) -> list[Tensor]:
        return [normal(*shape, channels, scale=scale) for _ in range(STEPS)]

    valid = reference.valid_offsets(*shape[1:], window, torch.device(DEVICE))
    start, slope = (normal(*shape, window, window, kind=x).masked_fill(~valid, 0) for x in (state, F32))
    q, k, v, dout = several(cm, cm**-0.25), several(cm, cm**-0.25), several(c, 1), several(c, 1)
    return Chain(shape, window, q, k, v, dout, start, slope)


Steps = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def forward(chain: Chain, state: torch.dtype = F32) -> Steps:
    """Outputs, states, norms and unrounded outputs of the steps."""
    outputs, states, norms, exacts, carried = [], [], [], [], chain.start
    for q, k, v in zip(chain.q, chain.k, chain.v, strict=True):
        after, norm = chain.new_state(state), torch.empty(2, *chain.shape, device=DEVICE)
        exact = torch.empty(v.shape, dtype=F32, device=DEVICE)
        outputs.append(kernel.forward(q, k, v, chain.window, carried, after, norm, exact))
        states.append(after)
        norms.append(norm)
        exacts.append(exact)
        carried = after
    return outputs, states, norms, exacts


def backward(chain: Chain, ran: Steps | None = None, grads: torch.dtype = F32, scale: float = 1.0) -> list[Tensor]:
    """dq, dk, dv of every step, the last first, then the gradient of the correlation before the first step."""
    _, states, norms, exacts = ran or forward(chain)
    found, later = [], (chain.slope * scale).to(grads)
    for t in reversed(range(STEPS)):
        *three, later = kernel.backward(
            chain.q[t], chain.k[t], chain.v[t], exacts[t], chain.dout[t] * scale, norms[t], chain.window,
            states[t], later, grads,
        )  # fmt: skip
        found += three
    return [*found, later]


def expected_gradients(chain: Chain) -> list[Tensor]:
    """The same by autograd in float64 over the definition."""
    steps = [[x.double().requires_grad_() for x in step] for step in zip(chain.q, chain.k, chain.v, strict=True)]
    start = chain.start.double().requires_grad_()
    loss, carried = torch.zeros((), dtype=torch.float64, device=DEVICE), start
    for (q, k, v), dout in zip(steps, chain.dout, strict=True):
        out, carried = reference.attend(q, k, v, chain.window, carried, True)
        loss = loss + (out * dout.double()).sum()
    loss = loss + (carried * chain.slope.double()).sum()
    return list(torch.autograd.grad(loss, [x for step in reversed(steps) for x in step] + [start]))


def error(found: Tensor, expected: Tensor | np.ndarray) -> float:
    """Relative, in the Frobenius norm; absolute where nothing but 0 is expected: one pixel has no gradient."""
    expected = torch.as_tensor(expected, dtype=torch.float64).cpu()
    return float((found.cpu().double() - expected).norm() / (expected.norm() if expected.norm() > 1e-9 else 1))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """To the bit, except on a GPU, where programs that differ in what they write are compiled apart."""
    for a, b in zip(found, expected, strict=True):
        assert error(a, b.cpu()) <= (0 if DEVICE == "cpu" else 1e-4)


@pytest.mark.parametrize("carry", [False, True])
def test_pytorchs_operators_run_on_it(carry: bool) -> None:
    """Gradients through nlrn::attention, and nlrn::attention_ in place, are those of the definition."""
    chain = draw((1, 5, 9), 5, 4, 8)
    leaves = [[x[t].clone().requires_grad_() for x in (chain.q, chain.k, chain.v)] for t in range(STEPS)]
    exact = [[x.detach().double().requires_grad_() for x in step] for step in leaves]
    before = expected = None
    loss = total = torch.zeros((), dtype=torch.float64, device=DEVICE)
    state = torch.empty(kernel.state_elements(Queries(1, 5, 9, 5)), device=DEVICE)
    for t in range(STEPS):
        out, _, _, after = torch.ops.nlrn.attention(*leaves[t], before, 5, carry, "gpu")
        reference_out, now = reference.attend(*exact[t], 5, expected, True)
        plain = [x.detach() for x in leaves[t]]
        again = torch.ops.nlrn.attention_(*plain, state, carry and t > 0, carry, 5, "gpu")
        assert error(again, out.detach().cpu()) <= 1e-6
        before, expected = (after, now) if carry else (None, None)
        loss = loss + (out.double() * chain.dout[t].double()).sum()
        total = total + (reference_out * chain.dout[t].double()).sum()
    found = torch.autograd.grad(loss, [x for step in leaves for x in step])
    gradients = torch.autograd.grad(total, [x for step in exact for x in step])
    for a, b in zip(found, gradients, strict=True):
        assert error(a, b) <= 1e-5


# ---------------------------------------------------------------------------------------- the definition
@pytest.mark.parametrize(
    ("shape", "window", "cm", "c", "dtype", "state", "tolerance", "state_tolerance"),
    [
        pytest.param(*shape, *kind, marks=[pytest.mark.slow] * (i == 5 or (i not in (1, 2) and kind[0] != F32)))
        for i, shape in enumerate(SHAPES)
        for kind in [(F32, F32, 1e-5, 1e-6), (BF16, F32, 4e-3, 1e-6), (F16, F16, 2e-3, 1e-3)]
    ],
)
def test_three_carried_states_and_their_gradients(
    shape: tuple[int, int, int], window: int, cm: int, c: int,
    dtype: torch.dtype, state: torch.dtype, tolerance: float, state_tolerance: float,
) -> None:  # fmt: skip
    chain = draw(shape, window, cm, c, dtype, state)
    ran = outputs, states, norms, exacts = forward(chain, state)
    batch, height, width = shape
    mask = oracle.neighbours(height, width, window)
    carried = np.zeros((batch, *mask.shape))
    carried[:, mask] = (
        chain.start.cpu()
        .double()
        .numpy()[:, reference.valid_offsets(height, width, window, torch.device("cpu")).numpy()]
    )
    for t in range(STEPS):
        q, k, v = (x[t].cpu().double().numpy() for x in (chain.q, chain.k, chain.v))
        out, carried = oracle.attention(q, k, v, window, carried)
        dense = kernel.to_dense(states[t], Queries(*shape, window))
        windowed = oracle.windowed(np.where(mask, carried, 0), height, width, window)
        assert (outputs[t].dtype, states[t].dtype) == (dtype, state)
        assert error(outputs[t], out) <= tolerance
        assert error(exacts[t].to(dtype), outputs[t].cpu()) == 0
        assert error(dense, windowed) <= state_tolerance
        assert bool((dense.cpu()[torch.as_tensor(windowed == 0)] == 0).all())
        lse = np.log(np.where(mask, np.exp(carried), 0).sum(-1)).reshape(shape)
        assert error(norms[t][0] + norms[t][1].log(), lse) <= state_tolerance
    for found, gradient in zip(backward(chain, ran), expected_gradients(chain), strict=True):
        assert error(found, gradient) <= tolerance


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_nothing_is_carried(dtype: torch.dtype) -> None:
    """The first state of a net without propagation: p is found again from q.k in both passes of the gradient."""
    chain = draw((2, 5, 11), 5, 4, 24, dtype)
    q, k, v, dout = (x[0] for x in (chain.q, chain.k, chain.v, chain.dout))
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    expected, _ = reference.attend(*leaves, chain.window, None, False)
    gradients = torch.autograd.grad((expected * dout.double()).sum(), leaves)
    norm, exact = torch.empty(2, *chain.shape, device=DEVICE), torch.empty(v.shape, device=DEVICE)
    out = kernel.forward(q, k, v, chain.window, None, None, norm, exact)
    *found, none = kernel.backward(q, k, v, exact, dout, norm, chain.window, None, None)
    assert none is None
    for a, b in zip([out, *found], [expected.detach(), *gradients], strict=True):
        assert a.dtype == dtype
        assert error(a, b) <= (1e-5 if dtype == F32 else 4e-3)


@pytest.mark.parametrize("scale", [1.0, pytest.param(10.0, marks=pytest.mark.slow), 30.0])
@pytest.mark.parametrize("carry", [False, True])
def test_gradients_at_large_logits_where_keys_tie(scale: float, carry: bool) -> None:
    """Equal keys share their weight; a log-sum-exp rounded at the size of the logits would lose the share."""
    chain = draw((1, 5, 12), 5, 8, 16)
    q, k, v, dout = chain.q[0] * scale * 8, chain.k[0].clone() * scale, chain.v[0], chain.dout[0]
    k[:, :, 1::2] = k[:, :, 0::2]
    after = chain.new_state(F32) if carry else None
    norms, exact = torch.empty(2, *chain.shape, device=DEVICE), torch.empty(v.shape, device=DEVICE)
    kernel.forward(q, k, v, chain.window, None, after, norms, exact)
    found = kernel.backward(q, k, v, exact, dout, norms, chain.window, after, None)[:3]
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out, _ = reference.attend(*leaves, chain.window, None, False)
        gradients.append(torch.autograd.grad((out * dout.to(dtype)).sum(), leaves))
    floor = float(dout.norm())
    # Logits that were not carried are computed anew: where their products are summed in another order, as some
    # processors' matrix products do here, they differ by their rounding.
    largest = float((q[0, :, :, None, None] * k[0]).sum(-1).abs().max().detach())
    again = 0.0 if carry else largest * 2**-24
    for kernels, exactly, definition in zip(found, *gradients, strict=True):
        lost = [float((x.double() - exactly).norm()) / max(float(exactly.norm()), floor) for x in (kernels, definition)]
        assert lost[0] <= 2 * lost[1] + 1e-5 + again


def test_the_output_is_the_same_whatever_else_is_written() -> None:
    chain = draw((1, 6, 9), 5, 4, 8)
    step = (chain.q[0], chain.k[0], chain.v[0], chain.window, chain.start)
    written, _, norms, _ = forward(chain)
    assert_same([kernel.forward(*step, None, None)], written[:1])
    assert_same(
        [kernel.forward(*step, None, norm := torch.empty(2, *chain.shape, device=DEVICE)), norm], [written[0], norms[0]]
    )


# ------------------------------------------------------------------------------------ the state in memory
@pytest.mark.parametrize("state", [pytest.param(F32, marks=pytest.mark.slow), F16])
def test_in_place_is_out_of_place(state: torch.dtype) -> None:
    chain = draw((1, 6, 9), 5, 4, 8, state=state)
    outputs, states, norms, _ = forward(chain, state)
    carried = chain.start.clone()
    for q, k, v, out, after, norm in zip(chain.q, chain.k, chain.v, outputs, states, norms, strict=True):
        norm_here = torch.empty_like(norm)
        found = kernel.forward(q, k, v, chain.window, carried, carried, norm_here)
        assert_same([found, carried, norm_here], [out, after, norm])


def test_results_repeat_to_the_bit_and_do_not_depend_on_what_lay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = draw((2, 3, 9), 5, 4, 8)
    first = [*(ran := forward(chain))[0], *backward(chain, ran)]
    real = torch.empty

    def dirty(*size: object, **more: object) -> Tensor:
        return real(*size, **more).fill_(1e4)

    monkeypatch.setattr(torch, "empty", dirty)
    for a, b in zip(first, [*(ran := forward(chain))[0], *backward(chain, ran)], strict=True):
        assert torch.equal(a, b)


def test_float16_saturates_and_the_softmax_is_that_of_what_is_kept() -> None:
    chain = draw((1, 3, 5), 3, 4, 8)
    q, k, v = chain.q[0] * 400, chain.k[0] * 400, chain.v[0]
    after = chain.new_state(F16)
    out = kernel.forward(q, k, v, chain.window, None, after, None)
    valid = reference.valid_offsets(3, 5, chain.window, torch.device(DEVICE))
    _, exact = reference.attend(q.double(), k.double(), v.double(), chain.window, None, True)
    assert float(exact.min()) < -7e4
    assert float(exact.max()) > 7e4
    assert error(after, exact.clamp(-65504, 65504).cpu()) <= 1e-3
    assert float(after.abs().max()) == 65504
    logits = after.double().masked_fill(~valid, -torch.inf).flatten(3).softmax(-1).view_as(exact)
    values = torch.nn.functional.pad(v.double(), (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    assert error(out, torch.einsum("bhwij,bhwcij->bhwc", logits, values).cpu()) <= 1e-5


def test_a_number_lost_is_not_hidden() -> None:
    chain = draw((1, 4, 5), 3, 4, 8)
    chain.q[0][0, 1, 2, 3] = torch.nan
    after = chain.new_state(F16)
    out = kernel.forward(chain.q[0], chain.k[0], chain.v[0], chain.window, None, after, None)
    lost = torch.zeros(1, 4, 5, dtype=torch.bool, device=DEVICE)
    lost[0, 1, 2] = True
    assert torch.equal(out.isnan().all(-1), lost)
    assert torch.equal(out.isnan().any(-1), lost)
    assert torch.equal(after.isnan().flatten(3).all(-1), lost)


def test_32_bit_and_64_bit_numbers_of_entries_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = draw((1, 5, 9), 5, 4, 8)
    narrow = [*(ran := forward(chain))[1], *backward(chain, ran)]
    monkeypatch.setattr(kernel, "_NARROW", 0)
    assert_same([*(ran := forward(chain))[1], *backward(chain, ran)], narrow)


@pytest.mark.parametrize("block", [1 << 24, 80, 1])
def test_rows_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(reference, "ROWS_BLOCK", block)
    sizes, window = (2, 5, 4), 3
    at = Queries(*sizes, window)
    (state, *_) = forward(chain := draw(sizes, window, 4, 8))[1]
    outside = ~reference.valid_offsets(*sizes[1:], window, torch.device(DEVICE))
    expected = state.view(*sizes, window, window).float().masked_fill(outside, MASKED).view(2, 20, 9)
    found = torch.full_like(expected, torch.nan)
    blocks = 0
    for (b, y, x), logits in kernel.rows(state, at):
        part = found.view(*sizes, -1)[b, y, x]
        part.copy_(logits.view(part.shape))
        blocks += 1
    assert torch.equal(found, expected)
    assert blocks == {1 << 24: 2, 80: 6, 1: 10}[block]  # images; rows of 4 * 9 logits, two together; each
    assert kernel.state_elements(at) == chain.new_state(F16).numel()


# --------------------------------------------------------------------------------------- layouts, numbers
def _fused(chain: Chain) -> list[tuple[Tensor, ...]]:
    """q, k, v as they come out of one channels_last 1x1 convolution: slices of [B, Cm + Cm + C, H, W]."""
    cm, c = chain.q[0].shape[-1], chain.v[0].shape[-1]
    maps = [torch.cat(step, -1).permute(0, 3, 1, 2) for step in zip(chain.q, chain.k, chain.v, strict=True)]
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    return [x.permute(0, 2, 3, 1).split((cm, cm, c), -1) for x in maps]


def _odd(chain: Chain) -> list[tuple[Tensor, ...]]:
    """Rows and columns exchanged in memory for q and v, channels first for k."""
    turned = ([x.transpose(1, 2).contiguous().transpose(1, 2) for x in y] for y in (chain.q, chain.v))
    planes = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in chain.k]
    q, v = turned
    return list(zip(q, planes, v, strict=True))


@pytest.mark.parametrize("arrange", [_fused, _odd])
def test_strides_change_nothing(arrange: Callable[[Chain], list[tuple[Tensor, ...]]]) -> None:
    chain = draw((2, 3, 5), 3, 4, 8)
    plain = [*(ran := forward(chain))[0], *backward(chain, ran)]
    steps = arrange(chain)
    assert not any(x.is_contiguous() for x in steps[0])
    chain.q, chain.k, chain.v = (list(x) for x in zip(*steps, strict=True))
    chain.dout = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in chain.dout]
    assert_same([*(ran := forward(chain))[0], *backward(chain, ran)], plain)


@pytest.mark.parametrize(("cm", "c"), [(1, 1), (33, 130), (300, 270)])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_every_line_of_the_blocks(dtype: torch.dtype, cm: int, c: int) -> None:
    chain = draw((1, 3, 4), 3, cm, c, dtype)
    for found, gradient in zip(backward(chain), expected_gradients(chain), strict=True):
        assert error(found, gradient) <= (1e-5 if dtype == F32 else 2e-3)


@pytest.mark.parametrize(
    ("dtype", "grads", "factor", "tolerance"),
    [(F32, F32, 1e-6, 1e-5), (BF16, F32, 2**-20, 1e-6), (F32, BF16, 2**-20, 1e-6)],
)
def test_gradients_scale_with_the_loss(dtype: torch.dtype, grads: torch.dtype, factor: float, tolerance: float) -> None:
    """By a power of two where something is kept in bfloat16, so that it is rounded alike."""
    chain = draw((1, 3, 9), 5, 4, 8, dtype)
    ran = forward(chain)
    whole, small = backward(chain, ran, grads), backward(chain, ran, grads, factor)
    assert whole[-1].dtype == grads
    for a, b, exact in zip(small, whole, expected_gradients(chain), strict=True):
        assert error(a.double() / factor, b.cpu()) <= tolerance
        assert error(b, exact) <= (1e-5 if dtype == grads == F32 else 4e-3 if dtype == BF16 else 6e-3)


def test_a_gradient_of_float16_inputs_smaller_than_float16_holds_still_moves_the_state() -> None:
    """dS of a mean loss: every product with dS has to keep its exponent, whatever the type of q and k."""
    chain = draw((1, 5, 9), 5, 4, 8, F16)
    chain.slope, chain.dout = chain.slope * 1e-7, [x * 0 for x in chain.dout]
    chain.q = [x * 256 for x in chain.q]  # so that dk, float16 itself, can be seen
    chain.k = [x / 256 for x in chain.k]
    _, dk, *_ = backward(chain)
    dk_expected = expected_gradients(chain)[1]
    assert float((chain.slope.half().float() - chain.slope).norm() / chain.slope.norm()) > 0.05
    assert error(dk, dk_expected) <= 4e-3


# ------------------------------------------------------------------------------------------------ refusals
def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.zeros(1, 4, 5, 8, device=DEVICE)
    wide = torch.zeros(1, device=DEVICE).expand(1, 1, 40_000, 8)
    assert (kernel.unsupported(q, 45) is None) == (DEVICE == "cuda")
    assert "whole image" in str(kernel.unsupported(q, None))
    assert "float64" in str(kernel.unsupported(q.double(), 3))
    assert "512 channels, not 513" in str(kernel.unsupported(q[..., :1].expand(1, 4, 5, 513), 3))
    assert "32000 columns" in str(kernel.unsupported(wide, 40_001))
    assert "tensors are on cpu" in str(kernel.unsupported(q.cpu(), 3))
    monkeypatch.setattr(kernel, "_INSTALLED", False)
    assert "not installed" in str(kernel.unsupported(q, 3))


def test_what_is_not_kept_or_does_not_fit_is_refused() -> None:
    chain = draw((1, 2, 2), 3, 4, 8)
    with pytest.raises(InputError, match="float16"):
        backward(chain, grads=F16)
    with pytest.raises(InputError, match=r"4 and 1009 channels.* 1024"):
        kernel.forward(chain.q[0], chain.k[0], chain.v[0].repeat(1, 1, 1, 127)[..., :1009], 3, None, None, None)


@pytest.mark.slow
def test_every_pass_compiles_for_real_gpus(tmp_path: Path) -> None:
    """To machine code of compute capability 9.0 (bf16) and 8.0 (float32), within their shared memory."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(Path(kernel.__file__).parents[2]), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).with_name("compiled.py"))]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()
    assert len(lines) == 12
    for line in lines:
        *_, shared, made = line.split()
        assert made == "True"
        assert int(shared) <= 160 << 10
