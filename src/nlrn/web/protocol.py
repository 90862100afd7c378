"""uvicorn with the limits that it has not: of the time for a request's first lines and for an answer to be taken, and
of what is sent ahead of an answer.

A refusal from here has no headers for browsers: what sent it is none.
"""

from __future__ import annotations

import asyncio
import json
import math
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nlrn.web.limits import Limits
from nlrn.web.metrics import CONNECTION, Metrics
from nlrn.web.middleware import Guard
from nlrn.web.queue import RETRY_AFTER, Jobs

QUEUE = 512  # connections that the system holds until they are accepted
_AHEAD = 64 << 10  # bytes of later requests that are kept until the one before them is answered


class Protocol(H11Protocol):
    """A connection. A subclass of it carries the limits and the metrics of the service."""

    limits: Limits
    metrics: Metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused until all was taken
        self._lines: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections:
            words = f"{self.limits.connections} connections are open already; try again later"
            self._refuse(503, {"error": words, "limit": "connections"})
        else:
            self._await_lines()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._lines, self._taking):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answering() and self._lines is not None:
            self._lines.cancel()
            self._lines = None

    def handle_events(self) -> None:
        """A client that sends ahead is listened to all the same: uvicorn would not see it go away."""
        super().handle_events()
        if not self._answering() or self.cycle.more_body or self.transport.is_closing():
            return
        if len(self.conn.trailing_data[0]) > _AHEAD:
            self._refuse(413, {"error": f"over {_AHEAD:,} bytes came before the answer", "limit": "ahead"})
        else:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self._note_taken()
        super().on_response_complete()
        if not (self.transport.is_closing() or self._answering()):
            self._await_lines()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._taking is None:
            self._taking = self.loop.call_later(self.limits.send_seconds, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_taken()

    def _note_taken(self) -> None:
        """The deadline is one for all of an answer, however often a part of it is taken."""
        begun = self._answering() and self.cycle.response_started
        if self._taking is not None and not (begun or self.flow.write_paused):
            self._taking.cancel()
            self._taking = None

    def drop(self) -> None:
        """End the connection if an answer waits to be taken."""
        if self._taking is not None:
            self.metrics.dropped.inc()
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, {"error": "this is not a request that HTTP/1.1 knows"})

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_lines(self) -> None:
        if self._lines is not None:
            self._lines.cancel()
        self._lines = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _too_slow(self) -> None:
        """Some of a request's lines came, or none: the one receives an error, either is over."""
        if self.transport.is_closing() or self._answering():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            seconds = f"{self.limits.header_seconds:g}"
            said = {"error": f"the first lines did not come within {seconds} seconds", "limit": "header_seconds"}
            self._refuse(408, said)
        self.transport.close()

    def _refuse(self, status: int, said: dict[str, str]) -> None:
        """Answer from here and close. Work under way for this client is given up."""
        if self._answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:  # nothing more can be said
                self.transport.abort()
                return
        self.metrics.count(CONNECTION, status)
        content = json.dumps(said).encode()
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "content-type: application/json"]
        head += [f"content-length: {len(content)}", "connection: close"]
        head += [f"retry-after: {RETRY_AFTER}"] if status == 503 else []
        self.transport.write("\r\n".join([*head, "", ""]).encode() + content)
        self.transport.close()


class Server(uvicorn.Server):
    """When asked to end, it takes no more jobs, lets the one under way continue for a while, then ends it too."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs, guard: Guard) -> None:
        super().__init__(config)
        self.jobs, self.guard = jobs, guard

    async def startup(self, sockets: Any = None) -> None:
        """asyncio takes one number for what it accepts in a turn and for what the system may queue: the latter is
        ours."""
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(QUEUE)

    async def shutdown(self, sockets: Any = None) -> None:
        self.jobs.close()
        self.guard.close()
        asyncio.get_running_loop().call_later(self.jobs.limits.stop_seconds, self._end)
        try:
            await super().shutdown(sockets)
        finally:
            self.jobs.end()

    def _end(self) -> None:
        self.jobs.end()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.drop()


def server(app: Guard, jobs: Jobs, limits: Limits, host: str, port: int, at_once: int) -> Server:
    """Ready to run on that address. at_once: connections that are accepted before one of them is looked at."""
    protocol = type("LimitedProtocol", (Protocol,), {"limits": limits, "metrics": app.metrics})
    config = uvicorn.Config(
        app, host=host, port=port, http=protocol, ws="none", loop="asyncio",
        log_level="error", access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(limits.stop_seconds) + 2, backlog=at_once,
    )  # fmt: skip
    return Server(config, jobs, app)
