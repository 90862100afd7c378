"""Laws of growth: a network that gains states and a wider window computes on what it was trained to compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from networks import random_model
from toy import make, sha256_of_tensors, trainer

from nlrn.errors import ConfigError
from nlrn.models.checkpoint import load_model
from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.training import growth, state
from nlrn.training.config import ScheduleConfig, Stage, TrainConfig, read_recipe
from nlrn.training.logging import TrainingLog
from nlrn.training.trainer import train

MODEL = NLRNConfig(channels=8, embed_channels=4, states=5, window=7, sigma_input=True)
STAGES = (
    Stage(0, 12, 4, states=1, window=3),
    Stage(6, 12, 4, states=2, window=5),
    Stage(10, 12, 4, frozen=True, states=3, window=5),
    Stage(14, 16, 4, frozen=True),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(recipe: Path) -> TrainConfig:
    schedule = ScheduleConfig(steps=18, warmup=2, decay=0.0)
    changes = {"model": MODEL, "stages": STAGES, "schedule": schedule, "validate_every": 99, "checkpoint_minutes": 9.0}
    return dataclasses.replace(read_recipe(recipe), **changes)  # type: ignore[arg-type]


def grown_model(model: NLRN, states: int) -> NLRN:
    optimizer = torch.optim.Adam(model.parameters())
    tensors = growth.grown(state.pack(model, dict(model.named_parameters()), optimizer), states)
    other = NLRN(dataclasses.replace(model.config, states=states))
    other.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    return other.eval()


# -- what grows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"propagation": False}, {"window": None, "states": 1}])
def test_new_states_without_an_update_leave_the_output_as_it_was(
    changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "LOGITS", 0.0)
    monkeypatch.setattr(growth, "UPDATE", 0.0)
    model = random_model(**changes).eval()
    x = torch.rand(2, 1, 14, 11)
    correlations: list[torch.Tensor] = []
    assert torch.allclose(grown_model(model, 6)(x, 0.1), model(x, 0.1), rtol=1e-4, atol=1e-5)
    model(x, 0.1, observer=lambda t, s: correlations.append(s.clone()))
    assert len(correlations) == model.config.states  # the law is not about a network that has none


def test_the_shipped_network_restores_nearly_as_well_with_new_states() -> None:
    model = load_model("denoise-gray-small")
    x = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    before = model(x, 25 / 255)
    change = float(((grown_model(model, 7)(x, 25 / 255) - before).norm() / (before - x).norm()).detach())
    assert 0 < change < 0.2


def test_states_come_first_with_the_first_ones_norms_at_a_small_share() -> None:
    model = random_model()
    new, old = grown_model(model, 4).state_dict(), model.state_dict()
    for name, value in old.items():
        if ".norm" not in name:
            assert torch.equal(new[name], value), name
    for kind, share in ((1, growth.LOGITS), (2, 1.0), (3, growth.UPDATE)):
        for rest in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            now = [new[f"block.norm{kind}.{t}.{rest}"] for t in range(4)]
            first, second = (old[f"block.norm{kind}.{t}.{rest}"] for t in range(2))
            times = share if rest in ("weight", "bias") else 1
            assert torch.equal(now[0], first * times)
            assert torch.equal(now[1], first * times)
            lifted = old["block.conv_b.bias"] if (kind, rest) == (1, "running_mean") else torch.zeros_like(first)
            assert torch.equal(now[2], first + lifted)
            assert torch.equal(now[3], second)


def test_averages_and_moments_grow_with_the_norms(config: TrainConfig, recipe: Path, tmp_path: Path) -> None:
    subject = trainer(recipe, tmp_path, model=MODEL, stages=STAGES, optim=config.optim)
    with TrainingLog(tmp_path, show=False, keep=False) as log:
        while subject.step < 6:
            subject.train_step()
            subject.step += 1
        before = state.pack(subject.model, subject.ema, subject.optimizer)
        assert (subject.model.config.states, subject.model.config.window) == (1, 3)
        assert subject._enter_stage(log)
    assert (subject.model.config.states, subject.model.config.window) == (2, 5)
    after = state.pack(subject.model, subject.ema, subject.optimizer)
    assert torch.equal(after["ema.block.norm3.0.weight"], before["ema.block.norm3.0.weight"] * growth.UPDATE)
    assert torch.equal(after["ema.block.norm3.1.weight"], before["ema.block.norm3.0.weight"])
    moments = "optim.block.norm3.{}.weight.{}"
    for moment in ("step", "exp_avg", "exp_avg_sq"):
        assert torch.equal(after[moments.format(1, moment)], before[moments.format(0, moment)])
        found = after[moments.format(0, moment)]
        assert torch.equal(found, before[moments.format(0, moment)] * (moment != "exp_avg"))
    assert before[moments.format(0, "exp_avg")].abs().max() > 0
    shared = [name for name in before if ".norm" not in name]
    assert all(torch.equal(after[name], before[name]) for name in shared)


def test_a_grown_stage_that_is_frozen_keeps_its_statistics(config: TrainConfig, recipe: Path, tmp_path: Path) -> None:
    subject = trainer(recipe, tmp_path, model=MODEL, stages=STAGES, schedule=config.schedule)
    with TrainingLog(tmp_path, show=False, keep=False) as log:
        subject.end = 14
        subject.run(log)
        measured = {k: v.clone() for k, v in subject.model.named_buffers() if "block" in k}
        bias = subject.model.block.conv_b.bias.detach().clone()  # type: ignore[union-attr]
        subject.end = 16
        subject.run(log)
    now = dict(subject.model.named_buffers())
    assert subject.model.config == MODEL
    for name, value in measured.items():
        parts = name.split(".")
        parts[2] = str(int(parts[2]) + 2)
        lifted = bias if ".".join(parts) == "block.norm1.2.running_mean" else 0
        assert torch.equal(now[".".join(parts)], value + lifted), name


# -- a run that grows ------------------------------------------------------------------------------------------


def test_a_run_stopped_anywhere_resumes_to_the_same_bytes(config: TrainConfig, recipe: Path, tmp_path: Path) -> None:
    options = {"data": recipe.parent, "quiet": True}
    whole = train(config, output=tmp_path / "whole", **options)  # type: ignore[arg-type]
    for number, stop in enumerate((3, 6, 10, 12, 14, 18)):  # within stages and at their first steps
        part = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=stop))
        weights = train(part, output=tmp_path / "parts", resume=number > 0, **options)  # type: ignore[arg-type]
        assert load_model(weights).config == config.network(stop - 1)  # what is written is what was trained
    assert sha256_of_tensors(weights) == sha256_of_tensors(whole)
    ends = [state.newest_verified(weights.parent), state.newest_verified(whole.parent)]
    one, other = (found.tensors for found in ends if found is not None)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# -- the recipe ------------------------------------------------------------------------------------------------


def test_the_networks_of_the_stages(config: TrainConfig) -> None:
    sizes = [(config.network(step).states, config.network(step).window) for step in (0, 5, 6, 10, 13, 14, 99)]
    assert sizes == [(1, 3), (1, 3), (2, 5), (3, 5), (3, 5), (5, 7), (5, 7)]
    plain = dataclasses.replace(config, stages=(Stage(0, 12, 4),))
    assert plain.network(3) == MODEL
    assert "states" not in plain._values()["stages"][0]  # recipes of before keep their digests
    assert config.digest() != plain.digest()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"states": 4}, {"states": 2}, {}], "stages.states must rise to model.states, which is 5"),
        ([{"states": 2}, {"states": 4}], "reach it in the last stage, but they are 2, 4"),
        ([{"states": 6}, {}], "but they are 6, 5"),
        ([{"window": 5}, {"window": 3}, {}], "stages.window must rise to model.window, which is 7"),
        ([{"window": 9}, {}], "but they are 9, 7"),
        ([{"window": 4}, {}], "window must be odd and positive"),
        ([{"window": 0}, {}], "window must be odd and positive"),
        ([{"states": 0}, {}], "states must be at least 1"),
    ],
)
def test_stages_that_do_not_rise_to_the_model_are_refused(
    config: TrainConfig, stages: list[dict[str, int]], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(config, stages=tuple(Stage(i, 12, 4, **keys) for i, keys in enumerate(stages)))  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_window_may_grow_to_the_whole_image(config: TrainConfig) -> None:
    model, stages = dataclasses.replace(MODEL, window=None), (Stage(0, 12, 4, window=9), Stage(3, 12, 4))
    found = dataclasses.replace(config, model=model, stages=stages)
    assert [found.network(step).window for step in (2, 3)] == [9, None]


def test_a_growing_network_takes_time_by_its_arithmetic(config: TrainConfig) -> None:
    pixels, c, e = 4 * 12**2, 8, 4

    def a_pixel(states: int, window: int) -> int:
        a_state = (
            2 * 9 * c * c + c * c + 2 * c * e + window**2 * (e + c)
        )  # conv_a and conv_b; g; theta and phi; S and z
        return states * a_state + 2 * 9 * c * 1

    expected = 6 * pixels * a_pixel(1, 3) + 2 * pixels * a_pixel(2, 5)
    assert growth.work(config, 0, 8) == expected
