"""Growth: a network starts with few recurrent states and a small window, and gains more at the start of a stage.

The convolutions are shared by all states and a window has no parameters, so that only batch norms are added. New states
are put before the others and begin with nearly no update: every state adds the first features, so what the old ones
receive then is what they received before, and the network continues to compute nearly what it was trained to compute.
Behind the others, with the last one's batch norms, they would see features that nothing has prepared
(docs/training.md).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from nlrn.models.nlrn import NLRNConfig
from nlrn.training.config import Stage, TrainConfig

LOGITS = 0.1  # a new state's features before its attention, as a share: its logits are the square of that
UPDATE = 0.02  # what a new state adds to the first features, about, as a share of what the first one did

_NORM = re.compile(r"(model|ema|optim)\.block\.norm([123])\.(\d+)\.(.+)")


def grown(tensors: dict[str, Tensor], states: int) -> dict[str, Tensor]:
    """A training state, as `nlrn.training.state.pack` makes it, of a network with `states` recurrent states or more.

    New states begin as the first one but for weight and bias of their first batch norm (times LOGITS) and of their
    third (times UPDATE), in the averages too. Of the moments the sizes of the gradients are taken, not their direction:
    with moments of zero the optimiser's first steps would have the full rate. The statistics stay as they are: measured
    again after they were frozen they would not be those that the weights were trained under.
    """
    norms = {name: match for name in tensors if (match := _NORM.fullmatch(name))}
    added = states - 1 - max(int(match[3]) for match in norms.values())
    result = {name: value for name, value in tensors.items() if name not in norms}
    for name, (part, kind, t, rest) in ((name, match.groups()) for name, match in norms.items()):
        value, place = tensors[name], f"{part}.block.norm{kind}"
        result[f"{place}.{int(t) + added}.{rest}"] = value
        for new in range(added) if int(t) == 0 else ():
            result[f"{place}.{new}.{rest}"] = _begun(value, part, kind, rest)
    if added:  # what the old first state receives lies higher by this bias
        mean = f"model.block.norm1.{added}.running_mean"
        result[mean] = result[mean] + tensors["model.block.conv_b.bias"]
    return result


def _begun(value: Tensor, part: str, kind: str, rest: str) -> Tensor:
    """Of a new state, what the first one has as `value`."""
    if part == "optim":
        return torch.zeros_like(value) if rest.endswith(".exp_avg") else value.clone()
    share = {"1": LOGITS, "2": 1.0, "3": UPDATE}[kind] if rest in ("weight", "bias") else 1.0
    return value * share if share != 1 else value.clone()


def work(config: TrainConfig, start: int, end: int) -> float:
    """Multiplications of a forward pass over the steps from `start` up to but without `end`, borders left out."""
    return sum(n * _a_pixel(config.network(s.start), s) for s, n in config.pixels_by_stage(start, end))


def _a_pixel(network: NLRNConfig, stage: Stage) -> float:
    """Multiplications a pixel: per state two 3 x 3 and three 1 x 1 convolutions, and a window; first and last layer."""
    c, e = network.channels, network.embed_channels
    window = (network.window or stage.patch) ** 2
    return network.states * (19 * c**2 + 2 * c * e + window * (c + e)) + 18 * c * network.in_channels
