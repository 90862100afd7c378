"""Validation during training: PSNR on held-out images, and how widely the attention reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import InputError
from nlrn.functional.metrics import psnr
from nlrn.io.image import middle
from nlrn.models.nlrn import NLRN, on_unit_scale
from nlrn.models.observers import AttentionMeter
from nlrn.training.config import TrainConfig
from nlrn.training.degradations import degradation_of


class Validation:
    """Centre crops of the recipe's validation folder, noise of a fixed seed or scales; called with a model.

    Raises InputError where no image is large enough.
    """

    def __init__(self, config: TrainConfig, data: Path, device: torch.device) -> None:
        size, degradation = config.data.validation_size, degradation_of(config)(config, device)
        large = [image for image in degradation.held_out(data) if min(image.shape[:2]) >= size]
        if not large:
            raise InputError(f"no image of {config.data.validation} has {size} x {size} pixels to validate on")
        self.clean = [image[middle(image.shape, size)] / 255 for image in large[: config.data.validation_images]]
        self.device, self.image_range = device, config.image_range
        self.tasks = degradation.conditions()

    @torch.no_grad()
    def __call__(self, model: NLRN) -> dict[str, Any]:
        """Scores by sigma s, or by scale (x2, x3 ...).

        {"psnr_<s>": dB, "neighbours_<s>": a median per state, "largest_<s>": |S|max per state}. The PSNR is the mean
        over the images of the clipped, unrounded output; the attention is that of the first. Of the other distances
        there is only the PSNR.
        """
        model = on_unit_scale(model, self.image_range)
        training = model.training
        model.eval()
        result: dict[str, Any] = {}
        for name, (sigma, degrade) in self.tasks.items():
            scores = []
            for i, clean in enumerate(self.clean):
                seen, target = degrade(clean, i)
                x = _tensor(seen, self.device)
                meter = AttentionMeter(model, x) if i == 0 and model.block.non_local.carries else None
                out = model(x, sigma, observer=meter)
                scores.append(psnr(target, out[0].permute(1, 2, 0).cpu().numpy().clip(0, 1).reshape(target.shape)))
                if meter is not None:
                    result[f"neighbours_{name}"] = meter.medians()
                    result[f"largest_{name}"] = meter.largest
            result[f"psnr_{name}"] = float(np.mean(scores))
        model.train(training)
        return result


def _tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """HW or HWC -> [1, C, H, W] float32."""
    x = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)[None]))
    return x.to(device, torch.float32)
