"""nlrn evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlrn.cli.shared import (
    add_model_options,
    check_result,
    make_restorer,
    model_name,
    print_table,
    sayer,
    sigma_level,
    write_json,
)
from nlrn.errors import ConfigError


def add(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="score a model on the field's data sets")
    parser.add_argument("--data", type=Path, help="folder of the data sets, or of pictures (default: $NLRN_DATA)")
    parser.add_argument("--set", dest="sets", nargs="+", default=[], metavar="NAME", help="set12, bsd68, cbsd68 ...")
    parser.add_argument("--task", choices=("denoise",), default="denoise")
    parser.add_argument("--sigma", type=sigma_level, nargs="+", default=[15.0, 25.0, 50.0], help="default: 15 25 50")
    parser.add_argument("--attention", action="store_true", help="also what the attention is worth (first set)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_model_options(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from nlrn.checkpoint import model_metadata, resolve_model, sha256
    from nlrn.datasets import data_root
    from nlrn.evaluation import PROTOCOL, attention_study, evaluate_denoising, find_sets, provenance

    if options.precision == "auto":
        options.precision = "fp32"  # scores are reproducible numbers
    path = resolve_model(model_name(options, 1))
    check_result(options.json, ".json", overwrite=options.overwrite, inputs=(path,))
    restorer = make_restorer(options, channels=1, tile=0)
    if restorer.model.config.window is None and options.mode == "window":
        raise ConfigError("this model looks at the whole picture, more than a memory holds: use --mode patch")
    sets = find_sets(data_root(options.data), options.sets, channels=restorer.model.config.in_channels)
    say = sayer(options)
    result: dict[str, Any] = {
        "model": path.stem,
        "sha256": sha256(path),
        "steps": model_metadata(path).get("steps"),
        "task": options.task,
        "protocol": PROTOCOL,
        "run": provenance(restorer),
        "scores": evaluate_denoising(restorer, sets, options.sigma, say=say),
    }
    if options.attention:
        say("the attention, on " + next(iter(sets)))
        result["attention"] = attention_study(restorer, next(iter(sets.values())), options.sigma, say=say)
    _table(result, options.quiet)
    if options.json is not None:
        write_json(options.json, result)
        say(f"wrote {options.json}")
    return 0


def _table(result: dict[str, Any], quiet: bool) -> None:
    """PSNR / SSIM by set and sigma; with the attention study, its rows below."""
    if quiet:
        return
    sigmas = list(next(iter(result["scores"].values())))
    title = f"{result['model']}, {result['run']['mode']} mode: PSNR (dB) / SSIM"
    rows = [
        [name, *(f"{scores[s]['psnr']:.2f} / {scores[s]['ssim']:.4f}" for s in sigmas)]
        for name, scores in result["scores"].items()
    ]
    header = [f"sigma {s}" for s in sigmas]
    print_table(title, ["set", *header], rows)
    if "attention" not in result:
        return
    study = result["attention"]
    variants = next(iter(study.values()))["psnr"]
    rows = [[f"PSNR, {variant}", *(f"{study[s]['psnr'][variant]:.2f}" for s in sigmas)] for variant in variants]
    for key, label in (("neighbours", "effective neighbours by state"), ("largest", "|S|max by state")):
        rows.append([label, *(" ".join(f"{v:.3g}" for v in study[s][key]) for s in sigmas)])
    print_table(None, ["the attention", *header], rows)
