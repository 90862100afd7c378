"""Attention over the planes before and after, and the network with it, against the oracle's one dense softmax."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from networks import random_model
from test_ops import State, distance, draw
from torch import Tensor

from nlrn.errors import InputError
from nlrn.models.folded import FoldedNLRN
from nlrn.ops import attention_over_planes, neighborhood_attention, pairs, unsupported

BACKENDS = [name for name in ("cpu", "tiled", "reference") if unsupported(name, torch.empty(1, 9, 9, 3), 5) is None]
STEPS = 3


def states(inputs: list[State], window: int | None, reach: int, backend: str) -> list[Tensor]:
    """Outputs of consecutive states, every pair's correlation carried from each to the next."""
    outputs, carried = [], None
    for step, (q, k, v) in enumerate(inputs):
        out, carried = attention_over_planes(
            q, k, v, window=window, reach=reach, correlations=carried,
            return_correlations=step + 1 < len(inputs), backend=backend,
        )  # fmt: skip
        outputs.append(out)
    assert carried is None
    return outputs


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        *((name, torch.float32, 5e-6) for name in BACKENDS),
        *((name, torch.float64, 1e-12) for name in ("tiled", "reference")),
        *((name, torch.bfloat16, 0.01) for name in BACKENDS),
    ],
)
def test_carried_states_are_one_softmax_over_all_planes(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """Ends of a stack, windows beyond the image, more planes than a pixel sees; bf16 costs the rounding of the output.

    A correlation of bf16 queries is float16 in the fused kernel: 2^-11 of a logit of up to 60, hence the tolerance.
    """
    for shape, window, reach in [
        ((3, 9, 11), 5, 1), ((1, 6, 7), 3, 2), ((2, 5, 20), 7, 1), ((5, 7, 6), 3, 2), ((3, 5, 6), None, 1),
        ((4, 1, 9), 3, 5), ((3, 8, 17), 45, 1),
    ]:  # fmt: skip
        given = [draw(shape, 3, 4, step) for step in range(STEPS)]
        carried = None
        got = states([tuple(x.to(dtype) for x in one) for one in given], window, reach, backend)  # type: ignore[misc]
        for one, out in zip(given, got, strict=True):
            expected, carried = oracle.attention_over_planes(*(x.numpy() for x in one), window, reach, carried)
            assert out.dtype == dtype
            assert distance(out, expected) <= tolerance, (shape, window, reach)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plane_that_sees_no_other_is_the_plain_attention(backend: str) -> None:
    q, k, v = (x.float() for x in draw((4, 9, 11), 3, 4))
    out, carried = attention_over_planes(q, k, v, window=5, reach=0, return_correlations=True, backend=backend)
    torch.testing.assert_close(out, neighborhood_attention(q, k, v, window=5, backend=backend), rtol=0, atol=1e-6)
    assert carried is not None
    assert len(carried) == len(pairs(4, 0)) == 4
    with pytest.raises(InputError, match="4 correlations for 10 pairs"):
        attention_over_planes(q, k, v, window=5, reach=1, correlations=carried, backend=backend)


def test_pairs_of_planes() -> None:
    assert pairs(3, 1) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert pairs(1, 3) == [(0, 0)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("propagation", "window", "reach"), [(True, 5, 1), (False, 3, 1), (True, None, 2)])
def test_the_network_over_planes(backend: str, propagation: bool, window: int | None, reach: int) -> None:
    """Convolutions and norms see one plane, the attention three or five; every plane is the oracle's."""
    model = random_model(states=3, window=window, propagation=propagation).eval()
    model.block.non_local.backend = backend
    x = torch.from_numpy(np.random.default_rng(3).random((4, 1, 9, 12), np.float32))
    params = {name: p.double().numpy() for name, p in model.state_dict().items()}
    expected, _ = oracle.nlrn(
        x.double().numpy(), params, states=3, window=window, propagation=propagation, sigma=0.1, reach=reach
    )
    alone, _ = oracle.nlrn(x.double().numpy(), params, states=3, window=window, propagation=propagation, sigma=0.1)
    network = FoldedNLRN(model)
    got = network.seeing(window, reach)(x, 0.1)
    assert distance(got, expected) <= 2e-5
    assert distance(got, alone) > 2e-4  # the planes beside it matter
    assert distance(network(x, 0.1), alone) <= 2e-5
    rounded = FoldedNLRN(model, torch.bfloat16)
    assert distance(rounded.seeing(window, reach)(x, 0.1), expected) <= 2 * distance(rounded(x, 0.1), alone) + 0.01
