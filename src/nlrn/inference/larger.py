"""A stack enlarged: of each channel one range for all its planes, and one decision whether noise is removed before.

A plane is enlarged as an image is with that range and that decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrn.functional.noise import NoiseEstimate
from nlrn.functional.ranges import Range, Scale, checked, on_unit_scale
from nlrn.inference.enlarging import NoiseFirst
from nlrn.inference.pipeline import Report, sample_range
from nlrn.inference.restorer import Restorer
from nlrn.inference.stacks import Planes, line_of, median_over, members_of


@dataclass(frozen=True)
class Enlarging:
    """How the planes of a channel are enlarged.

    remove: whether noise is removed from each before. value_range: sample values. planes: how many it has. found: the
    noise in its planes, the median, where it was looked for.
    """

    remove: bool
    value_range: Range
    planes: int
    found: NoiseEstimate | None = None

    def record(self) -> dict[str, Any]:
        """As journals, manifests and --json have it: `Enlarging.of` makes the same of it, but for what was found."""
        found = None if self.found is None else self.found.record()
        return {"remove": self.remove, "range": self.value_range, "planes": self.planes, "found": found}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Enlarging:
        """What `record` was made of."""
        return cls(record["remove"], checked(record["range"]), record["planes"])

    def __str__(self) -> str:
        found = f"found {self.found}: " if self.found is not None and self.remove else ""
        how = "noise removed from each before it is enlarged" if self.remove else "enlarged as it is"
        return line_of(self.planes, found + how, self.value_range)


def enlarging_of(
    planes: Planes,
    samples: Sequence[np.ndarray],
    restorer: Restorer,
    first: NoiseFirst,
    value_range: Range,
    levels: float,
    say: Report = lambda line: None,
) -> list[Enlarging]:
    """How each channel of a stack is enlarged. samples: of `samples_of`; levels: the sample value of 1.

    Raises what the pipeline raises.
    """
    restorer.require("sr")
    chosen = on_unit_scale(value_range, levels)
    every = []
    for members, sample in zip(members_of(planes), samples, strict=True):
        image = sample[:, None]  # [N, 1] or [N, 1, C]
        scale = restorer.scale(image, value_range=chosen)
        limits: Range = scale.limits if scale != Scale() else "type"
        found = None if first.remove is not None else median_over(planes, members, first.found, limits)
        remove = first.decided(() if found is None else (found,), say, scale)
        limits = "type" if scale.limits == (0.0, 1.0) else sample_range(scale, levels)
        every.append(Enlarging(remove, limits, len(members), found))
    return every
