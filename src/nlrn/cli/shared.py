"""What the commands share: the options of a model, types of arguments, tables and a progress bar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrn.errors import ConfigError, InputError
from nlrn.publish import check_target

if TYPE_CHECKING:
    from nlrn.images import Picture
    from nlrn.restore import Restorer


def add_model_options(parser: argparse.ArgumentParser, *, restores: bool = True) -> None:
    """--model, --device, --quiet and, for a command that restores pictures, --mode, --tta and --precision."""
    parser.add_argument("--model", metavar="NAME|FILE", help="a shipped model (see: nlrn models) or a weights file")
    if restores:
        parser.add_argument(
            "--mode",
            choices=("window", "patch"),
            default="window",
            help="over the whole picture, or the authors' slow patches",
        )
        parser.add_argument("--tta", action="store_true", help="the mean over 8 flips and turns: 8 times the work")
        parser.add_argument(
            "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default: bf16 where it is quick"
        )
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """IN, --output, --overwrite, the options of a model and those of tiles: of a command that restores a picture."""
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="its suffix sets the format")
    parser.add_argument(
        "--depth", type=int, choices=(8, 16, 32), help="bits a sample of OUT, 32: floats (default: those of IN)"
    )
    add_model_options(parser)
    parser.add_argument("-t", "--tile", type=count, metavar="PIXELS", help="side of a tile; 0: the whole picture")
    parser.add_argument("--overlap", type=count, metavar="PIXELS", help="shared by tiles (default: 32)")
    parser.add_argument("--memory", type=mebibytes, metavar="MIB", help="what a computation may take (default: 4096)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def read_input(options: argparse.Namespace) -> Picture:
    """The picture IN, once nothing speaks against writing OUT."""
    from nlrn.images import check_output, read_picture

    if options.mode == "patch" and options.tile is not None:
        raise ConfigError("tiles are for window mode: patch mode has patches of its own")
    check_output(options.output, overwrite=options.overwrite, inputs=(options.input,))
    picture = read_picture(options.input)
    picture = picture if options.depth is None else picture.with_depth(options.depth)
    check_output(options.output, overwrite=options.overwrite, inputs=(options.input,), picture=picture)
    return picture


def say_tiles(options: argparse.Namespace, restorer: Restorer, height: int, width: int) -> None:
    """One line where a picture of this size is cut up."""
    side = restorer.tile_for(height, width) if options.mode == "window" else None
    if side is not None:
        overlap = restorer.settings.overlap_of(side)
        sayer(options)(f"{width} x {height} pixels in tiles of {side}, overlapping by {overlap}")


def model_name(options: argparse.Namespace, channels: int) -> str:
    from nlrn.checkpoint import default_model

    return default_model(getattr(options, "task", "denoise"), channels) if options.model is None else options.model


def make_restorer(options: argparse.Namespace, channels: int, tile: int | None = None) -> Restorer:
    from nlrn.restore import MEMORY, Restorer, Settings

    settings = Settings(
        mode=getattr(options, "mode", "window"),
        precision=getattr(options, "precision", "auto"),
        tile=getattr(options, "tile", tile),
        overlap=getattr(options, "overlap", None),
        tta=getattr(options, "tta", False),
        memory=getattr(options, "memory", None) or MEMORY,
    )
    return Restorer(model_name(options, channels), device=options.device, settings=settings)


def check_result(path: Path | None, suffix: str, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Before any work: can a file of numbers or a plot be written there, and is that its name? None is no file."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise InputError(f"{path} must end in {suffix}, which is what is written")
    check_target(path, overwrite=overwrite, inputs=inputs)


def print_table(title: str | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title and Text(title))
    for name in header:
        table.add_column(Text(name), overflow="fold")  # on a narrow terminal no digit is left out
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def sayer(options: argparse.Namespace) -> Any:
    return (lambda line: None) if options.quiet else lambda line: print(line, flush=True)


class ProgressBar:
    """A bar on a terminal while tiles or patches are worked on; nothing elsewhere."""

    def __init__(self, options: argparse.Namespace, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(
            console=Console(stderr=True),
            transient=True,
            disable=options.quiet or not (sys.stderr and sys.stderr.isatty()),
        )
        self.task = self.bar.add_task(what, total=None)

    def __enter__(self) -> Any:
        self.bar.start()
        return lambda done, total: self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def sigma_or_auto(text: str) -> float | str:
    return text if text == "auto" else sigma_level(text)


def sigma_level(text: str) -> float:
    return number(text, "noise level", 0, 75, " (0-255 units)")


def number(text: str, what: str, low: float, high: float, unit: str = "") -> float:
    """The type of an argument that is a number from low to high."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what}") from None
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text} is outside {low:g}..{high:g}{unit}")
    return value


def count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def side(text: str) -> int:
    value = count(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a side has at least 1 pixel")
    return value


def mebibytes(text: str) -> int:
    value = count(text)
    if value < 1:
        raise argparse.ArgumentTypeError("memory must be at least 1 MiB")
    return value << 20
