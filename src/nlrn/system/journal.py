"""A journal of a file that is being written: what of it is done, so that the same work resumes after a kill."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import IO, Any

from nlrn.errors import ConfigError
from nlrn.system.atomic import locked, open_record, writing

SUFFIX = ".nlrn-journal"
_MARK = "nlrn-journal"


class Journal:
    """Lines of JSON; a context. The first names the work, one follows for each part that is done.

    records: those of an earlier run of the same work, in their order; a torn last line is passed over. One process at a
    time holds it. Raises ConfigError where another does, and for a file of this name that is no journal.
    """

    def __init__(self, target: Path, work: dict[str, Any]) -> None:
        self.path = target.with_name(target.name + SUFFIX)
        self.work = work
        self.records: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._begun = self._another = False

    def __enter__(self) -> Journal:
        self._file = file = open_record(self.path)
        try:
            self._hold(file)
            first, *lines = _records(file)
            self._begun = first == self._first
            self._another = bool(first) and not self._begun
            if self._begun:
                self.records = lines
        except BaseException:
            file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def _opened(self) -> IO[bytes]:
        assert self._file is not None
        return self._file

    @property
    def _first(self) -> dict[str, Any]:
        return {_MARK: 1, **json.loads(json.dumps(self.work))}

    def _hold(self, file: IO[bytes]) -> None:
        if not locked(file):
            raise ConfigError(f"{self.path} is held: another run writes the same file")
        file.seek(0)
        start = file.read(len(_MARK) + 4)
        if start and not start.startswith(b'{"' + _MARK.encode()[: len(start) - 2]):
            raise ConfigError(f"{self.path} is not a journal of nlrn: move it, or choose another name")

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, on the disk when this returns. Raises InputError where it cannot be written.

        The first record of this work removes those of another.
        """
        if not self._begun:
            with writing(self.path):
                self._opened.truncate(0)
            self._line(self._first)
            self._begun, self._another = True, False
        self._line(record)
        self.records.append(record)

    def _line(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            self._opened.write(json.dumps(record).encode() + b"\n")
            self._opened.flush()
            os.fsync(self._opened.fileno())

    def remove(self) -> None:
        """The work is done."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def give_up(self) -> None:
        """The work ends before any part is done; the records of another work stay."""
        if not self._another:
            self.remove()


def _records(file: IO[bytes]) -> list[dict[str, Any]]:
    """Every whole line up to the first that is not one; at least one, empty where there is none."""
    file.seek(0)
    found: list[dict[str, Any]] = []
    end = 0
    for line in file:
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            break
        found.append(record)
        end += len(line)
    file.truncate(end)
    return found or [{}]
