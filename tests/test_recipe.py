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


def valid_but_for(text: str) -> str:
    """A recipe with these lines, and a model that receives the level."""
    if "sigma_input" in text or text in ("model = 3", "not toml"):
        return text
    if "[model]\n" in text:
        return text.replace("[model]\n", "[model]\nsigma_input = true\n")
    return f"{text}\n[model]\nsigma_input = true\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ema = '0.9'", "ema must be float"),
        ("ema = nan", "ema must be float, not nan"),
        ("seed = 1.5", "seed must be int"),
        ("seed = true", "seed must be int, not True"),
        ("seed = -1", "seed between 0"),
        ("loss = 1", "loss must be str"),
        ("loss = 'mae'", "loss must be rms"),
        ("compile = 1", "compile must be bool"),
        ("stages = 5", "stages must be tuple"),
        ("stages = []", "stages must start at step 0"),
        ("stages = [3]", "stages must be a table"),
        ("model = 3", "model must be a table"),
        ("name = 'a/b'", "'a/b' cannot be"),
        ("name = 'state-9'", "'state-9' cannot be"),
        ("name = 'before-decay'", "'before-decay' cannot be"),
        ("[model]\nwindow = 4", "window must be odd"),
        ("[model]\nwindow = '15'", "window must be int"),
        ("[model]\nsigma_input = 1", "sigma_input must be bool"),
        ("[data]\nfolders = 'train'", "data.folders must be tuple"),
        ("[data]\nfolders = [1]", "data.folders must be tuple"),
        ("[data]\nfolders = []", "data requires a folder"),
        ("[optim]\nbetas = [0.9]", "betas must be tuple"),
        ("[optim]\nbetas = [0.9, 1.0]", "betas must lie in"),
        ("[optim]\nlr = inf", "lr must be float, not inf"),
        ("[optim]\nlr = false", "lr must be float, not False"),
        ("[optim]\noptimizer = 'sgd'", "not 'sgd'"),
        ("[noise]\nlow = 30.0\nhigh = 20.0", "low <= high"),
        ("[noise]\nregularization = 1.0", "is for neighbor2neighbor"),
        ("[resize]\nscales = [2]", "[resize] is not for models of the task 'denoise'"),
        ("[schedule]\nkind = 'cosine'", "not 'cosine'"),
        ("[schedule]\ndecay = 1.0", "decay < 1"),
        ("[schedule]\nhalve_every = 5", "halve_every are for the kind"),
        ("[[stages]]\nstart = 5\npatch = 8\nbatch = 1", "start at step 0 and rise, not [5]"),
        ("[[stages]]\nstart = 0\npatch = 8\nbatch = 4\naccumulate = 5", "in 1 to 4 parts"),
        ("[[stages]]\nstart = 0\npatch = 8\nbatch = 4\naccumulate = 0", "in 1 to 4 parts"),
        ("[model]\nsigma_input = false", "a range of noise levels requires"),
        (
            "[model]\ntask = 'sr'\nsigma_input = false\n[data]\nvalidation_size = 120\n[noise]\nlow = 5.0",
            "[noise] is not for models of the task 'sr'",
        ),
        (
            "image_range = 255\n[start]\nfrom = 'denoise-gray-small'\n"
            "[model]\nsigma_input = false\n[noise]\nlow = 25.0\nhigh = 25.0",
            "[start] begins with weights for 0..1",
        ),
        ("not toml", "cannot read the recipe"),
    ],
)
def test_wrong_types_and_values_are_refused(tmp_path: Path, text: str, message: str) -> None:
    read_recipe(write(tmp_path, valid_but_for("")))
    with pytest.raises(ConfigError) as error:
        read_recipe(write(tmp_path, valid_but_for(text)))
    assert message in str(error.value)


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
