"""The arguments of python -m studies."""

from __future__ import annotations

import argparse
from pathlib import Path

from nlrn.cli import Parser
from nlrn.cli.shared import check_result, count, print_table, reporter, sigma_level
from studies import study


def parser() -> argparse.ArgumentParser:
    found = Parser(prog="python -m studies", description="Equal short trainings that differ in one thing.")
    found.add_argument("study", choices=tuple(study.STUDIES), help="what differs")
    found.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="such as recipes/study.toml")
    found.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json", help="resumes if it exists")
    found.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    found.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    found.add_argument("--steps", type=count, help="instead of the recipe's number")
    found.add_argument("--seeds", type=count, nargs="+", default=[0, 1], help="default: 0 1")
    found.add_argument("--sigma", type=sigma_level, nargs="+", default=[25.0, 50.0], help="default: 25 50")
    found.add_argument("-j", "--jobs", type=count, default=1, help="trainings at once, each on its share of threads")
    found.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (nlrn[plot])")
    found.add_argument("--overwrite", action="store_true", help="replace the drawing if it exists")
    found.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    found.set_defaults(run=_study)
    return found


def _study(options: argparse.Namespace) -> int:
    from nlrn.evaluation.plotting import check_plot
    from nlrn.io.datasets import data_root
    from nlrn.training.config import read_recipe

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
        say=reporter(options),
    )
    if not options.quiet:
        print_table(*study.table(result))
    if options.plot is not None:
        study.plot(result, options.plot)
    return 0
