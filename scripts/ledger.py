"""The training queue and its ledger: which model is next, what was spent on each, which bars are met.

training/queue.toml lists the models with their shares and bars; training/ledger.jsonl has a line for every slice.
Run as a program it prints what was spent on each model and draws docs/training-ledger.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLOT = ROOT / "docs/training-ledger.png"
WEIGHTS = {"avx512bf16": 1.0}  # of a core hour by instruction set; every other set counts a third
CONDITIONS = (("15", "25", "50"), ("3", "6", "12"), ("x2", "x3", "x4"))  # of sigma, of camera noise, scales


@dataclass(frozen=True)
class Entry:
    """One slice: when, where and with what, what it cost, where it led, and what became of it.

    cpu_seconds: of all processes and threads; None where it was not measured. steps, pixels: of the whole way to the
    end of the slice; slice_pixels: of this slice. psnr: on the recipe's validation images at its end, by noise level or
    scale, empty where it was stopped before. decay: the share of the slice. decision: "continued", "stopped",
    "failed", "released", "not released" or "not better" (scored below the released one).
    """

    model: str
    date: str
    commit: str | None
    hardware: str
    instruction_set: str
    cpu_seconds: float | None
    steps: int
    pixels: int
    slice_pixels: int
    psnr: dict[str, float]
    decay: float
    decision: str

    @property
    def core_hours(self) -> float:
        """Weighted: what AVX512-BF16 does in an hour takes other sets about three."""
        return (self.cpu_seconds or 0.0) / 3600 * WEIGHTS.get(self.instruction_set, 1 / 3)


@dataclass(frozen=True)
class Queued:
    """A model of the queue. first, goal: its bars by scoring set, one for each condition; 0 for none."""

    recipe: str
    share: float
    first: dict[str, list[float]]
    goal: dict[str, list[float]]

    @property
    def name(self) -> str:
        return Path(self.recipe).stem


def read_queue(path: Path) -> list[Queued]:
    """In the order of the file. Raises TypeError for an unknown or a missing key."""
    return [Queued(**model) for model in tomllib.loads(path.read_text())["models"]]


def read_ledger(path: Path) -> list[Entry]:
    """All slices, oldest first; none where there is no file."""
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, entry: Entry) -> None:
    """Add a line, on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(entry)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def spent(entries: Iterable[Entry]) -> dict[str, float]:
    """Weighted core hours by model."""
    hours: dict[str, float] = {}
    for entry in entries:
        hours[entry.model] = hours.get(entry.model, 0.0) + entry.core_hours
    return hours


def hours(entries: Iterable[Entry]) -> list[str]:
    """A line for each model, and one for all."""
    found = spent(entries)
    lines = [f"{name}: {value:.2f} weighted core hours" for name, value in sorted(found.items())]
    return [*lines, f"together: {sum(found.values()):.2f}"]


def curves(entries: Iterable[Entry]) -> dict[str, list[tuple[int, float, bool]]]:
    """By model: pixels of all its slices until then, mean PSNR of the validation images, whether it had decayed.

    A run that begins anew from released weights counts its own pixels from 0; here they are added to those before.
    """
    found: dict[str, list[tuple[int, float, bool]]] = {}
    seen: dict[str, int] = {}
    for entry in entries:
        seen[entry.model] = seen.get(entry.model, entry.pixels - entry.slice_pixels) + entry.slice_pixels
        if entry.psnr:
            point = seen[entry.model], statistics.mean(entry.psnr.values()), entry.decay > 0
            found.setdefault(entry.model, []).append(point)
    return found


def draw(entries: Iterable[Entry], path: Path) -> None:
    """Mean PSNR of the validation images against pixels seen, a line for each model, as a PNG."""
    from nlrn.evaluation.plotting import new_figure, write_figure

    figure = new_figure(7, 4)
    axes = figure.subplots()
    points = curves(entries)
    for name, found in sorted(points.items()):
        (line,) = axes.plot([p[0] for p in found], [p[1] for p in found], lw=1, label=name)
        for decayed, marker in ((False, "o"), (True, "*")):
            some = [p for p in found if p[2] == decayed]
            axes.plot([p[0] for p in some], [p[1] for p in some], marker, color=line.get_color())
    axes.set(xscale="log", xlabel="pixels of all slices (star: after a decay)", ylabel="mean validation PSNR (dB)")
    axes.grid(alpha=0.3, which="both")
    if points:
        axes.legend()
    write_figure(figure, path)


def next_model(queue: list[Queued], entries: Iterable[Entry]) -> Queued:
    """The one furthest behind its share; the first of those that are equally far behind."""
    hours = spent(entries)
    return min(queue, key=lambda model: hours.get(model.name, 0.0) / model.share)


def bars(model: Queued, result: dict[str, Any]) -> list[str]:
    """A line for each bar: what was reached, and whether that meets it."""
    lines = []
    for kind in ("first", "goal"):
        for name, values in getattr(model, kind).items():
            scores = result["scores"].get(name, {})
            order = next((some for some in CONDITIONS if scores.keys() & set(some)), CONDITIONS[0])
            for condition, bar in zip(order, values, strict=True):
                if bar and condition in scores:
                    reached = scores[condition]["psnr"]
                    met = "met" if reached >= bar else "open"
                    lines.append(f"{kind:5} {name} {condition}: {reached:.2f} of {bar:.2f} dB, {met}")
    return lines


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    entries = read_ledger(ROOT / "training/ledger.jsonl")
    print("\n".join(hours(entries)))
    draw(entries, PLOT)


if __name__ == "__main__":
    main()
