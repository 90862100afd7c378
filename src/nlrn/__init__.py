"""nlrn: the Non-Local Recurrent Network for image restoration (Liu, Wen, Fan, Loy, Huang; NeurIPS 2018)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nlrn._version import __version__ as __version__

if TYPE_CHECKING:
    from nlrn.errors import (
        BackendError,
        CheckpointError,
        ConfigError,
        InputError,
        MemoryBudgetError,
        ModelError,
        ModelNotFoundError,
        NLRNError,
        TrainingError,
    )
    from nlrn.functional.anscombe import PoissonNoise
    from nlrn.functional.noise import NoiseEstimate, estimate_noise, estimate_sigma
    from nlrn.inference.api import denoise, load, upscale
    from nlrn.inference.restorer import Restorer, Settings
    from nlrn.models.checkpoint import list_models, load_model, save_model
    from nlrn.models.nlrn import NLRN, PRESETS, NLRNConfig, NonLocal2d
    from nlrn.ops import neighborhood_attention
    from nlrn.training.trainer import train_from_recipe

_HOMES = {
    "inference.api": ("denoise", "load", "upscale"),
    "models.checkpoint": ("list_models", "load_model", "save_model"),
    "errors": (
        "BackendError",
        "CheckpointError",
        "ConfigError",
        "InputError",
        "MemoryBudgetError",
        "ModelError",
        "ModelNotFoundError",
        "NLRNError",
        "TrainingError",
    ),
    "models.nlrn": ("NLRN", "NLRNConfig", "NonLocal2d", "PRESETS"),
    "functional.noise": ("NoiseEstimate", "estimate_noise", "estimate_sigma"),
    "ops": ("neighborhood_attention",),
    "inference.restorer": ("Restorer", "Settings"),
    "functional.anscombe": ("PoissonNoise",),
    "training.trainer": ("train_from_recipe",),
}

__all__ = [
    "NLRN",
    "PRESETS",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "InputError",
    "MemoryBudgetError",
    "ModelError",
    "ModelNotFoundError",
    "NLRNConfig",
    "NLRNError",
    "NoiseEstimate",
    "NonLocal2d",
    "PoissonNoise",
    "Restorer",
    "Settings",
    "TrainingError",
    "denoise",
    "estimate_noise",
    "estimate_sigma",
    "list_models",
    "load",
    "load_model",
    "neighborhood_attention",
    "save_model",
    "train_from_recipe",
    "upscale",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `nlrn --help` does not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"nlrn.{home}"), name)
    raise AttributeError(f"module 'nlrn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
