"""Attention over the planes before and after (`--neighbors`): what it gains on slowly moving content, what it costs.

    python scripts/measure_neighbours.py [--data ../shared/data] [--stacks 5] [--steps 0 0.5 1 2] [--sigma 25]
    python scripts/measure_neighbours.py --time 512

Stacks of three planes, 96 x 96, are cut from training images of BSDS500, each plane moved by a step (pixels, in a
direction of its own); noise is independent from plane to plane. denoise-gray-small restores the inner plane alone, and
with those beside it. PSNR of the inner plane. With --time: seconds of the processor for the inner plane of a stack.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import nlrn
from nlrn.functional.metrics import psnr
from nlrn.inference.beside import Beside
from nlrn.inference.restorer import Restorer
from nlrn.inference.settings import PRECISIONS, Settings

PLANES, SIDE, MARGIN = 3, 96, 24


def stack_of(path: Path, step: float, seed: int) -> np.ndarray:
    """[PLANES, SIDE, SIDE] in 0..1: the middle of an image, moved by a step a plane, by the phase of its spectrum."""
    random = np.random.default_rng(seed)
    image = np.asarray(Image.open(path).convert("L")) / 255
    side = SIDE + 2 * MARGIN
    top, left = (int(random.integers(0, n - side + 1)) for n in image.shape)
    spectrum = np.fft.fft2(image[top : top + side, left : left + side])
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]
    angle = random.uniform(0, 2 * np.pi)
    planes = []
    for plane in range(PLANES):
        dy, dx = plane * step * np.sin(angle), plane * step * np.cos(angle)
        moved = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (rows * dy + columns * dx))).real
        planes.append(np.clip(moved[MARGIN:-MARGIN, MARGIN:-MARGIN], 0, 1))
    return np.stack(planes)


def seconds(restorers: list[Restorer], side: int, sigma: float) -> list[float]:
    """Of the inner plane of a stack of that side, of each restorer: the least of three turns, seconds."""
    stack = np.random.default_rng(0).normal(0.5, 0.1, (5, side, side)).astype(np.float32)
    found = [float("inf")] * len(restorers)
    for _ in range(3):
        for number, restorer in enumerate(restorers):
            began = time.process_time()
            inner_plane(restorer, stack, sigma)
            found[number] = min(found[number], time.process_time() - began)
    return found


def inner_plane(restorer: Restorer, stack: np.ndarray, sigma: float) -> np.ndarray:
    """The plane in the middle of a stack, restored with as many beside it as the restorer takes."""
    middle, reach = len(stack) // 2, restorer.settings.neighbors
    beside = (*stack[middle - reach : middle], *stack[middle + 1 : middle + 1 + reach])
    return restorer.denoise(stack[middle], sigma, value_range="type", beside=Beside(beside, reach))


@dataclass
class Row:
    """Of one step: dB of each stack, planes alone and together."""

    alone: list[float]
    together: list[float]

    def __str__(self) -> str:
        gains = np.subtract(self.together, self.alone)
        return (
            f"{np.mean(self.alone):.2f} alone, {np.mean(self.together):.2f} with neighbours,"
            f" {gains.mean():+.2f} ({gains.min():+.2f} to {gains.max():+.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--stacks", type=int, default=5)
    parser.add_argument("--steps", type=float, nargs="+", default=[0, 0.5, 1, 2])
    parser.add_argument("--sigma", type=float, default=25)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--time", type=int, metavar="SIDE", help="measure seconds instead, of planes of this side")
    options = parser.parse_args()
    model = nlrn.load_model("denoise-gray-small")
    alone, together, widest = (
        Restorer(model, settings=Settings(precision=options.precision, neighbors=n)) for n in (0, 1, 2)
    )
    if options.time:
        found = seconds([alone, together, widest], options.time, options.sigma)
        for neighbors, spent in enumerate(found):
            predicted = (alone, together, widest)[neighbors].memory_per_pixel(options.time, options.time)
            print(
                f"neighbors {neighbors}: {spent:.1f} s of the processor for {options.time} x {options.time} pixels,"
                f" {spent / found[0]:.1f} times; {predicted * options.time**2 / 2**20:.0f} MiB predicted"
            )
        return
    every = sorted((options.data / "bsds500" / "train").glob("*.jpg"))
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, options.stacks).astype(int)]
    for step in options.steps:
        row = Row([], [])
        for seed, path in enumerate(chosen):
            clean = stack_of(path, step, seed)
            noisy = clean + np.random.default_rng(1000 + seed).normal(0, options.sigma / 255, clean.shape)
            for into, restorer in ((row.alone, alone), (row.together, together)):
                into.append(float(psnr(inner_plane(restorer, noisy, options.sigma), clean[PLANES // 2])))
        print(f"{step:g} pixels a plane: {row}", flush=True)


if __name__ == "__main__":
    main()
