"""nlrn completion: a script that lets a shell complete commands, options and their values, made from the parser."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from nlrn.cli.shared import add_command

EXAMPLES = """
nlrn completion bash >> ~/.bashrc
nlrn completion zsh >> ~/.zshrc
nlrn completion fish > ~/.config/fish/completions/nlrn.fish
"""
_BASH = """\
_nlrn() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} cmd= i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${{COMP_WORDS[i]}} in {either}) cmd=${{COMP_WORDS[i]}}; break ;; esac
  done
  case "$cmd $prev" in
{values}
  esac
  if [[ $cur == -* ]]; then
    case $cmd in
{options}
    esac
  elif [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$cur"))
  else
    COMPREPLY=()
  fi
}}
complete -o bashdefault -o default -F _nlrn nlrn
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn completion` to the subparsers of argparse."""
    parser = add_command(commands, "completion", "print a script that completes these commands in a shell", EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=_completion, commands=commands.choices)


def _completion(options: argparse.Namespace) -> int:
    if options.shell == "fish":
        print(_fish(options.commands), end="")
    else:
        print("autoload -U +X bashcompinit && bashcompinit" if options.shell == "zsh" else "# nlrn in bash")
        print(_bash(options.commands), end="")
    return 0


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]


def _bash(commands: dict[str, argparse.ArgumentParser]) -> str:
    values = [
        f'    "{name} {word}") COMPREPLY=($(compgen -W "{" ".join(map(str, action.choices))}" -- "$cur")); return ;;'
        for name, parser in commands.items()
        for action in parser._actions
        if action.choices
        for word in action.option_strings or [name]  # one without options comes right behind the command
    ]
    options = [
        f'      {name}) COMPREPLY=($(compgen -W "{" ".join(w for a in _options(parser) for w in a.option_strings)}"'
        ' -- "$cur")) ;;'
        for name, parser in commands.items()
    ]
    options.append('      "") COMPREPLY=($(compgen -W "--help --version" -- "$cur")) ;;')
    return _BASH.format(
        either="|".join(commands), values="\n".join(values), options="\n".join(options), commands=" ".join(commands)
    )


def _fish(commands: dict[str, argparse.ArgumentParser]) -> str:
    lines = ["# nlrn in fish", f"set -l nlrn_commands {' '.join(commands)}"]
    for name, parser in commands.items():
        what = shlex.quote(parser.description or name)
        lines.append(f'complete -c nlrn -n "not __fish_seen_subcommand_from $nlrn_commands" -a {name} -d {what}')
        for action in parser._actions:
            words = [f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}" for word in action.option_strings]
            takes = [] if action.nargs == 0 else ["-r"]
            takes += [f"-f -a {shlex.quote(' '.join(map(str, action.choices)))}"] if action.choices else []
            if not words and not action.choices:
                continue  # a file, which every shell completes
            lines.append(" ".join([f"complete -c nlrn -n '__fish_seen_subcommand_from {name}'", *words, *takes]))
    return "\n".join(lines) + "\n"
