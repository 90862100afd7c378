"""Images restored by a Ray cluster: Ray schedules; the plan, the manifest and publishing stay with nlrn.

Every worker is an actor with its own model: it reads an image, restores and encodes it, and hands the bytes to
the process that runs the folder, the only one that writes. So a worker that was given up and comes late after all has
nothing to replace a result with.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import torch

from nlrn.batch.plan import Encoded, Job
from nlrn.batch.run import Make, Read, Results, completed, restored_file
from nlrn.errors import BackendError, ConfigError, InputError, NLRNError
from nlrn.system.allocator import keep_freed_memory

_log = logging.getLogger("nlrn")
AHEAD = 2  # images that a worker has or waits with: while one's bytes are fetched it is at the next
TRIES = 2  # of an image at which its worker ended
BEGINNINGS = 3  # workers that may end before they began, one after the other
PATIENCE = 30.0  # seconds without anything from a worker, then a line reports it
_SLOW = 30.0  # seconds for Ray to start, or to be found, then a line reports it
_TOKEN = secrets.token_hex(32)  # one for all runs of this process: Ray reads it once
_OBJECTS = 1 << 30  # bytes for results on their way, where Ray is started here; more of them go to the disk


@dataclass(frozen=True)
class RayEngine:
    """Restores a folder on a Ray cluster: an engine of nlrn.batch.run.run.

    address: of a cluster, as ray.init takes it; None starts Ray here, for this run. workers: None for as many as the
    machines hold. Each has `cpus` processors (and as many threads), a share `gpus` of a GPU, or none, and `memory`
    bytes. All workers of a run are alike, so that a result does not depend on who made it. check: called in each worker
    before it begins; what it raises ends the run, as does an answer that is not `expected`, such as another version.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0
    check: Callable[[], str] = str
    expected: str = ""

    def __call__(self, jobs: Sequence[Job], make: Make, read: Read) -> Results:
        """Every job with its result, as they are completed.

        Raises BackendError without Ray, or where no worker stays; ConfigError for workers that no machine of the
        cluster can hold.
        """
        waiting = deque(jobs)
        if not waiting:
            return
        with _connected(self.address) as ray:
            fit = self._fit(ray.nodes())
            count = min(fit, self.workers or fit, len(waiting))
            needs = {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}
            worker = ray.remote(_Worker).options(max_restarts=0, max_task_retries=0, **needs)
            settings = (ray.put(pickle.dumps((make, read, self.check))), self.expected, self.cpus)
            yield from _Workers(ray, worker, settings, waiting).results(count)

    def _fit(self, nodes: list[dict[str, Any]]) -> int:
        """How many workers the machines hold."""
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        needs = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        fit = sum(min(int(node.get(what, 0) / much) for what, much in needs.items() if much) for node in alive)
        if fit == 0:
            most = [max((node.get(what, 0) for node in alive), default=0) for what in needs]
            raise ConfigError(
                f"no machine of the cluster holds a worker of {self.cpus} CPUs, {self.gpus:g} GPUs and"
                f" {self.memory >> 20:,} MiB: they have at most {most[0]:g}, {most[1]:g} and {int(most[2]) >> 20:,}"
            )
        return fit


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, and its end with the work, unless this process was connected before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise BackendError("a cluster needs Ray (pip install 'nlrn[cluster]')") from error
    if ray.is_initialized():
        yield ray
        return
    before = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        more = {"include_dashboard": False, "object_store_memory": _OBJECTS}
        options |= {"address": "local", **more}
    with _own_token() if address is None else nullcontext():
        slow = threading.Timer(
            _SLOW, _log.warning, (f"Ray has not answered for {_SLOW:.0f} s; it gives up after some minutes",)
        )
        slow.start()
        try:
            _check_reachable(address)
            ray.init(**options)
        except (Exception, SystemExit) as error:  # Ray raises nearly anything
            reason = error if error.__cause__ is None else f"{error} ({error.__cause__})"
            raise BackendError(f"no Ray cluster at {address or 'this machine'}: {reason}") from error
        finally:
            slow.cancel()
        try:
            _handle_sigterm(_terminated if before == signal.SIG_DFL else before)
            yield ray
        finally:
            ray.shutdown()
            _handle_sigterm(before)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Exit with 143, as shells report a process that SIGTERM ended: Ray's handler exits with 1, a refused image."""
    raise SystemExit(128 + number)


