"""nlrn doctor."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nlrn.cli.shared import add_command

EXAMPLES = """
nlrn doctor
nlrn doctor --json
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn doctor` to the subparsers of argparse."""
    parser = add_command(commands, "doctor", "check this installation: backends, models, extras", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from nlrn.cli.diagnosis import examine, is_well

    found = examine()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0 if is_well(found) else 3
    for title, value in found.items():
        if isinstance(value, dict):
            print(title)
            for name, what in value.items():
                print(f"  {name}: {_plain(what)}")
        else:
            print(f"{title}: {_plain(value)}")
    print("no problems found" if is_well(found) else "problems found: see above")
    return 0 if is_well(found) else 3


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{_plain(v)} {k}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
