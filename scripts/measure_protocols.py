"""Where our protocols differ from the authors' scripts, in dB (docs/reproduce.md): theirs less ours.

python scripts/measure_protocols.py clipping|reduction|seeds [--data DATA] [--images N]

clipping: of the later code, which clips each patch before the average, on the images of Set12 of 256 x 256 pixels.
reduction: they reduce the luminance before it is rounded, and mirror the image at its border; bicubic, and sr-small on
Set5. seeds: the later code seeds the noise of each image by the SHA-256 of its file's name; and other seeds for all.
--images: the first so many of a set.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import nlrn
from nlrn.functional.degradations import Border, add_gaussian_noise, resize_bicubic
from nlrn.functional.metrics import luma8, psnr, quantize8, studio_luma
from nlrn.functional.tiling import Average
from nlrn.inference import restorer as inference

SIGMAS = (15.0, 25.0, 50.0)


def images_of(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and samples, grey or RGB."""
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            yield path.name, np.asarray(image if image.mode == "L" else image.convert("RGB"))


# -- clipping ---------------------------------------------------------------------------------------------------------


class Both(Average):
    """The mean of the patches, and that of the patches clipped to [0, 1]."""

    clipped: np.ndarray

    def __init__(self, height: int, width: int, channels: int) -> None:
        super().__init__(height, width, channels)
        self._clipped, self.beyond = Average(height, width, channels), 0

    def add(self, y: int, x: int, array: np.ndarray) -> None:
        """Add one patch to both."""
        super().add(y, x, array)
        self._clipped.add(y, x, np.clip(array, 0, 1))
        self.beyond += int(np.sum((array < 0) | (array > 1)))

    def result(self) -> np.ndarray:
        """The first; the other one is left in the class."""
        Both.clipped = self._clipped.result()
        return super().result()


def clipping(data: Path, most: int | None) -> None:
    """Patch mode, the output with every patch clipped and without."""
    setattr(inference, "Average", Both)  # noqa: B010
    restorer = nlrn.load("denoise-gray-small", mode="patch", precision="fp32")
    chosen = [(name, image) for name, image in images_of(data / "set12") if image.shape == (256, 256)][:most]
    for sigma in SIGMAS:
        gains = []
        for _, image in chosen:
            clean = image / 255.0
            ours = restorer.denoise(add_gaussian_noise(clean, sigma), sigma, value_range="type")
            gains.append(psnr(clean, quantize8(Both.clipped[..., 0])) - psnr(clean, quantize8(ours)))
        print(f"{len(chosen)} images of set12, sigma {sigma:g}: {_spread(gains)}", flush=True)


# -- reduction --------------------------------------------------------------------------------------------------------


def low_and_high(image: np.ndarray, scale: int, *, rounded: bool, border: Border) -> tuple[np.ndarray, np.ndarray]:
    """The luminance of a uint8 image made smaller, and that which is scored against."""
    height, width = (n // scale * scale for n in image.shape[:2])
    image = image[:height, :width]
    high = luma8(image) / 255.0
    seen = high if rounded or image.ndim == 2 else studio_luma(image / 255.0)
    return resize_bicubic(seen, height // scale, width // scale, border=border), high


def reduction(data: Path, most: int | None) -> None:
    """Each difference by itself and both, on Set5 and Set14."""
    restorer = nlrn.load("sr-small", precision="fp32")
    ways: dict[str, Callable[[np.ndarray, tuple[int, int], Border], np.ndarray]] = {
        "bicubic": lambda low, size, border: resize_bicubic(low, *size, border=border),
        "sr-small": lambda low, size, border: restorer.upscale(low, *size, value_range="type"),
    }
    variants: dict[str, tuple[bool, Border]] = {
        "ours": (True, "replicate"),
        "not rounded": (False, "replicate"),
        "mirrored": (True, "symmetric"),
        "both": (False, "symmetric"),
    }
    for name, way in (("set5", "bicubic"), ("set14", "bicubic"), ("set5", "sr-small")):
        images, enlarged = [image for _, image in images_of(data / name / "hr")][:most], ways[way]
        for scale in (2, 3, 4):
            scores = {}
            for variant, (rounded, border) in variants.items():
                pairs = [low_and_high(image, scale, rounded=rounded, border=border) for image in images]
                scores[variant] = [
                    psnr(high, quantize8(enlarged(low, high.shape, border)), border=scale) for low, high in pairs
                ]
            ours = np.mean(scores.pop("ours"))
            said = ", ".join(f"{variant} {np.mean(found) - ours:+.4f}" for variant, found in scores.items())
            print(f"{name} x{scale} by {way}: {said} dB", flush=True)


# -- seeds ------------------------------------------------------------------------------------------------------------


def seeds(data: Path, most: int | None) -> None:
    """Other noise than that of seed 0 on Set12."""
    restorer = nlrn.load("denoise-gray-small", precision="fp32")
    images = list(images_of(data / "set12"))[:most]

    def mean(sigma: float, seed: Callable[[str], object]) -> float:
        scores = []
        for name, image in images:
            clean = image / 255.0
            noise = np.random.RandomState(seed(name)).normal(0, sigma / 255, clean.shape)  # type: ignore[arg-type]
            scores.append(psnr(clean, quantize8(restorer.denoise(clean + noise, sigma, value_range="type"))))
        return float(np.mean(scores))

    for sigma in SIGMAS:
        ours = mean(sigma, lambda name: 0)
        later = mean(sigma, lambda name: np.frombuffer(hashlib.sha256(name.encode()).digest(), "uint32"))
        others = [mean(sigma, lambda name, seed=seed: seed) - ours for seed in (1, 2, 3)]  # type: ignore[misc]
        said = " ".join(f"{gain:+.3f}" for gain in others)
        print(f"set12, sigma {sigma:g}: by names {later - ours:+.3f} dB; seeds 1, 2, 3: {said} dB", flush=True)


def _spread(gains: list[float]) -> str:
    return f"mean {np.mean(gains):+.5f} dB, from {min(gains):+.5f} to {max(gains):+.5f}"


WHAT = {"clipping": clipping, "reduction": reduction, "seeds": seeds}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--images", type=int)
    options = parser.parse_args()
    WHAT[options.what](options.data, options.images)
