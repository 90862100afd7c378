"""Recipes and training states that are not written by accident: one clear error each, soon."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import RECIPE, make, trainer

from nlrn.cli import run
from nlrn.errors import CheckpointError, ConfigError
from nlrn.models.nlrn import MAX_SIZE, NLRNConfig
from nlrn.training import state as trainstate
from nlrn.training.config import read_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("hostile"))


NESTED = {
    "arrays": "a = " + "[" * 9000,
    "closed arrays": "a = " + "[" * 3000 + "]" * 3000,
    "tables": "a = " + "{b = " * 9000,
    "dotted keys": "a" + ".a" * 2000 + " = 1",
    "very many dotted keys": "a" + ".a" * 20000 + " = 1",  # read in the square of their number
    "not UTF-8": None,
    "a megabyte": "#" * (2 << 20),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * k.startswith("very many")) for k in NESTED]
)
def test_what_is_no_recipe_is_one_error(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, text = tmp_path / "odd.toml", NESTED[kind]
    path.write_bytes(b"name = '\xff'" if text is None else text.encode())
    with pytest.raises(ConfigError, match=r"recipe|unknown key"):
        read_recipe(path)
    assert run(["train", str(path), "--data", str(tmp_path)]) == 2
    assert "a fault" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "channels = 1000000000",
        "embed_channels = 4000000000",
        "states = 1000000000",
        "in_channels = 99999999",
        "window = 1000000001",
        f"channels = {MAX_SIZE + 1}",
        "states = 123456789012345678901234567890",
    ],
)
def test_a_network_beyond_any_is_refused_at_once(tmp_path: Path, line: str) -> None:
    key, value = line.split(" = ")
    (tmp_path / "r.toml").write_text(f"[model]\nsigma_input = true\n{line}\n")
    began = time.process_time()
    with pytest.raises(ConfigError, match=key):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(ConfigError, match=key):  # the network itself refuses it, wherever it comes from
        NLRNConfig(**{key: int(value)})
    assert time.process_time() - began < 5
    assert getattr(NLRNConfig(**{key: 1023}), key) == 1023


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('name = "tiny"', 'name = "a\\u0000b"'),
        ('name = "tiny"', 'name = "a\\u001b[2Jb"'),
        ('name = "tiny"', f'name = "{"x" * 300}"'),
        ('folders = ["images"]', 'folders = ["pic\\u0000tures"]'),
        ('validation = "held"', 'validation = "\\u0000"'),
        ("validation_size = 24", "validation_size = 1000000000"),
        ("validation_images = 2", "validation_images = 1000000000"),
        ("batch = 4", "batch = 1000000000"),
        ("patch = 12", "patch = 1000000000"),
        ("[optim]", '[start]\nfrom = "a\\u0000b"\n[optim]'),
    ],
)
def test_names_and_sizes_that_nothing_can_have_are_refused(tmp_path: Path, before: str, after: str) -> None:
    assert before in RECIPE
    (tmp_path / "r.toml").write_text(RECIPE.replace(before, after, 1))
    with pytest.raises(ConfigError):
        read_recipe(tmp_path / "r.toml")


def test_a_pipe_as_recipe_or_state_does_not_hang(tmp_path: Path, recipe: Path) -> None:
    os.mkfifo(tmp_path / "r.toml")
    with pytest.raises(ConfigError, match="regular file"):
        read_recipe(tmp_path / "r.toml")
    os.mkfifo(tmp_path / "state-000000001.safetensors")
    with pytest.warns(RuntimeWarning, match="regular file"), pytest.raises(CheckpointError, match="no state"):
        trainer(recipe, tmp_path).start(resume=True)


@pytest.fixture(scope="module")
def written(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two states, of steps 7 and 8."""
    folder = tmp_path_factory.mktemp("run")
    subject = trainer(recipe, folder)
    subject.model.train()
    for subject.step in (6, 7):
        subject.train_step()
        subject.step += 1
        subject.save()
    return folder


META: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no step": lambda meta: meta.pop("step"),
    "no end": lambda meta: meta.pop("end"),
    "no recipe": lambda meta: meta.pop("recipe"),
    "a step in words": lambda meta: meta.update(step="7"),
    "a step below 0": lambda meta: meta.update(step=-1),
    "a true step": lambda meta: meta.update(step=True),
    "an endless step": lambda meta: meta.update(step=10**400),
    "seconds that are none": lambda meta: meta.update(seconds=float("nan")),
    "a decay in words": lambda meta: meta.update(decay=None),
}


