"""Folders of small images, what is found in a folder of results, and restorers that do little or end a process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
from PIL import Image

from nlrn.batch.manifest import LOCK, MANIFEST
from nlrn.batch.run import Restore
from nlrn.io.image import ImageData

ROOT = Path(__file__).resolve().parents[1]


def fill(folder: Path, count: int, bad: int = 0) -> None:
    """Small images grey and colour, PNG and JPEG, in two folders; every so many-th is damaged."""
    chance = np.random.RandomState(0)
    (folder / "deep").mkdir(parents=True)
    for i in range(count):
        place = folder / ("deep" if i % 3 == 0 else "") / f"{i:03}.{'jpg' if i % 5 == 0 else 'png'}"
        shape = (16, 18) if i % 2 else (16, 18, 3)
        Image.fromarray(chance.randint(0, 256, shape).astype(np.uint8)).save(place)
        if bad and i % bad == 0:
            place.write_bytes(place.read_bytes()[:60])


def digests(folder: Path) -> dict[str, str]:
    files = [f for f in folder.rglob("*") if f.is_file() and f.name not in (MANIFEST, LOCK)]
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines() if line.endswith("}")]


def same(image: ImageData, form: str) -> ImageData:
    return image


def deadly(image: ImageData, form: str) -> ImageData:
    """Kills its process for an image that is white at a corner."""
    if image.array.flat[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return image


def give(restore: Restore) -> Restore:
    return restore
