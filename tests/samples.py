"""The images, weights and folders that the documentation's pages speak of, small, under the names that they use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import tifffile
import toy
from networks import random_model
from PIL import Image

from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.degradations import add_gaussian_noise
from nlrn.models.checkpoint import save_model

ROOT = Path(__file__).resolve().parents[1]
GAIN, READ_NOISE = 0.5, 6.0  # of the even places in docs/sigma.md


def make(folder: Path) -> None:
    """Fill a folder."""
    (folder / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "camera.png", folder / "examples")
    camera = np.asarray(Image.open(ROOT / "examples" / "camera.png")) / 255
    clean = camera[100:148, 200:264]
    noisy = add_gaussian_noise(clean, 25)
    _save(clean, folder / "levels.png", 40 / 255 / clean.max())
    _save(noisy, folder / "noisy.png")
    _save(camera[100:228, 180:308], folder / "image.png")
    _save(add_gaussian_noise(camera[180:244, 30:480], 25), folder / "panorama.png")
    _save(PoissonNoise(8, 2).add(255 * clean) / 255, folder / "cells.png")
    colour = add_gaussian_noise(np.dstack([clean, clean**0.8, clean**1.2]), 25)
    _save(colour, folder / "colour.png")
    alpha = np.where(np.hypot(*np.mgrid[-24:24, -32:32]) < 24, 255, 0) / 255
    _save(np.dstack([colour, alpha]), folder / "sprite.png")
    Image.fromarray(np.rint(np.clip(noisy, 0, 1) * 65535).astype(np.uint16)).save(folder / "scan.tif")
    Image.fromarray(noisy.astype(np.float32)).save(folder / "float.tif")
    _even_places(folder)
    _stacks(folder, clean)
    _folders(folder, camera)
    save_model(folder / "your-sr.safetensors", random_model(task="sr", sigma_input=False), {"steps": "0"})
    save_model(folder / "tiny.safetensors", random_model(states=1, window=3), {"steps": "0"})
    for file in (ROOT / "tests" / "authors").glob("first.ckpt.*"):
        shutil.copy(file, folder / file.name.replace("first", "model"))


def _save(image: np.ndarray, path: Path, factor: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(np.clip(image * factor, 0, 1) * 255).astype(np.uint8)).save(path)


def _stacks(folder: Path, clean: np.ndarray) -> None:
    """Planes of 12 bits in 16: an ImageJ hyperstack, and pages that say nothing; an animation."""
    planes = np.stack([add_gaussian_noise(clean * (0.8 + 0.1 * i), 15, seed=i) for i in range(6)])
    counts = np.rint(400 + 1200 * planes.clip(0)).astype(np.uint16)
    hyperstack = counts.reshape(3, 2, *clean.shape)
    tifffile.imwrite(folder / "stack.tif", hyperstack, imagej=True, metadata={"axes": "ZCYX", "spacing": 0.5})
    tifffile.imwrite(folder / "pages.tif", counts, metadata=None, photometric="minisblack")
    frames = [Image.fromarray(np.rint(255 * plane.clip(0, 1)).astype(np.uint8)) for plane in planes[:3]]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=200)


def _even_places(folder: Path) -> None:
    noise = PoissonNoise(GAIN, READ_NOISE)
    for i, name in enumerate(("bright-1", "bright-2", "dim-1", "dim-2")):
        place = noise.add(np.full((200, 200), 180.0 if name.startswith("bright") else 40.0), seed=i) / 255
        Image.fromarray(np.rint(np.clip(place, 0, 1) * 65535).astype(np.uint16)).save(folder / f"{name}.tif")


def _folders(folder: Path, camera: np.ndarray) -> None:
    """photos; album, where one image is torn; two-images to score; my-images, toy and recipes to train on."""
    crops = [camera[y : y + 48, x : x + 64] for y, x in ((100, 200), (260, 100), (300, 240), (20, 320))]
    for name in ("photos", "album"):
        for i, file in enumerate(("a.png", "b.jpg", "below/c.png")):
            _save(add_gaussian_noise(crops[i], 20), folder / name / file)
    whole = (folder / "album" / "a.png").read_bytes()
    (folder / "album" / "torn.png").write_bytes(whole[: len(whole) // 2])
    for i, crop in enumerate(crops):
        own = "train" if i < 2 else "held-back"
        _save(crop, folder / "my-images" / own / f"{i}.png")
        _save(add_gaussian_noise(crop, 20), folder / "my-images" / f"{own}-noisy" / f"{i}.png")
        _save(crop, folder / ("two-images" if i < 2 else "toy/bsd68") / f"{i}.png")
        _save(crop, folder / "toy" / "set12" / f"{i}.png")
    toy.make(folder / "toy")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
