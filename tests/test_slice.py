"""scripts/slice.py: a slice from where a model stands, its state and its line kept, released only if it is better."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import make

from nlrn.io.datasets import SCORING_SETS
from nlrn.models.checkpoint import load_model, model_metadata, sha256
from nlrn.training.config import read_recipe
from nlrn.training.state import BEFORE_DECAY, newest_verified, read_state

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import ledger  # noqa: E402
from slice import STOPPED, layout, next_minute, wait  # noqa: E402


def started(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """slice.py under way, on the data and the recipe in a folder."""
    command = [sys.executable, ROOT / "scripts" / "slice.py", "--data", root, "--root", root]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command += [*arguments, "--usual-priority"]  # on a busy machine the lowest would not end
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(recipe: Path, *arguments: str, minutes: float = 0.04, code: int = 0) -> str:
    """What slice.py prints, errors included."""
    process = started(recipe.parent, str(recipe), "--minutes", str(minutes), *arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def endless(root: Path) -> Path:
    """The toy recipe, which only the clock ends."""
    recipe = make(root)
    recipe.write_text(recipe.read_text().replace("steps = 60", "steps = 1000000"))
    return recipe


def entries(root: Path) -> list[ledger.Entry]:
    return ledger.read_ledger(root / "training/ledger.jsonl")


def lay_out(root: Path, *sets: str) -> None:
    """The places of a release, and scoring sets that are the images held back."""
    for name in sets:
        place = root / SCORING_SETS[name]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(root / "held")
    for folder in ("src/nlrn/models/weights", "results", "training"):
        (root / folder).mkdir(parents=True)


@pytest.mark.slow
def test_a_slice_is_scored_and_released_only_when_it_is_better(tmp_path: Path) -> None:
    recipe = endless(tmp_path)
    lay_out(tmp_path, "set12", "bsd68")
    shipped, scores = tmp_path / "src/nlrn/models/weights/tiny.safetensors", tmp_path / "results/tiny.json"

    said = run(recipe)
    assert not shipped.exists()
    assert not scores.exists()
    kept = tmp_path / "training/state/tiny" / BEFORE_DECAY
    first = read_state(kept).meta["step"]
    (line,) = entries(tmp_path)
    assert f"continued: step {first}," in said
    assert (line.model, line.steps, line.decay, line.decision) == ("tiny", first, 0, "continued")
    assert line.pixels == line.slice_pixels > 0
    assert set(line.psnr) == {"15", "25", "50"}
    assert line.cpu_seconds is not None
    assert 2 <= line.cpu_seconds <= 60  # 2.4 seconds, and what starting takes

    assert "released tiny.safetensors" in run(recipe, "--release", "--hardware", "a thing")
    found = json.loads(scores.read_text())
    assert found["sha256"] == sha256(shipped)
    assert (shipped.parent / "SHA256SUMS").read_text() == f"{found['sha256']}  tiny.safetensors\n"
    assert set(found["scores"]) == {"set12", "bsd68"}
    assert set(found["attention"]["25"]["psnr"]) >= {"as is", "self only"}
    made = model_metadata(shipped)
    assert made["hardware"] == "a thing"
    assert load_model(shipped).config.channels == 8
    meta = read_state(kept).meta
    assert first < meta["step"] < int(made["steps"])
    line = entries(tmp_path)[-1]
    assert (line.steps, line.decay, line.decision) == (int(made["steps"]), 0.5, "released")
    assert 0 < line.slice_pixels < line.pixels

    for by_sigma in found["scores"].values():
        for score in by_sigma.values():
            score["psnr"] += 50
    scores.write_text(json.dumps(found))
    before = shipped.read_bytes(), scores.read_bytes()
    (tmp_path / SCORING_SETS["bsd68"]).rename(tmp_path / "away")
    assert "is scored on bsd68" in run(recipe, "--release", code=1)
    (tmp_path / "away").rename(tmp_path / SCORING_SETS["bsd68"])
    (tmp_path / "runs").rename(tmp_path / "old")
    assert "released tiny" not in run(recipe, "--release")
    assert (shipped.read_bytes(), scores.read_bytes()) == before
    assert entries(tmp_path)[-1].decision == "not better"
    log = [json.loads(line) for line in (tmp_path / "runs/tiny/log.jsonl").read_text().splitlines()]
    assert min(line["step"] for line in log) >= meta["step"]  # it went on from the released state


@pytest.mark.slow  # those of a denoiser are made above
def test_a_slice_of_super_resolution_is_scored_under_both_protocols(tmp_path: Path) -> None:
    recipe = endless(tmp_path)
    text = recipe.read_text().replace("[noise]\nlow = 10.0\nhigh = 50.0", "[resize]\nscales = [2]")
    recipe.write_text(text.replace("sigma_input = true", 'task = "sr"'))
    lay_out(tmp_path, "set5", "set14", "bsd100")
    run(recipe, "--release", minutes=0.03)
    results = [json.loads((tmp_path / f"results/{name}.json").read_text()) for name in ("tiny", "tiny-8bit-lr")]
    assert [r["protocol"].partition(":")[0] for r in results] == ["float-lr", "8bit-lr"]
    assert results[0]["scores"]["set14"]["x2"]["psnr"] != results[1]["scores"]["set14"]["x2"]["psnr"]
    assert len({r["sha256"] for r in results}) == 1
    assert list(results[0]["attention"]) == ["x2", "x3", "x4"]


def test_other_sets_are_never_compared() -> None:
    one = {"scores": {"set12": {"25": {"psnr": 40.0}}, "bsd68": {"25": {"psnr": -30.0}}}}
    assert layout(one) == {"set12": ["25"], "bsd68": ["25"]}
    assert layout(one) != layout({"scores": {"set12": {"25": {"psnr": 9.0}}}})
    assert layout(one) != layout({"scores": {"set12": {"50": {"psnr": 9.0}}, "bsd68": {"25": {"psnr": 9.0}}}})


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "paused"])
def test_a_slice_that_is_ended_keeps_its_state_and_resumes(tmp_path: Path, how: str) -> None:
    recipe = endless(tmp_path)
    recipe.write_text(recipe.read_text().replace("checkpoint_minutes = 0.0", "checkpoint_minutes = 100"))
    lay_out(tmp_path)
    (tmp_path / "training/queue.toml").write_text(
        '[[models]]\nrecipe = "tiny.toml"\nshare = 1\nfirst = {}\ngoal = {}\n'
    )
    process = started(tmp_path, "--next", "--minutes", "60")
    log = tmp_path / "runs/tiny/log.jsonl"
    while not log.exists() or b"psnr" not in log.read_bytes():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    if how == "paused":
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGSTOP)
        time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(signal.SIGINT if how == "SIGINT" else signal.SIGTERM)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert time.monotonic() - began < 180  # ten seconds where nothing else runs; else an hour
    (line,) = entries(tmp_path)
    assert (line.decision, line.psnr, line.decay) == ("stopped", {}, 0)
    meta = read_state(tmp_path / "training/state/tiny" / BEFORE_DECAY).meta
    found = newest_verified(tmp_path / "runs/tiny")
    assert found is not None
    assert meta["step"] == found.step == line.steps >= 20
    if how == "SIGTERM":  # on another machine, where there is no run folder
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        run(recipe, minutes=0.03)
        assert entries(tmp_path)[-1].steps > line.steps
        last = entries(tmp_path)[-1]
        assert last.slice_pixels == read_recipe(recipe).pixels(line.steps, last.steps)


def test_the_clock_ends_a_slice() -> None:
    before = signal.getsignal(signal.SIGTERM)  # Ray's, where it ran in this process before
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    assert wait(child, dt.datetime.now() + dt.timedelta(seconds=0.5)) in STOPPED
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_the_newer_of_two_states_is_taken_and_the_older_kept(tmp_path: Path) -> None:
    recipe = endless(tmp_path)
    lay_out(tmp_path)
    run(recipe, minutes=0.03)
    (tmp_path / "runs/tiny").rename(tmp_path / "first")
    run(recipe, minutes=0.03)
    (tmp_path / "runs/tiny").rename(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "runs/tiny")  # the state in training/ is that of the second by now
    second = entries(tmp_path)[-1].steps
    run(recipe, minutes=0.03)
    assert entries(tmp_path)[-1].steps > second
    assert (tmp_path / "runs/tiny.old-1").is_dir()


def _entry(model: str, seconds: float | None, instruction_set: str = "avx512bf16") -> ledger.Entry:
    return ledger.Entry(model, "2026-01-01", None, "a machine", instruction_set, seconds, 1, 1, 1, {}, 0.0, "continued")


def test_the_queue_takes_what_is_furthest_behind_its_share() -> None:
    queue = [ledger.Queued(f"recipes/{name}.toml", share, {}, {}) for name, share in (("a", 2), ("b", 1))]
    assert ledger.next_model(queue, []).name == "a"
    assert ledger.next_model(queue, [_entry("a", 10)]).name == "b"
    assert ledger.next_model(queue, [_entry("a", 30), _entry("b", 14)]).name == "b"
    assert ledger.next_model(queue, [_entry("a", 30), _entry("b", 16)]).name == "a"
    assert ledger.next_model(queue, [_entry("a", 30), _entry("b", 45, "avx2")]).name == "a"  # in order
    assert ledger.next_model(queue, [_entry("a", 30), _entry("b", 44, "avx2"), _entry("c", 1)]).name == "b"
    assert ledger.spent([_entry("a", 3600), _entry("a", 3600, "avx2"), _entry("b", None)]) == {"a": 1 + 1 / 3, "b": 0}


def test_the_curve_of_a_model_continues_where_a_run_begins_anew() -> None:
    one = dataclasses.replace(_entry("a", 1), pixels=70, slice_pixels=50, psnr={"25": 30.0, "50": 28.0})
    stopped = dataclasses.replace(one, pixels=90, slice_pixels=20, psnr={})
    anew = dataclasses.replace(one, pixels=10, slice_pixels=10, psnr={"25": 31.0}, decay=0.5)
    other = dataclasses.replace(one, model="b", pixels=5, slice_pixels=5)
    found = ledger.curves([one, stopped, other, anew])
    assert found == {"a": [(70, 29.0, False), (100, 31.0, True)], "b": [(5, 29.0, False)]}


def test_bars_say_what_was_reached() -> None:
    model = ledger.Queued(
        "recipes/a.toml", 1, {"set12": [0, 30.36, 0], "bsd68": [1, 1, 1]}, {"set12": [32.86, 30.44, 27]}
    )
    scores = {"set12": {"15": {"psnr": 32.9}, "25": {"psnr": 30.36}, "50": {"psnr": 26.99}}}
    assert ledger.bars(model, {"scores": scores}) == [
        "first set12 25: 30.36 of 30.36 dB, met",
        "goal  set12 15: 32.90 of 32.86 dB, met",
        "goal  set12 25: 30.36 of 30.44 dB, open",
        "goal  set12 50: 26.99 of 27.00 dB, open",
    ]
    result = {"scores": {"set5": {"x2": {"psnr": 36.0}, "x3": {"psnr": 33.0}, "x4": {"psnr": 30.5}}}}
    assert ledger.bars(ledger.Queued("b", 1, {"set5": [0, 0, 30.48]}, {}), result) == [
        "first set5 x4: 30.50 of 30.48 dB, met"
    ]


def test_the_queue_of_the_repository_can_be_trained() -> None:
    for model in ledger.read_queue(ROOT / "training/queue.toml"):
        assert read_recipe(ROOT / model.recipe).name == model.name
        for bars in (*model.first.values(), *model.goal.values()):
            assert len(bars) == 3
    for entry in entries(ROOT):
        assert entry.decision in ("continued", "stopped", "failed", "released", "not released", "not better")
        assert entry.pixels >= entry.slice_pixels > 0


def test_a_time_of_the_clock_is_the_next_one() -> None:
    for hour in range(24):
        left = (next_minute(f"{hour:02}:30") - dt.datetime.now()).total_seconds()
        assert 0 < left <= 24 * 3600
