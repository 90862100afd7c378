"""The command line: arguments into calls, errors into one sentence and an exit code.

Exit codes: 0 all done, 1 a file failed, 2 usage, 3 nothing could run, 130 interrupted. Arguments are checked
before torch is imported.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrn import __version__
from nlrn.errors import ConfigError, InputError, NLRNError

if TYPE_CHECKING:
    from nlrn.restore import Restorer


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but the code and the printed lines comes back."""
    parser = _parser()
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help()
            return 2
        code: int = options.run(options)
        return code
    except SystemExit as stop:  # argparse: --help, --version and usage errors
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("nlrn: interrupted; nothing was left half written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our lines went away; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3
    except NLRNError as error:
        print(f"nlrn: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1 if isinstance(error, InputError) else 3
    except (OSError, MemoryError) as error:
        print(f"nlrn: {error or 'out of memory'}", file=sys.stderr)
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nlrn",
        description="Restore pictures with the Non-Local Recurrent Network (NeurIPS 2018).",
        epilog="Start with: nlrn denoise noisy.png -o clean.png",
    )
    parser.add_argument("--version", action="version", version=f"nlrn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_denoise(commands)
    _add_evaluate(commands)
    _add_train(commands)
    _add_models(commands)
    _add_benchmark(commands)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME|FILE", help="a shipped model (see: nlrn models) or a weights file")
    parser.add_argument(
        "--mode",
        choices=("window", "patch"),
        default="window",
        help="over the whole picture, or the authors' slow patches",
    )
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default: bf16 where it is quick"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


# -- denoise -----------------------------------------------------------------------------------------------------


def _add_denoise(commands: Any) -> None:
    parser = commands.add_parser("denoise", help="remove noise from a picture")
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="its suffix sets the format")
    parser.add_argument(
        "--sigma", type=_sigma, default="auto", help="noise level in 0-255 units, 0..75, or auto (default)"
    )
    _add_model_options(parser)
    parser.add_argument("-t", "--tile", type=_count, metavar="PIXELS", help="side of a tile; 0: the whole picture")
    parser.add_argument("--overlap", type=_count, metavar="PIXELS", help="shared by tiles (default: 32)")
    parser.add_argument("--memory", type=_mebibytes, metavar="MIB", help="what a computation may take (default: 4096)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(run=_denoise)


def _denoise(options: argparse.Namespace) -> int:
    from nlrn.alpha import fill_hidden
    from nlrn.images import check_output, read_picture, write_picture

    check_output(options.output, overwrite=options.overwrite, inputs=(options.input,))
    picture = read_picture(options.input)
    check_output(options.output, overwrite=options.overwrite, inputs=(options.input,), picture=picture)
    restorer = _restorer(options, channels=1 if picture.array.ndim == 2 else 3)
    say = _sayer(options)
    seen = picture.array if picture.alpha is None else fill_hidden(picture.array, picture.alpha)
    level = restorer.noise_level(seen, options.sigma)
    if not restorer.model.config.sigma_input:
        say("this model was trained for one noise level and takes none")
    elif options.sigma == "auto":
        say(f"estimated noise: sigma {level:.1f}" + (" or more, this model's limit" if level == 75 else ""))
    if picture.array.ndim == 3 and restorer.model.config.in_channels == 1:
        say("colour goes channel by channel through a grey model")
    height, width = picture.array.shape[:2]
    side = restorer.tile_for(height, width) if options.mode == "window" else None
    if side is not None:
        say(f"{width} x {height} pixels in tiles of {side}, overlapping by {restorer.settings.overlap_of(side)}")
    with _Progress(options, "denoising") as tick:
        restored = restorer.denoise(picture.array, level, alpha=picture.alpha, progress=tick)
    write_picture(options.output, picture.with_array(restored), overwrite=options.overwrite)
    say(f"wrote {options.output}")
    return 0


# -- evaluate ----------------------------------------------------------------------------------------------------


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="score a model on the field's data sets")
    parser.add_argument("--data", type=Path, help="folder of the data sets, or of pictures (default: $NLRN_DATA)")
    parser.add_argument("--set", dest="sets", nargs="+", default=[], metavar="NAME", help="set12, bsd68, cbsd68 ...")
    parser.add_argument("--task", choices=("denoise",), default="denoise")
    parser.add_argument("--sigma", type=_level, nargs="+", default=[15.0, 25.0, 50.0], help="default: 15 25 50")
    parser.add_argument("--attention", action="store_true", help="also what the attention is worth (first set)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    _add_model_options(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from nlrn.checkpoint import model_metadata, resolve_model, sha256
    from nlrn.datasets import data_root
    from nlrn.evaluation import PROTOCOL, attention_study, evaluate_denoising, find_sets, provenance

    if options.precision == "auto":
        options.precision = "fp32"  # scores are reproducible numbers
    _check_folder(options.json)
    restorer = _restorer(options, channels=1, tile=0)
    if restorer.model.config.window is None and options.mode == "window":
        raise ConfigError("this model looks at the whole picture, more than a memory holds: use --mode patch")
    sets = find_sets(data_root(options.data), options.sets, channels=restorer.model.config.in_channels)
    say = _sayer(options)
    path = resolve_model(_model_name(options, 1))
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
        _write_json(options.json, result)
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
    _print_table(title, ["set", *header], rows)
    if "attention" not in result:
        return
    study = result["attention"]
    variants = next(iter(study.values()))["psnr"]
    rows = [[f"PSNR, {variant}", *(f"{study[s]['psnr'][variant]:.2f}" for s in sigmas)] for variant in variants]
    for key, label in (("neighbours", "effective neighbours by state"), ("largest", "|S|max by state")):
        rows.append([label, *(" ".join(f"{v:.3g}" for v in study[s][key]) for s in sigmas)])
    _print_table(None, ["the attention", *header], rows)


# -- train and models --------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="train a model as a recipe says")
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: runs/<recipe name>")
    parser.add_argument("--resume", action="store_true", help="go on from the newest good state")
    parser.add_argument("--minutes", type=float, help="stop by the clock, the decay of the learning rate included")
    parser.add_argument("--steps", type=_count, help="instead of the recipe's number")
    parser.add_argument("--tensorboard", action="store_true", help="write curves too (nlrn[train])")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from nlrn.training import train_from_recipe

    path = train_from_recipe(
        options.recipe,
        output=options.output,
        resume=options.resume,
        minutes=options.minutes,
        steps=options.steps,
        tensorboard=options.tensorboard,
        data=options.data,
        quiet=options.quiet,
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one process speaks
        _sayer(options)(f"wrote {path}")
    return 0


def _add_models(commands: Any) -> None:
    parser = commands.add_parser("models", help="list the models inside this package")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_models)


def _models(options: argparse.Namespace) -> int:
    from nlrn.checkpoint import list_models

    models = list_models()
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


# -- benchmark ---------------------------------------------------------------------------------------------------


def _add_benchmark(commands: Any) -> None:
    parser = commands.add_parser("benchmark", help="measure speed and memory on this machine")
    parser.add_argument("what", choices=("operator", "model"), help="the attention alone, or the whole network")
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--only", default="", metavar="WORDS", help="the measurements whose line holds all these words")
    parser.add_argument("--seconds", type=float, help="give a measurement up after that time (default: 1800)")
    parser.add_argument("--quick", action="store_true", help="tiny pictures: does it run, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (nlrn[plot])")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    from nlrn import benchmark
    from nlrn.benchmark import report
    from nlrn.evaluation import machine
    from nlrn.restore import usable_device

    for path in (options.json, options.plot):
        _check_folder(path)
    if options.plot is not None:
        report.check_plot()
    device, say = usable_device(options.device), _sayer(options)
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
            _write_json(options.json, result)
    if not options.quiet:
        for title, header, lines in report.tables(result):
            _print_table(title, header, lines)
    if options.plot is not None:
        report.plot(result, options.plot)
    return 0


# -- shared ------------------------------------------------------------------------------------------------------


def _model_name(options: argparse.Namespace, channels: int) -> str:
    from nlrn.checkpoint import default_model

    return options.model or default_model(options.command if options.command != "evaluate" else options.task, channels)


def _restorer(options: argparse.Namespace, channels: int, tile: int | None = None) -> Restorer:
    from nlrn.restore import MEMORY, Restorer, Settings

    settings = Settings(
        mode=options.mode,
        precision=options.precision,
        tile=getattr(options, "tile", tile),
        overlap=getattr(options, "overlap", None),
        memory=getattr(options, "memory", None) or MEMORY,
    )
    return Restorer(_model_name(options, channels), device=options.device, settings=settings)


def _check_folder(path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")


def _write_json(path: Path, result: dict[str, Any]) -> None:
    from nlrn.publish import publish

    publish(path, (json.dumps(result, indent=1) + "\n").encode(), overwrite=True)


def _print_table(title: str | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _sayer(options: argparse.Namespace) -> Any:
    return (lambda line: None) if options.quiet else lambda line: print(line, flush=True)


class _Progress:
    """A bar on a terminal while tiles or patches are worked on; nothing elsewhere."""

    def __init__(self, options: argparse.Namespace, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(
            console=Console(stderr=True), transient=True, disable=options.quiet or not sys.stderr.isatty()
        )
        self.task = self.bar.add_task(what, total=None)

    def __enter__(self) -> Any:
        self.bar.start()
        return lambda done, total: self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _sigma(text: str) -> float | str:
    return text if text == "auto" else _level(text)


def _level(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a noise level") from None
    if not 0 <= value <= 75:
        raise argparse.ArgumentTypeError(f"{text} is outside 0..75 (0-255 units)")
    return value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _mebibytes(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise argparse.ArgumentTypeError("memory must be at least 1 MiB")
    return value << 20
