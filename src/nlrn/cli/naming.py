"""Names that were not given: the command for a file alone, and where its result goes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from nlrn.batch.s3 import SCHEME, ObjectPath, Place
from nlrn.errors import ConfigError, InputError

SUFFIXES = {"denoise": "-restored", "upscale": "-enlarged"}


def with_command(arguments: Sequence[str], commands: Sequence[str]) -> list[str]:
    """The arguments; `nlrn photo.jpg` is `nlrn denoise photo.jpg`, also behind options.

    Raises InputError for a file that is not there, ConfigError for a command that is misspelt, OSError for a name that
    the system refuses.
    """
    first = arguments[0] if arguments else "-h"
    if first in (*commands, "-h", "--help", "--version"):
        return list(arguments)
    if Path(first).exists() or first.startswith(SCHEME):
        return ["denoise", *arguments]
    if first.startswith("-"):
        named = any(not word.startswith("-") or Path(word).exists() for word in arguments)  # more than options
        return ["denoise", *arguments] if named and not set(commands).intersection(arguments) else list(arguments)
    if Path(first).suffix or "/" in first:
        raise InputError(f"there is no file or folder {first}, and no command of that name; see: nlrn --help")
    if near := get_close_matches(first, commands, 1):
        raise ConfigError(f"there is no command {first}; did you mean {near[0]}? See: nlrn --help")
    return list(arguments)


def result_beside(options: argparse.Namespace) -> Place:
    """OUT where none is given: photo-restored.jpg beside photo.jpg, photos-restored beside the folder photos.

    Raises ConfigError for a folder in a store, and for one that has no name.
    """
    from nlrn.batch.plan import written_as

    source, ending = options.input, SUFFIXES[options.command]
    ending = "-preview" if getattr(options, "preview", None) else ending
    if isinstance(source, ObjectPath):
        raise ConfigError(f"the following arguments are required: -o/--output, for {source} is in a store")
    if source.is_dir():
        whole: Path = source.resolve()  # the name of "." too
        if not whole.name:
            raise ConfigError(f"the following arguments are required: -o/--output, for no folder lies beside {source}")
        return whole.with_name(f"{whole.name}{ending}") if source.name in ("", "..") else Path(f"{source}{ending}")
    return Path(source.with_name(f"{source.stem}{ending}{written_as(source.suffix)}"))
