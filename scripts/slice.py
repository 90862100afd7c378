"""A slice of a model's training from where it stands, scored; kept with --release when it scores better.

It goes on from runs/<name>, or from training/state/<name>, the released state before the last decay, or begins. Then
`nlrn train` for so many minutes, and `nlrn evaluate` with the attention study on what comes out. --release puts the
weights, their digest, the scores and the state before the decay in place if the mean PSNR over all sets and levels is
above that of results/<name>.json: what was worse is left in the run folder. Of super-resolution the scores are those
under float-lr, and results/<name>-8bit-lr.json holds the other protocol's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from nlrn.checkpoint import load_model, model_metadata, save_model, sha256
from nlrn.datasets import SCORING_SETS, data_root
from nlrn.evaluation import machine, usual_sets
from nlrn.hardware import usable_device
from nlrn.publish import publish, publish_json
from nlrn.recipe import TrainConfig, read_recipe
from nlrn.trainstate import BEFORE_DECAY, holds_a_run

ROOT = Path(__file__).resolve().parents[1]


def train(recipe: Path, folder: Path, state: Path, options: argparse.Namespace) -> Path:
    """The weights after the slice."""
    if not holds_a_run(folder) and state.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(state / BEFORE_DECAY, folder)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(options.processes)]
    arguments = ["train", str(recipe), "-o", str(folder), "--minutes", str(options.minutes), *data_of(options)]
    _run([*(launcher if options.processes > 1 else []), "-m", "nlrn", *arguments, *["--resume"] * holds_a_run(folder)])
    return folder / f"{read_recipe(recipe).name}.safetensors"


def score(weights: Path, config: TrainConfig, file: Path, words: list[str]) -> dict[str, Any]:
    """What nlrn evaluate, with these words more, says of the weights, and writes into a file."""
    sets = usual_sets(config.model.task, config.model.in_channels)
    arguments = ["evaluate", "--model", str(weights), "--task", config.model.task, "--set", *sets]
    _run(["-m", "nlrn", *arguments, "--json", str(file), "--overwrite", *words])
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def data_of(options: argparse.Namespace) -> list[str]:
    """The words that name the data, to either command."""
    return ["--data", str(options.data)] if options.data else []


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def check_sets(config: TrainConfig, data: Path) -> None:
    """Before hours of training: are the sets there that the outcome is compared on? Exits if not."""
    for name in usual_sets(config.model.task, config.model.in_channels):
        if not (data / SCORING_SETS[name]).is_dir():
            sys.exit(f"no {data / SCORING_SETS[name]}: {config.name} is scored on {name}")


def layout(result: dict[str, Any]) -> dict[str, list[str]]:
    """What was scored: sets, and noise levels or scales."""
    return {name: sorted(scores) for name, scores in result["scores"].items()}


def mean_psnr(result: dict[str, Any]) -> float:
    """Over all sets and noise levels, or scales, in dB."""
    return statistics.mean(score["psnr"] for scores in result["scores"].values() for score in scores.values())


def release(weights: Path, result: dict[str, Any], hardware: str, root: Path) -> None:
    """Weights, digests, scores and the state to go on from."""
    shipped, results, state = root / "src/nlrn/weights", root / "results", root / "training/state" / weights.stem
    metadata = {k: v for k, v in model_metadata(weights).items() if k != "config"}
    path = shipped / weights.name
    save_model(path, load_model(weights), {**metadata, "hardware": hardware})
    sums = [f"{sha256(file)}  {file.name}\n" for file in sorted(shipped.glob("*.safetensors"))]
    publish(shipped / "SHA256SUMS", "".join(sums).encode(), overwrite=True)
    publish_json(results / f"{weights.stem}.json", result | {"sha256": sha256(path)})
    state.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights.with_name(BEFORE_DECAY), state)


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    words.add_argument("--minutes", type=float, required=True, help="of training, its decay included")
    words.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    words.add_argument("--processes", type=int, default=1, help="one a GPU, under torchrun (default: 1)")
    words.add_argument("--hardware", help="what the model card says it was trained on (default: this device)")
    words.add_argument("--release", action="store_true", help="keep it if it is better")
    words.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    return words


def main() -> None:
    options = parser().parse_args()
    config, root = read_recipe(options.recipe), options.root
    check_sets(config, data_root(options.data))
    weights = train(options.recipe, root / "runs" / config.name, root / "training/state" / config.name, options)
    result = score(weights, config, weights.with_name("scores.json"), ["--attention", *data_of(options)])
    before = root / "results" / f"{config.name}.json"
    known = float("-inf")
    if before.exists():
        released = json.loads(before.read_text())
        if layout(released) != layout(result):
            sys.exit(f"{before} holds other sets or levels than those scored now: nothing to compare, nothing released")
        known = mean_psnr(released)
    print(f"mean PSNR {mean_psnr(result):.3f} dB, released: {known:.3f} dB")
    if options.release and mean_psnr(result) > known:
        here = machine(usable_device("auto"))
        count = f"{options.processes} x " if torch.cuda.is_available() else f"{here['threads']} threads of "
        release(weights, result, options.hardware or count + here["device"], root)
        if config.model.task == "sr":  # the bars are for float-lr; the other protocol stands beside it
            words, file = ["--protocol", "8bit-lr"], f"{config.name}-8bit-lr.json"
            score(root / "src/nlrn/weights" / weights.name, config, root / "results" / file, words + data_of(options))
        print(f"released {weights.name}: now scripts/render_tables.py, and look at docs/models.md")


if __name__ == "__main__":
    main()
