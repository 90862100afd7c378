"""A blurred photograph restored by deepinv: with total variation, and with the network in its place as the prior.

The photograph is the middle of camera.png beside this file, blurred by a Gaussian and given noise. Both priors run in
one solver (half-quadratic splitting) under one schedule (that of DPIR, Zhang et al. 2021, as deepinv sets it). Total
variation has an advantage: its strength is the best for the very photograph that is to be found.

Needs the extra: pip install "nlrn[deepinv]"
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from nlrn.functional.metrics import psnr, quantize8
from nlrn.integrations import require
from nlrn.integrations.deepinv import NLRNDenoiser

BLUR = 1.6  # pixels
STRENGTHS = (2.5e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 4e-4, 8e-4, 1.6e-3)  # of total variation, tried in turn
MIDDLE = (134, 254)  # row and column: the face and the camera


@dataclass(frozen=True)
class Deblurred:
    """PSNR in dB against the truth, and the captioned images (HW, 0..1) from blurred to truth.

    tv: in the solver that the network runs in; tv_converged: the best of total variation's own minima, by
    Douglas-Rachford; strength: what is best for `tv`, of `strengths`.
    """

    blurred: float
    tv: float
    tv_converged: float
    ours: float
    strength: float
    strengths: tuple[float, ...]
    images: list[tuple[str, np.ndarray]]


def photograph(size: int = 128) -> np.ndarray:
    """A square of camera.png, HW on the 0..1 scale."""
    rows, columns = (slice(n - size // 2, n - size // 2 + size) for n in MIDDLE)
    return np.asarray(Image.open(Path(__file__).parent / "camera.png"))[rows, columns] / 255.0


@torch.no_grad()
def deblurred(truth: np.ndarray, sigma: float) -> Deblurred:
    """Blur, add noise of standard deviation sigma (0-255 units), and restore in both ways."""
    require("deepinv", "deepinv")
    from deepinv.optim import DRS, HQS
    from deepinv.optim.data_fidelity import L2
    from deepinv.optim.dpir import get_DPIR_params
    from deepinv.optim.prior import PnP, TVPrior
    from deepinv.physics import BlurFFT, GaussianNoise
    from deepinv.physics.functional.blur import gaussian_blur

    noise = GaussianNoise(sigma=sigma / 255, rng=torch.Generator().manual_seed(0))
    blur = gaussian_blur(sigma=(BLUR, BLUR))
    physics = BlurFFT(img_size=(1, *truth.shape), filter=blur, noise_model=noise)
    y = physics(torch.from_numpy(truth).float()[None, None])
    levels, steps, count = get_DPIR_params(sigma / 255)
    schedule = {"stepsize": steps.tolist(), "max_iter": count}

    def restore(solver: Any, prior: Any, **options: Any) -> np.ndarray:
        out = solver(data_fidelity=L2(), prior=prior, early_stop=False, **options)(y, physics)
        return np.asarray(out[0, 0].clamp(0, 1).double())

    tv = TVPrior(n_it_max=100)
    tries = [(restore(HQS, tv, lambda_reg=s, **schedule), s) for s in STRENGTHS]
    best, strength = max(tries, key=lambda found: psnr(truth, found[0]))
    minima = [restore(DRS, tv, lambda_reg=2 * s, stepsize=100.0, max_iter=50) for s in STRENGTHS]
    ours = restore(HQS, PnP(NLRNDenoiser()), sigma_denoiser=levels.tolist(), **schedule)

    images = [("blurred", np.asarray(y[0, 0].clamp(0, 1).double())), ("total variation", best), ("nlrn", ours)]
    scores = [psnr(truth, image) for _, image in images]
    captioned = [(f"{name}, {score:.2f} dB", image) for (name, image), score in zip(images, scores, strict=True)]
    converged = max(psnr(truth, image) for image in minima)
    return Deblurred(
        scores[0], scores[1], converged, scores[2], strength, STRENGTHS, [*captioned, ("the photograph", truth)]
    )


def strip(images: list[tuple[str, np.ndarray]], zoom: int = 3, gap: int = 8, band: int = 24) -> Image.Image:
    """Captioned images (HW, 0..1) in a row, enlarged."""
    height, width = (n * zoom for n in images[0][1].shape)
    sheet = Image.new("L", (len(images) * (width + gap) - gap, band + height), 255)
    draw = ImageDraw.Draw(sheet)
    for i, (caption, image) in enumerate(images):
        shown = Image.fromarray((quantize8(image) * 255).astype(np.uint8))
        draw.text((i * (width + gap) + 4, 4), caption, fill=0, font_size=15)
        sheet.paste(shown.resize((width, height), Image.Resampling.NEAREST), (i * (width + gap), band))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    parser.add_argument("--sigma", type=float, default=2.0, help="of the noise, in 0-255 units")
    options = parser.parse_args()

    found = deblurred(photograph(), options.sigma)
    print(f"blurred by {BLUR:g} pixels, noise of sigma {options.sigma:g}: {found.blurred:.2f} dB")
    print(f"total variation: {found.tv:.2f} dB at its best strength, {found.strength:g}")
    print(f"total variation to its minimum, another solver: {found.tv_converged:.2f} dB")
    print(f"nlrn: {found.ours:.2f} dB ({found.ours - max(found.tv, found.tv_converged):+.2f})")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "plug-and-play.png"
    strip(found.images).save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
