"""A folder of pictures: planned before any work, every result published once, and gone on with after a kill.

The output folder keeps a manifest, nlrn-manifest.jsonl: a line when a result is ready to be published, with the sha256
of its file, and one when it was. A run that was killed is repeated by the same command: what the manifest and the
files agree on is not done again, a torn last line is passed over, and one run at a time holds the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import socket
import unicodedata
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

from nlrn.checkpoint import sha256
from nlrn.errors import ConfigError, InputError, NLRNError
from nlrn.images import MAX_BYTES, SUFFIXES, Picture, encode_picture, file_bytes, read_picture
from nlrn.pool import pool
from nlrn.publish import publish, remove_leftovers

try:
    import fcntl
except ImportError:  # not on Windows, where nobody is kept out
    fcntl = None  # type: ignore[assignment]

MANIFEST, LOCK = "nlrn-manifest.jsonl", ".nlrn-lock"
READ_ONLY = {".gif": ".png"}  # formats that are not written, and what is written instead


@dataclass(frozen=True)
class Job:
    """One picture: its name below the input folder, as the manifest says it, and the files."""

    name: str
    source: Path
    target: Path


Restore = Callable[[Picture, str], Picture]  # a picture and the format of its result, which it refuses before the work
Read = Callable[[Job], tuple[str, Picture]]
Make = Callable[[], Restore]  # can be pickled: each process makes its own
# sha256 of the picture's file, the file of its result, and the tiles it was made in where others were refused memory
Encoded = tuple[str, bytes, int | None]
Results = Generator[tuple[Job, Future[Encoded]]]  # in any order
Engine = Callable[[Sequence[Job], Make, Read], Results]


@dataclass
class Outcome:
    """Names of pictures: restored now, restored by an earlier run or left as they were, and refused with the reason."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.done) + len(self.skipped) + len(self.failed)


# -- the plan ------------------------------------------------------------------------------------------------------


def plan(root: Path, output: Path, *, recursive: bool = False, ending: str = "", form: str | None = None) -> list[Job]:
    """Every picture of a folder, by name, and where its result goes; nothing is read or made.

    Files with the suffix of a picture count, hidden ones do not. recursive: those of the folders below too, links to
    folders left out; the results lie in the same order of folders. ending: put at the end of names. form: the suffix
    of all results, such as ".png"; None keeps each picture's own. Raises ConfigError for an output folder inside the
    input folder, for two results of one name (also where names differ in case alone, or in how an accent is written),
    and for a result that would lie on an input.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}")
    if form is not None and form not in SUFFIXES:
        raise ConfigError(f"results of {form!r} are not written; known are {', '.join(SUFFIXES)}")
    if "/" in ending or "\0" in ending or os.sep in ending:
        raise ConfigError(f"{ending!r} cannot be the end of a file's name")
    inside = output.resolve()
    if inside == root.resolve() or root.resolve() in inside.parents:
        raise ConfigError(f"{output} lies inside {root}: its results would be the next run's pictures")
    jobs = []
    for source in sorted(_pictures(root, recursive)):
        place = source.relative_to(root)
        suffix = form or READ_ONLY.get(source.suffix.lower(), source.suffix)
        jobs.append(Job(place.as_posix(), source, output / place.parent / f"{source.stem}{ending}{suffix}"))
    taken: dict[str, Job] = {}
    for job in jobs:
        key = unicodedata.normalize("NFC", str(job.target)).casefold()
        if key in taken:
            raise ConfigError(
                f"{taken[key].name} and {job.name} would both become {job.target.name}: see --suffix, --format"
            )
        taken[key] = job
    sources = {job.source.resolve() for job in jobs}
    onto = next((job for job in jobs if job.target.resolve() in sources), None)
    if onto is not None:
        raise ConfigError(f"{onto.target} is an input; an original is never overwritten")
    return jobs


def _pictures(root: Path, recursive: bool) -> Iterator[Path]:
    known = SUFFIXES.keys() | READ_ONLY.keys()
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in known:
                yield Path(folder, name)


# -- the manifest --------------------------------------------------------------------------------------------------


class Manifest:
    """What was done in an output folder, held by one run at a time; a context.

    work: a digest of all that decides what a result is: options, weights, version. Raises ConfigError when another
    run holds the folder.
    """

    def __init__(self, folder: Path, work: str) -> None:
        self.folder, self.work = folder, work
        self.records: dict[str, dict[str, Any]] = {}
        self._lock: IO[str] | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Manifest:
        self._lock = (self.folder / LOCK).open("a+")
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.seek(0)
                holder = self._lock.read().strip() or "another run"
                self._lock.close()
                raise ConfigError(f"{self.folder} is held by {holder}") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()
        path = self.folder / MANIFEST
        torn = False
        if path.exists():
            lines = path.read_bytes().split(b"\n")
            torn = bool(lines.pop())
            for line in lines:
                record = _record(line)
                if record is not None:
                    self._note(record)
        self._file = path.open("ab")
        if torn:  # so that the next line begins on its own
            self._file.write(b"\n")
        remove_leftovers(self.folder, recursive=True)
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                file.close()

    def write(self, job: Job, **what: Any) -> None:
        """Append a record, on the disk when this returns."""
        assert self._file is not None
        record = {"in": job.name, "out": self._out(job), "work": self.work, **what}
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(record)

    def _note(self, record: dict[str, Any]) -> None:
        """Remember the last result of a picture; a failure since then does not make it somebody else's."""
        if "output" in record:
            self.records[record["in"]] = record

    def knows(self, job: Job) -> bool:
        """Whether a run with the same options published the picture's result, or was about to."""
        record = self.records.get(job.name, {})
        return (record.get("out"), record.get("work")) == (self._out(job), self.work)

    def holds(self, job: Job) -> bool:
        """Whether what it knows is what lies there: the same picture, the same result."""
        if not self.knows(job) or not job.target.is_file():
            return False
        record = self.records[job.name]
        return (sha256(job.source), sha256(job.target)) == (record["input"], record["output"])

    def complete(self, job: Job) -> None:
        """Say that a result was published, where the run that did was killed before it could."""
        record = self.records.get(job.name, {})
        if self.knows(job) and not record.get("published"):
            self.write(job, input=record["input"], output=record["output"], published=True)

    def _out(self, job: Job) -> str:
        return job.target.relative_to(self.folder).as_posix()


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("in"), str) else None