@pytest.mark.parametrize("kind", META)
def test_a_state_whose_header_makes_no_sense_is_passed_over_loudly(
    tmp_path: Path, recipe: Path, written: Path, kind: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    newest = trainstate.rolling(folder)[0]
    tensors, meta = (found := trainstate.read_state(newest)).tensors, found.meta
    META[kind](meta)
    trainstate.write_state(newest, tensors, meta)
    subject = trainer(recipe, folder)
    with pytest.warns(RuntimeWarning, match="trying the one before"):
        subject.start(resume=True)
    assert subject.step == 7


@pytest.mark.parametrize(
    "change",
    [
        {"foo.bar": torch.zeros(1)},
        {"": torch.zeros(1)},
        {"model": torch.zeros(1)},
        {"ema.foo": torch.zeros(1)},
        {"model.foo": torch.zeros(1)},
        {"optim.foo.exp_avg": torch.zeros(1)},
        {"optim.head.weight.foo": torch.zeros(1)},
        {"optim.head.weight.exp_avg": torch.zeros(1)},  # would be repeated to the shape of the weight
        {"optim.head.bias.step": torch.zeros(3)},
        {"ema.head.bias": torch.zeros(1)},
    ],
    ids=lambda change: next(iter(change)) or "empty",
)
def test_a_state_with_an_odd_tensor_is_refused(
    tmp_path: Path, recipe: Path, written: Path, change: dict[str, torch.Tensor]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    newest = trainstate.rolling(folder)[0]
    tensors, meta = (found := trainstate.read_state(newest)).tensors, found.meta
    trainstate.write_state(newest, tensors | change, meta)
    with pytest.raises(CheckpointError, match="training state"):
        trainer(recipe, folder).start(resume=True)


def test_a_state_that_is_only_a_header_is_refused(tmp_path: Path, recipe: Path, written: Path) -> None:
    meta = trainstate.read_state(trainstate.rolling(written)[0]).meta
    trainstate.write_state(tmp_path / "state-000000008.safetensors", {}, meta)
    with pytest.raises(CheckpointError, match="does not fit"):
        trainer(recipe, tmp_path).start(resume=True)


@pytest.mark.parametrize("kind", ["dangling", "loop", "folder", "link to a folder", "empty"])
def test_a_newest_state_that_leads_nowhere_is_warned_about(
    tmp_path: Path, recipe: Path, written: Path, kind: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    newest = trainstate.rolling(folder)[0]
    newest.unlink()
    if kind == "dangling":
        newest.symlink_to(tmp_path / "moved" / "away.safetensors")
    elif kind == "loop":
        newest.symlink_to(newest)
    elif kind == "folder":
        newest.mkdir()
    elif kind == "link to a folder":
        newest.symlink_to(tmp_path)
    else:
        newest.touch()
    subject = trainer(recipe, folder)
    with pytest.warns(RuntimeWarning, match="state-000000008"):
        subject.start(resume=True)
    assert subject.step == 7
    with pytest.raises(ConfigError, match="holds a run"):
        trainer(recipe, folder).start(resume=False)


def test_a_run_folder_of_dangling_links_is_none_to_start_anew_in(tmp_path: Path, recipe: Path) -> None:
    (tmp_path / trainstate.BEFORE_DECAY).symlink_to(tmp_path / "nowhere")
    (tmp_path / trainstate.LATEST).symlink_to(tmp_path / "nowhere too")
    with pytest.raises(ConfigError, match="holds a run"):
        trainer(recipe, tmp_path).start(resume=False)
    subject = trainer(recipe, tmp_path)
    with pytest.warns(RuntimeWarning) as heard, pytest.raises(CheckpointError, match="no state"):
        subject.start(resume=True)
    assert [word for word in (trainstate.LATEST, "before-decay") if any(word in str(w.message) for w in heard)] == [
        trainstate.LATEST,
        "before-decay",
    ]


def test_a_state_of_another_optimiser_is_refused(tmp_path: Path, recipe: Path, written: Path) -> None:
    config = read_recipe(recipe)
    subject = trainer(recipe, tmp_path, optim=dataclasses.replace(config.optim, optimizer="adamw"))
    tensors = trainstate.read_state(trainstate.rolling(written)[0]).tensors
    with pytest.raises(CheckpointError, match="optimiser"):
        trainstate.unpack(tensors, subject.model, subject.ema, subject.optimizer)
