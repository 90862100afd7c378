"""What the site takes from elsewhere whenever it is built, so that no copy grows old.

The side bar comes from the lists of links in index.md, the reference in api.md from the docstrings, the commands in
commands.md from their --help. The docstrings of this package are prose ("sigma: the noise's standard deviation ...
Raises InputError ..."); Sphinx is given each parameter as an entry of a list and the errors as a paragraph with links.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
from typing import Any
from unittest import mock

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

import nlrn
from nlrn import cli

COLUMNS = "90"  # of the help texts
ENTRY = re.compile(r"^- `nlrn\.(\w+)`(.*)$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _docstring)
    return {"parallel_read_safe": True}


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = {
        "index": with_contents,
        "api": with_reference,
        "commands": with_help,
        "architecture": with_decisions,
    }.get(page, str)(source[0])


def with_contents(text: str) -> str:
    """index.md and, for the side bar, a table of contents: its headings and the pages linked below each."""
    for part in text.split("\n## ")[1:]:
        pages = re.findall(r"^- \[[^]]*\]\(([\w-]+)\.md\)", part, re.MULTILINE)
        text += "\n```{toctree}\n:hidden:\n:caption: " + "\n".join([part.splitlines()[0], "", *pages]) + "\n```\n"
    return text


def with_reference(text: str) -> str:
    """api.md, every "- `nlrn.name`" in it replaced by what its docstring says."""
    return ENTRY.sub(lambda entry: _described(entry[1], entry[2]), text)


def _described(name: str, words: str) -> str:
    found = getattr(nlrn, name)
    if isinstance(found, type):
        kind = "autoexception" if issubclass(found, Exception) else "autoclass"
        bases = [] if found.__bases__ == (object,) else ["   :show-inheritance:"]
        lines = [f".. {kind}:: nlrn.{name}", *bases, "   :members:"]
    elif callable(found):
        lines = [f".. autofunction:: nlrn.{name}"]
    else:
        lines = [f".. py:data:: nlrn.{name}", "", f"   {words[2:3].upper()}{words[3:]}"]
        lines += ["", *(f"   * ``{key!r}``: ``{value}``" for key, value in found.items())]
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def with_decisions(text: str) -> str:
    """architecture.md, and its decisions as pages below it."""
    return text + "\n```{toctree}\n:hidden:\n:glob:\n\ndecisions/*\n```\n"


def with_help(text: str) -> str:
    """commands.md and every command's --help."""
    for name in ("", *(command.__name__.rpartition(".")[2] for command in cli.COMMANDS)):
        printed, words = io.StringIO(), [name] if name else []
        with mock.patch.dict(os.environ, COLUMNS=COLUMNS, NO_COLOR="1"), contextlib.redirect_stdout(printed):
            cli.run([*words, "--help"])
        text += f"\n## {' '.join(['nlrn', *words])}\n\n```text\n{printed.getvalue()}```\n"
    return text


# -- docstrings ----------------------------------------------------------------------------------------------------


def _docstring(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rest("\n".join(lines), _parameters(found)).split("\n")


def _parameters(found: Any) -> list[str]:
    if dataclasses.is_dataclass(found):
        return [field.name for field in dataclasses.fields(found)]
    try:
        return list(inspect.signature(found).parameters)
    except (TypeError, ValueError):  # a property
        return []


def as_rest(text: str, parameters: list[str]) -> str:
    """Prose as reStructuredText, and sections of Google's kind, which Sphinx knows; examples stay as they are."""
    if "Args:" in text:
        return str(GoogleDocstring(text))
    return "\n\n".join(_paragraph(part, parameters) for part in text.split("\n\n"))


def _paragraph(text: str, parameters: list[str]) -> str:
    if text.lstrip().startswith((">>>", "-")):
        return text
    text = " ".join(text.split())
    text, _, errors = re.sub(r"(?:^|(?<=[.)] ))Raises ", "\0", text, count=1).partition("\0")
    either = "|".join(parameters) or "(?!)"
    pieces = re.split(rf"(?:^|(?<=[.;)] ))((?:{either})(?:\([^)]*\))?(?:, (?:{either}))*): ", text)
    parts = [pieces[0].strip()]
    for names, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
        parts.append(f"**{names}**\n   {meaning.strip(' ;')}")
    linked = re.sub(r"\b(\w+Error)\b", r":py:exc:`~nlrn.\1`", errors)
    return "\n\n".join(part for part in [*parts, linked and f"Raises {linked}"] if part)
