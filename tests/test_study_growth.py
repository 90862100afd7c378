"""The study of growth: equal CPU seconds, looks beside the run, and a call that continues where one stopped."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import make

from nlrn.errors import ConfigError
from nlrn.io.datasets import HELD_OUT, SCORING_SETS
from nlrn.training import state
from nlrn.training.config import NoiseConfig, ScheduleConfig, Stage, TrainConfig, read_recipe
from studies import growth
from studies.study import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import render_tables  # noqa: E402


def test_the_arms_differ_in_their_stages_and_end_as_one_network() -> None:
    recipe = read_recipe(ROOT / "recipes/denoise-gray.toml")
    arms = growth.arms_of(recipe, 60)
    direct, grown = arms["direct"], arms["grown"]
    assert dataclasses.replace(grown, name="direct", stages=direct.stages) == direct
    assert direct.model == grown.model == recipe.model
    assert {direct.network(step) for step in (0, 10**6)} == {recipe.model}
    sizes = [(grown.network(stage.start).states, grown.network(stage.start).window) for stage in grown.stages]
    assert sizes == [(2, 9), (2, 9), (4, 15), (6, 31), (12, 45)]
    assert direct.stages[-1].patch == grown.stages[-1].patch
    assert direct.freeze == grown.freeze == growth.FROZEN
    trained = {*direct.data.folders, *grown.data.folders}
    assert not trained & ({"t91", "sunhays80"} | set(SCORING_SETS))
    starts = [stage.start for stage in growth.stages_of("grown", 240)]
    times = [n * s for n, s in zip(np.diff([0, *starts[2:]]), growth.SECONDS, strict=False)]
    assert np.cumsum(times) / (240 * 60) == pytest.approx(growth.SHARES, rel=0.01)


def test_what_is_scored_is_never_trained_on(data_root: Path) -> None:
    sets = growth.scored_on(data_root)
    assert [(len(images), {image.shape for _, image in images}) for images in sets.values()] == [
        (20, {(96, 96)}),
        (20, {(96, 96)}),
    ]
    assert [name for name, _ in sets["sunhays80"]] == list(HELD_OUT["sunhays80"])


@pytest.fixture
def arms(tmp_path: Path) -> dict[str, TrainConfig]:
    recipe = read_recipe(make(tmp_path))
    common = dataclasses.replace(
        recipe,
        noise=NoiseConfig(10.0, 50.0),
        schedule=ScheduleConfig(steps=10**7, warmup=3, decay=0.0),
        validate_every=10**6,
        checkpoint_minutes=9.0,
    )
    stages = {
        "direct": (Stage(0, 12, 4), Stage(4, 12, 4, frozen=True)),
        "grown": (Stage(0, 12, 4, states=1), Stage(4, 12, 4, frozen=True)),
    }
    return {arm: dataclasses.replace(common, name=arm, stages=found) for arm, found in stages.items()}


def test_the_seconds_of_a_step_are_those_of_the_sizes(
    arms: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "SIZES", ((1, 3, 12, 2), (2, 5, 12, 4)))
    _, _, rows = growth.speeds(arms["direct"], tmp_path, rounds=1)
    assert [row[:2] for row in rows] == [["1, 3", "2 of 12"], ["2, 5", "4 of 12"]]
    for row, pixels in zip(rows, (2 * 144, 4 * 144), strict=True):
        rate = float(row[3].replace(",", ""))
        assert pixels / rate == pytest.approx(float(row[2]), abs=0.001)


@pytest.mark.slow
def test_arms_take_equal_seconds_and_a_later_call_continues(arms: dict[str, TrainConfig], tmp_path: Path) -> None:
    image = np.random.RandomState(0).randint(0, 256, (20, 20)).astype(np.uint8)
    places = {"runs": tmp_path / "runs", "output": tmp_path / "found.json", "data": tmp_path}
    said: list[str] = []
    options: dict[str, Any] = {"minutes": 0.1, "looks": [0.05, 0.1], "seeds": [3], "arms": arms, "piece": 2.0, **places}

    def call(limit: float) -> dict[str, Any]:
        return growth.study(arms["direct"], sets={"own": [("a", image)]}, limit=limit, say=said.append, **options)

    first = call(0.001)
    assert first["looks"] == {}
    assert len(said) == 1
    began = time.process_time()
    whole = call(float("inf"))
    took = time.process_time() - began
    assert json.loads((tmp_path / "found.json").read_text()) == whole
    assert list(whole["looks"]) == ["0.05", "0.1"]
    for look, found in whole["looks"].items():
        for arm in ("direct", "grown"):
            each = found[arm]["3"]
            assert each["cpu_seconds"] == pytest.approx(60 * float(look), abs=1.5)
            assert each["scores"]["own"].keys() == {"15", "25", "50"}
    run = tmp_path / "runs" / "0.1-grown-3"
    before = state.read_state(run / state.BEFORE_DECAY)
    branch = state.read_state(run / "look-0.05" / state.BEFORE_DECAY)
    steps = whole["looks"]["0.05"]["grown"]["3"]["steps"]
    assert branch.step < steps < before.step  # the run continued from before its first look
    assert took == pytest.approx(2 * (6 + 0.6), rel=0.5)
    began = time.process_time()
    assert call(float("inf")) == whole  # nothing more to do
    assert time.process_time() - began < 1
    with pytest.raises(ConfigError, match="looks must rise"):
        growth.study(arms["direct"], sets={}, **{**options, "looks": [0.3, 0.1]})


def test_the_table_has_the_mean_of_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(psnr: float) -> dict[str, Any]:
        scores = {name: {"15": psnr + 2, "25": psnr, "50": psnr - 3} for name in ("t91", "sunhays80")}
        return {"states": 4, "window": 15, "steps": 1000, "pixels": 8_192_000, "scores": scores}

    arms = {"grown": {"0": look(29.0), "1": look(29.5)}}
    result = {"minutes": 60.0, "sigmas": [15.0, 25.0, 50.0], "looks": {"15": arms}}
    found: Table = growth.table(result)
    assert found[1][5:] == ["t91, sigma 15 / 25 / 50", "sunhays80, sigma 15 / 25 / 50", "mean (seeds)"]
    assert found[2] == [
        ["15", "grown", "4, 15", "1,000", "8.2", *["31.25 / 29.25 / 26.25"] * 2, "28.92 (28.67, 29.17)"]
    ]
    run = {"threads": 1, "device": "CPU", "torch": "2", "date": "2026-11-30", "commit": "abc", "precision": "bf16"}
    (tmp_path / "study-growth.json").write_text(json.dumps(result | {"run": run}))
    monkeypatch.setattr(render_tables, "RESULTS", tmp_path)
    page = render_tables.rendered("<!-- table: study-growth -->\n<!-- end -->\n")
    assert "| 15 | grown | 4, 15 | 1,000 | 8.2 |" in page
    assert "commit abc, bf16, CPU, 1 thread" in page
