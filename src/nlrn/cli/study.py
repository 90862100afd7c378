"""nlrn study."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlrn.cli.shared import check_result, count, print_table, sayer, sigma_level

# of studies.study.STUDIES, whose import takes a second
NAMES = ("attention", "choices", "distance", "window", "states", "channels")


def add(commands: Any) -> None:
    parser = commands.add_parser("study", help="equal short trainings that differ in one thing")
    parser.add_argument("study", choices=NAMES, help="what differs")
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="such as recipes/study.toml")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json", help="goes on if it exists")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    parser.add_argument("--steps", type=count, help="instead of the recipe's number")
    parser.add_argument("--seeds", type=count, nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument("--sigma", type=sigma_level, nargs="+", default=[25.0, 50.0], help="default: 25 50")
    parser.add_argument("-j", "--jobs", type=count, default=1, help="trainings at once, each on its share of threads")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (nlrn[plot])")
    parser.add_argument("--overwrite", action="store_true", help="replace the drawing if it exists")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_study)


def _study(options: argparse.Namespace) -> int:
    from nlrn.evaluation.plotting import check_plot
    from nlrn.io.datasets import data_root
    from nlrn.training.config import read_recipe
    from studies import study

    check_result(options.output, ".json", overwrite=True)
    check_result(options.plot, ".png", overwrite=options.overwrite)
    if options.plot is not None:
        check_plot()
    result = study.run(
        options.study,
        read_recipe(options.recipe),
        data_root(options.data),
        runs=options.runs / options.study,
        output=options.output,
        seeds=options.seeds,
        steps=options.steps,
        sigmas=options.sigma,
        jobs=max(1, options.jobs),
        quiet=options.quiet,
        say=sayer(options),
    )
    if not options.quiet:
        print_table(*study.table(result))
    if options.plot is not None:
        study.plot(result, options.plot)
    return 0
