"""Attention over the planes before and after, by the shipped weights: what it would gain on slowly moving content.

    python scripts/measure_neighbours.py [--data ../shared/data] [--stacks 5] [--steps 0 0.5 1 2] [--sigma 25]

Stacks of three planes, 96 x 96, are cut from training images of BSDS500, each plane moved by a step (pixels, in a
direction of its own); noise is independent from plane to plane. denoise-gray-small restores each plane alone, and all
together with attention over q x q x 3: the neighbourhoods of the planes before and after are appended to each pixel's
own, their correlations carried along too. The convolutions see one plane. PSNR of the inner plane. A slow
definition in plain torch, held against the model where no plane is added.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import nlrn
from nlrn.functional.metrics import psnr
from nlrn.models.nlrn import NLRN, with_sigma_plane

PLANES, SIDE, MARGIN, ROWS = 3, 96, 24, 8


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


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int, reach: int, correlation: list[Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """q, k [P, H, W, Cm], v [P, H, W, C]: each pixel over its window in its own plane and `reach` planes either way.

    -> out [P, H, W, C] and the logits of each plane and block of rows, [ROWS * W, keys], keys being the pixels of the
    rows that the block reaches, plane after plane. Pixels beyond a window are masked.
    """
    planes, height, width, _ = q.shape
    r, out, kept = window // 2, torch.empty_like(v), list[Tensor]()
    near = (torch.arange(width)[:, None] - torch.arange(width)).abs() <= r
    for plane in range(planes):
        those = slice(max(0, plane - reach), min(planes, plane + reach + 1))
        for top in range(0, height, ROWS):
            rows = torch.arange(top, min(top + ROWS, height))
            band = torch.arange(max(0, top - r), min(top + ROWS + r, height))
            inside = ((rows[:, None] - band).abs() <= r)[:, None, :, None] & near[None, :, None, :]
            inside = inside.reshape(len(rows) * width, -1).repeat(1, those.stop - those.start)
            keys, values = (x[those, band[0] : band[-1] + 1].flatten(0, 2) for x in (k, v))
            logits = q[plane, rows].flatten(0, 1) @ keys.T
            if correlation is not None:
                logits += correlation[len(kept)]
            kept.append(logits.masked_fill_(~inside, 0))
            p = logits.masked_fill(~inside, -torch.inf).softmax(-1)
            out[plane, rows] = (p @ values).view(len(rows), width, -1)
    return out, kept


@torch.no_grad()
def restored(model: NLRN, stack: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """The network on all planes of a stack at once, in 0..1."""
    window, non_local = model.config.window, model.block.non_local
    assert window is not None
    x = torch.from_numpy(stack[:, None].astype(np.float32))

    kept: list[Tensor] | None = None

    def over_planes(a: Tensor, _: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
        nonlocal kept
        q, k, v = (m(a).permute(0, 2, 3, 1).contiguous() for m in (*non_local.embeddings, non_local.g))
        z, kept = attend(q, k, v, window, reach, kept)
        return a + z.permute(0, 3, 1, 2), None

    s = s0 = model.head(with_sigma_plane(model.config, model.head_norm(x), sigma / 255))
    for t in range(model.config.states):
        s, _ = model.block.state(model.block.norms(t), over_planes, s, s0, None, True)
    out: np.ndarray = (x + model.tail(F.relu(model.tail_norm(s))))[:, 0].numpy()
    return out


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
    options = parser.parse_args()
    model = nlrn.load_model("denoise-gray-small").eval()
    every = sorted((options.data / "bsds500" / "train").glob("*.jpg"))
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, options.stacks).astype(int)]
    for step in options.steps:
        row = Row([], [])
        for seed, path in enumerate(chosen):
            clean = stack_of(path, step, seed)
            noisy = clean + np.random.default_rng(1000 + seed).normal(0, options.sigma / 255, clean.shape)
            alone, together = (restored(model, noisy, options.sigma, reach) for reach in (0, 1))
            if step == options.steps[0] and seed == 0:
                with torch.no_grad():
                    given = torch.from_numpy(noisy[:, None].astype(np.float32))
                    straight = model(given, options.sigma / 255)[:, 0].numpy()
                assert np.abs(straight - alone).max() < 1e-4, "the definition is not the model"
            inner = slice(1, PLANES - 1)
            for into, found in ((row.alone, alone), (row.together, together)):
                into.append(float(np.mean([psnr(a, b) for a, b in zip(found[inner], clean[inner], strict=True)])))
        print(f"{step:g} pixels a plane: {row}", flush=True)


if __name__ == "__main__":
    main()
