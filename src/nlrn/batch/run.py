"""A folder of pictures: planned before any work, every result published once, and gone on with after a kill."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from nlrn.batch.manifest import manifest_of
from nlrn.batch.plan import Encoded, Job
from nlrn.batch.s3 import ObjectPath, Place
from nlrn.errors import ConfigError, InputError, NLRNError, StoreError
from nlrn.io.image import MAX_BYTES, Picture, encode_picture, file_bytes, read_picture
from nlrn.ops.cpu import warn_for_workers
from nlrn.system.workers import pool

Restore = Callable[[Picture, str], Picture]  # a picture and the format of its result, which it refuses before the work
Read = Callable[[Job], tuple[str, Picture]]
Make = Callable[[], Restore]  # can be pickled: each process makes its own
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


def run(
    jobs: Sequence[Job],
    make: Make,
    output: Place,
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
    computes. engine: what restores them in the place of these, such as nlrn.batch.ray.RayEngine. work: see Manifest.
    reading: what read_picture is told besides. tick(count) is called after each picture, skipped ones too. Existing
    results that the manifest does not know are left (skip_existing), replaced (overwrite), or refused before any work:
    ConfigError.
    """
    with manifest_of(output, work, jobs) as manifest:
        outcome, open_jobs = Outcome(), []
        strangers = [job for job in jobs if manifest.exists(job) and not manifest.knows(job)]
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
                    manifest.publish(job, future.result(), overwrite=overwrite)
                    outcome.done.append(job.name)
                except (ConfigError, StoreError):  # not of the picture: the next would say the same
                    raise
                except Exception as error:  # whatever it is, it is this picture's
                    known = isinstance(error, NLRNError | OSError)
                    outcome.failed[job.name] = reason = str(error) if known else f"{type(error).__name__}: {error}"
                    manifest.refuse(job, reason)
                tick(len(outcome))
        return outcome


def _read(reading: Mapping[str, Any], job: Job) -> tuple[str, Picture]:
    source = job.source
    data = source.read(MAX_BYTES) if isinstance(source, ObjectPath) else file_bytes(source, MAX_BYTES)
    try:
        return hashlib.sha256(data).hexdigest(), read_picture(data, **reading)
    except InputError as error:
        raise InputError(str(error).removeprefix("the picture: ")) from error


def _encode(job: Job, source: str, picture: Picture, tile: int | None) -> Encoded:
    made: dict[str, Any] = {} if tile is None else {"tile": tile}
    if picture.notes:
        made["notes"] = list(picture.notes)
    if picture.value_range is not None:
        made["range"] = list(picture.value_range)
    if picture.noise:
        made["noise"] = list(picture.noise)
    return source, encode_picture(picture, job.form), made


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
        return restore(picture, job.form), tiles.side


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
    waiting, made, first = deque(jobs), pickle.dumps(make), warn_for_workers()
    while waiting:
        running: deque[tuple[Job, Future[Encoded]]] = deque()
        with pool(workers, first) as several, suppress(BrokenProcessPool):
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
            with pool(1, first) as alone:
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
