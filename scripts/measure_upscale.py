"""Enlarging a noisy image: alone, by bicubic, and after its noise was removed.

`noisy`: images of BSDS500's training part, reduced by bicubic, noise added to the small image: white of several
sigmas, and that of simulated cameras. PSNR (RGB, without a border of the scale) against the image, and what the
estimator finds. `textured`: of more of these images, without noise, those in which a camera's noise is found that
would be reported (nlrn.inference.enlarging.CAMERA). By these numbers the limits of nlrn.inference.enlarging were
chosen, so no scoring set is used. The result is results/upscale-noise.json; docs/upscaling.md shows its tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import nlrn
from nlrn.evaluation.protocols import machine
from nlrn.functional.camera import CAMERA_LEVELS, noisy_at
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic
from nlrn.functional.metrics import psnr, quantize8
from nlrn.inference.enlarging import CAMERA
from nlrn.inference.restorer import Restorer
from nlrn.io.datasets import data_root, training_images
from nlrn.system.atomic import publish_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "upscale-noise.json"
SCALES = (2, 3)
WHITE = (0, 2, 5, 10, 15, 25)


def given(small: np.ndarray) -> dict[str, np.ndarray]:
    """The small image under every noise, rounded to 8 bits."""
    made = {f"white {sigma}": add_gaussian_noise(small, sigma) if sigma else small for sigma in WHITE}
    made |= {f"camera {level:g}": noisy_at(small, level) for level in CAMERA_LEVELS}
    return {name: (np.rint(image.clip(0, 1) * 255) / 255).astype(np.float32) for name, image in made.items()}


def line_of(restorer: Restorer, finder: Restorer, clean: np.ndarray, noisy: np.ndarray, scale: int) -> dict[str, Any]:
    """PSNR by each way, and the noise that was found."""
    height, width = clean.shape[:2]
    ways = {
        "bicubic": resize_bicubic(noisy.astype(np.float64), height, width),
        "alone": restorer.upscale(noisy, height, width),
        "denoised": restorer.upscale(nlrn.denoise(noisy), height, width),
    }
    scores = {way: psnr(clean, quantize8(image.astype(np.float64)), border=scale) for way, image in ways.items()}
    return scores | {"found": [one.record() for one in finder.found_noise(noisy)]}


def pairs(options: argparse.Namespace, every: int) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(name, scale, image, the image reduced and rounded to 8 bits) of every so many images."""
    images = training_images(data_root(options.data), "bsds500/train", channels=3)
    for name, image in images[::every]:
        for scale in SCALES:
            height, width = (n // scale for n in image.shape[:2])
            clean = image[: height * scale, : width * scale] / 255
            yield name, scale, clean, np.rint(resize_bicubic(clean, height, width).clip(0, 1) * 255) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["noisy", "textured"], help="default: both")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    options = parser.parse_args()
    restorer, finder = nlrn.load("sr-small"), nlrn.load("denoise-color-small")
    run = machine(restorer.device) | {"precision": "bf16" if restorer.bf16 else "fp32"}
    for what in options.what:
        lines: dict[str, Any] = {}
        for i, (name, scale, clean, small) in enumerate(pairs(options, 25 if what == "noisy" else 4)):
            made = given(small) if what == "noisy" else {"white 0": small.astype(np.float32)}
            for noise, noisy in made.items():
                (one,) = finder.found_noise(noisy)
                if what == "noisy" or (one.kind == "camera" and one.level >= CAMERA):
                    lines[f"{name} x{scale} {noise}"] = line_of(restorer, finder, clean, noisy, scale)
            whole = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            publish_json(RESULT, whole | {what: {"run": run, "images": i + 1, "lines": lines}})
            print(what, name, scale, flush=True)


if __name__ == "__main__":
    main()
