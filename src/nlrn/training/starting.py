"""The start of a training from trained weights: those parts of another model that fit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from nlrn.errors import ConfigError
from nlrn.models.checkpoint import load_model
from nlrn.models.nlrn import NLRN

_SHARED = ("block.non_local", "block.conv_a", "block.conv_b")
_BY_STATE = ("norm1", "norm2", "norm3")
_ENDS = ("head_norm", "head", "tail_norm", "tail")


@torch.no_grad()
def start_from(model: NLRN, source: str | Path, *, statistics: bool = False) -> list[str]:
    """Copy the recurrent block of trained weights, in place, and return the names of the parts that were copied.

    source: a shipped model's name or a weights file. The convolutions, embeddings and g of the block must fit; batch
    norms go state by state, and states beyond the source's begin as its last one. The first and the last layers are
    copied where their shapes are equal. statistics: those of all batch norms are needed, since they will not be
    measured. Raises ConfigError for a block that does not fit, or with `statistics` a first or last layer that does
    not; ModelNotFoundError and CheckpointError as `load_model`.
    """
    other = load_model(source)
    taken = []
    for name in _SHARED:
        _take(model.get_submodule(name), other.get_submodule(name), f"{source} cannot be the start: its {name}")
        taken.append(name)
    last = other.config.states - 1
    for kind in _BY_STATE:
        for t in range(model.config.states):
            name = f"block.{kind}.{t}"
            _take(model.get_submodule(name), other.get_submodule(f"block.{kind}.{min(t, last)}"), f"{source}: {name}")
        taken.append(f"block.{kind}")
    for name in _ENDS:
        mine, theirs = model.get_submodule(name), other.get_submodule(name)
        if _shapes(mine) == _shapes(theirs):
            mine.load_state_dict(theirs.state_dict())
            taken.append(name)
        elif statistics:
            raise ConfigError(
                f"{source} cannot be the start of a recipe that is frozen from step 0: its {name} does not fit, and"
                " without it the statistics of the batch norms do not hold; freeze later"
            )
    return taken


def _take(mine: nn.Module, theirs: nn.Module, what: str) -> None:
    if _shapes(mine) != _shapes(theirs):
        raise ConfigError(f"{what} has the shapes {_shapes(theirs)}, and the recipe's model {_shapes(mine)}")
    mine.load_state_dict(theirs.state_dict())


def _shapes(part: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in part.state_dict().items()}
