"""Where our protocols differ from the authors' scripts, in dB: python scripts/measure_protocols.py [DATA].

Super-resolution by bicubic alone: they reduce the luminance before it is rounded, and mirror the image at its border.
Denoising: the later code seeds the noise of each image by the SHA-256 of its file's name.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

import nlrn
from nlrn.functional.degradations import Border, resize_bicubic
from nlrn.functional.metrics import luma8, psnr, quantize8, studio_luma


def bicubic(image: np.ndarray, scale: int, *, theirs: bool) -> float:
    """PSNR of a uint8 image, reduced and enlarged."""
    height, width = (n // scale * scale for n in image.shape[:2])
    image = image[:height, :width]
    high, border = luma8(image) / 255.0, get_args(Border)[1 if theirs else 0]
    seen = (studio_luma(image / 255.0) if image.ndim == 3 else high) if theirs else high
    low = resize_bicubic(seen, height // scale, width // scale, border=border)
    return psnr(high, quantize8(resize_bicubic(low, height, width, border=border)), border=scale)


def denoised(path: Path, sigma: float, seed: object, restorer: nlrn.Restorer) -> float:
    image = np.asarray(Image.open(path)) / 255.0
    noise = np.random.RandomState(seed).normal(0, sigma / 255, image.shape)  # type: ignore[arg-type]
    return psnr(image, quantize8(restorer.denoise((image + noise).astype(np.float32), sigma)))


def main(data: Path) -> None:
    for name in ("set5", "set14"):
        paths = sorted((data / name / "hr").iterdir())
        images = [np.asarray(x if (x := Image.open(path)).mode == "L" else x.convert("RGB")) for path in paths]
        for scale in (2, 3, 4):
            ours, theirs = ([bicubic(x, scale, theirs=t) for x in images] for t in (False, True))
            print(f"{name} x{scale}: {np.mean(theirs) - np.mean(ours):+.4f} dB", flush=True)
    restorer = nlrn.load("denoise-gray-small", precision="fp32")
    paths = sorted((data / "set12").glob("*.png"))
    for sigma in (15.0, 25.0, 50.0):
        names = [np.frombuffer(hashlib.sha256(path.name.encode()).digest(), "uint32") for path in paths]
        ours = [denoised(path, sigma, 0, restorer) for path in paths]
        theirs = [denoised(path, sigma, seed, restorer) for path, seed in zip(paths, names, strict=True)]
        print(f"set12, sigma {sigma:g}: {np.mean(theirs) - np.mean(ours):+.3f} dB", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"))
