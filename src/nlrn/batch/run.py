"""A folder of images: planned before any work, every result published once, and gone on with after a kill."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from nlrn.batch.manifest import Manifest, Stacked, StoreManifest
from nlrn.batch.plan import Encoded, Job
from nlrn.batch.s3 import ObjectPath, Place
from nlrn.errors import ConfigError, InputError, NLRNError, StoreError
from nlrn.io.image import MAX_BYTES, ImageData, encode_image, file_bytes, left_out_by, read_image
from nlrn.ops.cpu import warn_for_workers
from nlrn.system.workers import pool

Restore = Callable[
    [ImageData, str], ImageData
]  # an image and the format of its result, which it refuses before the work
Read = Callable[[Job], tuple[str, ImageData]]
Make = Callable[[], Restore]  # can be pickled: each process makes its own
Results = Generator[tuple[Job, Future[Encoded]]]  # in any order
Engine = Callable[[Sequence[Job], Make, Read], Results]
Report = Callable[[str, Sequence[str], float], None]  # name of an image, lines, seconds


@dataclass
class Outcome:
    """Names of images: restored now, restored by an earlier run or left as they were, and refused with the reason.

    said: of each image that was restored now, what is worth knowing, a line each: the noise that was found, warnings.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)

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
    report: Report = lambda name, lines, seconds: None,
    stacked: Stacked | None = None,
) -> Outcome:
    """Restore every image; one that fails is listed with the reason and stops no other.

    make: gives the function from image to image; pickled and called in every process when there are several
    workers, each with its share of the threads. One worker reads the next image and writes the last one while it
    computes. engine: what restores them in the place of these, such as nlrn.batch.ray.RayEngine. work: see Manifest.
    reading: further arguments of read_image. tick(count) is called after each image, skipped ones too; report(name,
    lines, seconds) after each that was restored, with what is worth knowing and the time that it took. stacked:
    restores the jobs that are stacks, one after the other, when all images are done. Existing
    results that the manifest does not know are left (skip_existing), replaced (overwrite), or refused before any work:
    ConfigError.
    """
    with StoreManifest(output, work, jobs) if isinstance(output, ObjectPath) else Manifest(output, work) as manifest:
        outcome, open_jobs = Outcome(), []
        unknown = [job for job in jobs if manifest.exists(job) and not manifest.knows(job)]
        if unknown and not (overwrite or skip_existing):
            more = f" and {len(unknown) - 1} more exist" if len(unknown) > 1 else " exists"
            raise ConfigError(f"{unknown[0].target}{more} already: see --skip-existing and --overwrite")
        left = {job.name for job in jobs if skip_existing and manifest.exists(job)}
        for job in jobs:
            if job.name in left or manifest.holds(job):
                manifest.complete(job)
                outcome.skipped.append(job.name)
                tick(len(outcome))
            else:
                open_jobs.append(job)
        if not overwrite:
            open_jobs = [job for job in open_jobs if not _cannot_appear(job, outcome, manifest, tick)]
        chosen = engine or (partial(_by_processes, workers) if workers > 1 else _by_threads)
        images = [job for job in open_jobs if not job.stack]
        with closing(chosen(images, make, partial(_read, reading))) as results:
            for job, future in results:
                try:
                    encoded = future.result()
                    manifest.publish(job, encoded, overwrite=overwrite)
                    outcome.done.append(job.name)
                    outcome.said[job.name] = list(encoded.said)
                except (ConfigError, StoreError):  # not of the image: the next would fail likewise
                    raise
                except Exception as error:  # whatever it is, it is this image's
                    _refuse(job, error, outcome, manifest)
                else:
                    report(job.name, encoded.said, encoded.seconds)
                tick(len(outcome))
        if stacked is not None and isinstance(manifest, Manifest):
            _restore_stacks([job for job in open_jobs if job.stack], stacked, manifest, outcome, tick, report)
        return outcome