def _handle_sigterm(handler: Any) -> None:
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str | None) -> None:
    """Raises OSError where nothing answers, ValueError for an invalid address; Ray itself would try for minutes."""
    if address not in (None, "auto", "local"):
        place = urlsplit(address if "://" in address else f"ray://{address}")
        if place.hostname is None or place.port is None:
            raise ValueError("expected HOST:PORT, ray://HOST:PORT, or auto")
        socket.create_connection((place.hostname, place.port), timeout=10).close()


@contextmanager
def _own_token() -> Iterator[None]:
    """What others on this machine would have to know; without it Ray leaves one in the home folder."""
    names = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    given = names & os.environ.keys()
    if not given:
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    try:
        yield
    finally:
        for name in names - given:  # Ray sets the mode
            os.environ.pop(name, None)


class _Worker:
    """What an actor is: one model, one image after the other."""

    def begin(self, settings: bytes, expected: str, threads: int) -> Exception | None:
        """None when it is ready, or why it cannot be."""
        try:
            keep_freed_memory()
            torch.set_num_threads(threads)
            make, self.read, check = pickle.loads(settings)
            if (found := check()) != expected:
                raise ConfigError(f"its version, options or weights are others ({found}, not {expected})")
            self.restore = make()
        except Exception as error:
            return ConfigError(f"a worker on {socket.gethostname()}: {error}")
        return None

    def work(self, job: Job) -> Encoded | Exception:
        try:
            return restored_file(job, self.restore, self.read)
        except (NLRNError, OSError) as error:
            return error
        except Exception as error:  # of a kind that the other side may not know
            return InputError(f"{type(error).__name__}: {error}")


class _Workers:
    """The workers, what each is at, and what comes of it.

    A worker takes its images in their order. When it ends, what it was at is tried again on another, once, and the
    rest of what it had is given to others.
    """

    def __init__(self, ray: Any, worker: Any, settings: tuple[Any, ...], waiting: deque[Job]) -> None:
        self.ray, self.worker, self.settings, self.waiting = ray, worker, settings, waiting
        self.busy: dict[
            Any, deque[tuple[Job | None, Any]]
        ] = {}  # jobs, or None for its beginning, and their references
        self.tries: Counter[str] = Counter()
        self.lost = 0  # workers that ended before they began, since one last did

    def results(self, count: int) -> Results:
        for _ in range(count):
            self._start()
        heard = time.monotonic()
        while self.waiting or any(self.busy.values()):
            self._give()
            heads = {queue[0][1]: actor for actor, queue in self.busy.items() if queue}
            ready, _ = self.ray.wait(list(heads), num_returns=1, timeout=PATIENCE)
            if not ready and time.monotonic() - heard >= PATIENCE:
                _log.warning("nothing from the cluster for %.0f s: it is busy, or starting", time.monotonic() - heard)
            for reference in ready:
                heard = time.monotonic()
                yield from self._received(heads[reference])

    def _start(self) -> None:
        actor = self.worker.remote()
        self.busy[actor] = deque([(None, actor.begin.remote(*self.settings))])

    def _give(self) -> None:
        """Images to those that are ready; the one with the fewest first."""
        for _ in range(AHEAD):
            for actor, queue in sorted(self.busy.items(), key=lambda item: len(item[1])):
                begun = not queue or queue[0][0] is not None
                if self.waiting and begun and len(queue) < AHEAD:
                    job = self.waiting.popleft()
                    queue.append((job, actor.work.remote(job)))

    def _received(self, actor: Any) -> Results:
        """What a worker has said, or what is to be done when it has ended."""
        queue = self.busy[actor]
        while queue:
            job, reference = queue[0]
            try:
                said = self.ray.get(reference, timeout=0)
            except self.ray.exceptions.GetTimeoutError:
                return
            except self.ray.exceptions.RayError as error:
                yield from self._ended(actor, error)
                return
            queue.popleft()
            if job is not None:
                yield job, completed(said)
            elif said is not None:
                raise said
            else:
                self.lost = 0

    def _ended(self, actor: Any, error: Exception) -> Results:
        (job, _), *rest = self.busy.pop(actor)
        with suppress(Exception):  # one that cannot be reached may live
            self.ray.kill(actor)
        self.waiting.extendleft(later for later, _ in reversed(rest) if later is not None)
        if job is None:
            self.lost += 1
            if self.lost == BEGINNINGS:
                raise BackendError(f"the cluster's workers end before they begin: {str(error).splitlines()[0]}")
        else:
            self.tries[job.name] += 1
            if self.tries[job.name] == TRIES:
                yield job, completed(InputError(f"its worker ended, {TRIES} times, probably out of memory"))
            else:
                self.waiting.append(job)
        if self.waiting:
            self._start()
