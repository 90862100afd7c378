"""nlrn convert."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from nlrn.cli.shared import add_command, count, reporter

EXAMPLES = """
nlrn convert model.ckpt -o authors.safetensors --propagation
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn convert` to the subparsers of argparse."""
    parser = add_command(commands, "convert", "turn the authors' TensorFlow weights into a weights file", EXAMPLES)
    parser.add_argument(
        "input", type=Path, metavar="CHECKPOINT", help="its prefix, a training folder, or that of a SavedModel"
    )
    group = parser.add_argument_group("network")
    group.add_argument(
        "--propagation",
        action=argparse.BooleanOptionalAction,
        required=True,
        help="does the model carry correlations? Those of 12 states do, those of 15 do not",
    )
    group.add_argument(
        "--task", choices=("denoise", "sr"), default="denoise", help="what it was trained for (default: denoise)"
    )
    group.add_argument(
        "--trained-on",
        type=int,
        choices=(1, 255),
        help="the largest value of the images that it was trained on (default: 255 where the names of the variables"
        " begin with model/, as in the authors' first code, else 1)",
    )
    group.add_argument("--window", type=count, help="odd, for use beyond the authors' patches (default: none)")
    group = parser.add_argument_group("result")
    group.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.safetensors")
    group.add_argument("--json", action="store_true", help="print what was written as JSON")
    group.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from nlrn.integrations.tensorflow import checkpoint_files, convert, read_checkpoint
    from nlrn.models.checkpoint import save_model
    from nlrn.system.atomic import check_target

    check_target(options.output, overwrite=options.overwrite, inputs=checkpoint_files(options.input))
    model = convert(
        read_checkpoint(options.input),
        propagation=options.propagation,
        window=options.window,
        task=options.task,
        trained_on=options.trained_on,
    )
    metadata = {
        "name": options.output.stem.encode(errors="backslashreplace").decode(),
        "source": "the authors' TensorFlow weights",
    }
    save_model(options.output, model, metadata, overwrite=options.overwrite)
    c = model.config
    if options.json:
        print(json.dumps({"output": str(options.output), "config": dataclasses.asdict(c)}))
        return 0
    say = reporter(options)
    say(f"{c.states} states, {c.channels} channels, {'with' if c.propagation else 'without'} propagation")
    use = "upscale enlarges with it" if c.task == "sr" else "it was trained for one noise level"
    patch = " and on patches of 45 x 45: --mode patch" if c.window is None else ""
    say(f"wrote {options.output}; {use}{patch and ','}{patch}")
    return 0
