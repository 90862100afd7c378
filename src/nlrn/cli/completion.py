"""nlrn completion: Tab completes commands, options, their values and files; by argcomplete, from the parser."""

from __future__ import annotations

import argparse
from typing import Any

from nlrn.cli.shared import add_command
from nlrn.integrations import require

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
    require("completion", "argcomplete")
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options=False)


def _completion(options: argparse.Namespace) -> int:
    require("completion", "argcomplete")
    from argcomplete.shell_integration import shellcode

    print(shellcode(["nlrn"], shell=options.shell), end="")
    return 0
