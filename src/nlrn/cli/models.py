"""nlrn models."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from nlrn.cli.shared import add_command, print_table

EXAMPLES = """
nlrn models
nlrn models --json
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn models` to the subparsers of argparse."""
    parser = add_command(commands, "models", "list the models inside this package", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_models)


def _models(options: argparse.Namespace) -> int:
    from nlrn.models.listing import shipped_models

    models = shipped_models()
    if options.json:
        print(json.dumps([vars(m) | {"path": str(m.path)} for m in models], indent=1))
        return 0
    if sys.stdout.isatty():
        rows = [[m.name, m.task, "grey" if m.channels == 1 else "colour", f"{m.parameters:,}"] for m in models]
        digests = [[m.metadata.get("steps", "?"), m.sha256[:12]] for m in models]
        header = ["model", "task", "images", "parameters", "steps", "sha256"]
        print_table(None, header, [[*row, *more] for row, more in zip(rows, digests, strict=True)])
        return 0
    for m in models:
        colour = "grey" if m.channels == 1 else "colour"
        steps = m.metadata.get("steps", "?")
        print(f"{m.name}: {m.task}, {colour}, {m.parameters:,} parameters, {steps} steps, sha256 {m.sha256[:12]}")
    if not models:
        print("no models are shipped in this build")
    return 0
