"""Does the attention earn its place? Equal trainings of the small model with and without it, each with several seeds.

Every arm makes the steps of recipes/controls.toml and differs from the recipe in nothing but the model: as it is,
without propagation, and with a window of one pixel (every pixel attends to itself alone; the number of parameters
stays). The weights at the end are scored on Set12 and BSD68.

    python scripts/controls.py --data ../shared/data -o results/controls.json

Runs land under runs/controls, and go on from where they stand when the script is called again; so does the result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from nlrn.checkpoint import model_metadata, sha256
from nlrn.errors import ModelError
from nlrn.evaluation import evaluate_denoising, find_sets, provenance
from nlrn.recipe import TrainConfig, read_recipe
from nlrn.restore import Restorer, Settings
from nlrn.training import train
from nlrn.trainstate import holds_a_run

ROOT = Path(__file__).resolve().parents[1]
ARMS: dict[str, dict[str, Any]] = {"full": {}, "no propagation": {"propagation": False}, "no attention": {"window": 1}}


def arm(recipe: TrainConfig, name: str, seed: int, steps: int) -> TrainConfig:
    """The recipe of one arm's run."""
    return dataclasses.replace(
        recipe,
        name=f"{name.replace(' ', '-')}-{seed}",
        seed=seed,
        model=dataclasses.replace(recipe.model, **ARMS[name]),
        schedule=dataclasses.replace(recipe.schedule, steps=steps),
    )


def trained(config: TrainConfig, folder: Path, data: Path) -> Path:
    """The weights that the run ends with; it is made, or made to its end, when they are not there."""
    weights = folder / f"{config.name}.safetensors"
    try:
        made = model_metadata(weights)
        if (made.get("steps"), made.get("recipe")) == (str(config.schedule.steps), config.header()):
            return weights
    except ModelError:
        pass
    return train(config, output=folder, data=data, resume=holds_a_run(folder))


def scored(path: Path, restorer: Restorer, sets: dict[str, Any], sigmas: list[float]) -> dict[str, Any]:
    """What the result says of one run."""
    scores = evaluate_denoising(restorer, sets, sigmas, say=lambda line: print(line, flush=True))
    for by_sigma in scores.values():
        for score in by_sigma.values():
            del score["pictures"]
    seconds = float(model_metadata(path)["hardware_seconds"])
    return {"sha256": sha256(path), "scores": scores, "training_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/controls.toml")
    parser.add_argument("--steps", type=int, help="instead of the recipe's number")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/controls"))
    parser.add_argument("--sigma", type=float, nargs="+", default=[15.0, 25.0, 50.0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    steps = options.steps or recipe.schedule.steps
    sets = find_sets(options.data)
    settings = Settings(tile=0)
    if not options.output.parent.is_dir():
        parser.error(f"there is no folder {options.output.parent}")
    result: dict[str, Any] = {"recipe": recipe.name, "steps": steps, "sigmas": options.sigma, "runs": {}}
    if options.output.exists():  # what was scored before stays
        before = json.loads(options.output.read_text())
        if {k: before.get(k) for k in ("recipe", "steps", "sigmas")} == {
            k: v for k, v in result.items() if k != "runs"
        }:
            result = before
    for seed in options.seeds:
        for name in options.arms:
            config = arm(recipe, name, seed, steps)
            path = trained(config, options.runs / config.name, options.data)
            runs = result["runs"].setdefault(name, {})
            if runs.get(str(seed), {}).get("sha256") == sha256(path):
                continue
            restorer = Restorer(str(path), device="cpu", settings=settings)
            runs[str(seed)] = scored(path, restorer, sets, options.sigma)
            result["run"] = provenance(restorer)
            options.output.write_text(json.dumps(result, indent=1) + "\n")  # what there is, after every arm
    for name, runs in result["runs"].items():
        for s in sets:
            means = [statistics.mean(r["scores"][s][f"{x:g}"]["psnr"] for r in runs.values()) for x in options.sigma]
            print(f"{name}, {s}: " + " / ".join(f"{mean:.2f}" for mean in means))


if __name__ == "__main__":
    main()
