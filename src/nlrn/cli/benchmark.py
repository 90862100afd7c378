"""nlrn benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlrn.cli.shared import check_result, print_table, sayer


def add(commands: Any) -> None:
    parser = commands.add_parser("benchmark", help="measure speed and memory on this machine")
    parser.add_argument("what", choices=("operator", "model"), help="the attention alone, or the whole network")
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--only", default="", metavar="WORDS", help="the measurements whose line holds all these words")
    parser.add_argument("--seconds", type=float, help="give a measurement up after that time (default: 1800)")
    parser.add_argument("--quick", action="store_true", help="tiny pictures: does it run, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (nlrn[plot])")
    parser.add_argument("--overwrite", action="store_true", help="replace these files if they exist")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    import benchmarks as benchmark
    from benchmarks import report
    from nlrn.evaluation.plotting import check_plot
    from nlrn.evaluation.protocols import machine
    from nlrn.system.atomic import publish_json
    from nlrn.system.hardware import usable_device

    check_result(options.json, ".json", overwrite=options.overwrite)
    check_result(options.plot, ".png", overwrite=options.overwrite)
    if options.plot is not None:
        check_plot()
    device, say = usable_device(options.device), sayer(options)
    run, rows = machine(device), list[dict[str, Any]]()
    result = {"benchmark": options.what, "run": run, "rows": rows}
    for row in benchmark.run(
        options.what,
        device=str(device),
        threads=run["threads"],
        quick=options.quick,
        only=options.only,
        seconds=options.seconds or benchmark.SECONDS,
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
