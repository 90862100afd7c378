"""An NLRN for programs that load their models by spandrel (the extra nlrn[spandrel]).

spandrel's loader passes the tensors of a file without its header, and tensors define neither the window nor whether
correlations are carried. So a file is registered, instead of a guess by shapes: its header is read once, and its
tensors are recognised by their digest.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import BackendError, ConfigError
from nlrn.functional.levels import level_of
from nlrn.functional.limits import MAX_SIGMA
from nlrn.functional.noise import estimate_noise
from nlrn.integrations import require
from nlrn.integrations.scaled import on_own_range
from nlrn.models.checkpoint import list_models, load_model, read_tensors, resolve_model
from nlrn.models.nlrn import NLRN

require("spandrel", "spandrel")
try:
    from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor, StateDict
except RuntimeError as error:  # of torchvision, which spandrel imports
    raise BackendError(
        f"spandrel requires torchvision of the same build as torch, from the same index: {error}"
    ) from error

__all__ = ["NLRNArch", "register"]


class NLRNArch(Architecture[NLRN]):  # type: ignore[misc]
    """The architecture of one weights file of a denoiser; spandrel gives a "Restoration" descriptor of scale 1.

    The descriptor's call takes [1, C, H, W] on the 0..1 scale and clips the result to it. It has no place for a noise
    level: sigma is a number in 0-255 units, or "auto", which estimates it from each image.
    Raises ConfigError for a model that does not denoise or a sigma out of range, CheckpointError for the file.
    """

    def __init__(self, model: str | Path, sigma: float | str = "auto") -> None:
        path = resolve_model(model)
        self.model = load_model(path)
        if self.model.config.task != "denoise":
            raise ConfigError(
                "spandrel requires one scale for a model, and nlrn's of super-resolution have none: denoisers only"
            )
        if sigma != "auto" and not (isinstance(sigma, int | float) and 0 <= sigma <= MAX_SIGMA):
            raise ConfigError(f"sigma must be 'auto' or lie in 0..{MAX_SIGMA:g} (0-255 units), not be {sigma!r}")
        self.sigma = sigma
        self.digest = _digest(read_tensors(path)[1])
        super().__init__(id=f"NLRN-{self.digest[:12]}", name="NLRN", detect=self._is_ours)

    def _is_ours(self, state_dict: StateDict) -> bool:
        return "block.norm1.0.weight" in state_dict and _digest(state_dict) == self.digest

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[NLRN]:
        """The descriptor of these tensors, which spandrel calls when `detect` accepted them."""
        config = self.model.config
        return ImageModelDescriptor(
            NLRN(config),
            state_dict,
            architecture=self,
            purpose="Restoration",
            tags=[f"{config.channels}nf", f"{config.states} states", f"window {config.window}"],
            supports_half=False,
            supports_bfloat16=False,
            scale=1,
            input_channels=config.in_channels,
            output_channels=config.in_channels,
            call_fn=self._restore,
        )

    def _restore(self, model: NLRN, image: Tensor) -> Tensor:
        if not model.config.sigma_input:
            return model(image, None)
        level = None if isinstance(self.sigma, str) else torch.full((len(image),), self.sigma / 255).to(image)
        return on_own_range(partial(self._run, model), image, image.new_zeros(len(image)) if level is None else level)

    def _run(self, model: NLRN, image: Tensor, level: Tensor) -> Tensor:
        """level: [B], 0 for one that is estimated of the first image."""
        return model(image, self._estimated(image) / 255 if isinstance(self.sigma, str) else level)

    def _estimated(self, image: Tensor) -> float:
        found = estimate_noise(image[0].detach().movedim(0, -1).float().cpu().numpy())
        return float(level_of((found,), camera=1.0 if self.model.config.noise == "camera" else None))


def register(
    *models: str | Path, sigma: float | str = "auto", registry: ArchRegistry = MAIN_REGISTRY
) -> list[NLRNArch]:
    """Register these weights files with spandrel's loaders or shipped names, by default every shipped denoiser.

    registry: spandrel's own, which every ModelLoader without another reads. Raises as NLRNArch, and ConfigError for
    tensors that are registered already under another sigma or header.
    """
    chosen = models or tuple(info.name for info in list_models() if info.task == "denoise")
    architectures = [NLRNArch(model, sigma) for model in chosen]
    for model, architecture in zip(chosen, architectures, strict=True):
        known = registry.get(architecture.id)
        if known is not None and _settings(known.architecture) != _settings(architecture):
            raise ConfigError(f"{model} is registered already with another sigma, or its tensors with another header")
    others = tuple(support.architecture.id for support in registry)  # an exact match goes before every guess by keys
    supports = [ArchSupport.from_architecture(a, before=others) for a in architectures]
    registry.add(*supports, ignore_duplicates=True)
    return architectures


def _settings(architecture: NLRNArch) -> tuple[Any, Any]:
    return architecture.model.config, architecture.sigma


def _digest(tensors: dict[str, Any]) -> str:
    """Hex sha256 of names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        array = torch.as_tensor(value).detach().cpu().numpy()
        digest.update(f"{name} {array.shape} {array.dtype} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
