"""A training run's time: the clock that counts, what a slow first step does to it, and how a signal ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy import RECIPE, make, trainer

from nlrn.cli import run as command
from nlrn.errors import ConfigError
from nlrn.models.checkpoint import model_metadata
from nlrn.models.nlrn import NLRNConfig
from nlrn.training import state
from nlrn.training.budget import Budget
from nlrn.training.config import Stage, TrainConfig, read_recipe
from nlrn.training.logging import Pace, TrainingLog, read_log
from nlrn.training.stopping import Stopped, StopRequests
from nlrn.training.trainer import Trainer, train_from_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Without an end of its own, and with many batches for the statistics."""
    path = make(tmp_path)
    text = RECIPE.replace("steps = 60", "steps = 1000000").replace("norm_batches = 4", "norm_batches = 50")
    path.write_text(
        text.replace("start = 30", "start = 3")
        .replace("start = 45", "start = 4000")
        .replace("patch = 16", "patch = 12")
    )
    return path


@pytest.fixture
def slow_start(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of a busy machine, which only steps move: the first takes `first` seconds, every other one 1."""
    pace = SimpleNamespace(now=0.0, first=100.0, batches=[], stop=-1)
    step, measure = Trainer.train_step, Trainer.measure_statistics

    def timed(self: Trainer) -> Any:
        pace.now += pace.first if self.step == 0 else 1.0
        if self.step == pace.stop:
            self.requests.number = signal.SIGINT
        return step(self)

    def measured(self: Trainer, model: Any) -> None:
        pace.batches.append(self.norm_batches)
        measure(self, model)

    monkeypatch.setattr(Trainer, "train_step", timed)
    monkeypatch.setattr(Trainer, "measure_statistics", measured)
    for module in ("trainer", "budget"):
        monkeypatch.setattr(f"nlrn.training.{module}.time", SimpleNamespace(monotonic=lambda: pace.now))
    return pace


@pytest.mark.parametrize("minutes", [3.0, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_slow_first_step_is_not_the_pace(recipe: Path, slow_start: SimpleNamespace, minutes: float) -> None:
    output = recipe.parent / "run"
    train_from_recipe(recipe, output=output, data=recipe.parent, minutes=minutes, quiet=True)
    meta = state.read_state(state.rolling(output)[0]).meta
    seconds = 60 * minutes
    assert 0.7 * seconds - 100 <= meta["step"] <= seconds - 99  # a second each, but for what the end is given
    assert slow_start.now <= seconds
    assert 0.14 < meta["decay_steps"] / seconds < 0.21  # a fifth of the time, less what the end is given


def test_the_statistics_of_a_short_run_take_a_quarter_of_it(
    recipe: Path, slow_start: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    slow_start.first = 1.0
    train_from_recipe(recipe, output=recipe.parent / "run", data=recipe.parent, minutes=0.5)
    assert slow_start.batches == [int(30 / 4 / 0.4)]  # of the 50 that the recipe asks for
    assert "statistics of 18 batches, not 50" in capfd.readouterr().out
    train_from_recipe(recipe, output=recipe.parent / "long", data=recipe.parent, minutes=2, quiet=True)
    assert slow_start.batches[-1] == 50


def test_a_run_that_ends_in_its_warmup_is_a_failure_and_resumes(
    recipe: Path, slow_start: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(recipe), "--data", str(recipe.parent), "-o", str(recipe.parent / "run"), "-q"]
    assert command([*words, "--minutes", "1"]) == 1  # the first step takes 100 seconds
    assert "the time limit was reached after 1 steps, within the warm-up of 5" in capsys.readouterr().err
    assert not (recipe.parent / "run" / "tiny.safetensors").exists()
    assert state.newest_verified(recipe.parent / "run") is not None
    assert command([*words, "--minutes", "1", "--resume"]) == 0
    meta = state.read_state(state.rolling(recipe.parent / "run")[0]).meta
    assert (meta["first"], meta["step"] > 40) == (1, True)


def test_a_first_measurement_is_dropped_for_a_later_one() -> None:
    pace = Pace(TrainConfig("r", NLRNConfig(sigma_input=True), stages=(Stage(0, 10, 1),)))
    for seconds, expected in ((60.0, 60.0), (5.0, 5.0), (2.0, 2.0), (1.0, 1.0), (3.0, 2.0)):
        pace.add(0, 1, seconds)
        assert pace.seconds(0, 1) == pytest.approx(expected)


@pytest.mark.parametrize("limits", [{"minutes": 0}, {"cpu_minutes": -1}, {"minutes": float("nan")}])
def test_limits_are_positive(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        Budget(**limits)
    with pytest.raises(ConfigError, match="two clocks"):
        Budget(minutes=1, cpu_minutes=1)


def test_cpu_minutes_do_not_run_on_while_nothing_is_computed() -> None:
    both = Budget(minutes=1), Budget(cpu_minutes=1)
    time.sleep(0.3)
    wall, cpu = (60 - clock.left for clock in both)
    assert wall >= 0.3
    assert cpu < 0.2
    began = time.process_time()
    while time.process_time() - began < 0.2 * torch.get_num_threads():
        pass
    assert 60 - both[1].left >= 0.2


def test_the_decay_of_a_slice_is_chosen_for_it(recipe: Path) -> None:
    folder, data = recipe.parent / "run", recipe.parent
    train_from_recipe(recipe, output=folder, data=data, steps=8, decay=0.0, quiet=True)
    assert state.read_state(folder / state.BEFORE_DECAY).meta["step"] == 8
    train_from_recipe(recipe, output=folder, data=data, steps=16, decay=0.5, resume=True, quiet=True)
    meta = state.read_state(folder / state.BEFORE_DECAY).meta
    assert [meta[name] for name in ("step", "first", "decay_steps", "end")] == [12, 8, 4, 16]
    assert command(["train", str(recipe), "--decay", "1"]) == 2


@pytest.mark.parametrize("steps", [300, 1_000_000])
def test_a_stopped_run_that_resumes_with_another_decay_ends_in_its_time(
    recipe: Path, slow_start: SimpleNamespace, steps: int
) -> None:
    """Its decay begins at once, since of the steps its share is what remains; 280 of them do not fit."""
    slow_start.first, slow_start.stop = 1.0, 20
    folder, options = recipe.parent / "run", {"data": recipe.parent, "steps": steps, "quiet": True}
    with pytest.raises(KeyboardInterrupt):
        train_from_recipe(recipe, output=folder, decay=0.0, minutes=60, **options)
    began, slow_start.stop = slow_start.now, -1
    train_from_recipe(recipe, output=folder, decay=0.98, minutes=2, resume=True, **options)
    meta = state.read_state(state.rolling(folder)[0]).meta
    assert 60 < slow_start.now - began <= 120
    assert meta["step"] == meta["end"] == meta["decay_start"] + meta["decay_steps"]
    lr = [record["lr"] for record in read_log(folder) if "lr" in record]
    assert lr[-1] < 0.2 * lr[0]


def test_a_resumed_run_ends_in_its_time_though_its_decay_begins_by_steps(
    recipe: Path, slow_start: SimpleNamespace
) -> None:
    """The decay of 60 steps begins ten steps later, when 8 seconds are left."""
    slow_start.first, slow_start.stop = 1.0, 230
    folder, options = recipe.parent / "run", {"data": recipe.parent, "steps": 300, "decay": 0.2, "quiet": True}
    with pytest.raises(KeyboardInterrupt):
        train_from_recipe(recipe, output=folder, minutes=60, **options)
    began, slow_start.stop = slow_start.now, -1
    train_from_recipe(recipe, output=folder, minutes=0.3, resume=True, **options)
    meta = state.read_state(state.rolling(folder)[0]).meta
    assert 10 < slow_start.now - began <= 18
    assert meta["step"] == meta["end"] < 300


def test_one_training_at_a_time_in_a_folder(recipe: Path) -> None:
    folder, options = recipe.parent / "run", {"data": recipe.parent, "quiet": True}
    with state.prepared(folder, create=True), pytest.raises(ConfigError, match="another training is running in"):
        train_from_recipe(recipe, output=folder, steps=2, **options)
    train_from_recipe(recipe, output=folder, steps=2, **options)


def test_weights_that_were_moved_away_are_written_again(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, data = recipe.parent / "run", recipe.parent
    weights = train_from_recipe(recipe, output=folder, data=data, steps=8, quiet=True)
    weights.unlink()
    for made, said in ((8, "its weights are written again; the same command once more resumes"), (12, "")):
        train_from_recipe(recipe, output=folder, data=data, steps=12, resume=True)
        assert said in capfd.readouterr().out
        assert model_metadata(weights)["steps"] == str(made)


# -- signals


RUN = """
import sys, signal
from nlrn.cli import run
from nlrn.training.trainer import Trainer
recipe, data, folder, *words = sys.argv[1:]
sys.exit(run(["train", recipe, "--data", data, "-o", folder, *words]))
"""


def _started(recipe: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", RUN, str(recipe), str(recipe.parent), str(recipe.parent / "run"), *words]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_with_its_state_saved(recipe: Path, number: int, code: int) -> None:
    recipe.write_text(recipe.read_text().replace("checkpoint_minutes = 0.0", "checkpoint_minutes = 100"))
    process = _started(recipe)
    log = recipe.parent / "run" / "log.jsonl"
    while not log.exists() or b"psnr" not in log.read_bytes():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code
    assert time.monotonic() - began < 60  # of a run without an end
    step = int(said.partition("stopped at step ")[2].partition(";")[0])
    found = state.newest_verified(log.parent)
    assert found is not None
    assert found.step == step >= 20
    assert state.undecayed(log.parent) == found.path
    train_from_recipe(recipe, output=log.parent, data=recipe.parent, resume=True, steps=step + 2, quiet=True)


@pytest.mark.parametrize("where", ["validation", "measure_statistics"])
def test_a_signal_leaves_a_validation_at_once(recipe: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.write_text(recipe.read_text().replace("start = 4000", "start = 30"))
    subject = trainer(recipe, recipe.parent / "run")
    (recipe.parent / "run").mkdir()
    subject.start(resume=False)
    before = signal.getsignal(signal.SIGTERM)

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal was put off")

    if where == "validation":
        monkeypatch.setattr(subject, "validation", interrupted)
    else:
        monkeypatch.setattr("nlrn.training.trainer.measure_norms", interrupted)
    with TrainingLog(recipe.parent / "run", show=False) as log, StopRequests() as requests:
        subject.requests = requests
        with pytest.raises(Stopped):
            subject.run(log)
    assert subject.step == (20 if where == "validation" else 30)
    assert requests.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_requests_leave_the_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequests() as requests:
        signal.raise_signal(signal.SIGINT)
        assert requests.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):  # the second one
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped), requests.beside_the_steps():
            pytest.fail("it was asked to end before")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequests() as requests:
            signal.raise_signal(signal.SIGINT)
            assert requests.number == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_trains_without_signals(recipe: Path) -> None:
    found: list[Path] = []
    options: dict[str, Any] = {"output": recipe.parent / "run", "data": recipe.parent, "steps": 2, "quiet": True}
    thread = threading.Thread(target=lambda: found.append(train_from_recipe(recipe, **options)))
    thread.start()
    thread.join()
    assert found
    assert found[0].exists()


# -- states


def test_a_compact_state_differs_in_its_momenta_alone(recipe: Path) -> None:
    folder = recipe.parent / "run"
    train_from_recipe(recipe, output=folder, data=recipe.parent, steps=8, decay=0.0, quiet=True)
    compact = recipe.parent / "compact" / state.BEFORE_DECAY
    compact.parent.mkdir()
    assert state.write_compact(folder / state.BEFORE_DECAY, compact) == 8
    kept = [state.read_state(f) for f in (folder / state.BEFORE_DECAY, compact)]
    (exact, meta), (rounded, same) = ((found.tensors, found.meta) for found in kept)
    assert meta == same
    assert exact.keys() == rounded.keys()
    moments = [name for name in exact if name.startswith("optim.") and not name.endswith(".step")]
    assert moments
    for name, value in exact.items():
        if name in moments:
            assert rounded[name].dtype == torch.bfloat16
            torch.testing.assert_close(rounded[name].float(), value, rtol=2**-8, atol=1e-38)
        else:
            assert torch.equal(rounded[name], value)
    assert compact.stat().st_size < (folder / state.BEFORE_DECAY).stat().st_size
    train_from_recipe(recipe, output=compact.parent, data=recipe.parent, resume=True, steps=10, quiet=True)
    assert max(record["step"] for record in read_log(compact.parent)) == 10


def test_the_newest_state_before_any_decay_is_found(recipe: Path) -> None:
    folder, data = recipe.parent / "run", recipe.parent
    assert state.undecayed(folder) is None
    train_from_recipe(recipe, output=folder, data=data, steps=10, decay=0.4, quiet=True)
    assert state.undecayed(folder) == folder / state.BEFORE_DECAY
    assert state.read_state(folder / state.BEFORE_DECAY).meta["step"] == 6


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[1].glob("training/state/*/*.safetensors")), ids=lambda path: path.parent.name
)
def test_the_states_of_the_repository_belong_to_its_recipes(file: Path) -> None:
    recipe = read_recipe(Path(__file__).parents[1] / "recipes" / f"{file.parent.name}.toml")
    tensors, meta = (found := state.read_state(file)).tensors, found.meta
    assert meta["recipe"] == recipe.digest()
    assert file.stat().st_size <= 4 * 2**20
    assert tensors
