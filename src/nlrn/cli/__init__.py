"""The command line: arguments into calls, errors into one sentence and an exit code.

Exit codes: 0 all done, 1 a file failed, 2 usage, 3 nothing could run, 130 interrupted. Arguments are checked
before torch is imported.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from nlrn import __version__
from nlrn.cli.completion import complete
from nlrn.cli.interrupts import InterruptHandler
from nlrn.cli.naming import with_command
from nlrn.cli.shared import complain, printable
from nlrn.errors import ConfigError, InputError, NLRNError, UnfinishedError

NAMES = (  # in the order of --help; each is a module
    "denoise", "upscale", "evaluate", "explain", "serve", "train", "models", "convert", "export", "doctor",
    "completion",
)  # fmt: skip
COMMANDS = tuple(import_module(f"nlrn.cli.{name}") for name in NAMES)
EXAMPLES = """\
examples:
  nlrn photo.jpg                           remove the noise; writes photo-restored.jpg
  nlrn denoise noisy.png -o clean.png      the same, to a named file
  nlrn denoise photos -o restored -r       a folder, resumed by the same command
  nlrn upscale image.png --scale 3         enlarge; writes image-enlarged.png
  nlrn serve                               the same on a page, in a browser

nlrn COMMAND --help shows the options of a command."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        if "_ARGCOMPLETE" in os.environ:  # a shell asks what Tab completes
            complete(_parser())
        arguments = with_command(arguments, NAMES)
    except (NLRNError, OSError) as error:
        return _report(error)
    return execute(_parser(), arguments)


def execute(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Parse the arguments and call the command's `run`; an error becomes one sentence and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="nlrn: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Lines("nlrn: %(message)s"))
    try:
        options = parser.parse_args([_as_file(argument) for argument in arguments])
        options.words = list(arguments)
        if not hasattr(options, "run"):
            parser.print_help()
            return 2
        with InterruptHandler():
            code: int = options.run(options)
            return code
    except SystemExit as stop:  # argparse: --help, --version and usage errors
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("nlrn: interrupted; nothing was left half written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output closed it; Python would report it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3
    except Exception as error:
        return _report(error)


def _as_file(argument: str) -> str:
    """./-dash.png for -dash.png, where there is such a file: argparse takes it for options."""
    dashed = argument.startswith("-") and "." in argument
    return f"./{argument}" if dashed and Path(argument).is_file() else argument


def _report(error: Exception) -> int:
    """Print one sentence, and give the exit code."""
    code, text = 3, str(error)
    if isinstance(error, NLRNError):
        code = 2 if isinstance(error, ConfigError) else 1 if isinstance(error, InputError | UnfinishedError) else 3
    elif isinstance(error, OSError | MemoryError):
        text = text or "out of memory"
    elif isinstance(error, RuntimeError) and "can't allocate memory" in text:  # torch's allocator on a CPU
        text = "out of memory: " + text.partition("you tried to")[2].partition(".")[0].strip()
    elif "NLRN_DEBUG" in os.environ:
        raise error
    else:
        text = f"{type(error).__name__}: {text} (a fault of nlrn; please report it, NLRN_DEBUG=1 shows where)"
    complain(text)
    return code


class _Lines(logging.Formatter):
    """One line for each record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


class Parser(argparse.ArgumentParser):
    """A parser with one sentence for a usage error, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        """Print the message with a hint, and exit with 2."""
        rest = message.partition("unrecognized arguments: ")[2]
        if rest and not rest.startswith("-"):  # nlrn denoise *.png -o out
            message += " (there is one input at a time, a file or a folder)"
        elif "." in rest or "the following arguments are required: IN" in message or "expected one argument" in message:
            message += " (a name that begins with - is given as ./-NAME)"
        self.exit(2, f"{self.prog}: {printable(message)}; see: {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="nlrn",
        usage="%(prog)s IMAGE\n       %(prog)s COMMAND ...",
        description="Restore images with the Non-Local Recurrent Network (NeurIPS 2018).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nlrn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", prog="nlrn", title="commands")
    for command in COMMANDS:
        command.add(commands)
    return parser
