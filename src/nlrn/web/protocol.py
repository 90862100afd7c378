"""The limits of a connection that uvicorn's HTTP/1.1 does not have.

They are the time for a request's first lines and for an answer to be taken, what is sent ahead of an answer, and the
number of connections. uvicorn is used unchanged: a `Connection` passes on asyncio's calls to a protocol, and
`Connections`, an ASGI application around the guard, records the state of the requests (docs/decisions/http-limits.md).
A refusal from here has no headers for browsers: what sent it is none.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nlrn.web.metrics import CONNECTION
from nlrn.web.middleware import Guard, Message, Receive, Send, has_body
from nlrn.web.queue import RETRY_AFTER, Jobs

QUEUE = 512  # connections that the system holds until they are accepted
_AHEAD = 64 << 10  # bytes of later requests that are kept until the one before them is answered


class Connections:
    """All connections of a service, by their clients' addresses."""

    def __init__(self, guard: Guard) -> None:
        self.guard, self.limits = guard, guard.limits
        self.open: dict[Any, Connection] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on to the guard, and tie it to its connection."""
        connection = self.open.get(tuple(scope.get("client") or ()))
        if connection is None:  # not a request, or its client is gone already
            await self.guard(scope, receive, send)
            return

        async def heard() -> Message:
            message = await receive()
            if not message.get("more_body", False):
                connection.listen()
            return message

        async def answered(message: Message) -> None:
            connection.answer()
            await send(message)

        connection.begin(scope)
        try:
            await self.guard(scope, heard, answered)
        finally:
            connection.finish(scope)

    def drop(self) -> None:
        """End those on which an answer waits to be taken."""
        for connection in list(self.open.values()):
            connection.drop()


class Connection(asyncio.Protocol):
    """One of them; inner: uvicorn's protocol of it."""

    def __init__(self, connections: Connections, inner: H11Protocol) -> None:
        self.all, self.limits, self.inner = connections, connections.limits, inner
        self.request: Message | None = None  # the one that is worked on
        self.heard = self.answering = False  # all of it has come; its answer has begun
        self.ahead = b""  # what came since
        self.begun = False  # something of a next request has come
        self.joined = self.parsing = self.refused = False
        self.lines: asyncio.TimerHandle | None = None
        self.taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a client, unless there are too many (see asyncio.Protocol)."""
        self.transport, self.loop = cast(asyncio.Transport, transport), asyncio.get_running_loop()
        self.address = tuple(self.transport.get_extra_info("peername") or ())[:2]
        self.transport.set_write_buffer_limits(high=0)  # writing is paused until all was taken
        if len(self.all.open) >= self.limits.connections:
            words = f"{self.limits.connections} connections are open already; try again later"
            self.refuse(503, {"error": words, "limit": "connections"})
            return
        self.all.open[self.address], self.joined = self, True
        self.inner.connection_made(cast(asyncio.Transport, _Transport(self)))
        self._await_lines()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its deadlines."""
        for timer in (self.lines, self.taking):
            if timer is not None:
                timer.cancel()
        if self.all.open.get(self.address) is self:
            del self.all.open[self.address]
        self.refused = True  # whatever was kept
        if self.joined:
            self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of the client."""
        if self.refused:
            return
        if self.request is not None and self.heard:
            self.ahead += data
            if len(self.ahead) > _AHEAD:
                self.refuse(413, {"error": f"over {_AHEAD:,} bytes came before the answer", "limit": "ahead"})
            return
        self.begun = self.parsing = True
        self.inner.data_received(data)
        self.parsing = False

    def pause_writing(self) -> None:
        """Pause the server's writing too."""
        if self.joined:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        """Resume the server's writing too."""
        if self.joined:
            self.inner.resume_writing()
        self._note_taken()

    def begin(self, scope: Message) -> None:
        """A request's lines have come."""
        self.request, self.heard, self.answering, self.begun = scope, False, False, False
        if self.lines is not None:
            self.lines.cancel()
        if not has_body(scope):
            self.listen()

    def listen(self) -> None:
        """All of a request has come. A client that sends ahead is listened to, which shows when it goes away."""
        self.heard = True
        self.transport.resume_reading()

    def answer(self) -> None:
        """The deadline is one for all of an answer, however often a part of it is taken."""
        self.answering = True
        if self.taking is None and not self.transport.is_closing():
            self.taking = self.loop.call_later(self.limits.send_seconds, self.drop)

    def finish(self, scope: Message) -> None:
        """A request was answered. uvicorn begins the next one if it has it; if not, it receives what was kept."""
        if self.request is scope:
            self.request = None
            if not self.transport.is_closing():
                self._await_lines()
                self.loop.call_soon(self._pass_on)
        self._note_taken()

    def _pass_on(self) -> None:
        if self.request is None and self.ahead and not self.transport.is_closing():
            data, self.ahead = self.ahead, b""
            self.data_received(data)

    def _note_taken(self) -> None:
        over = self.request is None or not self.answering
        if self.taking is not None and over and self.transport.get_write_buffer_size() == 0:
            self.taking.cancel()
            self.taking = None

    def drop(self) -> None:
        """End the connection if an answer waits to be taken."""
        if self.taking is not None:
            self.all.guard.metrics.dropped.inc()
            self.transport.abort()

    def _await_lines(self) -> None:
        if self.lines is not None:
            self.lines.cancel()
        self.lines = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _too_slow(self) -> None:
        """Some of a request's lines came, or none: the one receives an error, either is over."""
        if self.begun and not self.transport.is_closing():
            seconds = f"{self.limits.header_seconds:g}"
            said = {"error": f"the first lines did not come within {seconds} seconds", "limit": "header_seconds"}
            self.refuse(408, said)
        self.transport.close()

    def refuse(self, status: int, said: dict[str, str]) -> None:
        """Answer from here and close. Work under way for this client is given up."""
        self.refused = True
        if self.request is not None and self.answering:  # nothing more can be said
            self.transport.abort()
            return
        self.all.guard.metrics.requests.labels(CONNECTION, status).inc()
        content = json.dumps(said).encode()
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "content-type: application/json"]
        head += [f"content-length: {len(content)}", "connection: close"]
        head += [f"retry-after: {RETRY_AFTER}"] if status == 503 else []
        self.transport.write("\r\n".join([*head, "", ""]).encode() + content)
        self.transport.close()


