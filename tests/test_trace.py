"""The script that counts the modules of one image or recipe, on the real commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import trace_image  # noqa: E402

ORDER = ("cli", "inference", "io")


def counts(*arguments: str) -> dict[str, list[list[str]]]:
    command = [sys.executable, str(ROOT / "scripts" / "trace_image.py"), *arguments, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, list[list[str]]] = json.loads(done.stdout)
    return found


def test_a_step_up_is_a_higher_package_entered_after_a_lower_one() -> None:
    trace = trace_image.Trace(
        ORDER, entered=["nlrn.cli.denoise", "nlrn.io.image", "nlrn.io.decode", "nlrn.inference.api"]
    )
    assert trace.steps_up == [("nlrn.io.decode", "nlrn.inference.api")]
    assert trace.packages == ["nlrn.cli", "nlrn.io", "nlrn.inference"]
    assert trace.package_steps_up == [("nlrn.io", "nlrn.inference")]
    assert trace.rank("nlrn") < trace.rank("nlrn.cli") < trace.rank("nlrn.io.image")


def test_the_order_is_that_of_import_linter() -> None:
    order = trace_image.order_of_imports()
    assert order.index("cli") < order.index("inference") < order.index("io") < order.index("errors")


def test_the_way_of_an_image(tmp_path: Path) -> None:
    """Read, decoded, restored, written: in that order, and upwards only what was passed down."""
    noisy = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(noisy).save(tmp_path / "noisy.png")
    found = counts(str(tmp_path / "noisy.png"))
    way = ["nlrn.cli.denoise", "nlrn.io.image", "nlrn.io.decode", "nlrn.inference.restorer", "nlrn.models.folded"]
    places = [found["modules"].index(module) for module in way]  # type: ignore[arg-type]
    assert places == sorted(places)
    assert places[0] == 0
    assert len(found["modules"]) == len(set(map(str, found["modules"]))) > len(found["steps_up"]) > 0
    assert {module for _, module, _ in found["calls_up"]} == {"nlrn.cli.shared"}  # messages, progress, its options


@pytest.mark.slow
def test_the_way_of_a_recipe(tmp_path: Path) -> None:
    recipe = toy.make(tmp_path)
    recipe.write_text(recipe.read_text().replace("steps = 60", "steps = 6").replace("start = 30", "start = 2"))
    recipe.write_text(recipe.read_text().replace("start = 45", "start = 4"))
    found = counts(str(recipe), "--data", str(tmp_path))
    way = ["nlrn.cli.train", "nlrn.training.trainer", "nlrn.training.config", "nlrn.training.data", "nlrn.models.nlrn"]
    assert set(way) <= set(map(str, found["modules"]))
    assert found["calls_up"] == []
