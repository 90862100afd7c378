"""Equal trainings: what an arm changes and nothing else, going on where a study stands, the table and the plot."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
from PIL import Image
from toy import make

from nlrn import study
from nlrn.checkpoint import model_metadata
from nlrn.cli import run as command
from nlrn.cli.study import NAMES
from nlrn.errors import ConfigError
from nlrn.recipe import read_recipe
from nlrn.study import STUDIES, Study, arm_config

ROOT = Path(__file__).parents[1]
TOY = Study("?", {"3": {"model": {"window": 3}}, "5": {}}, ("held",), axis="window")


def test_every_arm_of_every_study_changes_what_it_says_and_nothing_else() -> None:
    assert tuple(STUDIES) == NAMES
    recipe = read_recipe(ROOT / "recipes" / "study.toml")
    for name, found in STUDIES.items():
        configs = {arm: arm_config(recipe, change, arm, 7, 2000) for arm, change in found.arms.items()}
        assert len({config.name for config in configs.values()}) == len(configs)
        same = {"name": "x", "seed": 0, "schedule": recipe.schedule}
        plain = [dataclasses.replace(config, **same) for config in configs.values()]
        same_as_the_recipe = sum(config == dataclasses.replace(recipe, **same) for config in plain)
        assert same_as_the_recipe == (name != "distance"), name  # there no arm carries correlations
        assert len({config.header() for config in plain}) == len(plain)
        assert all(config.schedule.steps == 2000 for config in configs.values())
        assert all(config.seed == 7 for config in configs.values())
    choices = STUDIES["choices"]
    assert not set(choices.scored_on) & {"set12", "bsd68"}  # nothing is chosen on a scoring set
    assert arm_config(recipe, {"frozen": False}, "x", 0, 9).freeze is None
    with pytest.raises(TypeError):
        arm_config(recipe, {"optim": {"speed": 2}}, "x", 0, 9)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_trains_scores_and_goes_on_where_it_stands(tmp_path: Path, jobs: int) -> None:
    recipe = read_recipe(make(tmp_path))
    said: list[str] = []
    places = {"runs": tmp_path / "runs", "output": tmp_path / "found.json"}
    options = {"steps": 8, "sigmas": (25.0,), "study": TOY, "say": said.append, **places}
    first = study.run("toy", recipe, tmp_path, seeds=(0,), jobs=jobs, **options)
    assert json.loads((tmp_path / "found.json").read_text()) == first
    both = study.run("toy", recipe, tmp_path, seeds=(0, 1), jobs=jobs, **options)
    assert list(both["runs"]) == ["3", "5"]
    for arm, runs in both["runs"].items():
        assert runs["0"] == first["runs"][arm]["0"]  # neither trained nor scored again
        assert runs["0"]["sha256"] != runs["1"]["sha256"]
        for seed in ("0", "1"):
            made = model_metadata(tmp_path / "runs" / f"{arm}-{seed}" / f"{arm}-{seed}.safetensors")
            header = json.loads(made["recipe"])
            assert (header["model"]["window"], header["seed"]) == (int(arm), int(seed))
            assert runs[seed]["training_pixels"] == 8 * 4 * 12 * 12
    assert sum("seed 0" in line for line in said) == 2
    title, header, lines = study.table(both)
    assert "8 steps" in title
    each = [run["scores"]["held"]["25"]["psnr"] for run in both["runs"]["3"].values()]
    assert lines[0][2].startswith(f"{statistics.mean(each):.2f} (")
    assert header[2] == "held, sigma 25"
    with pytest.raises(ConfigError, match="holds another study"):
        study.run("toy", recipe, tmp_path, seeds=(0,), **{**options, "steps": 9})


def test_a_study_is_drawn(tmp_path: Path) -> None:
    one = {"25": {"psnr": 29.0, "ssim": 0.8}, "50": {"psnr": 26.0, "ssim": 0.7}}
    for name in ("attention", "window"):
        found = STUDIES[name]
        row = {"scores": dict.fromkeys(found.scored_on, one), "parameters": 10}
        result = {"study": name, "steps": 3, "sigmas": [25.0, 50.0], "runs": {a: {"0": row} for a in found.arms}}
        study.plot(result, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert drawn.width > 800


def test_the_command_refuses_what_it_cannot_write_or_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(make(tmp_path))
    for arguments, code, words in (
        (["window", recipe, "-o", str(tmp_path / "no" / "x.json"), "--data", str(tmp_path)], 1, "no folder"),
        (["widows", recipe, "-o", str(tmp_path / "x.json")], 2, "invalid choice"),
        (["window", str(tmp_path / "no.toml"), "-o", str(tmp_path / "x.json"), "--data", str(tmp_path)], 2, "recipe"),
    ):
        assert command(["study", *arguments]) == code
        assert words in capsys.readouterr().err
