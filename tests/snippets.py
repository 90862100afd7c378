"""A page of the documentation run from top to bottom: its commands, its Python, its recipes, and what it says of them.

`sh`: every line is run through `nlrn.cli.run`, and ends with 0, or with what "# exit code N" says behind it. A line
that takes hours, or a machine that is not here, has an entry in a table of test_snippets.py; without a rule it fails.
`python`: the blocks of a page share one namespace.
`toml`: a recipe, read, and written under the name in its first line.
`nginx`: looked at: that it fits what the service says of itself.
`text`: what the block before it prints, to the letter, but for seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import benchmarks.command
import studies.command
from benchmarks.suite import CELLS
from nlrn import cli
from nlrn.cli.naming import with_command
from nlrn.training.config import read_recipe
from nlrn.web.limits import Limits

FENCE = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)
AS_WRITTEN = (
    "denoise",
    "upscale",
    "explain",
    "models",
    "doctor",
    "convert",
    "evaluate",
    "completion",
    "--help",
    "--version",
)
SECONDS = re.compile(r"in \d+ s \(\d+\.\d+ a second\)|; \d+\.\d s$", re.MULTILINE)


@dataclass(frozen=True)
class Rules:
    """By whole line. reduced: (what is run instead, why); looked_at: (what looks at it, why).

    recipes: what is replaced in a recipe before it is trained by.
    """

    reduced: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    looked_at: Mapping[str, tuple[Callable[[list[str]], object], str]] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(default_factory=dict)


def commands(text: str) -> list[tuple[str, int]]:
    """The lines of an sh block without their comments, and the exit codes that they end with; \\ goes on a line."""
    found = []
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        words, _, comment = line.partition("#")
        code = re.search(r"exit code (\d+)", comment)
        if words.strip():
            found.append((words.strip(), int(code[1]) if code else 0))
    return found


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block. A fence that is not closed, or indented, fails."""
    found = [(block[1], block[2]) for block in FENCE.finditer(page)]
    assert page.count("```") == 2 * len(found), "a fence that is not at the beginning of a line, or not closed"
    return found


def run_page(page: str, rules: Rules) -> None:
    """Run a page in the current folder. Raises AssertionError, or whatever a snippet raises."""
    names: dict[str, Any] = {}
    said: str | None = None
    for language, text in blocks(page):
        if language == "text":
            assert said is not None, f"nothing before this says it: {text}"
            assert SECONDS.sub("", said) == SECONDS.sub("", text), f"the page shows\n{text}and this is\n{said}"
            said = None
        else:
            said = _RUN[language](text, names, rules) if language in _RUN else _unknown(language, text)


def _unknown(language: str, text: str) -> str:
    raise AssertionError(f"no rule for a block of {language!r}: {text}")


def _python(text: str, names: dict[str, Any], rules: Rules) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<page>", "exec"), names)
    return printed.getvalue()


def _toml(text: str, names: dict[str, Any], rules: Rules) -> None:
    """The recipe as it stands must be one; what is trained is smaller."""
    path = Path(text.splitlines()[0].removeprefix("# "))
    assert path.suffix == ".toml", "the first line of a recipe says its file's name: # name.toml"
    path.write_text(text)
    read_recipe(path)
    for shown, smaller in rules.recipes.items():
        assert shown in text, shown
        text = text.replace(shown, smaller)
    path.write_text(text)


def _sh(text: str, names: dict[str, Any], rules: Rules) -> str:
    return "".join(_line(line, code, rules) for line, code in commands(text))


def _line(line: str, code: int, rules: Rules) -> str:
    words = shlex.split(line)
    if line in rules.looked_at:
        rules.looked_at[line][0](words)
        return ""
    if line in rules.reduced:
        parse(words)
        words = shlex.split(rules.reduced[line][0])
    else:
        assert words[0] == "nlrn", f"no rule for {line}"
        assert words[1] in AS_WRITTEN or Path(words[1]).exists(), f"no rule for {line}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        found = cli.execute(*_program(words))
    assert found == code, f"{line}: exit code {found}: {printed.getvalue()}"
    return printed.getvalue()


def _program(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser that a line's words belong to, and its arguments: nlrn, or a program of the checkout."""
    if words[:3] == ["python", "-m", "studies"]:
        return studies.command.parser(), words[3:]
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        what = words[2].removeprefix("benchmarks.")
        assert what in CELLS, words[2]
        return benchmarks.command.parser(what), words[3:]
    names = [command.__name__.rpartition(".")[2] for command in cli.COMMANDS]
    return cli._parser(), with_command(words[words.index("nlrn") + 1 :], names)


def parse(words: list[str]) -> None:
    """A command line by the real parser; its recipe must be one of the repository's."""
    parser, arguments = _program(words)
    options = parser.parse_args(arguments)
    assert callable(options.run)
    for word in words:
        if word.startswith("recipes/"):
            read_recipe(word)


def _nginx(text: str, names: dict[str, Any], rules: Rules) -> None:
    """No nginx here: its braces and semicolons, and that it says what `nlrn serve` says."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert all(line[-1] in "{};" for line in lines), lines
    assert text.count("{") == text.count("}")
    limits, options = Limits(), cli._parser().parse_args(["serve"])
    assert f"proxy_pass http://{options.host}:{options.port};" in lines
    assert f"client_max_body_size {limits.max_bytes >> 20}m;" in lines
    assert f"client_header_timeout {limits.header_seconds:g}s;" in lines
    assert f"client_body_timeout {limits.body_seconds:g}s;" in lines
    assert limits.job_seconds < float(re.search(r"proxy_read_timeout (\d+)s;", text)[1])  # type: ignore[index]
    assert "proxy_set_header Host $http_host;" in lines  # the port too, as in Origin


_RUN: dict[str, Callable[[str, dict[str, Any], Rules], str | None]] = {
    "python": _python,
    "toml": _toml,
    "sh": _sh,
    "nginx": _nginx,
}
