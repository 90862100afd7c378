"""Files that version 0.2.0 wrote stay readable: weights, a training state, recipes, the manifest of a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_model
from toy import make, recorded

import nlrn
from nlrn import cli
from nlrn.cli import digest
from nlrn.models.checkpoint import model_metadata
from nlrn.training.config import read_recipe
from nlrn.training.state import read_state
from nlrn.training.trainer import train_from_recipe

FILES = Path(__file__).parent / "data" / "yesterday"
RECIPES: dict[str, Any] = json.loads((FILES / "said.json").read_text())["recipes"]


def _made(root: Path) -> Path:
    """The toy recipe and its data under the names of 0.2.0, which its digest holds."""
    recipe = make(root)
    (root / "images").rename(root / "pictures")  # codespell:ignore
    text = recipe.read_text().replace("validation_images", "validation_pictures")
    recipe.write_text(text.replace('"images"', '"pictures"'))  # codespell:ignore
    return recipe


def test_a_weights_file_is_the_model_that_was_saved() -> None:
    found, expected = nlrn.load_model(FILES / "weights.safetensors"), random_model()
    assert found.config == expected.config
    tensors = found.state_dict()
    assert tensors.keys() == expected.state_dict().keys()
    assert all(torch.equal(value, tensors[name]) for name, value in expected.state_dict().items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_header_and_its_digest(name: str, tmp_path: Path) -> None:
    """Every key: together the recipes set each one, and the headers name what was read."""
    config = read_recipe(_made(tmp_path) if name == "toy" else FILES / f"{name}.toml")
    assert config.header() == RECIPES[name]["header"]
    assert config.digest() == RECIPES[name]["digest"]
    assert recorded(RECIPES[name]["header"]) == config


def test_a_training_goes_on_from_its_state(tmp_path: Path) -> None:
    recipe, run = _made(tmp_path), tmp_path / "run"
    run.mkdir()
    shutil.copy(FILES / "before-decay.safetensors", run)
    step = read_state(FILES / "before-decay.safetensors").meta["step"]
    weights = train_from_recipe(recipe, steps=step + 3, decay=0, output=run, data=tmp_path, quiet=True, resume=True)
    assert model_metadata(weights)["steps"] == str(step + 3)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert min(record["step"] for record in records if "step" in record) >= step


def test_a_folder_that_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FILES / "folder", tmp_path / "folder")
    shutil.copy(FILES / "weights.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digest, "__version__", "0.2.0")
    files = sorted((tmp_path / "folder/out").glob("*.png"))
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    options = ["--model", "weights.safetensors", "--sigma", "25", "--precision", "fp32"]
    assert cli.run(["denoise", "folder/in", "-o", "folder/out", *options]) == 1  # one is damaged
    assert "2 already done, 1 refused" in capsys.readouterr().out
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


def test_a_key_and_its_former_name_are_one_key(tmp_path: Path) -> None:
    new = make(tmp_path)
    old = tmp_path / "old.toml"
    old.write_text(new.read_text().replace("validation_images", "validation_pictures"))
    assert read_recipe(old).digest() == read_recipe(new).digest()
    old.write_text(new.read_text().replace("validation_images", "validation_pictures = 2\nvalidation_images"))
    with pytest.raises(nlrn.ConfigError, match="validation_pictures, its former name"):
        read_recipe(old)
