"""Validation during training: PSNR on held-out images, and how widely the attention reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import InputError
from nlrn.functional.camera import CAMERA_LEVELS, noisy_at
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic
from nlrn.functional.metrics import luma8, psnr
from nlrn.io.datasets import validation_images
from nlrn.models.nlrn import NLRN, on_unit_scale
from nlrn.models.observers import AttentionMeter
from nlrn.training.config import TrainConfig


class Validation:
    """Centre crops of the recipe's validation folder, noise of a fixed seed or scales; called with a model.

    Raises InputError where no image is large enough.
    """

    def __init__(self, config: TrainConfig, data: Path, device: torch.device) -> None:
        size, enlarges = config.data.validation_size, config.model.task == "sr"
        channels = None if enlarges else config.model.in_channels
        found = validation_images(data, config.data.validation, config.data.folders, channels=channels)
        large = [image for _, image in found if min(image.shape[:2]) >= size]
        if not large:
            raise InputError(f"no image of {config.data.validation} has {size} x {size} pixels to validate on")
        crops = [_centre(image, size) for image in large[: config.data.validation_images]]
        self.clean = [(luma8(crop) if enlarges else crop) / 255 for crop in crops]
        self.device, self.image_range = device, config.image_range
        self.tasks: dict[str, tuple[float | None, Callable[[np.ndarray, int], np.ndarray]]] = {}
        if enlarges:
            self.tasks = {f"x{s}": (None, _enlarged(s)) for s in config.resize.scales}
            return
        if config.noise.kind == "camera":
            level = config.model.level_one / 255 if config.model.sigma_input else None
            self.tasks = {f"camera_{s:g}": (level, _photographed(s)) for s in CAMERA_LEVELS}
            return
        low, high = config.noise.low, config.noise.high
        for s in [low] if low == high else [s for s in (15.0, 25.0, 50.0) if low <= s <= high] or [high]:
            self.tasks[f"{s:g}"] = (s / 255 if config.model.sigma_input else None, _noisy(s))

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
                x = _tensor(degrade(clean, i), self.device)
                meter = AttentionMeter(model, x) if i == 0 and model.block.non_local.carries else None
                out = model(x, sigma, observer=meter)
                scores.append(psnr(clean, out[0].permute(1, 2, 0).cpu().numpy().clip(0, 1).reshape(clean.shape)))
                if meter is not None:
                    result[f"neighbours_{name}"] = meter.medians()
                    result[f"largest_{name}"] = meter.largest
            result[f"psnr_{name}"] = float(np.mean(scores))
        model.train(training)
        return result


def _noisy(sigma: float) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda clean, number: add_gaussian_noise(clean, sigma, seed=number)


def _photographed(level: float) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda clean, _: noisy_at(clean, level)


def _enlarged(scale: int) -> Callable[[np.ndarray, int], np.ndarray]:
    def through(clean: np.ndarray, _: int) -> np.ndarray:
        height, width = clean.shape
        return resize_bicubic(resize_bicubic(clean, height // scale, width // scale), height, width)

    return through


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def _tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """HW or HWC -> [1, C, H, W] float32."""
    x = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)[None]))
    return x.to(device, torch.float32)
