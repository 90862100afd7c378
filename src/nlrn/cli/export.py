"""nlrn export."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nlrn.cli.shared import add_command, check_result, reporter

EXAMPLES = """
nlrn export denoise-gray-small -o small.onnx
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn export` to the subparsers of argparse."""
    parser = add_command(commands, "export", "write a model as an ONNX file, for runtimes without torch", EXAMPLES)
    parser.add_argument("model", metavar="NAME|FILE", help="a shipped model (see: nlrn models) or a weights file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    check_result(options.output, ".onnx", overwrite=options.overwrite, inputs=[options.model])
    from nlrn.integrations.onnx import export

    path = export(options.model, options.output, overwrite=options.overwrite)
    if options.json:
        print(json.dumps({"output": str(path), "bytes": path.stat().st_size}))
        return 0
    reporter(options)(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB); its inputs: docs/integrations.md")
    return 0