def _restore_stacks(
    jobs: Sequence[Job],
    stacked: Stacked,
    manifest: Manifest,
    outcome: Outcome,
    tick: Callable[[int], None],
    report: Report,
) -> None:
    """One after the other, plane by plane, in this process."""
    for job in jobs:
        began = time.monotonic()
        try:
            outcome.said[job.name] = lines = list(manifest.publish_stack(job, stacked))
            outcome.done.append(job.name)
        except StoreError:
            raise
        except Exception as error:  # also a setting that is not for this stack
            _refuse(job, error, outcome, manifest)
        else:
            report(job.name, lines, time.monotonic() - began)
        tick(len(outcome))


def _cannot_appear(job: Job, outcome: Outcome, manifest: Manifest | StoreManifest, tick: Callable[[int], None]) -> bool:
    """Refuse an image whose result has its name already and is not what would be made now, before the work."""
    if not manifest.exists(job):
        return False
    if isinstance(job.source, ObjectPath) or job.source.is_file():
        reason = f"{job.source} has changed since its result was made, or the result has: see --overwrite"
        _refuse(job, InputError(reason), outcome, manifest)
        tick(len(outcome))
        return True
    return False  # refused where it is read


def _refuse(job: Job, error: Exception, outcome: Outcome, manifest: Manifest | StoreManifest) -> None:
    known = isinstance(error, NLRNError | OSError)
    outcome.failed[job.name] = reason = str(error) if known else f"{type(error).__name__}: {error}"
    manifest.refuse(job, reason)


def _read(reading: Mapping[str, Any], job: Job) -> tuple[str, ImageData]:
    source = job.source
    data = source.read(MAX_BYTES) if isinstance(source, ObjectPath) else file_bytes(source, MAX_BYTES)
    try:
        return hashlib.sha256(data).hexdigest(), read_image(data, **reading)
    except InputError as error:
        more = ""
        if error.limit == "frames" and (isinstance(job.source, ObjectPath) or isinstance(job.target, ObjectPath)):
            more = "; a stack (TIFF, PNG, WebP, GIF) is restored from a disk to a disk: copy it, and give OUT there"
        raise InputError(str(error).removeprefix("the image: ") + more) from error


def _timed(job: Job, restore: Restore, image: ImageData) -> tuple[ImageData, float]:
    began = time.monotonic()
    return restore(image, job.form), time.monotonic() - began


def _encode(job: Job, source: str, image: ImageData, seconds: float) -> Encoded:
    made: dict[str, Any] = {} if image.tile is None else {"tile": image.tile}
    lost = left_out_by(image, job.form)
    if image.notes or lost:
        made["notes"] = [*image.notes, *lost]
    if image.value_range is not None:
        made["range"] = list(image.value_range)
    if image.noise:
        made["noise"] = list(image.noise)
    return Encoded(source, encode_image(image, job.form), made, (*image.said, *lost), seconds)


def _by_threads(jobs: Iterable[Job], make: Make, read: Read) -> Results:
    """One image is computed, the next is read and the last one encoded."""
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
                source, image = reading.result()
                future = writer.submit(_encode, job, source, *_timed(job, restore, image))
            except Exception as error:
                future = completed(error)
            if before is not None:
                yield before
            before = job, future
        assert before is not None
        yield before


def completed(found: Encoded | Exception) -> Future[Encoded]:
    """What comes of an image: its result, or the error by which it is refused."""
    future: Future[Encoded] = Future()
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)
    return future


def _by_processes(workers: int, jobs: Iterable[Job], make: Make, read: Read) -> Results:
    """Several images at once, in their order; those under way when a process was killed are tried again, one by one."""
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
                    future = completed(InputError("its process was killed, probably out of memory"))
            yield job, future


def _work(job: Job, make: bytes, read: Read) -> Encoded:
    """The work of a worker process."""
    return restored_file(job, _made(make), read)


def restored_file(job: Job, restore: Restore, read: Read) -> Encoded:
    """What one image comes to, by the process that calls this; nothing is written."""
    source, image = read(job)
    return _encode(job, source, *_timed(job, restore, image))


@lru_cache(maxsize=1)
def _made(make: bytes) -> Restore:
    """The function from image to image, once a process."""
    ready: Make = pickle.loads(make)
    return ready()
