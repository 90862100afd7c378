"""What was done in an output folder, and by what: a file of records on a disk, metadata of the results in a store.

A run that was killed is repeated by the same command: what was recorded and lies there is not done again. One run at a
time holds a folder of a disk. In a store several may work at once: each object is put once, by the first that has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from nlrn.batch.plan import Encoded, Job
from nlrn.batch.s3 import ObjectPath
from nlrn.errors import ConfigError, InputError, StoreError
from nlrn.system.atomic import check_no_links, locked, open_record, publish, remove_leftovers, sha256

MANIFEST, LOCK, PROBE = "nlrn-manifest.jsonl", ".nlrn-lock", ".nlrn-conditions"
_AT_ONCE = 32  # questions to a store
_HOLDER_BYTES = 1024
_HOLDER = re.compile(rb"process \d+ on [^\n]*\n?")  # the second half may be missing after a kill
_MADE_OF = ("nlrn-in", "nlrn-work", "nlrn-input")  # of two results that agree here, either will do
_REFUSALS = 3  # results that a store may refuse one after the other, each tried for long


# Makes and publishes the result of a stack and returns lines about it; just before it gives the file its name it calls
# the function that it receives, with the sha256 of the stack, the path of the file and what the manifest lists of it.
Stacked = Callable[[Job, Callable[[str, Path, dict[str, Any]], None]], Sequence[str]]


class Manifest:
    """The manifest of a folder on a disk; a context.

    Its file, nlrn-manifest.jsonl, has a line when a result is ready to be published, with the sha256 of its file, and
    one when it was; a torn last line is ignored. work: a digest of all that decides what a result is: options,
    weights, version. Raises ConfigError when another run holds the folder.
    """

    def __init__(self, folder: Path, work: str) -> None:
        self.folder, self.work = folder, work
        self.records: dict[str, dict[str, Any]] = {}  # the last of every result, by its name
        self._lock: IO[bytes] | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Manifest:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._hold()
            self._read()
        except BaseException:
            self.__exit__()
            raise
        remove_leftovers(self.folder, recursive=True)
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                with suppress(OSError):  # a full disk refuses what was not written
                    file.close()

    def _hold(self) -> None:
        """Lock the folder. The lock file is rewritten only where it holds what a run writes into it."""
        self._lock = lock = open_record(self.folder / LOCK)
        free = locked(lock)
        lock.seek(0)
        known = lock.read(_HOLDER_BYTES + 1)
        if known and not _HOLDER.fullmatch(known):
            raise ConfigError(f"{self.folder / LOCK} is not a lock file of nlrn: move it, or choose another folder")
        if not free:
            raise ConfigError(f"{self.folder} is held by {known.decode().strip() or 'another run'}")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        lock.flush()

    def _read(self) -> None:
        """Open the manifest and take its records."""
        self._file = file = open_record(self.folder / MANIFEST)
        file.seek(0)
        lines = file.read().split(b"\n")
        torn = bool(lines.pop())
        for line in lines:
            record = _record(line)
            if record is not None:
                self._note(record)
        if torn:  # so that the next line begins on its own
            file.write(b"\n")

    def exists(self, job: Job) -> bool:
        """Whether anything has the name of the result."""
        return os.path.lexists(_path(job))

    def knows(self, job: Job) -> bool:
        """Whether a run with the same options published the image's result, or was about to."""
        record = self.records.get(self._out(job), {})
        return (record.get("in"), record.get("work")) == (job.name, self.work)

    def holds(self, job: Job) -> bool:
        """Whether the existing file is that result, made of the image as it is now."""
        return self._lies_there(job) and _is_of(self.records[self._out(job)], job)

    def complete(self, job: Job) -> None:
        """Record that a result was published, where the run that did was killed before it could."""
        record = self.records.get(self._out(job), {})
        if not record.get("published") and self._lies_there(job):
            self._write(job, {**record, "published": True})

    def publish(self, job: Job, encoded: Encoded, *, overwrite: bool) -> None:
        """Give a result its name. Raises InputError for a file that exists already."""
        if self._lies_there(job) and not overwrite:
            raise InputError(f"{job.source} has changed since its result was made: see --overwrite")
        target, record = _path(job), _said_of(job, encoded)
        check_no_links(self.folder, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._write(job, record)
        publish(target, encoded.data, overwrite=overwrite)
        self._write(job, {**record, "published": True})

    def publish_stack(self, job: Job, make: Stacked) -> Sequence[str]:
        """A result that `make` publishes by itself; what it returns. Raises what it raises."""
        target = _path(job)
        check_no_links(self.folder, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        said = make(
            job, lambda source, whole, more: self._write(job, {"input": source, "output": sha256(whole), **more})
        )
        self.complete(job)
        return said

    def refuse(self, job: Job, reason: str) -> None:
        """List an image that has no result."""
        self._write(job, {"failed": reason})

    def _write(self, job: Job, what: dict[str, Any]) -> None:
        """Append a record, on the disk when this returns."""
        assert self._file is not None
        record = {"in": job.name, "out": self._out(job), "work": self.work, **what}
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            name = self.folder / MANIFEST
            raise StoreError(f"cannot write {name} at {job.name}: {error.strerror or error}") from error
        self._note(record)

    def _note(self, record: dict[str, Any]) -> None:
        """Keep the last record of a result; a failure since then does not change whose it is."""
        if "output" in record and isinstance(record.get("out"), str):
            self.records[record["out"]] = record

    def _lies_there(self, job: Job) -> bool:
        target = _path(job)
        return self.knows(job) and target.is_file() and sha256(target) == self.records[self._out(job)]["output"]

    def _out(self, job: Job) -> str:
        return _path(job).relative_to(self.folder).as_posix()


class StoreManifest:
    """The results of a folder of an object store; a context, with the methods of Manifest.

    A store can neither append nor lock. But an object appears together with its metadata, so each result carries what
    it was made of; jobs: those whose results are read for it. And it appears only where no object is, or the one from
    when the run began: what another run has put meanwhile stays, and counts as this one's where it is the same work on
    the same image. Images that were refused are not recorded. Raises ConfigError for
    a store that ignores these conditions.
    """

    def __init__(self, folder: ObjectPath, work: str, jobs: Sequence[Job]) -> None:
        self.work, self.jobs = work, jobs
        self.records: dict[str, dict[str, str]] = {}  # of all existing results, by their keys
        self._etags: dict[str, str] = {}
        self._folder = folder
        self._refused = 0  # results, one after the other

    def __enter__(self) -> StoreManifest:
        self._check_store()
        present = {found.key: found.etag for found in self._folder.below()}
        there = [found for job in self.jobs if (found := _object(job)).key in present]
        self._etags = {found.key: present[found.key] for found in there}
        with ThreadPoolExecutor(_AT_ONCE) as several:
            self.records = dict(zip(self._etags, several.map(ObjectPath.metadata, there), strict=True))
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to give back."""

    def _check_store(self) -> None:
        """Raises ConfigError for a store that replaces an object on condition that there is none; leaves a probe."""
        probe = self._folder / PROBE
        probe.put(b"")
        for name, over in (("If-None-Match", ""), ("If-Match", "0" * 32)):
            if probe.put(b"", over=over) is not None:
                raise ConfigError(
                    f"the store of {self._folder} replaces existing objects although asked not to ({name})"
                )

    def exists(self, job: Job) -> bool:
        """Whether an object had the name of the result when the run began."""
        return _object(job).key in self._etags

    def knows(self, job: Job) -> bool:
        """Whether a run with the same options made that object of the image."""
        record = self.records.get(_object(job).key, {})
        return (record.get("nlrn-in"), record.get("nlrn-work")) == (_plain(job.name), self.work)

    def holds(self, job: Job) -> bool:
        """Whether that object was made of the image as it is now."""
        record = self.records.get(_object(job).key, {})
        return self.knows(job) and _is_of({k.removeprefix("nlrn-"): v for k, v in record.items()}, job)

    def complete(self, job: Job) -> None:
        """There is nothing to complete."""

    def publish(self, job: Job, encoded: Encoded, *, overwrite: bool) -> None:
        """Put a result. Raises InputError for an object that exists already, StoreError where the store refuses all."""
        if self.knows(job) and not overwrite:
            raise InputError(f"{job.source} has changed since its result was made: see --overwrite")
        said = _said_of(job, encoded).items()
        metadata = {f"nlrn-{name}": value if isinstance(value, str) else json.dumps(value) for name, value in said}
        metadata |= {"nlrn-in": _plain(job.name), "nlrn-work": self.work}
        target = _object(job)
        try:
            etag = target.put(encoded.data, metadata, over=self._etags.get(target.key, "") if overwrite else "")
            found = {} if etag else target.metadata()
        except InputError as error:
            self._refused += 1
            if self._refused < _REFUSALS:
                raise
            raise StoreError(f"{_REFUSALS} results one after the other were not taken; the last: {error}") from error
        self._refused = 0
        if etag is None and any(found.get(name) != metadata[name] for name in _MADE_OF):
            changed = (
                "has changed since this run began" if overwrite else "exists already; give another name, or --overwrite"
            )
            raise InputError(f"{target} {changed}")
        self.records[target.key] = metadata

    def refuse(self, job: Job, reason: str) -> None:
        """Nothing is recorded: only the outcome lists an image that was refused."""


def _said_of(job: Job, encoded: Encoded) -> dict[str, Any]:
    """What is recorded of a result."""
    of = {"etag": job.source.etag} if isinstance(job.source, ObjectPath) else {}
    return {"input": encoded.source, **of, "output": hashlib.sha256(encoded.data).hexdigest(), **encoded.noted}


def _is_of(record: dict[str, Any], job: Job) -> bool:
    """Whether a result was made of the image as it is now: of the same object, or of a file of the same content."""
    if isinstance(job.source, ObjectPath):
        return bool(record.get("etag") == job.source.etag)
    try:
        return job.source.is_file() and bool(record.get("input") == sha256(job.source))
    except OSError:  # refused where it is read
        return False


def _plain(name: str) -> str:
    """A name in the characters that metadata may have, cut to 512."""
    return quote(name)[-512:]


def _path(job: Job) -> Path:
    assert isinstance(job.target, Path)
    return job.target


def _object(job: Job) -> ObjectPath:
    assert isinstance(job.target, ObjectPath)
    return job.target


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("in"), str) else None
