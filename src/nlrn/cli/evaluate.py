"""nlrn evaluate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrn.cli.shared import (
    add_command,
    add_model_options,
    check_result,
    make_restorer,
    model_name,
    number,
    print_table,
    reporter,
    sigma_level,
)
from nlrn.errors import ConfigError

if TYPE_CHECKING:
    from nlrn.evaluation.protocols import Condition
    from nlrn.models.nlrn import NLRNConfig

EXAMPLES = """
nlrn evaluate --data examples --sigma 25            any folder of images
nlrn evaluate --data DATA --sigma 15 25 50 --json scores.json
"""

_STANDARD_OUTPUT = Path("-")
SCALES = (2, 3, 4)


def add(commands: Any) -> None:
    """Add the parser of `nlrn evaluate` to the subparsers of argparse."""
    parser = add_command(commands, "evaluate", "score a model on the field's data sets", EXAMPLES)
    group = parser.add_argument_group("scores")
    group.add_argument("--data", type=Path, help="folder of the data sets, or of images (default: $NLRN_DATA)")
    group.add_argument("--set", dest="sets", nargs="+", default=[], metavar="NAME", help="set12, bsd68, cbsd68 ...")
    group.add_argument("--task", choices=("denoise", "sr"), default="denoise", help="sr: super-resolution")
    group.add_argument(
        "--noise", choices=("gaussian", "camera"), default="gaussian", help="camera: simulated camera noise"
    )
    group.add_argument("--sigma", type=sigma_level, nargs="+", help="default: 15 25 50, of camera noise 3 6 12")
    group.add_argument(
        "--given-sigma",
        "--tell",
        dest="given_sigma",
        type=sigma_level,
        metavar="SIGMA",
        help="sigma given to the model under camera noise (default: estimated)",
    )
    group.add_argument("--auto", action="store_true", help="give the model the estimated noise level instead")
    group.add_argument(
        "--scale", type=number("scale", 1.5, 4), nargs="+", help="of super-resolution, 1.5 to 4 (default: 2 3 4)"
    )
    group.add_argument(
        "--protocol",
        choices=("float-lr", "8bit-lr"),
        help="of super-resolution: is the small image rounded to 8 bit? (default: float-lr)",
    )
    group.add_argument("--attention", action="store_true", help="also what the attention is worth (first set)")
    group = parser.add_argument_group("result")
    group.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=_STANDARD_OUTPUT,
        metavar="FILE",
        help="write every number there; without FILE print them as JSON",
    )
    group.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_model_options(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from nlrn.evaluation.protocols import (
        PROTOCOLS,
        attention_study,
        evaluate,
        find_sets,
        provenance,
    )
    from nlrn.io.datasets import data_root
    from nlrn.models.checkpoint import model_metadata, resolve_model, sha256
    from nlrn.system.atomic import finite, publish_json

    if options.precision == "auto":
        options.precision = "fp32"  # scores are reproducible numbers
    path = resolve_model(model_name(options, 1))
    printed = options.json == _STANDARD_OUTPUT
    check_result(None if printed else options.json, ".json", overwrite=options.overwrite, inputs=(path,))
    options.quiet |= printed
    restorer = make_restorer(options, tile=0)
    config = restorer.model.config
    _check(options, config)
    if config.window is None and options.mode == "window":
        raise ConfigError("this model attends to the whole image, which does not fit in memory: use --mode patch")
    sets = find_sets(
        data_root(options.data),
        options.sets,
        channels=config.in_channels,
        task=options.task,
        scales=(options.scale or SCALES) if options.task == "sr" else (),
    )
    protocol, conditions = _conditions(options, config)
    say = reporter(options)
    result: dict[str, Any] = {
        "model": path.stem,
        "sha256": sha256(path),
        "steps": model_metadata(path).get("steps"),
        "task": options.task,
        "protocol": f"{protocol}: {PROTOCOLS[protocol]}",
        "run": provenance(restorer) | ({"auto": True} if options.auto else {}),
        "scores": evaluate(restorer, sets, conditions, say=say),
    }
    if options.attention:
        say("the attention, on " + next(iter(sets)))
        result["attention"] = attention_study(restorer, next(iter(sets.values())), conditions, say=say)
    _table(result, options.quiet)
    if printed:
        print(json.dumps(finite(result)))
    elif options.json is not None:
        publish_json(options.json, result)
        say(f"wrote {options.json}")
    return 0


def _check(options: argparse.Namespace, config: NLRNConfig) -> None:
    """Raises ConfigError where the options do not fit the model."""
    camera, given = options.noise == "camera", config.sigma_input
    if config.task != options.task:
        raise ConfigError(f"this model is for {config.task}: give --task {config.task}")
    if options.task == "sr" and options.sigma is not None:
        raise ConfigError("--sigma is for models that denoise")
    if options.task != "sr" and (options.scale is not None or options.protocol is not None):
        raise ConfigError("--scale and --protocol are for super-resolution: give --task sr")
    if camera and (options.task == "sr" or config.in_channels != 3):
        raise ConfigError("--noise camera is for models that denoise colour")
    if config.noise == "camera" and not camera:
        raise ConfigError("this model is for the noise of cameras: give --noise camera")
    if options.given_sigma is not None and not (camera and given):
        raise ConfigError("--given-sigma is for models that receive the noise level, under --noise camera")
    if options.auto and (camera or not given):
        raise ConfigError("--auto is for models that receive the noise level, under Gaussian noise")
    if camera and options.attention and config.noise == "white" and options.given_sigma is None:
        raise ConfigError("--attention under camera noise requires --given-sigma: a sigma that is given, not estimated")


def _conditions(options: argparse.Namespace, config: NLRNConfig) -> tuple[str, list[Condition]]:
    """The name of the protocol, and what is scored."""
    from nlrn.evaluation.protocols import denoising, photographs, super_resolution
    from nlrn.functional.camera import CAMERA_LEVELS

    if options.task == "sr":
        protocol = options.protocol or "float-lr"
        return protocol, super_resolution(options.scale or SCALES, protocol)
    if options.noise == "camera":
        given = "auto" if options.given_sigma is None else options.given_sigma
        return "camera", photographs(options.sigma or CAMERA_LEVELS, given)
    return "noise", denoising(options.sigma or (15.0, 25.0, 50.0), auto=options.auto)


def _table(result: dict[str, Any], quiet: bool) -> None:
    """PSNR / SSIM by set and noise level or scale; with the attention study, its rows below."""
    if quiet:
        return
    names = list(next(iter(result["scores"].values())))
    title = f"{result['model']}, {result['run']['mode']} mode: PSNR (dB) / SSIM"
    rows = [
        [name, *(f"{scores[s]['psnr']:.2f} / {scores[s]['ssim']:.4f}" for s in names)]
        for name, scores in result["scores"].items()
    ]
    kind = "level" if result["protocol"].startswith("camera") else "sigma"
    header = names if result["task"] == "sr" else [f"{kind} {s}" for s in names]
    print_table(title, ["set", *header], rows)
    if "attention" not in result:
        return
    study = result["attention"]
    variants = next(iter(study.values()))["psnr"]
    rows = [[f"PSNR, {variant}", *(f"{study[s]['psnr'][variant]:.2f}" for s in names)] for variant in variants]
    for key, label in (("neighbours", "effective neighbours by state"), ("largest", "|S|max by state")):
        rows.append([label, *(" ".join(f"{v:.3g}" for v in study[s][key]) for s in names)])
    print_table(None, ["the attention", *header], rows)
