"""Before any route: who may ask, how much and how long a body may be, and what every answer says to the browser."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote

from nlrn.web.limits import Limits, RefusedError
from nlrn.web.metrics import GUARD, Metrics
from nlrn.web.queue import RETRY_AFTER

_LOG = logging.getLogger("nlrn")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
_PIECE = 256 << 10  # bytes of an answer that are handed on at once, the next when these were taken
_SMALL = 64 << 10  # bytes of an answer that is given in any case
_DRAINED = (64 << 20, 2.0)  # bytes and seconds of a body that is read on after its refusal, so that it is heard


class Guard:
    """An ASGI application around another. hosts: what a client may call this service, beside the loopback's names."""

    def __init__(self, app: Any, limits: Limits, metrics: Metrics, hosts: Iterable[str] = ()) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.hosts = {name.lower() for name in (*LOOPBACK, *hosts)}
        self.held = 0  # bytes of bodies that are being answered, and of answers that are not taken yet
        metrics.held.set_function(lambda: self.held)
        self.receiving: set[asyncio.Task[Any]] = set()  # those whose body is not there yet

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request: by the application within the limits, or by a refusal in JSON."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        scope = _as_routed(scope)
        body = _Body(receive, self, expected=has_body(scope))
        answer, place = _Answer(send, body, self), GUARD
        try:
            self._check(scope)
            place = "other"
            await self.app(scope, body.receive, answer.send)
        except RefusedError as refusal:
            if answer.status:
                raise
            await answer.send_json(refusal)
        except Exception:
            _LOG.exception("a request failed in a way that was not foreseen")
            if answer.status:
                raise
            await answer.send_json(RefusedError(503, "the service failed; its log has the error"))
        except asyncio.CancelledError:  # by `close`, or uvicorn does not wait any longer
            if answer.status:
                raise
            body.late = True
            await answer.send_json(RefusedError(503, "the service is about to end"))
        finally:
            self.held -= body.size + answer.size
            route = getattr(scope.get("route"), "path", place)
            self.metrics.requests.labels(route, answer.status or 503).inc()

    def close(self) -> None:
        """Refuse those whose body is not there yet: the service ends."""
        for task in list(self.receiving):
            task.cancel()

    def _check(self, scope: Message) -> None:
        """Raises RefusedError for a request that no route may see.

        A body with two kinds of length, a host that is not served, a page of another origin, a body that is too large.
        """
        given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = dict(given)
        if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] == "1.0"):
            # RFC 9112, 6.1: a proxy between may take another length for the right one, and what follows for a request
            raise RefusedError(400, "a body has a Content-Length or, in HTTP/1.1, a Transfer-Encoding, not both")
        for name in ("Host", "Origin"):
            if sum(key == name.lower() for key, _ in given) > 1:
                raise RefusedError(400, f"more than one {name}", field=name)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        called = _HOST.fullmatch(host)
        if called is None or called[1] not in self.hosts:
            raise RefusedError(400, "this host is not served (nlrn serve --allow-host)", field="Host")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise RefusedError(400, "a page of another origin may not ask", field="Origin")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limits.max_bytes:
            raise too_large(self.limits)


def too_large(limits: Limits) -> RefusedError:
    """The refusal of a body that is over the limit."""
    return RefusedError(413, f"the body is over {limits.max_bytes:,} bytes (nlrn serve --max-bytes)", limit="bytes")


def _as_routed(scope: Message) -> Message:
    """A request in the form of the routes.

    HEAD becomes GET, whose body the server leaves out; an absolute target becomes its path, and its authority takes the
    place of Host (RFC 9112, 3.2.2).
    """
    scope = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
    target = _ABSOLUTE.fullmatch(scope["raw_path"])
    if target is None:
        return scope
    path = target[2] or b"/"
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    hosts = [(b"host", target[1])] * max(1, len(scope["headers"]) - len(others))
    return {**scope, "raw_path": path, "path": unquote(path.decode("ascii")), "headers": hosts + others}


def has_body(scope: Message) -> bool:
    """Whether the headers of a request announce a body."""
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


class _Body:
    """A request's body, counted and timed as it arrives."""

    def __init__(self, receive: Receive, guard: Guard, *, expected: bool) -> None:
        self._receive, self._guard = receive, guard
        self._until = time.monotonic() + guard.limits.body_seconds
        self.size, self.complete, self.late = 0, not expected, False

    async def receive(self) -> Message:
        """The next message. Raises RefusedError: 413, 408, or 503 where bodies fill the memory that they may take."""
        if self.complete:
            return await self._receive()
        own = asyncio.current_task()
        assert own is not None
        self._guard.receiving.add(own)
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            self.late = True
            seconds = self._guard.limits.body_seconds
            raise RefusedError(408, f"the body did not come within {seconds:g} seconds", limit="body_seconds") from None
        finally:
            self._guard.receiving.discard(own)
        self._note(message)
        if self.size > self._guard.limits.max_bytes:
            raise too_large(self._guard.limits)
        if self._guard.held > self._guard.limits.held_bytes:
            raise RefusedError(503, "too many bodies at once; try again later", limit="held_bytes")
        return message

    def _note(self, message: Message) -> None:
        size = len(message.get("body", b""))
        self.size += size
        self._guard.held += size
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

    async def drain(self) -> None:
        """Discard the rest of the body for a while, so that a client that is still sending receives the answer."""
        left, seconds = _DRAINED
        until = time.monotonic() + seconds
        while not (self.complete or self.late) and left > 0:
            try:
                message = await asyncio.wait_for(self._receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)


class _Answer:
    """What is sent, with the headers of every answer; a body that was not read to its end closes the connection.

    status: 0 until the answer begins. size: bytes of it that the guard counts as held until the request is over.
    """

    def __init__(self, send: Send, body: _Body, guard: Guard) -> None:
        self._send, self._body, self._guard = send, body, guard
        self.status, self.size, self._instead = 0, 0, False

    async def send(self, message: Message) -> None:
        """Pass a message of the application on. An answer for which there is no room is a 503 instead."""
        if self._instead:
            return
        if message["type"] != "http.response.start":
            await self._pass_on(message.get("body", b""), more=message.get("more_body", False))
            return
        size = int(dict(message["headers"]).get(b"content-length", b"0"))
        if size > _SMALL:
            if self._guard.held + size > self._guard.limits.held_bytes:
                await self.send_json(RefusedError(503, "too many answers wait to be read", limit="held_bytes"))
                self._instead = True
                return
            self.size = size
            self._guard.held += size
        await self._begin(message)

    async def _begin(self, message: Message) -> None:
        self.status = message["status"]
        named = {name for name, _ in message["headers"]}
        more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in named]
        if message["status"] == 503:
            more.append((b"retry-after", str(RETRY_AFTER).encode()))
        if not self._body.complete:
            more.append((b"connection", b"close"))
        await self._send({**message, "headers": [*message["headers"], *more]})

    async def _pass_on(self, content: bytes, *, more: bool) -> None:
        """In pieces, so that this ends when all was taken: the server waits at each until the one before is gone."""
        for at in range(0, len(content), _PIECE):
            await self._send({"type": "http.response.body", "body": content[at : at + _PIECE], "more_body": True})
        if not more:
            await self._body.drain()
            await self._send({"type": "http.response.body", "body": b""})

    async def send_json(self, refusal: RefusedError) -> None:
        content = json.dumps(refusal.said).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content})
