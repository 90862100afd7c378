"""A slice of a model's training from where it stands; its state kept, its line in the ledger, released when better.

  python scripts/slice.py --next --minutes 150 --data ../shared/data     the model that the queue has next
  python scripts/slice.py recipes/sr-small.toml --minutes 60 --release    decays, scores, and releases what is better

It resumes from runs/<name> or from training/state/<name>, whichever stands at the later step, and trains at idle
priority on all cores. --minutes is CPU time divided by the threads, so that a slice that was paused (SIGSTOP) or
starved loses nothing; --until ends it by the clock. It does not decay without --release, but for a decay that was
interrupted, which it finishes. Ctrl-C and SIGTERM end it after the step under way. Whatever ends it, once it has made
steps, the state before any decay goes to training/state/<name>, its momenta rounded to bfloat16, and a line into
training/ledger.jsonl.

--release decays over a share of the slice (--decay), scores the outcome by `nlrn evaluate --attention`, and if the mean
PSNR over all sets and levels is above that of results/<name>.json puts weights, digest and scores in place. Of
super-resolution the scores are those under float-lr, and results/<name>-8bit-lr.json holds the other protocol's.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import ledger
import torch

from nlrn.evaluation.protocols import machine, usual_sets
from nlrn.io.datasets import SCORING_SETS, data_root
from nlrn.models.checkpoint import load_model, model_metadata, save_model, sha256
from nlrn.ops.cpu import instruction_set
from nlrn.system.atomic import publish, publish_json
from nlrn.system.hardware import usable_device
from nlrn.training.config import TrainConfig, read_recipe
from nlrn.training.logging import LOG, read_log
from nlrn.training.state import BEFORE_DECAY, newest_verified, read_state, undecayed, write_compact

ROOT = Path(__file__).resolve().parents[1]
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit codes of a training that a signal ended
LARGEST_STATE = 4 * 2**20  # bytes, in the repository


# -- the training


def prepare(folder: Path, state: Path) -> bool:
    """Put the state of the repository into the run folder where it is the newer one; whether there is one to resume."""
    here = standing(folder)
    if state.exists() and read_state(state).step > here:
        if here >= 0:  # of an older run: kept beside the new one
            number = next(n for n in range(1, 1000) if not folder.with_name(f"{folder.name}.old-{n}").exists())
            folder.rename(folder.with_name(f"{folder.name}.old-{number}"))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(state, folder / BEFORE_DECAY)
        return True
    return here >= 0


def standing(folder: Path) -> int:
    """The step from which a run folder resumes: that before a decay that ended; -1 without a state."""
    found = newest_verified(folder) if folder.is_dir() else None
    if found is None:
        return -1
    before = undecayed(folder)
    return (found if before is None or not found.ended else read_state(before)).step


def start(recipe: Path, folder: Path, options: argparse.Namespace, resume: bool) -> subprocess.Popen[bytes]:
    """`nlrn train` in a session of its own, at idle priority."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(options.processes)]
    limit = ["--minutes" if torch.cuda.is_available() else "--cpu-minutes", str(options.minutes)]
    decay = ["--decay", str(options.decay if options.release else 0)]
    arguments = ["train", str(recipe), "-o", str(folder), *limit, *decay, *data_of(options), *["--resume"] * resume]
    command = [sys.executable, *launcher * (options.processes > 1), "-m", "nlrn", *arguments]
    child = subprocess.Popen(command, start_new_session=True)
    if not options.usual_priority:
        idle(child.pid, True)
    return child


def idle(pid: int, on: bool) -> None:
    """Give a session the lowest priority, or the usual one again, to end soon. Linux weighs sessions first."""
    autogroup = Path(f"/proc/{pid}/autogroup")
    try:
        if autogroup.exists():
            autogroup.write_text("19" if on else "0")
        elif on and hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, pid, 19)
    except OSError as error:
        print(f"no idle priority: {error}", file=sys.stderr)


