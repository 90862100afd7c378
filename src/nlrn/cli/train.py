"""nlrn train."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from nlrn.cli.shared import add_command, count, reporter
from nlrn.errors import ConfigError, ElsewhereError

EXAMPLES = """
nlrn train recipes/denoise-gray-small.toml --minutes 60
nlrn train recipes/denoise-gray-small.toml --resume --minutes 60
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn train` to the subparsers of argparse."""
    parser = add_command(commands, "train", "train a model from a recipe", EXAMPLES)
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="what is trained, and how (docs/training.md)")
    group = parser.add_argument_group("run")
    group.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: runs/<recipe name>")
    group.add_argument("--resume", action="store_true", help="resume from the newest good state")
    group.add_argument("--tensorboard", action="store_true", help="write curves too (nlrn[train])")
    group.add_argument("--json", action="store_true", help="print what was written as JSON, at the end")
    group = parser.add_argument_group("data")
    group.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    group = parser.add_argument_group("budget")
    group.add_argument("--minutes", type=float, help="stop by the clock, the decay of the learning rate included")
    group.add_argument("--cpu-minutes", type=float, help="the same by the CPU time of a thread, on a busy machine")
    group.add_argument("--decay", type=float, metavar="SHARE", help="of the slice, instead of the recipe's; 0: none")
    group.add_argument("--steps", type=count, help="instead of the recipe's number")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from nlrn.training.trainer import train_from_recipe

    if options.decay is not None and not 0 <= options.decay < 1:
        raise ConfigError(f"--decay is a share of the slice, at least 0 and below 1, not {options.decay}")
    try:
        path = train_from_recipe(
            options.recipe,
            output=options.output,
            resume=options.resume,
            minutes=options.minutes,
            cpu_minutes=options.cpu_minutes,
            decay=options.decay,
            steps=options.steps,
            tensorboard=options.tensorboard,
            data=options.data,
            quiet=options.quiet or options.json,
        )
    except ElsewhereError:  # one error is printed once
        return 3
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one process prints
        if options.json:
            print(json.dumps({"output": str(path)}))
        else:
            reporter(options)(f"wrote {path}")
    return 0
