"""The start of a training from trained weights: those parts of another model that fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from nlrn.errors import ConfigError
from nlrn.models.checkpoint import load_model
from nlrn.models.nlrn import NLRN
from nlrn.training.growth import grown

_SHARED = ("block.non_local", "block.conv_a", "block.conv_b")
_BY_STATE = ("norm1", "norm2", "norm3")
_ENDS = ("head_norm", "head", "tail_norm", "tail")


@torch.no_grad()
def start_from(model: NLRN, source: str | Path, *, statistics: bool = False) -> list[str]:
    """Copy the recurrent block of trained weights, in place, and return the names of the parts that were copied.

    source: a shipped model's name or a weights file. The convolutions, embeddings and g of the block must fit; batch
    norms go state by state, and where the source has fewer states it grows first (nlrn.training.growth): new ones come
    before its own. Of one with more, the first are taken. The first and the last layers are
    copied where their shapes are equal. statistics: those of all batch norms are needed, since they will not be
    measured. Raises ConfigError for a block that does not fit, or with `statistics` a first or last layer that does
    not; ModelNotFoundError and CheckpointError as `load_model`.
    """
    other = _grown(load_model(source), model.config.states)
    taken = []
    for name in _SHARED:
        _take(model.get_submodule(name), other.get_submodule(name), f"{source} cannot be the start: its {name}")
        taken.append(name)
    for kind in _BY_STATE:
        for t in range(model.config.states):
            name = f"block.{kind}.{t}"
            _take(model.get_submodule(name), other.get_submodule(name), f"{source}: {name}")
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


def _grown(model: NLRN, states: int) -> NLRN:
    """The model, or where it has fewer states than these one that computes nearly the same with them."""
    if model.config.states >= states:
        return model
    tensors = grown({f"model.{name}": value for name, value in model.state_dict().items()}, states)
    other = NLRN(dataclasses.replace(model.config, states=states))
    other.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()})
    return other


def _take(mine: nn.Module, theirs: nn.Module, what: str) -> None:
    if _shapes(mine) != _shapes(theirs):
        raise ConfigError(f"{what} has the shapes {_shapes(theirs)}, and the recipe's model {_shapes(mine)}")
    mine.load_state_dict(theirs.state_dict())


def _shapes(part: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in part.state_dict().items()}
