"""nlrn completion: Tab completes commands, options, their values and files; by argcomplete, from the parser."""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import Any

from nlrn.cli.shared import add_command
from nlrn.errors import BackendError

EXAMPLES = """
nlrn completion bash >> ~/.bashrc
nlrn completion zsh >> ~/.zshrc
nlrn completion fish > ~/.config/fish/completions/nlrn.fish
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn completion` to the subparsers of argparse."""
    parser = add_command(commands, "completion", "print a script that completes these commands in a shell", EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=_completion)


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that runs this process by that script, and end the process. Raises BackendError."""
    _argcomplete().autocomplete(parser, always_complete_options=False)


def _completion(options: argparse.Namespace) -> int:
    print(_argcomplete().shellcode(["nlrn"], shell=options.shell), end="")
    return 0


def _argcomplete() -> ModuleType:
    try:
        import argcomplete
    except ImportError as error:
        raise BackendError(f"nlrn completion needs {error.name}: pip install 'nlrn[completion]'") from error
    return argcomplete
