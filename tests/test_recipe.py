"""Laws of the recipe: strict reading, the schedules, and what identifies a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from toy import recorded

from nlrn.errors import ConfigError
from nlrn.models.checkpoint import model_metadata
from nlrn.models.nlrn import NLRNConfig
from nlrn.training.config import (
    NoiseConfig,
    OptimConfig,
    ScheduleConfig,
    Stage,
    TrainConfig,
    read_recipe,
)
from nlrn.training.state import BEFORE_DECAY, read_state

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("los = 'mse'", "unknown key 'los' in recipe.toml; did you mean 'loss'"),
        ("[model]\nchanels = 8", "unknown key 'chanels' in model; did you mean 'channels'"),
        ("[optim]\nlearning_rate = 1.0", "unknown key 'learning_rate' in optim; there are betas, clip"),
        ("[[stages]]\nstart = 0\npatches = 8\nbatch = 1", "did you mean 'patch'"),
        ("[[stages]]\nstart = 0\npatch = 8", "stages lacks batch"),
    ],
)
def test_an_unknown_or_missing_key_is_named_with_its_nearest(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_recipe(write(tmp_path, text))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "ema = '0.9'",
        "ema = nan",
        "seed = 1.5",
        "seed = true",
        "seed = -1",
        "loss = 1",
        "loss = 'mae'",
        "compile = 1",
        "stages = 5",
        "stages = []",
        "stages = [3]",
        "model = 3",
        "name = 'a/b'",
        "name = 'state-9'",
        "name = 'before-decay'",
        "[model]\nwindow = 4",
        "[model]\nwindow = '15'",
        "[model]\nsigma_input = 1",
        "[data]\nfolders = 'train'",
        "[data]\nfolders = [1]",
        "[data]\nfolders = []",
        "[optim]\nbetas = [0.9]",
        "[optim]\nbetas = [0.9, 1.0]",
        "[optim]\nlr = inf",
        "[optim]\nlr = false",
        "[optim]\noptimizer = 'sgd'",
        "[noise]\nlow = 30.0\nhigh = 20.0",
        "[schedule]\nkind = 'cosine'",
        "[schedule]\ndecay = 1.0",
        "[[stages]]\nstart = 5\npatch = 8\nbatch = 1",
        "[[stages]]\nstart = 0\npatch = 8\nbatch = 4\naccumulate = 5",
        "[[stages]]\nstart = 0\npatch = 8\nbatch = 4\naccumulate = 0",
        "[noise]\nlow = 0.0\nhigh = 50.0",  # a range of levels, and a model that does not receive the level
        "not toml",
    ],
)
def test_wrong_types_and_values_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        read_recipe(write(tmp_path, text))


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        read_recipe(tmp_path / "absent.toml")


def test_every_part_of_a_recipe_arrives(tmp_path: Path) -> None:
    text = """
        loss = "mse"
        ema = 0
        [model]
        window = 0
        [noise]
        low = 25
        high = 25.0
        [optim]
        betas = [0.5, 0.25]
        [schedule]
        kind = "halving"
        [[stages]]
        start = 0
        patch = 8
        batch = 2
        [[stages]]
        start = 10
        patch = 16
        batch = 4
        accumulate = 2
    """
    expected = TrainConfig(
        "recipe",
        NLRNConfig(window=None),
        noise=NoiseConfig(25, 25.0),
        optim=OptimConfig(betas=(0.5, 0.25)),
        schedule=ScheduleConfig(kind="halving"),
        stages=(Stage(0, 8, 2), Stage(10, 16, 4, accumulate=2)),
        loss="mse",
        ema=0,
    )
    assert read_recipe(write(tmp_path, text)) == expected


def fixed(**changes: object) -> TrainConfig:
    """A recipe for one noise level with a schedule of its own."""
    return TrainConfig("r", noise=NoiseConfig(25, 25), schedule=ScheduleConfig(**changes))  # type: ignore[arg-type]


def test_the_rate_warms_up_stays_and_decays_to_zero() -> None:
    config = fixed(steps=100, warmup=10, decay=0.2)
    rates = [config.lr(step, 80, 20) / config.optim.lr for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(21)])
    assert rates[100] == 0


def test_without_a_decay_the_rate_stays() -> None:
    config = fixed(warmup=0)
    assert {config.lr(step, 100, 0) for step in range(100)} == {config.optim.lr}


def test_the_papers_rate_halves_every_so_many_steps_and_knows_no_decay() -> None:
    config = fixed(kind="halving", warmup=0, halve_every=7)
    for step in range(50):
        assert config.lr(step, 20, 10) == config.optim.lr / 2 ** (step // 7)


def test_stages_and_their_pixels() -> None:
    stages = (Stage(0, 3, 2), Stage(10, 5, 4), Stage(25, 7, 1))
    config = dataclasses.replace(fixed(), stages=stages)
    assert [config.stage(step).patch for step in (0, 9, 10, 24, 25, 10**6)] == [3, 3, 5, 5, 7, 7]
    each = [config.stage(step).batch * config.stage(step).patch ** 2 for step in range(60)]
    for start in range(0, 60, 3):
        for end in range(start, 60, 4):
            assert config.pixels(start, end) == sum(each[start:end])


def test_a_stage_has_its_share_of_the_rate_and_may_freeze_the_batch_norms() -> None:
    stages = (
        Stage(0, 3, 2),
        Stage(10, 5, 4, lr=0.5),
        Stage(20, 5, 4, lr=0.25, frozen=True),
        Stage(30, 7, 1, frozen=True),
    )
    config = dataclasses.replace(fixed(warmup=0), stages=stages)
    rates = [config.lr(step, 100, 10) / config.optim.lr for step in (9, 10, 19, 20, 30, 105)]
    assert rates == pytest.approx([1, 0.5, 0.5, 0.25, 1, 0.5])
    assert config.freeze == 20
    assert fixed().freeze is None
    with pytest.raises(ConfigError, match="after a frozen one"):
        dataclasses.replace(config, stages=(*stages, Stage(40, 7, 1)))


def test_the_digest_tells_recipes_apart_by_what_a_step_computes() -> None:
    config = fixed()
    schedule = dataclasses.replace(config.schedule, steps=7, decay=0.5)
    same = dataclasses.replace(config, schedule=schedule, validate_every=7, checkpoint_minutes=9.0)
    assert same.digest() == config.digest()
    others = [
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, loss="mse"),
        dataclasses.replace(config, optim=OptimConfig(lr=2e-3)),
        dataclasses.replace(config, stages=(Stage(0, 32, 16),)),
        dataclasses.replace(config, stages=(Stage(0, 32, 16, accumulate=2),)),
        dataclasses.replace(config, model=NLRNConfig(window=15)),
        dataclasses.replace(config, schedule=ScheduleConfig(warmup=1)),
    ]
    assert len({config.digest(), *(other.digest() for other in others)}) == 8
    gaussian = dataclasses.replace(config.model, propagation=False)
    without, other = (dataclasses.replace(gaussian, distance=d) for d in ("embedded_gaussian", "gaussian"))
    digests = {dataclasses.replace(config, model=model).digest() for model in (without, other)}
    assert len(digests) == 2
    assert "distance" not in config.header()  # the digests of states from before there was a choice stay


def test_the_recipes_of_this_repository() -> None:
    found = {path.stem: read_recipe(path) for path in RECIPES.glob("*.toml")}
    assert {"denoise-gray", "denoise-gray-small", "paper-sigma25"} <= found.keys()
    assert all(name == config.name for name, config in found.items())
    base = NLRNConfig()
    assert found["denoise-gray"].model == dataclasses.replace(base, sigma_input=True)
    assert found["denoise-gray"].stages[-1].patch >= 96
    for name in ("denoise-gray", "denoise-gray-small"):
        assert found[name].noise == NoiseConfig(0.0, 75.0)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_comes_back_from_a_header_as_it_was(path: Path) -> None:
    config = read_recipe(path)
    values = json.loads(config.header())
    assert recorded(json.dumps(values)) == config
    with pytest.raises(ConfigError, match="unknown key 'los'"):
        recorded(json.dumps(values | {"los": "mse"}))


def test_the_shipped_weights_were_made_by_the_recipe_of_their_name() -> None:
    name = "denoise-gray-small"
    made_by = recorded(model_metadata(name)["recipe"])
    assert made_by.name == name
    assert made_by.digest() == read_recipe(RECIPES / f"{name}.toml").digest()


def test_every_released_state_goes_on_under_the_recipe_of_its_name() -> None:
    states = sorted((RECIPES.parent / "training" / "state").iterdir())
    assert states
    for folder in states:
        meta = read_state(folder / BEFORE_DECAY).meta
        assert meta["recipe"] == read_recipe(RECIPES / f"{folder.name}.toml").digest()


COMMON = OptimConfig("tf-adam", 1e-3, weight_decay=0.0, clip=2.5, clip_per_variable=True)


@pytest.mark.parametrize(
    ("name", "states", "region", "largest", "steps", "halve_at"),
    [
        ("paper-sigma25", 12, 0, 255, 400_000, [75_000 * i for i in range(1, 7)]),
        ("paper-sigma25-later", 15, 5, 1, 500_000, [100_000, 200_000, 300_000, 400_000, 450_000]),
    ],
)
def test_each_published_code_has_a_recipe(
    name: str, states: int, region: int, largest: int, steps: int, halve_at: list[int]
) -> None:
    paper = read_recipe(RECIPES / f"{name}.toml")
    first = name == "paper-sigma25"
    assert paper.model == dataclasses.replace(NLRNConfig(), window=None, states=states, propagation=first)
    assert paper.stages == (Stage(0, 43, 16),)
    assert paper.optim == COMMON
    assert paper.schedule == ScheduleConfig("halving", steps, warmup=0, halve_at=tuple(halve_at))
    assert (paper.loss, paper.loss_region, paper.image_range) == ("mse", region, largest)
    assert (paper.ema, paper.noise) == (0.0, NoiseConfig(25.0, 25.0))
    assert set(paper.data.folders) == {"bsds500/train", "bsds500/test"}
    for i, at in enumerate(halve_at):  # as tf.train.piecewise_constant has it
        assert paper.lr(at, 0, 0) == 1e-3 * 0.5**i
        assert paper.lr(at + 1, 0, 0) == 1e-3 * 0.5 ** (i + 1)
    for line in (RECIPES / f"{name}.toml").read_text().splitlines():
        assert "=" not in line.partition("#")[0] or " # " in line, f"{line}: without its source"


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_region": -1},
        {"loss_region": 99},
        {"image_range": 2},
        {"image_range": 255, "compile": True},
        {"image_range": 255, "noise": NoiseConfig(0.0, 50.0), "model": NLRNConfig(sigma_input=True)},
    ],
)
def test_a_region_or_range_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    one_level = {"model": NLRNConfig(), "noise": NoiseConfig(25.0, 25.0), "stages": (Stage(0, 43, 16),)}
    with pytest.raises(ConfigError, match=next(iter(changes))):
        TrainConfig("x", **{**one_level, **changes})
    for halve_at in ((0, 5), (7, 5), (5, 5)):
        with pytest.raises(ConfigError, match="halve_at"):
            ScheduleConfig("halving", halve_at=halve_at)
    with pytest.raises(ConfigError, match="halve_at"):
        ScheduleConfig(halve_at=(5,))
