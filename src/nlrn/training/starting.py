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

_BLOCK = tuple(f"block.{part}" for part in ("non_local", "conv_a", "conv_b", "norm1", "norm2", "norm3"))
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
    other = _with_states(load_model(source), model.config.states)
    taken = []
    for name in (*_BLOCK, *_ENDS):
        mine, theirs = model.get_submodule(name), other.get_submodule(name)
        if _shapes(mine) == _shapes(theirs):
            mine.load_state_dict(theirs.state_dict())
            taken.append(name)
        elif name in _BLOCK:
            shapes = f"the shapes {_shapes(theirs)}, and the recipe's model {_shapes(mine)}"
            raise ConfigError(f"{source} cannot be the start: its {name} has {shapes}")
        elif statistics:
            raise ConfigError(
                f"{source} cannot be the start of a recipe that is frozen from step 0: its {name} does not fit, and"
                " without it the statistics of the batch norms do not hold; freeze later"
            )
    return taken


def _with_states(model: NLRN, states: int) -> NLRN:
    """The model, one of more states that computes nearly the same, or one of its first states."""
    if model.config.states == states:
        return model
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors = grown(tensors, states) if model.config.states < states else tensors
    other = NLRN(dataclasses.replace(model.config, states=states))
    other.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()}, strict=False)
    return other


def _shapes(part: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in part.state_dict().items()}
