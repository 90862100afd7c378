"""The sample that the page of nlrn serve opens with: a CC0 photograph (Stefan van der Walt, scikit-image's `chelsea`)
with the noise of a simulated camera, and what nlrn makes of it with nothing given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

import nlrn
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera

PAGE = Path(__file__).resolve().parents[1] / "src" / "nlrn" / "web" / "page" / "samples"
LEVEL, SEED = 14.0, 1  # the standard deviation of the noise on grey of 0.5, 0-255 units
CROP = slice(10, 250), slice(60, 380)


def noisy() -> np.ndarray:
    """uint8 [240, 320, 3]."""
    clean = np.asarray(data.chelsea())[CROP] / 255  # type: ignore[no-untyped-call]
    random = np.random.default_rng(SEED)
    return np.rint(add_camera_noise(clean, at_level(draw_camera(random), LEVEL), random) * 255).astype(np.uint8)


def main() -> None:
    image = noisy()
    print(nlrn.estimate_noise(image / np.float32(255)))
    for name, array in (("cat-camera", image), ("cat-camera-restored", nlrn.denoise(image))):
        Image.fromarray(array).save(PAGE / f"{name}.png", optimize=True)
        print(name, (PAGE / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
