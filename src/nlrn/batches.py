"""The batches of a training run: each a pure function of the recipe, the seed and the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nlrn.datasets import PatchSet, read_folder
from nlrn.processes import Processes
from nlrn.recipe import TrainConfig

NOISE_STREAM = 1  # keeps the noise's counters apart from the patches'


class Batches:
    """(noisy, clean, sigma / 255) by step, for one of several processes: put together, theirs are one's."""

    def __init__(self, config: TrainConfig, data: Path, processes: Processes) -> None:
        channels = config.model.in_channels
        images = [image for f in config.data.folders for _, image in read_folder(data / f, channels=channels)]
        self.config, self.processes = config, processes
        self.patches = PatchSet(images, config.stages[0].patch, device=processes.device)

    def __call__(self, step: int, *, whole: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """noisy and clean [B, C, P, P], sigma / 255 [B] or None: of this process, or (`whole`) of all together."""
        stage = self.config.stage(step)
        size = stage.batch if whole else stage.batch // self.processes.world
        first = 0 if whole else self.processes.rank * size
        if self.patches.patch != stage.patch:
            self.patches = self.patches.with_patch(stage.patch)
        clean = self.patches.batch(self.config.seed, step, size, first).float() / 255
        clean = clean.contiguous(memory_format=torch.channels_last)
        sigma, noise = self._noise(step, first, clean.shape)
        return clean + noise, clean, sigma if self.config.model.sigma_input else None

    def _noise(self, step: int, first: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """(sigma / 255 [B], noise [B, C, H, W]): a stream of its own for every place in the global batch."""
        low, high = self.config.noise.low, self.config.noise.high
        device = self.processes.device
        sigmas, noise = np.empty(shape[0], np.float32), []
        for i in range(shape[0]):
            # Philox counts up its first word alone
            counter = [0, first + i, NOISE_STREAM, 0]
            random = np.random.Generator(np.random.Philox(key=[self.config.seed, step], counter=counter))
            sigmas[i] = random.uniform(low, high) / 255
            if device.type == "cpu":
                noise.append(torch.from_numpy(random.standard_normal(shape[1:], dtype=np.float32)))
            else:
                generator = torch.Generator(device).manual_seed(int(random.integers(2**63)))
                noise.append(torch.randn(shape[1:], generator=generator, device=device))
        sigma = torch.from_numpy(sigmas).to(device)
        return sigma, sigma.view(-1, 1, 1, 1) * torch.stack(noise)
