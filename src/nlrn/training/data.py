"""The batches of a training run: each a pure function of the recipe, the seed and the step."""

from __future__ import annotations

from pathlib import Path

import torch

from nlrn.io.datasets import PatchSet
from nlrn.training.config import TrainConfig
from nlrn.training.degradations import degradation_of
from nlrn.training.distributed import Processes
from nlrn.training.pairs import Batch


class Batches:
    """The batches of one of several processes, by step; those of all processes together are those of a single one.

    Raises InputError and ConfigError as the degradation for data that cannot be used.
    """

    def __init__(self, config: TrainConfig, data: Path, processes: Processes) -> None:
        self.config, self.processes = config, processes
        self.degradation = degradation_of(config)(config, processes.device)
        images = self.degradation.images(data)
        sides = [self.degradation.side(stage.patch) for stage in config.stages]
        self.patches = PatchSet(images, max(sides), device=processes.device).with_patch(sides[0])  # all fit, or none

    def __call__(self, step: int, part: int = 0, *, whole: bool = False) -> Batch:
        """The Batch of a step: of this process, or (`whole`) of all together.

        part: of those in which the batch is accumulated; each is shared by all processes. Shares may differ by one.
        """
        stage = self.config.stage(step)
        places = range(stage.batch)
        if not whole:
            places = _share(_share(places, part, stage.accumulate), self.processes.rank, self.processes.world)
        first, size = places.start, len(places)
        side = self.degradation.side(stage.patch)
        if self.patches.patch != side:
            self.patches = self.patches.with_patch(side)
        clean = self.patches.batch(self.config.seed, step, size, first).float()
        clean = clean.contiguous(memory_format=torch.channels_last)
        return self.degradation.pairs(step, first, clean, stage.patch)


def _share(places: range, i: int, n: int) -> range:
    """The i-th of n consecutive shares."""
    return places[len(places) * i // n : len(places) * (i + 1) // n]
