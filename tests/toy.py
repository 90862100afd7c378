"""A training run so small that a test can make it: a recipe, textures to train on, a trainer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nlrn.models.checkpoint import read_tensors
from nlrn.training.config import (
    TrainConfig,
    read_recipe,
)
from nlrn.training.distributed import Processes
from nlrn.training.tables import build
from nlrn.training.trainer import Trainer

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
folders = ["images"]
validation = "held"
validation_images = 2
validation_size = 24

[noise]
low = 10.0
high = 50.0

[optim]
optimizer = "muon"

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

[[stages]]
start = 45
patch = 16
batch = 4
lr = 0.5
frozen = true
"""


def make(root: Path) -> Path:
    """Fill a folder with textures to train on, others held back, and the recipe, whose path is returned."""
    chance = np.random.RandomState(0)
    for name, number in (("images", 4), ("held", 2)):
        (root / name).mkdir()
        for i in range(number):
            blocks = chance.randint(0, 256, (12, 10)).astype(np.uint8)
            Image.fromarray(blocks).resize((40, 48)).save(root / name / f"{i}.png")
    path = root / "tiny.toml"
    path.write_text(RECIPE)
    return path


def recorded(text: str) -> TrainConfig:
    """The recipe in a weights file's header, read as strictly as a TOML file."""
    config: TrainConfig = build(TrainConfig, json.loads(text), "the header")
    return config


def trainer(recipe: Path, folder: Path, **changes: Any) -> Trainer:
    """A trainer into `folder` of the recipe with some fields changed; the data lie beside the recipe."""
    return Trainer(dataclasses.replace(read_recipe(recipe), **changes), folder, recipe.parent, Processes(CPU))


def sha256_of_tensors(path: Path) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(read_tensors(path)[1].items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


KILLED_RUN = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from nlrn.training import state
from nlrn.training.trainer import train_from_recipe

recipe, data, folder, *kills = sys.argv[1:]
torch.set_num_threads(1)
torch.optim.Adam([torch.zeros(1)]).zero_grad()  # what this imports, every process below has at once
chance = random.Random(0)

def train(number):
    process = os.fork()
    if process == 0:
        train_from_recipe(recipe, data=data, output=folder, resume=number > 0, quiet=True)
        os._exit(0)
    return process

for number, step in enumerate(map(int, kills)):
    process = train(number)
    while int((["0"] + sorted(f.stem[6:] for f in Path(folder).glob("state-*.safetensors")))[-1]) < step:
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    time.sleep(chance.random() * 0.03)
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
assert os.waitpid(train(len(kills)), 0)[1] == 0
"""


def run_script(text: str, recipe: Path, folder: Path, *arguments: int) -> None:
    """A script in a Python of its own, for `recipe` into `folder`."""
    source, script = Path(__file__).resolve().parents[1] / "src", recipe.with_name("script.py")
    script.write_text(text)
    words = [str(word) for word in (script, recipe, recipe.parent, folder, *arguments)]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], env=environment, check=True, timeout=300)
