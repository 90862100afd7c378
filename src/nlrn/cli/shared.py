"""What the commands share: the options of a model, types of arguments, tables and a progress bar."""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrn.cli.interrupts import check_interrupt
from nlrn.errors import InputError
from nlrn.functional.limits import MAX_SIGMA
from nlrn.system.atomic import check_target

if TYPE_CHECKING:
    from nlrn.inference.restorer import Restorer

Report = Callable[[str], None]
HEARTBEAT = 60.0  # seconds between the lines of work under way, where there is no terminal


def add_model_options(parser: argparse.ArgumentParser, *, restores: bool = True) -> None:
    """--model, --device, --quiet and, for a command that restores images, --mode, --tta and --precision."""
    group = parser.add_argument_group("model and machine")
    group.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="a shipped model (see: nlrn models) or a weights file (default: automatic, the one for the image)",
    )
    if restores:
        group.add_argument(
            "--mode",
            choices=("window", "patch"),
            default="window",
            help="over the whole image, or the authors' slow patches",
        )
        group.add_argument("--tta", action="store_true", help="the mean over 8 flips and turns: 8 times the work")
        group.add_argument(
            "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default: bf16 where it is quick"
        )
    group.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def model_name(options: argparse.Namespace, channels: int, photo: bool = False) -> str:
    """The model of the options, by default the shipped one of the task for that many channels."""
    from nlrn.models.checkpoint import default_model

    task = getattr(options, "task", "denoise")
    return default_model(task, channels, photo=photo) if options.model is None else options.model


def make_restorer(options: argparse.Namespace, **more: Any) -> Restorer:
    """The Restorer of the options, and of more, for grey images."""
    from nlrn.inference.options import Options

    return Options.of(vars(options), model=model_name(options, 1), **more).restorer(1)


def check_result(path: Path | None, suffix: str, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Check before any work that a file with this suffix can be written. Raises InputError; None is accepted."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise InputError(f"{path} must end in {suffix}, which is what is written")
    check_target(path, overwrite=overwrite, inputs=inputs)


def print_table(title: str | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output: drawn on a terminal, elsewhere plain columns."""
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in (header, *rows)]
        print("\n".join(line.rstrip() for line in ([title] if title else []) + lines))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title and Text(title))
    for name in header:
        table.add_column(Text(name), overflow="fold")  # on a narrow terminal no digit is left out
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def add_command(commands: Any, name: str, what: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command, with examples below its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def reporter(options: argparse.Namespace) -> Report:
    """A function that prints one line, or under --quiet does nothing."""
    return (lambda line: None) if options.quiet else lambda line: print(printable(line), flush=True)


def complain(line: str) -> None:
    """Print one line of an error, its beginning red on a terminal."""
    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    print(f"\x1b[1;31mnlrn:\x1b[0m {printable(line)}" if red else f"nlrn: {printable(line)}", file=sys.stderr)


def printable(line: str) -> str:
    """A line without control characters: file names may hold escape sequences and line feeds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


class ProgressBar:
    """The progress of tiles, patches or images: a bar on a terminal, elsewhere a line every HEARTBEAT seconds.

    Nothing under --quiet.
    """

    def __init__(self, options: argparse.Namespace, what: str, total: int | None = None) -> None:
        self.what, self.pace = what, total is not None  # how many images a second, not of tiles
        self.unit, self.state = "images" if self.pace else "parts", (0, total or 0)
        self.quiet, self.ended = options.quiet, threading.Event()
        terminal = not options.quiet and bool(sys.stderr and sys.stderr.isatty())
        self.bar = self._made(total) if terminal else None
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def _made(self, total: int | None) -> Any:
        from rich.console import Console
        from rich.progress import Progress

        # lines for another program are not drawn into the terminal
        bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
        self.task = bar.add_task(self.what, total=total)
        return bar

    def __enter__(self) -> Any:
        self.began = time.monotonic()
        if self.bar is not None:
            self.bar.start()
        elif not self.quiet:
            self.thread.start()
        return self._tick

    def _tick(self, done: int, total: int) -> None:
        check_interrupt()
        self.state = done, total
        if self.bar is not None:
            pace = f"{self.what}, {done / max(1e-9, time.monotonic() - self.began):.2f} a second"
            self.bar.update(self.task, description=pace if self.pace else self.what, completed=done, total=total)

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT):
            done, total = self.state
            far = f": {done} of {total} {self.unit}" if total else ""
            print(f"{self.what}{far} after {time.monotonic() - self.began:.0f} s", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.bar is not None:
            self.bar.stop()
        elif self.thread.is_alive():
            self.thread.join()


def sigma_or_auto(text: str) -> float | str:
    """The type of an argument that is a noise level or "auto"."""
    return text if text == "auto" else sigma_level(text)


def number(what: str, low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """The type of an argument that is a number from low to high."""

    def checked(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {what}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is outside {low:g}..{high:g}{unit}")
        return value

    return checked


sigma_level = number("noise level", 0, MAX_SIGMA, " (0-255 units)")


def count(text: str) -> int:
    """The type of an argument that is a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def whole(refusal: str, least: int = 1, most: float = math.inf) -> Callable[[str], int]:
    """The type of an argument that is a whole number from least to most."""

    def checked(text: str) -> int:
        if not least <= (value := count(text)) <= most:
            raise argparse.ArgumentTypeError(refusal)
        return value

    return checked


side = whole("expected at least 1")


def mebibytes(text: str) -> int:
    """The type of an argument in MiB, as bytes."""
    return whole("memory must be at least 1 MiB")(text) << 20
