"""nlrn: the Non-Local Recurrent Network for image restoration (Liu, Wen, Fan, Loy, Huang; NeurIPS 2018)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nlrn._version import __version__ as __version__

if TYPE_CHECKING:
    from nlrn.errors import BackendError as BackendError
    from nlrn.errors import CheckpointError as CheckpointError
    from nlrn.errors import ConfigError as ConfigError
    from nlrn.errors import InputError as InputError
    from nlrn.errors import MemoryBudgetError as MemoryBudgetError
    from nlrn.errors import ModelError as ModelError
    from nlrn.errors import ModelNotFoundError as ModelNotFoundError
    from nlrn.errors import NLRNError as NLRNError
    from nlrn.errors import TrainingError as TrainingError
    from nlrn.functional.anscombe import PoissonNoise as PoissonNoise
    from nlrn.functional.noise import NoiseEstimate as NoiseEstimate
    from nlrn.functional.noise import estimate_noise as estimate_noise
    from nlrn.functional.noise import estimate_sigma as estimate_sigma
    from nlrn.inference.api import denoise as denoise
    from nlrn.inference.api import load as load
    from nlrn.inference.api import upscale as upscale
    from nlrn.inference.restorer import Restorer as Restorer
    from nlrn.inference.restorer import Settings as Settings
    from nlrn.models.checkpoint import list_models as list_models
    from nlrn.models.checkpoint import load_model as load_model
    from nlrn.models.checkpoint import save_model as save_model
    from nlrn.models.nlrn import NLRN as NLRN
    from nlrn.models.nlrn import PRESETS as PRESETS
    from nlrn.models.nlrn import NLRNConfig as NLRNConfig
    from nlrn.models.nlrn import NonLocal2d as NonLocal2d
    from nlrn.ops import neighborhood_attention as neighborhood_attention
    from nlrn.training.trainer import train_from_recipe as train_from_recipe

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

__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `nlrn --help` does not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"nlrn.{home}"), name)
    raise AttributeError(f"module 'nlrn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
