"""The arguments of python -m benchmarks.operator and python -m benchmarks.model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from nlrn.cli import Parser, execute
from nlrn.cli.shared import check_result, print_table, reporter
from nlrn.system.allocator import keep_freed_memory


def main(what: str) -> NoReturn:
    keep_freed_memory()
    sys.exit(execute(parser(what), sys.argv[1:]))


def parser(what: str) -> argparse.ArgumentParser:
    """what: "operator", the attention by itself, or "model", the whole network."""
    found = Parser(prog=f"python -m benchmarks.{what}", description="Measure speed and memory on this machine.")
    found.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    found.add_argument("--only", default="", metavar="WORDS", help="the measurements whose line holds all these words")
    found.add_argument("--seconds", type=float, help="give a measurement up after that time (default: 1800)")
    found.add_argument("--quick", action="store_true", help="tiny images: does it run, not how fast")
    found.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    found.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (nlrn[plot])")
    found.add_argument("--overwrite", action="store_true", help="replace these files if they exist")
    found.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    found.set_defaults(run=_benchmark, what=what)
    return found


def _benchmark(options: argparse.Namespace) -> int:
    from benchmarks import report, suite
    from nlrn.evaluation.plotting import check_plot
    from nlrn.evaluation.protocols import machine
    from nlrn.system.atomic import publish_json
    from nlrn.system.hardware import usable_device

    check_result(options.json, ".json", overwrite=options.overwrite)
    check_result(options.plot, ".png", overwrite=options.overwrite)
    if options.plot is not None:
        check_plot()
    device, say = usable_device(options.device), reporter(options)
    run, rows = machine(device), list[dict[str, Any]]()
    result = {"benchmark": options.what, "run": run, "rows": rows}
    for row in suite.run(
        options.what,
        device=str(device),
        threads=run["threads"],
        quick=options.quick,
        only=options.only,
        seconds=options.seconds or suite.SECONDS,
        say=say,
    ):
        rows.append(row)
        if options.json is not None:  # after every one: the whole takes long
            publish_json(options.json, result)
    if not options.quiet:
        for title, header, lines in report.tables(result):
            print_table(title, header, lines)
    if options.plot is not None:
        report.plot(result, options.plot)
    return 0
