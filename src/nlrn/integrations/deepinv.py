"""An NLRN as a denoiser of deepinv: a prior for plug-and-play and unfolded reconstruction (the extra nlrn[deepinv]).

The adapter itself needs torch only: deepinv requires of a denoiser that it is called as denoiser(y, sigma).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nlrn.errors import ConfigError, InputError
from nlrn.integrations.scaled import on_own_range
from nlrn.models.checkpoint import default_model, load_model
from nlrn.models.nlrn import NLRN


class NLRNDenoiser(nn.Module):
    """denoiser(y, sigma) in deepinv's convention, differentiable in y, in sigma and in the model's parameters.

    model: an NLRN (used itself, not copied), a shipped name, a weights file, or None for the default grey denoiser.
    y: [B, C, H, W], float, on the 0..1 scale up to noise; C is the model's, or any through a grey model, channel by
    channel. sigma: standard deviation on that same scale, a number, a tensor of one number, [B], [B, 1, 1, 1], or a
    map of it, [H, W], [1, 1, H, W] or [B, 1, H, W]; through a grey model also one for each channel, [B, C, 1, 1] or
    [B, C, H, W]. The result has y's shape and dtype and is not clipped. An image that uses a small part of 0..1 is
    restored on its own range (nlrn.functional.ranges), as nlrn.denoise does, unless sigma is a map.

    Raises ConfigError for a model that does not denoise with a noise level given, InputError for the shapes.
    """

    def __init__(self, model: NLRN | str | Path | None = None) -> None:
        super().__init__()
        model = default_model("denoise", 1) if model is None else model
        self.model = model if isinstance(model, NLRN) else load_model(model)
        if not self.model.config.sigma_input or self.model.config.task != "denoise":
            raise ConfigError("a prior requires a model that denoises and receives the noise level (sigma_input)")

    def forward(self, y: Tensor, sigma: float | Tensor) -> Tensor:
        """The denoised images, of y's shape [B, C, H, W] and dtype; arguments as described for the class."""
        if y.dim() != 4:
            raise InputError(f"expected images [B, C, H, W], not {tuple(y.shape)}")
        weight = self.model.head.weight
        batch, channels, height, width = y.shape
        level = torch.as_tensor(sigma, dtype=weight.dtype, device=weight.device)
        apart = self.model.config.in_channels == 1 and channels > 1
        level = _planes(level, batch, channels if apart else 1, height, width)
        if level.shape[1:] == (1, 1, 1):
            return on_own_range(self._denoised, y.to(weight), level.reshape(-1).expand(batch)).to(y)
        return self._denoised(y.to(weight), level).to(y)

    def _denoised(self, x: Tensor, level: Tensor) -> Tensor:
        """x: [B, C, H, W]; level: [B], or as of `_planes`."""
        batch, channels, height, width = x.shape
        if self.model.config.in_channels == 1 and channels > 1:
            level = level.view(-1, 1, 1, 1) if level.dim() == 1 else level
            level = level.expand(batch, channels, *level.shape[2:]).reshape(batch * channels, 1, *level.shape[2:])
            return self.model(x.reshape(-1, 1, height, width), level).reshape(x.shape)
        return self.model(x, level)


def _planes(level: Tensor, batch: int, channels: int, height: int, width: int) -> Tensor:
    """sigma as [1 or B, 1 or channels, 1 or H, 1 or W]. Raises InputError for a shape that is none of those."""
    given = tuple(level.shape)
    if level.numel() == 1:
        level = level.reshape(1, 1, 1, 1)
    elif given == (batch,):
        level = level.reshape(batch, 1, 1, 1)
    elif given == (height, width):
        level = level.reshape(1, 1, height, width)
    shape, size = tuple(level.shape), (batch, channels, height, width)
    if len(shape) != 4 or any(n not in (1, m) for n, m in zip(shape, size, strict=True)):
        raise InputError(f"sigma must be a number, [B], [H, W] or [B, C, H, W] = {size}, each 1 or that; not {given}")
    return level
