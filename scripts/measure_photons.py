"""Photons estimated from simulated fluorescence: errors of gain and read noise, and what the restored image loses.

    python scripts/measure_photons.py [--peaks 10 30] [--planes 1] [--side 128] [--seeds 3]
        [--estimate-black] [--json FILE]

Scenes of cells, spots and filaments, blurred as by a microscope, brightest at 10 or 30 photons, with a read noise of
0.5 or 2 electrons. Each row: the estimate's mean error, and the PSNR with the true numbers less that with the
estimated ones, denoise-gray-small, the mean and the largest. A command of the checkout, not of the package.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlrn.evaluation.protocols import machine
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.counting import estimate_photons
from nlrn.inference.restorer import Restorer
from nlrn.system.atomic import publish_json

PEAKS, READ_NOISES = (10, 30), (0.5, 2.0)  # photons, electrons
HEADER = ("peak", "read noise", "planes", "gain, mean error", "read noise, mean error", "dB lost, mean (largest)")
WHITE = 200.0  # the brightest pixel, 0-255 units


@dataclass(frozen=True)
class Found:
    """Of one simulated stack: relative errors, and dB lost in its first plane."""

    gain: float
    read_noise: float
    lost: float


def scene(seed: int, side: int = 128) -> np.ndarray:
    """Cells, spots and filaments on a faint ground, float64 [side, side], the brightest pixel 1."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(float)
    image = np.full((side, side), 0.04)
    area = (side / 128) ** 2
    for count, widths, heights in ((25, (4, 14), (0.1, 0.5)), (60, (1.0, 1.6), (0.2, 0.8))):
        for _ in range(int(count * area)):
            (cy, cx), width = random.uniform(0, side, 2), random.uniform(*widths)
            image += random.uniform(*heights) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    for _ in range(10):
        angle, offset, bend = random.uniform(0, np.pi), random.uniform(-side / 2, side / 2), random.uniform(-0.01, 0.01)
        along = (x - side / 2) * np.cos(angle) + (y - side / 2) * np.sin(angle)
        across = -(x - side / 2) * np.sin(angle) + (y - side / 2) * np.cos(angle) - offset + bend * along**2
        image += random.uniform(0.1, 0.4) * np.exp(-(across**2) / (2 * 1.3**2))
    brightest: np.ndarray = image / image.max()
    return brightest


def measured(
    peak: float, read: float, planes: int, side: int, seed: int, restorer: Restorer, black: float | None = None
) -> Found:
    """One stack of so many planes, black at 0; black: what of it is known."""
    gain = WHITE / peak
    true = PoissonNoise(gain, read * gain)
    clean = [WHITE * scene(100 * seed + plane, side) for plane in range(planes)]
    noisy = [true.add(image, seed=100 * seed + plane) for plane, image in enumerate(clean)]
    found = estimate_photons(noisy, black)
    psnr = []
    for noise in (true, found):
        restored = restorer.denoise((noisy[0] / 255).astype(np.float32), noise)
        psnr.append(-10 * np.log10(np.mean((restored - clean[0] / 255) ** 2)))
    return Found(found.gain / gain - 1, found.read_noise / true.read_noise - 1, float(psnr[0] - psnr[1]))


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    errors = (f"{100 * row[f'{name}_error']:.0f} %" for name in ("gain", "read_noise"))
    lost = f"{np.mean(row['lost']):.2f} ({max(row['lost']):.2f})"
    return [f"{row['peak']}", f"{row['read_noise']}", f"{row['planes']}", *errors, lost]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--planes", type=int, nargs="+", default=[1])
    parser.add_argument("--peaks", type=int, nargs="+", default=list(PEAKS))
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--estimate-black", action="store_true", help="the black level is not given, either")
    parser.add_argument("--json", type=Path, help="write the rows there, too: results/photons.json")
    options = parser.parse_args()
    restorer, rows = Restorer("denoise-gray-small"), list[dict[str, Any]]()
    black = None if options.estimate_black else 0.0
    print(f"| {' | '.join(HEADER)} |\n| {' | '.join(['---'] * len(HEADER))} |")
    for planes in options.planes:
        for peak in options.peaks:
            for read in READ_NOISES:
                seeds = range(options.seeds)
                every = [measured(peak, read, planes, options.side, seed, restorer, black) for seed in seeds]
                found = {"peak": peak, "read_noise": read, "planes": planes}
                for name in ("gain", "read_noise"):
                    found[f"{name}_error"] = float(np.mean([abs(getattr(one, name)) for one in every]))
                rows.append(found | {"lost": [one.lost for one in every]})
                print(f"| {' | '.join(cells(rows[-1]))} |", flush=True)
    if options.json:
        publish_json(options.json, {"rows": rows, "run": machine(torch.device("cpu"))})


if __name__ == "__main__":
    main()
