"""nlrn explain."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nlrn.cli.shared import (
    add_command,
    add_model_options,
    check_result,
    make_restorer,
    print_table,
    reporter,
    sigma_level,
)

EXAMPLES = """
nlrn explain image.png --at 120,85 -o map.png
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn explain` to the subparsers of argparse."""
    parser = add_command(commands, "explain", "draw which pixels a pixel attends to, state by state", EXAMPLES)
    parser.add_argument("input", type=Path, metavar="IMAGE", help="a clean image; a copy with noise is explained too")
    parser.add_argument(
        "--at", type=_pixel, required=True, metavar="X,Y", help="column and row, from 0 at the top left"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MAP.png")
    parser.add_argument("--sigma", type=sigma_level, default=25.0, help="of the noise added (default: 25)")
    parser.add_argument("--overwrite", action="store_true", help="replace MAP.png if it exists")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    add_model_options(parser, restores=False)
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    from nlrn.evaluation.explain import draw, explain
    from nlrn.evaluation.plotting import check_plot
    from nlrn.functional.alpha import fill_hidden
    from nlrn.io.image import read_image

    check_plot()
    check_result(options.output, ".png", overwrite=options.overwrite, inputs=(options.input,))
    image = read_image(options.input)
    seen = fill_hidden(image.array, image.alpha)
    restorer = make_restorer(options)
    rows = explain(restorer, seen, options.at, options.sigma)
    draw(rows, options.output, overwrite=options.overwrite)
    if options.json:
        found = [{"sigma": maps.sigma, "neighbours": [float(n) for n in maps.neighbours]} for maps in rows]
        print(json.dumps({"output": str(options.output), "at": options.at, "rows": found}))
        return 0
    if not options.quiet:
        header = ["effective neighbours", *(f"sigma {maps.sigma:g}" for maps in rows)]
        states = zip(*(maps.neighbours for maps in rows), strict=True)
        print_table(None, header, [[f"state {t + 1}", *(f"{n:.1f}" for n in row)] for t, row in enumerate(states)])
    reporter(options)(f"wrote {options.output}")
    return 0


def _pixel(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a pixel; give column,row, such as 120,85")
    return int(parts[0]), int(parts[1])
