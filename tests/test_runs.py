"""Laws of a training run: where it stops, what it tells, and that a resumed run is the same run."""

from __future__ import annotations

import dataclasses
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy import KILLED_RUN, RECIPE, make, run_script, sha256_of_tensors, trainer

from nlrn.errors import CheckpointError, ConfigError, InputError, TrainingError
from nlrn.models.checkpoint import load_model, model_metadata
from nlrn.models.nlrn import NLRNConfig
from nlrn.training import state
from nlrn.training.budget import FORWARD
from nlrn.training.config import Stage, TrainConfig, read_recipe
from nlrn.training.logging import Pace, TrainingLog, read_log
from nlrn.training.trainer import Trainer, train_from_recipe
from nlrn.training.validation import Validation

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(recipe: Path, tmp_path: Path) -> Callable[..., Path]:
    """train(...): the recipe, into tmp_path / "run"."""

    def run(**options: Any) -> Path:
        options = {"output": tmp_path / "run", "data": recipe.parent, "quiet": True, **options}
        return train_from_recipe(recipe, **options)

    return run


@pytest.fixture(scope="module")
def whole_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a run of 60 steps that nothing interrupted; its folder is their parent."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train_from_recipe(recipe, output=folder, data=recipe.parent, quiet=True)


# -- where a run stops ---------------------------------------------------------------------------------------


def test_the_log_tells_how_the_run_went(whole_run: Path) -> None:
    records = list(read_log(whole_run.parent))
    validations = [record for record in records if "psnr_25" in record]
    assert [(v["step"], v["weights"]) for v in validations] == [(20, "raw"), (40, "raw"), (60, "averaged")]
    for record in validations:
        for sigma in (15, 25, 50):
            assert 8 < record[f"psnr_{sigma}"] < 20 * math.log10(255 / sigma) + 15
            assert len(record[f"neighbours_{sigma}"]) == len(record[f"largest_{sigma}"]) == 2
            assert all(1 <= n <= 25 for n in record[f"neighbours_{sigma}"])
            assert all(0 < s < 1e3 for s in record[f"largest_{sigma}"])
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [50, 60]
    assert 0 < steps[1]["loss"] < steps[0]["loss"] < 1
    errors = [10 ** (-validations[-1][f"psnr_{sigma}"] / 20) for sigma in (15, 25, 50)]
    assert 0.7 < np.mean(errors) / steps[1]["loss"] < 1.4  # what is shipped does what was trained
    assert all(record["gradient"] > 0 and record["seconds_a_step"] > 0 for record in steps)


def test_the_weights_say_where_they_come_from(whole_run: Path, recipe: Path) -> None:
    said, config = model_metadata(whole_run), read_recipe(recipe)
    assert said["steps"] == "60"
    assert said["training_pixels"] == str(30 * 4 * 144 + 30 * 4 * 256)
    assert load_model(whole_run).config == config.model


def test_a_later_slice_goes_on_from_before_the_decay(train: Callable[..., Path], tmp_path: Path) -> None:
    train(steps=20)
    before = tmp_path / "run" / state.BEFORE_DECAY
    old = state.read_state(before).meta
    assert (old["step"], old["decay_start"], old["end"]) == (16, 16, 20)
    weights = train(steps=20, resume=True)  # nothing more to do: the same weights again
    first = sha256_of_tensors(weights)
    shutil.copy(before, tmp_path / "copy")
    train(steps=46, resume=True)
    new = state.read_state(before).meta
    assert (new["step"], new["first"], new["end"]) == (40, 16, 46)  # a fifth of 16 .. 46
    assert new["seconds"] > old["seconds"]
    assert sha256_of_tensors(weights) != first
    states = state.rolling(tmp_path / "run")
    assert [path.name for path in states] == ["state-000000046.safetensors", "state-000000045.safetensors"]

    (tmp_path / "other").mkdir()  # the second slice is a function of the state before the decay alone
    shutil.copy(tmp_path / "copy", tmp_path / "other" / state.BEFORE_DECAY)
    other = train(steps=46, resume=True, output=tmp_path / "other")
    assert state.read_state(other.parent / state.BEFORE_DECAY).meta["decay_start"] == 40
    assert sha256_of_tensors(other) == sha256_of_tensors(weights)


def test_more_steps_or_another_decay_may_be_asked_for_on_the_way(recipe: Path, tmp_path: Path) -> None:
    config = read_recipe(recipe)
    first = trainer(recipe, tmp_path)
    first.step = 10
    first.save()
    longer = dataclasses.replace(config.schedule, steps=100)
    second = trainer(recipe, tmp_path, schedule=longer)
    second.start(resume=True)
    assert (second.step, second.decay_start, second.end) == (10, 80, 100)
    slower = dataclasses.replace(config.schedule, decay=0.7)
    third = trainer(recipe, tmp_path, schedule=slower)
    third.start(resume=True)
    assert (third.decay_start, third.end) == (18, 60)
    shorter = dataclasses.replace(config.schedule, steps=9)
    with pytest.raises(ConfigError, match="is at step 10"):
        trainer(recipe, tmp_path, schedule=shorter).start(resume=True)