# -- the work ------------------------------------------------------------------------------------------------------


def run(
    jobs: Sequence[Job],
    make: Make,
    output: Path,
    work: str,
    *,
    workers: int = 1,
    engine: Engine | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    reading: Mapping[str, Any] = {},
    tick: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Restore every picture; one that fails is listed with the reason and stops no other.

    make: gives the function from picture to picture; pickled and called in every process when there are several
    workers, each with its share of the threads. One worker reads the next picture and writes the last one while it
    computes. engine: what restores them in the place of these, such as nlrn.cluster.RayEngine. work: see Manifest.
    reading: what read_picture is told besides. tick(count) is called after each picture, skipped ones too. Existing
    results that the manifest does not know are left (skip_existing), replaced (overwrite), or refused before any work:
    ConfigError.
    """
    output.mkdir(parents=True, exist_ok=True)
    with Manifest(output, work) as manifest:
        outcome, open_jobs = Outcome(), []
        strangers = [job for job in jobs if os.path.lexists(job.target) and not manifest.knows(job)]
        if strangers and not (overwrite or skip_existing):
            more = f" and {len(strangers) - 1} more exist" if len(strangers) > 1 else " exists"
            raise ConfigError(f"{strangers[0].target}{more} already: see --skip-existing and --overwrite")
        left = {job.name for job in strangers} if skip_existing else set()
        for job in jobs:
            if job.name in left or manifest.holds(job):
                manifest.complete(job)
                outcome.skipped.append(job.name)
                tick(len(outcome))
            else:
                open_jobs.append(job)
        chosen = engine or (partial(_by_processes, workers) if workers > 1 else _by_threads)
        with closing(chosen(open_jobs, make, partial(_read, reading))) as results:
            for job, future in results:
                try:
                    _publish(job, future.result(), manifest, overwrite)
                    outcome.done.append(job.name)
                except ConfigError:  # of the settings, not of the picture: the next would say the same
                    raise
                except Exception as error:  # whatever it is, it is this picture's
                    known = isinstance(error, NLRNError | OSError)
                    outcome.failed[job.name] = reason = str(error) if known else f"{type(error).__name__}: {error}"
                    manifest.write(job, failed=reason)
                tick(len(outcome))
        return outcome


def _publish(job: Job, encoded: Encoded, manifest: Manifest, overwrite: bool) -> None:
    source, data, tile = encoded
    made = {} if tile is None else {"tile": tile}
    digest = hashlib.sha256(data).hexdigest()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    ours = manifest.knows(job) and job.target.is_file() and sha256(job.target) == manifest.records[job.name]["output"]
    if ours and not overwrite:
        raise InputError(f"{job.source} has changed since its result was made: see --overwrite")
    manifest.write(job, input=source, output=digest, **made)
    publish(job.target, data, overwrite=overwrite)
    manifest.write(job, input=source, output=digest, published=True, **made)


def _read(reading: Mapping[str, Any], job: Job) -> tuple[str, Picture]:
    data = file_bytes(job.source, MAX_BYTES)
    try:
        return hashlib.sha256(data).hexdigest(), read_picture(data, **reading)
    except InputError as error:
        raise InputError(str(error).removeprefix("the picture: ")) from error


def _encode(job: Job, source: str, picture: Picture, tile: int | None) -> Encoded:
    return source, encode_picture(picture, _format(job)), tile


class _Tiles(logging.Handler):
    """Hears of the tiles that a picture is restored in after all; a context."""

    side: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.side = getattr(record, "tile", self.side)

    def __enter__(self) -> _Tiles:
        logging.getLogger("nlrn").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("nlrn").removeHandler(self)


def _restored(job: Job, restore: Restore, picture: Picture) -> tuple[Picture, int | None]:
    with _Tiles() as tiles:
        return restore(picture, _format(job)), tiles.side


def _format(job: Job) -> str:
    return SUFFIXES[job.target.suffix.lower()]


def _by_threads(jobs: Iterable[Job], make: Make, read: Read) -> Results:
    """One picture is computed, the next is read and the last one encoded."""
    waiting = deque(jobs)
    if not waiting:
        return
    restore = make()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        ahead = reader.submit(read, waiting[0])
        before: tuple[Job, Future[Encoded]] | None = None
        while waiting:
            job, reading = waiting.popleft(), ahead
            if waiting:
                ahead = reader.submit(read, waiting[0])
            try:
                source, picture = reading.result()
                future = writer.submit(_encode, job, source, *_restored(job, restore, picture))
            except Exception as error:
                future = failed(error)
            if before is not None:
                yield before
            before = job, future
        assert before is not None
        yield before


def failed(error: Exception) -> Future[Encoded]:
    """What comes of a picture that is refused."""
    future: Future[Encoded] = Future()
    future.set_exception(error)
    return future


def _by_processes(workers: int, jobs: Iterable[Job], make: Make, read: Read) -> Results:
    """Several pictures at once, in their order; those under way when a process was killed are tried again, alone."""
    waiting, made = deque(jobs), pickle.dumps(make)
    while waiting:
        running: deque[tuple[Job, Future[Encoded]]] = deque()
        with pool(workers) as several, suppress(BrokenProcessPool):
            while waiting or running:
                while waiting and len(running) < 2 * workers:
                    running.append((waiting[0], several.submit(_work, waiting[0], made, read)))
                    waiting.popleft()
                job, future = running[0]
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                running.popleft()
                yield job, future
        for job, _ in running:
            with pool(1) as alone:
                future = alone.submit(_work, job, made, read)
                if isinstance(future.exception(), BrokenProcessPool):
                    future = failed(InputError("its process was killed, by its memory perhaps"))
            yield job, future


def _work(job: Job, make: bytes, read: Read) -> Encoded:
    """In a process of its own."""
    return restored_file(job, _made(make), read)


def restored_file(job: Job, restore: Restore, read: Read) -> Encoded:
    """What one picture comes to, by the process that calls this; nothing is written."""
    source, picture = read(job)
    return _encode(job, source, *_restored(job, restore, picture))


@lru_cache(maxsize=1)
def _made(make: bytes) -> Restore:
    """The function from picture to picture, once a process."""
    ready: Make = pickle.loads(make)
    return ready()
