"""Equal trainings: what an arm changes and nothing else, going on where a study stands, the table and the plot."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor
from toy import make

from nlrn.cli import execute
from nlrn.errors import ConfigError
from nlrn.inference.restorer import Restorer
from nlrn.models.checkpoint import model_metadata
from nlrn.training.config import read_recipe
from nlrn.training.trainer import train
from studies import study
from studies.command import parser
from studies.study import STUDIES, Study, arm_config

ROOT = Path(__file__).parents[1]
TOY = Study("?", {"3": {"model": {"window": 3}}, "5": {}}, ("held",), axis="window")


def test_every_arm_of_every_study_changes_what_it_says_and_nothing_else() -> None:
    recipe = read_recipe(ROOT / "recipes" / "study.toml")
    recipe = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, steps=1999))
    whole = dataclasses.replace(recipe, name="x", seed=0, schedule=dataclasses.replace(recipe.schedule, steps=2000))
    for name, found in STUDIES.items():
        configs = {arm: arm_config(recipe, change, arm, 7, 2000) for arm, change in found.arms.items()}
        assert len({config.name for config in configs.values()}) == len(configs)
        plain = [dataclasses.replace(config, name="x", seed=0) for config in configs.values()]
        assert sum(config == whole for config in plain) == (name != "distance"), (
            name
        )  # where no arm is the recipe itself
        assert len({config.header() for config in plain}) == len(plain)
        assert all(config.schedule.steps == 2000 for config in configs.values())
        assert all(config.seed == 7 for config in configs.values())
    choices = STUDIES["choices"]
    assert not set(choices.scored_on) & {"set12", "bsd68"}  # nothing is chosen on a scoring set
    assert arm_config(recipe, {"stages": {"frozen": False}}, "x", 0, 9).freeze is None
    for change in ({"optim": {"speed": 2}}, {"speed": 2}, {"sails": {"speed": 2}}):
        with pytest.raises(ConfigError, match="does not have"):
            arm_config(recipe, change, "x", 0, 9)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_study_trains_scores_and_goes_on_where_it_stands(tmp_path: Path, jobs: int) -> None:
    recipe = read_recipe(make(tmp_path))
    said: list[str] = []
    places = {"runs": tmp_path / "runs", "output": tmp_path / "found.json"}
    options = {"steps": 8, "sigmas": (25.0,), "study": TOY, "say": said.append, **places}
    first = study.run("toy", recipe, tmp_path, seeds=(0,), jobs=jobs, **options)
    assert json.loads((tmp_path / "found.json").read_text()) == first
    shutil.rmtree(tmp_path / "runs" / "3-0")  # what the result knows is not needed again
    both = study.run("toy", recipe, tmp_path, seeds=(0, 1), jobs=jobs, **options)
    assert not (tmp_path / "runs" / "3-0").exists()
    assert list(both["runs"]) == ["3", "5"]
    for arm, runs in both["runs"].items():
        assert runs["0"] == first["runs"][arm]["0"]  # neither trained nor scored again
        assert runs["0"]["sha256"] != runs["1"]["sha256"]
        for seed in ("0", "1") if arm == "5" else ("1",):
            made = model_metadata(tmp_path / "runs" / f"{arm}-{seed}" / f"{arm}-{seed}.safetensors")
            header = json.loads(made["recipe"])
            assert (header["model"]["window"], header["seed"]) == (int(arm), int(seed))
            assert runs[seed]["training_pixels"] == 8 * 4 * 12 * 12
    assert sum("seed 0" in line for line in said) == 2
    before = (tmp_path / "found.json").read_bytes()
    changed = dataclasses.replace(recipe, loss="mse")  # the same name and steps, other trainings
    for seeds in ((0,), (2,)):
        with pytest.raises(ConfigError, match="of another recipe"):
            study.run("toy", changed, tmp_path, seeds=seeds, jobs=jobs, **{**options, "runs": tmp_path / "others"})
    for model in ({"task": "sr", "sigma_input": False}, {"in_channels": 3}):
        foreign = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **model))
        with pytest.raises(ConfigError, match="scored as a grey denoiser"):
            study.run("toy", foreign, tmp_path, seeds=(0,), jobs=jobs, **{**options, "output": tmp_path / "new.json"})
    assert not (tmp_path / "others").exists()
    assert (tmp_path / "found.json").read_bytes() == before
    title, header, lines = study.table(both)
    assert "8 steps" in title
    each = [run["scores"]["held"]["25"]["psnr"] for run in both["runs"]["3"].values()]
    assert lines[0][2].startswith(f"{statistics.mean(each):.2f} (")
    assert header[2] == "held, sigma 25"
    assert both["run"]["precision"] == "fp32"
    with pytest.raises(ConfigError, match="holds another study"):
        study.run("toy", recipe, tmp_path, seeds=(0,), **{**options, "steps": 9})
    for text in ("[]", '{"half":', "\xff"):
        (tmp_path / "found.json").write_bytes(text.encode("latin1"))
        with pytest.raises(ConfigError, match=r"found\.json"):
            study.run("toy", recipe, tmp_path, seeds=(0,), **options)
        assert (tmp_path / "found.json").read_bytes() == text.encode("latin1")


def test_an_error_of_one_training_ends_the_others_at_once(tmp_path: Path) -> None:
    """Two of several hundred thousand steps, one of which has another recipe's state in its place."""
    recipe = read_recipe(make(tmp_path))
    foreign = tmp_path / "runs" / "5-0"
    config = dataclasses.replace(recipe, loss="mse", schedule=dataclasses.replace(recipe.schedule, steps=2))
    train(config, output=foreign, data=tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="another recipe"):
        study.run(
            "toy", recipe, tmp_path, runs=tmp_path / "runs", output=tmp_path / "f.json",
            seeds=(0, 1), jobs=2, study=TOY, steps=300_000,
        )  # fmt: skip
    assert not active_children()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupt", "killed", "beheaded"])
