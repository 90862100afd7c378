"""nlrn models."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    """Add the parser of `nlrn models` to the subparsers of argparse."""
    parser = commands.add_parser("models", help="list the models inside this package")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_models)


def _models(options: argparse.Namespace) -> int:
    from nlrn.models.listing import shipped_models

    models = shipped_models()
    if options.json:
        rows = [{k: str(v) if k == "path" else v for k, v in vars(m).items()} for m in models]
        print(json.dumps(rows, indent=1))
        return 0
    for m in models:
        colour = "grey" if m.channels == 1 else "colour"
        steps = m.metadata.get("steps", "?")
        print(f"{m.name}: {m.task}, {colour}, {m.parameters:,} parameters, {steps} steps, sha256 {m.sha256[:12]}")
    if not models:
        print("no models are shipped in this build")
    return 0
