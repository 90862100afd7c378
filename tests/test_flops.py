"""torch.utils.flop_counter with the formulas of the fused operators, against the definition's work counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.ops import FLOP_FORMULAS, neighborhood_attention
from nlrn.ops.flops import clipped_pairs
from nlrn.training.norms import freeze_norms

HEIGHT, WIDTH, WINDOW = 9, 20, 5
EMBED, CHANNELS, STATES = 8, 16, 3


def counted(run: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which test_gpu.py must do first

    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("window", [WINDOW, None])
def test_the_operator_counts_two_products_a_pair_forward_and_its_backward_five_or_four(window: int | None) -> None:
    q, k, v = (torch.randn(2, HEIGHT, WIDTH, n, requires_grad=True) for n in (EMBED, EMBED, CHANNELS))
    pairs = 2 * clipped_pairs(HEIGHT, WIDTH, window)
    forward = 2 * pairs * (EMBED + CHANNELS)
    with torch.no_grad():
        assert counted(lambda: neighborhood_attention(q, k, v, window=window, backend="cpu")) == forward
    alone = counted(lambda: neighborhood_attention(q, k, v, window=window, backend="cpu").sum().backward())
    assert alone == forward + 2 * pairs * (3 * EMBED + 2 * CHANNELS)

    def carried() -> None:
        out, correlation = neighborhood_attention(q, k, v, window=window, return_correlation=True, backend="cpu")
        (out.sum() + correlation.sum()).backward()

    assert counted(carried) == forward + 2 * pairs * (2 * EMBED + 2 * CHANNELS)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_counts_its_convolutions_and_its_pairs(training: bool) -> None:
    config = NLRNConfig(in_channels=1, channels=CHANNELS, embed_channels=EMBED, states=STATES, window=WINDOW)
    model = NLRN(config, backend="cpu").eval()
    freeze_norms(model)
    image = torch.rand(1, 1, HEIGHT, WIDTH)
    with torch.set_grad_enabled(training):
        found = counted((lambda: model(image).sum().backward()) if training else (lambda: model(image)))
    pixels, pairs = HEIGHT * WIDTH, clipped_pairs(HEIGHT, WIDTH, WINDOW)
    first = last = 2 * 9 * CHANNELS
    state = 2 * CHANNELS * (2 * 9 * CHANNELS + 2 * EMBED + CHANNELS)
    expected = pixels * (first + last + STATES * state) + STATES * pairs * 2 * (EMBED + CHANNELS)
    if training:  # the convolutions twice, the first one too: a batch norm stands before it
        expected += 2 * pixels * (first + last + STATES * state) + STATES * pairs * 4 * (EMBED + CHANNELS)
    assert found == expected
