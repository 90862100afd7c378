"""A training run so small that a test can make it: a recipe, textures to train on, a trainer."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nlrn.checkpoint import read_tensors
from nlrn.processes import Processes
from nlrn.recipe import read_recipe
from nlrn.training import Trainer

CPU = torch.device("cpu")
RECIPE = """
name = "tiny"
ema = 0.9
norm_batches = 4
precision = "fp32"
validate_every = 20
checkpoint_minutes = 0.0

[model]
channels = 8
embed_channels = 4
states = 2
window = 5
sigma_input = true

[data]
folders = ["pictures"]
validation = "held"
validation_pictures = 2
validation_size = 24

[noise]
low = 10.0
high = 50.0

[schedule]
steps = 60
warmup = 5

[[stages]]
start = 0
patch = 12
batch = 4

[[stages]]
start = 30
patch = 16
batch = 4
"""


def make(root: Path) -> Path:
    """Fill a data folder with textures to train on and others held back; the recipe's file, in the same folder."""
    chance = np.random.RandomState(0)
    for name, number in (("pictures", 4), ("held", 2)):
        (root / name).mkdir()
        for i in range(number):
            blocks = chance.randint(0, 256, (12, 10)).astype(np.uint8)
            Image.fromarray(blocks).resize((40, 48)).save(root / name / f"{i}.png")
    path = root / "tiny.toml"
    path.write_text(RECIPE)
    return path


def trainer(recipe: Path, folder: Path, **changes: Any) -> Trainer:
    """A trainer of the recipe, some of whose fields are changed, into `folder`; the data lie beside the recipe."""
    return Trainer(dataclasses.replace(read_recipe(recipe), **changes), folder, recipe.parent, Processes(CPU))


def sha256_of_tensors(path: Path) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(read_tensors(path)[1].items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


SCRIPT = """
import sys, torch
from nlrn.training import train_from_recipe
torch.set_num_threads(1)
recipe, data, output, steps, resume = sys.argv[1:]
train_from_recipe(
    recipe, data=data, output=output, steps=int(steps), resume=resume == "resume", quiet=True
)
"""


def start(recipe: Path, output: Path, steps: int, resume: bool, *launcher: str) -> subprocess.Popen[bytes]:
    """The recipe in a process of its own, or by a launcher."""
    source = Path(__file__).resolve().parents[1] / "src"
    script = recipe.with_name("script.py")
    script.write_text(SCRIPT)
    arguments = [
        str(a) for a in (script, recipe, recipe.parent, output, steps, "resume" if resume else "fresh")
    ]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, *arguments], env=environment)