def test_a_run_folder_is_neither_overwritten_nor_taken_for_another(
    train: Callable[..., Path], recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(steps=2, resume=True)
    train(steps=2)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(steps=2)
    weights = tmp_path / "other" / "tiny.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        trainer(recipe, weights.parent).start(resume=False)
    assert weights.read_bytes() == b"precious"
    with pytest.raises(ConfigError, match="another recipe"):
        trainer(recipe, tmp_path / "run", seed=1).start(resume=True)
    for minutes in (0, -1, math.nan):
        with pytest.raises(ConfigError, match="minutes"):
            train(minutes=minutes)


def test_the_pace_counts_pixels_and_fits_steps_into_seconds() -> None:
    config = TrainConfig("r", NLRNConfig(sigma_input=True), stages=(Stage(0, 10, 1), Stage(100, 20, 2)))
    pace = Pace(config)
    assert pace.fitting(0, 1.0, 50) == 50
    pace.add(0, 10, 0.1)  # 10 steps of 100 pixels: 0.1 ms a pixel
    pace.aside = 5.0  # a validation, every 500 steps
    assert pace.seconds(90, 110) == pytest.approx(10 * 0.01 + 10 * 0.08 + 20 * 0.01)
    for seconds in np.linspace(-1, 8, 37):
        fitting = pace.fitting(90, seconds, 60)
        assert 0 <= fitting <= 60
        assert fitting == 0 or pace.seconds(90, 90 + fitting) <= seconds
        assert fitting == 60 or pace.seconds(90, 91 + fitting) > seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """The trainer's clock, which work alone moves: a step by 1 second per 1,024 pixels, a validation by 8,
    batch-norm statistics by 1.6.
    """
    now = 0.0

    def takes(kind: type, name: str, seconds: Callable[[Any], float]) -> None:
        work = getattr(kind, name)

        def timed(self: Any, *arguments: Any) -> Any:
            nonlocal now
            now += seconds(self)
            return work(self, *arguments)

        monkeypatch.setattr(kind, name, timed)

    takes(Trainer, "train_step", lambda trainer: trainer.config.pixels(trainer.step, trainer.step + 1) / 1024)
    takes(Trainer, "measure_statistics", lambda trainer: FORWARD * trainer.config.norm_batches)
    takes(Validation, "__call__", lambda validation: 8.0)
    for module in ("trainer", "budget"):
        monkeypatch.setattr(f"nlrn.training.{module}.time", SimpleNamespace(monotonic=lambda: now))
    return lambda: now


def test_the_clock_stops_a_run_with_its_decay(
    train: Callable[..., Path], clock: Callable[[], float], tmp_path: Path
) -> None:
    weights = train(steps=1_000_000, minutes=2)
    # 30 steps of 9/16 seconds, then of 1, 8 after every 20th, and 1.6 where the batch norms are frozen. The end
    # takes 8, so 112 of the 120 are left, four fifths of which, 89.6, are over after step 78. At 1.4 seconds a
    # step 15 more fit into the rest.
    before = state.read_state(tmp_path / "run" / state.BEFORE_DECAY).meta
    assert (before["step"], before["seconds"]) == (78, 30 * 9 / 16 + 48 + 3 * 8 + 1.6)
    meta = state.read_state(state.rolling(tmp_path / "run")[0]).meta
    assert [meta[key] for key in ("step", "decay_start", "decay_steps", "end")] == [93, 78, 15, 93]
    assert meta["seconds"] == before["seconds"] + 15 + 8
    assert clock() == pytest.approx(meta["seconds"] + 8)
    assert clock() < 120 + 8  # at worst a validation late: its share is planned, and it comes whole
    assert model_metadata(weights)["hardware_seconds"] == f"{clock():.0f}"
    last = [record for record in read_log(tmp_path / "run") if "lr" in record][-1]
    assert last["lr"] == pytest.approx(1e-3 / 2 / 15)
    assert last["seconds_a_step"] == pytest.approx(1)

    began = clock()
    weights = train(steps=1_000_000, minutes=1, resume=True)  # from step 78: 26 seconds and 2 validations to 104
    meta = state.read_state(state.rolling(tmp_path / "run")[0]).meta
    assert [meta[key] for key in ("step", "first", "decay_start", "end")] == [111, 78, 104, 111]
    assert clock() - began == pytest.approx(33 + 2 * 8 + 8)
    seconds = before["seconds"] + clock() - began  # of the way to these weights; the first decay is not on it
    assert model_metadata(weights)["hardware_seconds"] == f"{seconds:.0f}"


@pytest.mark.parametrize("resume", [False, True])
def test_an_output_that_cannot_be_written_is_refused_by_name(
    train: Callable[..., Path], tmp_path: Path, resume: bool
) -> None:
    (tmp_path / "file").write_text("not a folder")
    for output in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/self")):
        if resume and output.parent.is_file():
            continue  # there is no such folder to resume, which is what is said
        with pytest.raises(ConfigError, match=rf"cannot write a run into {re.escape(str(output))}: [A-Z]"):
            train(steps=2, output=output, resume=resume)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_what_is_refused_leaves_no_folder_behind(train: Callable[..., Path], recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data folder"):
        train(data=tmp_path / "absent")
    with pytest.raises(InputError, match="no folder"):
        train(data=tmp_path)  # there, without the recipe's folders
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(resume=True)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state_kept(recipe: Path, tmp_path: Path) -> None:
    wild = recipe.with_name("wild.toml")
    wild.write_text(RECIPE.replace("[optim]", "[optim]\nlr = 1e38"))
    with pytest.raises(TrainingError, match="not finite"):
        train_from_recipe(wild, output=tmp_path / "run", data=recipe.parent, quiet=True)
    found = state.newest_verified(tmp_path / "run")
    assert found is not None
    assert all(bool(value.isfinite().all()) for value in found.tensors.values())
    assert not (tmp_path / "run" / "tiny.safetensors").exists()


def test_tensorboard_gets_the_same_numbers_when_asked(train: Callable[..., Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(steps=21, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert {"loss", "lr", "gradient", "psnr_25", "neighbours_50/1", "largest_15/0"} <= set(events.Tags()["scalars"])
    for record in read_log(tmp_path / "run"):
        for key, value in record.items():
            if isinstance(value, float) and record.get("weights") != "averaged":
                (event,) = events.Scalars(key)
                assert (event.step, event.value) == (record["step"], pytest.approx(value))


def test_a_torn_line_of_the_log_costs_that_line_alone(tmp_path: Path) -> None:
    for step in (1, 2):
        with TrainingLog(tmp_path, show=False) as log:
            log.record({"step": step})
        with log.path.open("a") as file:
            file.write('{"step": 1')
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2]


def test_the_display_shows_loss_pace_and_time_left(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train(steps=21, quiet=False)
    shown = capsys.readouterr().out
    assert "step 21/21" in shown
    assert all(word in shown for word in ("loss 0.", "s/step", "left", "psnr_25", "neighbours_25", "averaged"))


# -- a resumed run is the same run ---------------------------------------------------------------------------


@pytest.mark.numeric
def test_a_run_killed_at_random_steps_and_resumed_ends_with_the_same_bytes(
    whole_run: Path, recipe: Path, tmp_path: Path, count: Callable[[int], int]
) -> None:
    folder, kills = tmp_path / "run", max(2, count(8))
    run_script(KILLED_RUN, recipe, folder, *sorted(random.Random(3).sample(range(1, 58), kills)))
    assert sha256_of_tensors(folder / "tiny.safetensors") == sha256_of_tensors(whole_run)
    states = [state.read_state(state.rolling(path)[0]).tensors for path in (folder, whole_run.parent)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())


def test_a_kill_between_the_last_state_and_the_weights_loses_nothing(
    whole_run: Path, train: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(whole_run.parent, tmp_path / "run")
    (tmp_path / "run" / "tiny.safetensors").unlink()
    assert sha256_of_tensors(train(resume=True)) == sha256_of_tensors(whole_run)


def damage(path: Path, chance: random.Random) -> None:
    """One bit, the end, or all of a file gone."""
    content, kind = bytearray(path.read_bytes()), chance.randrange(4)
    if kind == 3:
        path.unlink()
        return
    if kind == 2:
        content = content[: chance.randrange(len(content))]
    else:
        place = chance.randrange(4000 if kind else len(content))  # the header is where most can go wrong
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def test_a_damaged_newest_state_falls_back_loudly_to_the_one_before(
    train: Callable[..., Path], recipe: Path, tmp_path: Path, count: Callable[[int], int]
) -> None:
    train(steps=8)
    newest, before = state.rolling(tmp_path / "run")
    good, expected = newest.read_bytes(), state.read_state(before).tensors
    schedule = dataclasses.replace(read_recipe(recipe).schedule, steps=8)
    chance = random.Random(5)
    for _ in range(count(40) + 4):
        damage(newest, chance)
        subject = trainer(recipe, tmp_path / "run", schedule=schedule)
        with pytest.warns(RuntimeWarning, match="trying the one before it"):
            subject.start(resume=True)
        assert subject.step == 7
        packed = state.pack(subject.model, subject.ema, subject.optimizer)
        assert all(torch.equal(packed[k], v) for k, v in expected.items())
        newest.write_bytes(good)
    for path in (newest, before, tmp_path / "run" / state.BEFORE_DECAY):
        path.write_bytes(path.read_bytes()[:-1])
    subject = trainer(recipe, tmp_path / "run", schedule=schedule)
    with pytest.warns(RuntimeWarning) as heard, pytest.raises(CheckpointError, match="no state"):
        subject.start(resume=True)
    assert len(heard) == 3
    with pytest.raises(ConfigError, match="holds a run already"):  # nor does it start from scratch unasked
        trainer(recipe, tmp_path / "run", schedule=schedule).start(resume=False)
