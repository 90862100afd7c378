"""The limits of the service, and the error that it answers with beyond them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nlrn.errors import BackendError, ConfigError

try:
    import resource
except ImportError:  # not on Windows, whose sockets are not counted among the files
    resource = None  # type: ignore[assignment]

_OTHER_FILES = 24  # descriptors for the worker, the next one beside it, and what Python opens now and then
_FEWEST = 4  # connections that a service must be able to hold
_AT_ONCE = 32  # connections that are accepted in one turn of the event loop
_TURNS = 5  # of the event loop from a connection's acceptance to the end of one that is refused


@dataclass(frozen=True)
class Limits:
    """max_pixels, max_result_pixels: of one image. max_bytes: of the body of a request, counted as it arrives.

    queue: jobs that wait beside the one that is done; connections: at once. In seconds: header_seconds for a request's
    first lines, body_seconds for all of its body, send_seconds for an answer to be taken whole, job_seconds for one
    job, stop_seconds for work under way when the service has to end. held_bytes: of all bodies, and of answers that
    are not taken yet, together; one body and the samples of its result have room in it.
    Raises ConfigError for what is not above 0, and for held_bytes below twice max_bytes.
    """

    max_pixels: int = 25_000_000
    max_result_pixels: int = 100_000_000
    max_bytes: int = 32 << 20
    queue: int = 16
    connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    send_seconds: float = 300.0
    job_seconds: float = 600.0
    stop_seconds: float = 10.0
    held_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}")
        if self.held_bytes < 2 * self.max_bytes:
            raise ConfigError(f"held_bytes must be at least twice max_bytes, {self.max_bytes}, not {self.held_bytes}")


class RefusedError(Exception):
    """What is answered instead: a status, one sentence, and more keys of the JSON object (limit, field)."""

    def __init__(self, status: int, error: str, **more: str | int) -> None:
        super().__init__(error)
        self.status = status
        self.said: dict[str, str | int] = {"error": error, **more}


def fitting_connections(wanted: int) -> tuple[int, int]:
    """(connections at once, connections accepted at once) that this process has file descriptors for.

    The soft limit of descriptors is raised as far as the hard one allows where it is too low. A connection beyond the
    first number is accepted, refused and closed, which takes a few turns of the event loop: in each turn no more come
    in than the second number. Raises BackendError where not even a few connections fit.
    """
    at_once = min(wanted, _AT_ONCE)
    if resource is None:
        return wanted, at_once  # type: ignore[unreachable]
    taken = _OTHER_FILES + (len(list(Path("/dev/fd").iterdir())) if Path("/dev/fd").is_dir() else 32)
    need = taken + wanted + _TURNS * at_once
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        more = need if hard == resource.RLIM_INFINITY else min(hard, need)
        with suppress(OSError, ValueError):  # macOS: the system's own limit may be lower than the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = soft - taken
    if soft == resource.RLIM_INFINITY or soft >= need:
        return wanted, at_once
    at_once = min(at_once, max(1, free // (4 * _TURNS)))
    if free - _TURNS * at_once < _FEWEST:
        least = taken + _FEWEST + _TURNS
        raise BackendError(f"the system allows {soft} open files (ulimit -n), and a service requires {least} and more")
    return min(wanted, free - _TURNS * at_once), at_once
