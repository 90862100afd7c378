"""scripts/slice.py: a slice from the released state, scored, released if it is better and not otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from toy import make

from nlrn.checkpoint import load_model, model_metadata, sha256
from nlrn.datasets import SCORING_SETS
from nlrn.trainstate import BEFORE_DECAY, read_state

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from slice import layout  # noqa: E402


def run(recipe: Path, *arguments: str, minutes: float = 0.2, code: int = 0) -> str:
    """What slice.py prints, errors included."""
    command = [sys.executable, ROOT / "scripts" / "slice.py", recipe, "--data", recipe.parent, "--root", recipe.parent]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, "--minutes", str(minutes), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == code, finished.stderr
    return finished.stdout + finished.stderr


def lay_out(root: Path, *sets: str) -> None:
    """The places of a release, and scoring sets that are the pictures held back."""
    for name in sets:
        place = root / SCORING_SETS[name]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(root / "held")
    for folder in ("src/nlrn/weights", "results"):
        (root / folder).mkdir(parents=True)


def test_a_slice_is_scored_and_released_only_when_it_is_better(tmp_path: Path) -> None:
    recipe = make(tmp_path)
    lay_out(tmp_path, "set12", "bsd68")
    shipped, scores = tmp_path / "src/nlrn/weights/tiny.safetensors", tmp_path / "results/tiny.json"

    run(recipe)
    assert not shipped.exists()
    assert not scores.exists()

    assert "released tiny.safetensors" in run(recipe, "--release", "--hardware", "a thing")
    found = json.loads(scores.read_text())
    assert found["sha256"] == sha256(shipped)
    assert (shipped.parent / "SHA256SUMS").read_text() == f"{found['sha256']}  tiny.safetensors\n"
    assert set(found["scores"]) == {"set12", "bsd68"}
    assert set(found["attention"]["25"]["psnr"]) >= {"as is", "self only"}
    made = model_metadata(shipped)
    assert made["hardware"] == "a thing"
    assert load_model(shipped).config.channels == 8
    _, meta = read_state(tmp_path / "training/state/tiny" / BEFORE_DECAY)
    assert 0 < meta["step"] < int(made["steps"])

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
    log = [json.loads(line) for line in (tmp_path / "runs/tiny/log.jsonl").read_text().splitlines()]
    assert min(line["step"] for line in log) >= meta["step"]  # it went on from the released state


def test_a_slice_of_super_resolution_is_scored_under_both_protocols(tmp_path: Path) -> None:
    recipe = make(tmp_path)
    text = recipe.read_text().replace("[noise]\nlow = 10.0\nhigh = 50.0", "[resize]\nscales = [2]")
    recipe.write_text(text.replace("sigma_input = true", 'task = "sr"'))
    lay_out(tmp_path, "set5", "set14", "bsd100")
    run(recipe, "--release", minutes=0.05)
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
