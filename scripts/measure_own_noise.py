"""Training on noise that stands in files, by kind: what each reaches in the same number of steps.

    python scripts/measure_own_noise.py [--data ../shared/data] [--steps 1500] [--sigma 25] [--work FOLDER]

Of the training images of BSDS500 two noisy versions are written, each once, with white noise as an example of noise
that no model describes. A reduced network (32 channels, 3 states, window 9) is trained from the start on: fresh noise
on clean images (a level that is known), noisy and clean pairs, two noisy images, and one noisy image, with and without
the second term. Scored on the middles of 20 test images of BSDS500, on which none was trained: mean PSNR. Prints a
table.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

import nlrn
from nlrn.functional.metrics import psnr
from nlrn.models.nlrn import NLRNConfig
from nlrn.training.config import DataConfig, NoiseConfig, OptimConfig, ScheduleConfig, Stage, TrainConfig
from nlrn.training.trainer import train

SIDE, IMAGES = 160, 20


def grey(path: Path) -> np.ndarray:
    """HW in 0..1."""
    return np.asarray(Image.open(path).convert("L"), np.float32) / 255


def noisy(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """The image with white noise, not clipped."""
    return image + np.random.default_rng(seed).normal(0, sigma / 255, image.shape).astype(np.float32)


def config_of(name: str, data: DataConfig, noise: NoiseConfig, steps: int) -> TrainConfig:
    """The same for every kind but its data."""
    return TrainConfig(
        name,
        NLRNConfig(channels=32, embed_channels=16, states=3, window=9),
        data,
        noise,
        optim=OptimConfig("muon", lr=3e-3),
        schedule=ScheduleConfig(steps=steps, warmup=50, decay=0.4),
        stages=(Stage(0, 40, 8), Stage(300, 40, 8, frozen=True)),
        loss="mse",
        embedding_gain=0.5,
        embedding_lr=0.33,
        validate_every=10**6,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--sigma", type=float, default=25)
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as made:
        work = Path(made)
        for folder in ("clean", "one", "two"):
            (work / folder).mkdir()
        for i, path in enumerate(sorted((options.data / "bsds500" / "train").glob("*.jpg"))):
            image = grey(path)
            tifffile.imwrite(work / "clean" / f"{path.stem}.tif", image)
            for k, folder in enumerate(("one", "two")):
                tifffile.imwrite(work / folder / f"{path.stem}.tif", noisy(image, options.sigma, 2 * i + k))
        paired: dict[str, Any] = {"validation_size": 64, "validation_images": 1, "validation_noisy": "one"}
        pairs = DataConfig(("clean",), "clean", noisy=("one",), **paired)
        twice = DataConfig(("two",), "two", noisy=("one",), **paired)
        alone = DataConfig(("one",), "clean", **paired)
        fresh = DataConfig(("clean",), "clean", 1, 64, depth=16)
        kinds = {
            "clean images, fresh noise": (fresh, NoiseConfig(options.sigma, options.sigma)),
            "`pairs`": (pairs, NoiseConfig(kind="pairs")),
            "`noise2noise`": (twice, NoiseConfig(kind="noise2noise")),
            "`neighbor2neighbor`": (alone, NoiseConfig(kind="neighbor2neighbor")),
            "`neighbor2neighbor`, `regularization = 0`": (
                alone,
                NoiseConfig(kind="neighbor2neighbor", regularization=0.0),
            ),
        }
        tests = [grey(path) for path in sorted((options.data / "bsds500" / "test").glob("*.jpg"))[::10][:IMAGES]]
        middles = [x[x.shape[0] // 2 - 80 :, x.shape[1] // 2 - 80 :][:SIDE, :SIDE] for x in tests]
        seen = [noisy(x, options.sigma, 10_000 + i) for i, x in enumerate(middles)]
        print("| trained on | PSNR (dB) |\n| --- | --- |")
        print(f"| (as it is) | {np.mean([psnr(x, y) for x, y in zip(middles, seen, strict=True)]):.2f} |", flush=True)
        for number, (label, (data, noise)) in enumerate(kinds.items()):
            config = config_of(f"own-{number}", data, noise, options.steps)
            config = dataclasses.replace(config, checkpoint_minutes=60.0)
            weights = train(config, output=work / config.name, data=work, quiet=True)
            restorer = nlrn.load(weights)
            scores = [psnr(x, restorer.denoise(y, value_range="type")) for x, y in zip(middles, seen, strict=True)]
            print(f"| {label} | {np.mean(scores):.2f} |", flush=True)


if __name__ == "__main__":
    main()
