"""A folder of pictures, for the commands that restore one."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from typing import TYPE_CHECKING

from nlrn import __version__
from nlrn.cli.shared import FOLDER_OPTIONS, ProgressBar, check_tiles, model_name, sayer, side
from nlrn.errors import ConfigError

if TYPE_CHECKING:
    from nlrn.batch import Make

# What decides nothing about a result; the model is told by the digests of its weights.
_FREE = {*FOLDER_OPTIONS, "input", "output", "overwrite", "quiet", "run", "command", "model"}


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Those that make sense where IN is a folder."""
    group = parser.add_argument_group("where IN is a folder")
    group.add_argument("-r", "--recursive", action="store_true", help="the folders below it too")
    group.add_argument("--suffix", default="", metavar="TEXT", help="at the end of the results' names")
    group.add_argument("--format", metavar="EXT", help="of all results: png, tif ... (default: each picture's own)")
    group.add_argument("--skip-existing", action="store_true", help="leave results that are there as they are")
    group.add_argument("-j", "--jobs", type=side, default=1, help="pictures at once, sharing the threads (default: 1)")
    group.add_argument("--json", action="store_true", help="print the outcome as JSON")


def restore_folder(options: argparse.Namespace, make: Make, what: str) -> int:
    """Every picture of the folder IN into the folder OUT. make: see nlrn.batch.run. Returns the exit code."""
    from nlrn.batch import MANIFEST, plan, run

    check_tiles(options)
    work = _digest(options)
    form = options.format and f".{options.format.lower().lstrip('.')}"
    _check_memory(options)
    jobs = plan(options.input, options.output, recursive=options.recursive, ending=options.suffix, form=form)
    if not jobs:
        print(f"nlrn: there is no picture in {options.input}", file=sys.stderr)
        return 3
    started = time.monotonic()
    with ProgressBar(options, what, total=len(jobs)) as tick:
        outcome = run(
            jobs, make, options.output, work,
            workers=min(options.jobs, len(jobs)),
            overwrite=options.overwrite,
            skip_existing=options.skip_existing,
            tick=lambda count: tick(count, len(jobs)),
        )  # fmt: skip
    seconds = time.monotonic() - started
    for name, reason in outcome.failed.items():
        print(f"nlrn: {name}: {reason}", file=sys.stderr)
    if options.json:
        print(json.dumps({"seconds": seconds, **vars(outcome)}))
    else:
        pace = f" in {seconds:.0f} s ({len(outcome.done) / seconds:.2f} a second)" if outcome.done else ""
        sayer(options)(
            f"{len(outcome.done)} pictures restored{pace}, {len(outcome.skipped)} there already,"
            f" {len(outcome.failed)} refused; {options.output / MANIFEST} lists them"
        )
    return 1 if outcome.failed else 0


def _check_memory(options: argparse.Namespace) -> None:
    """Several pictures at once must fit what is free: where memory runs out, the system kills without a word."""
    from nlrn.hardware import memory
    from nlrn.restore import MEMORY

    each, found = (options.memory or MEMORY) >> 20, memory()
    if options.jobs > 1 and found is not None and options.jobs * each > found["available"]:
        raise ConfigError(
            f"{options.jobs} pictures at once may take {each:,} MiB each, and {found['available']:,} are free:"
            " fewer --jobs, or less --memory for each"
        )


def _digest(options: argparse.Namespace) -> str:
    """Of what decides the results: the options, the weights, the version."""
    from nlrn.checkpoint import resolve_model, sha256

    chosen = {name: str(value) for name, value in vars(options).items() if name not in _FREE}
    models = {sha256(resolve_model(model_name(options, channels))) for channels in (1, 3)}
    told = json.dumps([__version__, chosen, sorted(models)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