def test_an_interrupt_or_a_killed_training_ends_a_study_with_one_sentence(tmp_path: Path, how: str) -> None:
    make(tmp_path)
    (tmp_path / "set12").symlink_to(tmp_path / "held")
    command = [sys.executable, "-m", "studies", "window", "tiny.toml", "--data", ".", "-o", "x.json", "-j", "2"]
    process = subprocess.Popen(
        [*command, "--steps", "300000"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    runs = tmp_path / "runs" / "window"
    deadline = time.monotonic() + 120
    while not runs.exists() or sum(any(run.glob("state-*")) for run in runs.iterdir()) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        os.kill(process.pid if how == "beheaded" else _youngest_child(process.pid), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    said = {"interrupt": "interrupted", "killed": "was killed", "beheaded": ""}
    assert said[how] in errors
    codes = {"interrupt": (130, -signal.SIGINT), "killed": (3,), "beheaded": (-signal.SIGKILL,)}
    assert process.returncode in codes[how]
    if how == "beheaded":
        time.sleep(2)  # its processes have to notice
    states = sorted(runs.glob("*/state-*"))
    time.sleep(1)
    assert sorted(runs.glob("*/state-*")) == states  # neither resumes
    assert len(list(runs.iterdir())) == 2  # and no other was begun


def _youngest_child(parent: int) -> int:
    """The last worker that a process started, by Linux's /proc."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return max(map(int, children))


def test_a_study_is_drawn(tmp_path: Path) -> None:
    one = {"25": {"psnr": 29.0, "ssim": 0.8}, "50": {"psnr": 26.0, "ssim": 0.7}}
    for name in ("attention", "window"):
        found = STUDIES[name]
        row = {"scores": dict.fromkeys(found.scored_on, one), "parameters": 10}
        result = {"study": name, "steps": 3, "sigmas": [25.0, 50.0], "runs": {a: {"0": row} for a in found.arms}}
        study.plot(result, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert drawn.width > 800


def test_a_network_that_ran_away_is_told_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(batch: Tensor, sigma: float) -> Tensor:
        return batch * (math.nan if sigma > 0.15 else 1)

    monkeypatch.setattr(Restorer, "_network", lambda *_: away)
    said: list[str] = []
    places = {"runs": tmp_path / "runs", "output": tmp_path / "found.json"}
    options = {"steps": 2, "sigmas": (25.0, 50.0), "study": TOY, "say": said.append, **places}
    study.run("toy", read_recipe(make(tmp_path)), tmp_path, seeds=(0,), **options)
    assert "NaN" not in (tmp_path / "found.json").read_text()
    result = json.loads((tmp_path / "found.json").read_text())
    for arm, line in zip(("3", "5"), study.table(result)[2], strict=True):
        known = result["runs"][arm]["0"]["scores"]["held"]["25"]["psnr"]
        assert line[2:] == [f"{known:.2f} ({known:.2f})", "not finite (not finite)"]
        assert f"{arm}, seed 0: held 25: {known:.3f} dB, held 50: not finite dB" in said
    study.plot(result, tmp_path / "drawn.png", TOY)
    assert (tmp_path / "drawn.png").stat().st_size > 5000


def test_the_command_refuses_what_it_cannot_write_or_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(make(tmp_path))
    for arguments, code, words in (
        (["window", recipe, "-o", str(tmp_path / "no" / "x.json"), "--data", str(tmp_path)], 1, "no folder"),
        (["widows", recipe, "-o", str(tmp_path / "x.json")], 2, "invalid choice"),
        (["window", str(tmp_path / "no.toml"), "-o", str(tmp_path / "x.json"), "--data", str(tmp_path)], 2, "recipe"),
    ):
        assert execute(parser(), arguments) == code
        assert words in capsys.readouterr().err
