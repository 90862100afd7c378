"""The time that a training run may take, by wall-clock or by CPU time, and what fits into it."""

from __future__ import annotations

import math
import time

import torch

from nlrn.errors import ConfigError, UnfinishedError
from nlrn.training.config import TrainConfig
from nlrn.training.logging import Pace

FORWARD = 0.4  # of a training step's time, what a forward pass takes, to plan the end of a slice
RESERVE = 0.25  # of the time, at most, for what comes after the last step
LEAST_BATCHES = 8  # for the statistics of the averaged weights


class Budget:
    """The time limit of a run, from now on; none without arguments.

    minutes: of wall-clock time. cpu_minutes: of the CPU time of this process divided by its threads, so that neither a
    pause nor other programs shorten the run. Raises ConfigError for a limit that is not positive, or two.
    """

    def __init__(self, minutes: float | None = None, cpu_minutes: float | None = None) -> None:
        for name, value in (("minutes", minutes), ("cpu_minutes", cpu_minutes)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}")
        if minutes is not None and cpu_minutes is not None:
            raise ConfigError("minutes and cpu_minutes are two clocks for one limit: give one of them")
        self.cpu = cpu_minutes is not None
        limit = cpu_minutes if self.cpu else minutes
        self.seconds = math.inf if limit is None else 60 * limit
        self.began = self.now()

    @property
    def limited(self) -> bool:
        """Whether a clock ends the run."""
        return self.seconds < math.inf

    def now(self) -> float:
        """Seconds on the clock of the limit."""
        return time.process_time() / torch.get_num_threads() if self.cpu else time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left; infinity without a limit."""
        return self.seconds - (self.now() - self.began)

    def decay_steps(self, pace: Pace, step: int, share: float, limit: int, batches: float) -> int:
        """How many steps the decay has when it begins at `step`, or -1 while it need not begin.

        It begins when its share is what remains, and with a share of 1 it has begun. Of the time, `_usable` is for
        steps. limit: steps that the recipe leaves.
        """
        usable = self._usable(pace, step, batches)
        spent = self.seconds - self.left
        return pace.fitting(step, usable - spent, limit) if spent >= usable * (1 - share) else -1

    def _usable(self, pace: Pace, step: int, batches: float) -> float:
        """Seconds of the whole for steps: the rest is reserved for what comes after them.

        That is a validation and the statistics of `batches` batches, but no more than a quarter of the whole.
        """
        a_step = pace.seconds(step, step + 1) - pace.aside / pace.config.validate_every
        return self.seconds - min(batches * FORWARD * a_step + pace.aside, RESERVE * self.seconds)

    def batches(self, pace: Pace, step: int, wanted: int, world: int) -> int:
        """How many of the `wanted` batches the last statistics are measured on: what a quarter of the time allows."""
        a_step = pace.seconds(step, step + 1) - pace.aside / pace.config.validate_every
        if not self.limited or a_step <= 0:
            return wanted
        return min(wanted, max(LEAST_BATCHES, int(RESERVE * self.seconds * world / (FORWARD * a_step))))

    def check_warmup(self, config: TrainConfig, step: int) -> None:
        """Raises UnfinishedError where the clock ended a run within its warm-up."""
        warmup = config.schedule.warmup
        if self.limited and step < warmup:
            raise UnfinishedError(
                f"the time limit was reached after {step} steps, within the warm-up of {warmup}: no weights are "
                "written; the state is kept, resume with more minutes"
            )
