"""What the service takes and how long it waits, and what it says when it does not."""

from __future__ import annotations

from dataclasses import dataclass

from nlrn.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """max_pixels, max_result_pixels: of one picture. max_bytes: of the body of a request, counted as it arrives.

    queue: jobs that wait beside the one that is done; connections: at once. In seconds: header_seconds for a request's
    first lines, body_seconds for all of its body, send_seconds for an answer to be taken whole, job_seconds for one
    job, stop_seconds for work under way when the service is told to end. held_bytes: of all bodies, and of answers that
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
