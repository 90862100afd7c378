"""The sample that the page of nlrn serve opens with: a CC0 photograph (Stefan van der Walt, scikit-image's `chelsea`)
with the noise of a simulated camera, and what nlrn makes of it with default settings. The same pair is
docs/camera-noise.png. docs/front.jpg has a real photograph with its own grain beside one with Gaussian noise (CC0, Lav
Varshney): Grace Hopper, U.S. Navy, in the public domain, as matplotlib's sample data hold it
(matplotlib/matplotlib#1599; the file names commons.wikimedia.org/wiki/File:Grace_Hopper.jpg as its source)."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image
from skimage import data

import nlrn
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera
from nlrn.functional.degradations import add_gaussian_noise

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "src" / "nlrn" / "web" / "page" / "samples"
GAP = 6
LEVEL, SEED = 14.0, 1  # the standard deviation of the noise on grey of 0.5, 0-255 units
CROP = slice(10, 250), slice(60, 380)
GRAIN = slice(88, 208), slice(256, 416)  # half as large; it is shown twice enlarged


def noisy() -> np.ndarray:
    """uint8 [240, 320, 3]."""
    clean = np.asarray(data.chelsea())[CROP] / 255  # type: ignore[no-untyped-call]
    random = np.random.default_rng(SEED)
    return np.rint(add_camera_noise(clean, at_level(draw_camera(random), LEVEL), random) * 255).astype(np.uint8)


def white() -> np.ndarray:
    """The same of a grey photograph with Gaussian noise of sigma 25."""
    with Image.open(ROOT / "examples" / "camera.png") as file:
        clean = np.asarray(file)[70:310, 130:450] / 255
    return np.rint(np.clip(add_gaussian_noise(clean, 25), 0, 1) * 255).astype(np.uint8)


def grain() -> list[np.ndarray]:
    """The photograph as it is, and restored as a whole with default settings: uint8 [240, 320, 3] of each."""
    with Image.open(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg") as file:
        image = np.asarray(file.convert("RGB"))
    print(nlrn.estimate_noise(image / np.float32(255)))
    return [array[GRAIN].repeat(2, axis=0).repeat(2, axis=1) for array in (image, nlrn.denoise(image))]


def sheet(path: Path, arrays: list[np.ndarray]) -> None:
    """Images of one size beside each other."""
    height, width = arrays[0].shape[:2]
    whole = Image.new("RGB", (len(arrays) * (width + GAP) - GAP, height), "white")
    for i, array in enumerate(arrays):
        whole.paste(Image.fromarray(array).convert("RGB"), (i * (width + GAP), 0))
    whole.save(path, optimize=True, quality=90)


def main() -> None:
    """Write the samples of the page and the sheets of the documentation."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    image, grey = noisy(), white()
    print(nlrn.estimate_noise(image / np.float32(255)))
    restored = nlrn.denoise(image)
    for name, array in (("cat-camera", image), ("cat-camera-restored", restored)):
        Image.fromarray(array).save(PAGE / f"{name}.png", optimize=True)
        print(name, (PAGE / f"{name}.png").stat().st_size)
    sheet(ROOT / "docs" / "camera-noise.png", [image, restored])
    sheet(ROOT / "docs" / "front.jpg", [*grain(), grey, nlrn.denoise(grey)])


if __name__ == "__main__":
    main()