def wait(child: subprocess.Popen[bytes], until: dt.datetime | None) -> int:
    """Until the training ends, its exit code. Signals that arrive here end it, and so does the clock."""

    def end(number: int = signal.SIGTERM, _: FrameType | None = None) -> None:
        if child.poll() is None:
            idle(child.pid, False)
            os.killpg(child.pid, signal.SIGCONT)
            child.send_signal(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    timer = threading.Timer((until - dt.datetime.now()).total_seconds(), end) if until else None
    try:
        if timer:
            timer.start()
        return child.wait()
    finally:
        if timer:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_state(folder: Path, state: Path) -> int | None:
    """Copy the run's state before any decay into the repository; its step, or None where there is none."""
    source = undecayed(folder)
    if source is None:
        return None
    state.parent.mkdir(parents=True, exist_ok=True)
    step = write_compact(source, state)
    if state.stat().st_size > LARGEST_STATE:
        print(f"{state} is larger than {LARGEST_STATE} bytes: it should not be committed", file=sys.stderr)
    return step


def next_minute(clock: str) -> dt.datetime:
    """The next time that the clock shows HH:MM."""
    now = dt.datetime.now()
    then = dt.datetime.combine(now, dt.time.fromisoformat(clock))
    return then if then > now else then + dt.timedelta(days=1)


# -- the scores


def score(weights: Path, config: TrainConfig, file: Path, words: list[str]) -> dict[str, Any]:
    """What nlrn evaluate, with these words more, says of the weights, and writes into a file."""
    sets = usual_sets(config.model.task, config.model.in_channels)
    arguments = ["evaluate", "--model", str(weights), "--task", config.model.task, "--set", *sets]
    arguments += ["--noise", "camera"] * (config.noise.kind == "camera")
    command = [sys.executable, "-m", "nlrn", *arguments, "--json", str(file), "--overwrite", *words]
    subprocess.run(command, check=True)
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def data_of(options: argparse.Namespace) -> list[str]:
    """The words that name the data, to either command."""
    return ["--data", str(options.data)] if options.data else []


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
    """Weights, digests and scores."""
    shipped, results = root / "src/nlrn/models/weights", root / "results"
    metadata = {k: v for k, v in model_metadata(weights).items() if k != "config"}
    path = shipped / weights.name
    save_model(path, load_model(weights), {**metadata, "hardware": hardware})
    sums = [f"{sha256(file)}  {file.name}\n" for file in sorted(shipped.glob("*.safetensors"))]
    publish(shipped / "SHA256SUMS", "".join(sums).encode(), overwrite=True)
    publish_json(results / f"{weights.stem}.json", result | {"sha256": sha256(path)})


def judged(weights: Path, config: TrainConfig, options: argparse.Namespace, hardware: str) -> bool:
    """Score the weights, and release them if they are better; whether they were."""
    result = score(weights, config, weights.with_name("scores.json"), ["--attention", *data_of(options)])
    before = options.root / "results" / f"{config.name}.json"
    known = float("-inf")
    if before.exists():
        released = json.loads(before.read_text())
        if layout(released) != layout(result):
            sys.exit(f"{before} holds other sets or levels than those scored now: nothing to compare, nothing released")
        known = mean_psnr(released)
    print(f"mean PSNR {mean_psnr(result):.3f} dB, released: {known:.3f} dB")
    queue = ledger.read_queue(options.queue) if options.queue.exists() else []
    for line in (line for model in queue if model.name == config.name for line in ledger.bars(model, result)):
        print(line)
    if mean_psnr(result) <= known:
        return False
    release(weights, result, hardware, options.root)
    if config.model.task == "sr":  # the bars are for float-lr; the other protocol stands beside it
        words, file = ["--protocol", "8bit-lr"], f"{config.name}-8bit-lr.json"
        path = options.root / "src/nlrn/models/weights" / weights.name
        score(path, config, options.root / "results" / file, words + data_of(options))
    print(f"released {weights.name}: now scripts/render_tables.py, and look at docs/models.md")
    return True


# -- the ledger


def validated(folder: Path, step: int) -> dict[str, float]:
    """PSNR of the averaged weights at the end of a slice, from the run's log."""
    records = read_log(folder) if (folder / LOG).exists() else []
    found = [record for record in records if record.get("weights") == "averaged" and record["step"] == step]
    return {key.removeprefix("psnr_"): value for key, value in found[-1].items() if "psnr_" in key} if found else {}


def cpu_seconds() -> float:
    """Of all ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("recipe", type=Path, metavar="RECIPE.toml", nargs="?")
    words.add_argument("--next", action="store_true", help="take the recipe from the queue")
    words.add_argument("--minutes", type=float, required=True, help="CPU time a thread, the decay included")
    words.add_argument("--until", type=next_minute, metavar="HH:MM", help="end it by the clock, without a decay")
    words.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    words.add_argument("--processes", type=int, default=1, help="one a GPU, under torchrun (default: 1)")
    words.add_argument("--usual-priority", action="store_true", help="do not step back for other programs")
    words.add_argument("--hardware", help="what the model card says it was trained on (default: this device)")
    words.add_argument("--release", action="store_true", help="decay, score, keep it if it is better")
    words.add_argument("--decay", type=float, default=0.5, help="share of the slice with --release (default: 0.5)")
    words.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    return words


def main() -> None:
    words = parser()
    options = words.parse_args()
    if options.next == (options.recipe is not None):
        words.error("give a recipe, or --next")
    if not 0 <= options.decay < 1:
        words.error(f"--decay is a share, at least 0 and below 1, not {options.decay}")
    root = options.root
    options.queue, book = root / "training/queue.toml", root / "training/ledger.jsonl"
    if options.next:
        options.recipe = root / ledger.next_model(ledger.read_queue(options.queue), ledger.read_ledger(book)).recipe
    config = read_recipe(options.recipe)
    print(f"{config.name}: {options.minutes:g} minutes of CPU time a thread", flush=True)
    if options.release:
        check_sets(config, data_root(options.data))
    folder, state = root / "runs" / config.name, root / "training/state" / config.name / BEFORE_DECAY
    resume = prepare(folder, state)
    first = max(0, standing(folder))
    here = machine(usable_device("auto"))
    threads = here["threads"]
    hardware = options.hardware or (
        f"{options.processes} x {here['device']}"
        if torch.cuda.is_available()
        else f"{threads} thread{'s' if threads > 1 else ''} of {here['device']}"
    )
    code = wait(start(options.recipe, folder, options, resume), options.until)
    spent, failed = cpu_seconds(), code not in (0, *STOPPED)
    newest = newest_verified(folder) if folder.is_dir() else None
    if failed and (newest is None or newest.step <= first):
        sys.exit(code)
    if newest is None:
        sys.exit(f"the training left no state in {folder}")
    keep_state(folder, state)
    step = newest.step
    decision = "failed" if failed else "stopped" if code else "continued"
    if options.release and not code:
        weights = folder / f"{config.name}.safetensors"
        decision = "released" if judged(weights, config, options, hardware) else "not better"
    entry = ledger.Entry(
        model=config.name,
        date=here["date"],
        commit=here["commit"],
        hardware=hardware,
        instruction_set=instruction_set(),
        cpu_seconds=round(spent),
        steps=step,
        pixels=config.pixels(0, step),
        slice_pixels=config.pixels(first, step),
        psnr=validated(folder, step),
        decay=options.decay if options.release else 0.0,
        decision=decision,
    )
    ledger.append(book, entry)
    print(f"{decision}: step {step}, {entry.pixels:.3g} pixels; {state} and {book} are to be committed")
    if failed:
        sys.exit(code)


if __name__ == "__main__":
    main()