class _Transport:
    """What uvicorn writes to. What it writes at the sight of some bytes refuses what is no HTTP: ours goes instead."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.transport, name)

    def write(self, data: bytes) -> None:
        if not self._connection.parsing:
            self._connection.transport.write(data)
        elif not self._connection.refused:
            self._connection.refuse(400, {"error": "this is not a request that HTTP/1.1 knows"})


async def run(guard: Guard, jobs: Jobs, listening: socket.socket, at_once: int) -> None:
    """Serve until the process is asked to end. at_once: connections that are accepted before one is looked at."""
    connections, seconds = Connections(guard), guard.limits.stop_seconds

    def protocol(**given: Any) -> Connection:
        return Connection(connections, H11Protocol(**given))

    server = uvicorn.Server(
        uvicorn.Config(
            connections, http=cast(Any, protocol), ws="none", loop="asyncio",
            log_level="error", access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(seconds) + 2, backlog=at_once,
        )
    )  # fmt: skip

    async def end() -> None:
        """When asked to end, no more jobs are taken; the one under way continues for a while, then it is ended too."""
        while not server.started:
            await asyncio.sleep(0.01)
        listening.listen(QUEUE)  # asyncio takes one number for what it accepts in a turn and what the system may queue
        while not server.should_exit:
            await asyncio.sleep(0.05)
        jobs.close()
        guard.close()
        await asyncio.sleep(seconds)
        jobs.end()
        connections.drop()

    ending = asyncio.create_task(end())
    try:
        await server.serve([listening])
    finally:
        ending.cancel()
        jobs.end()
