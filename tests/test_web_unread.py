"""Answers that are not read: counted in the memory that is held, given up after a while, and no reason not to end."""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from webserver import Service, service

from nlrn.web.handlers import Handlers
from nlrn.web.messages import ServiceConfig, Task

MIB = 1 << 20


def photograph(side: int) -> bytes:
    """A JPEG of noise, whose preview is larger than what the system takes in for a client that does not read."""
    out, random = io.BytesIO(), np.random.RandomState(0)
    Image.fromarray(random.randint(0, 256, (side, side)).astype(np.uint8)).save(out, "JPEG", quality=20)
    return out.getvalue()


@pytest.fixture(scope="module")
def noise() -> bytes:
    """9 MB of PNG."""
    return photograph(3000)


def preview(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/v1/preview", files={"image": ("p.jpg", data)})


def shown(client: httpx.Client, name: str) -> int:
    found = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return int(float(found[1]))


@contextlib.contextmanager
def asking(running: Service, data: bytes, room: int = 4096) -> Iterator[socket.socket]:
    """A client that asked for a preview, has begun to receive it, and reads no more."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", running.port))
        with running.client() as client:
            request = client.build_request("POST", "/v1/preview", files={"image": ("p.jpg", data)})
            lines = [b"%s: %s" % (name, value) for name, value in request.headers.raw]
            connection.sendall(b"\r\n".join([b"POST /v1/preview HTTP/1.1", *lines, b"", request.read()]))
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield connection


def test_unread_answers_are_counted_and_there_is_no_room_for_more_of_them(tmp_path: Path, noise: bytes) -> None:
    expected = Handlers(ServiceConfig()).perform(Task("preview", noise, {})).content
    both = len(noise) + len(expected)
    assert len(expected) > 7 * MIB
    most = 3 * both - len(expected) // 2  # two unread, one more asked, half of its answer
    limits = ("--held-bytes", str(most), "--max-bytes", str(len(noise) + 1000))
    with service(tmp_path, *limits) as running, running.client() as client:
        assert shown(client, "nlrn_held_bytes") == 0
        with asking(running, noise):
            with asking(running, noise) as second:
                held = shown(client, "nlrn_held_bytes")
                assert 2 * both < held < 2 * both + 2000
                late = preview(client, noise)
                assert late.status_code == 503
                assert late.json()["limit"] == "held_bytes"
                assert int(late.headers["retry-after"]) > 0
                assert client.get("/healthz").status_code == 200  # what is small is answered
                assert shown(client, "nlrn_held_bytes") == held  # nothing is left of what was refused
                answer = http.client.HTTPResponse(second)
                answer.fp = io.BufferedReader(_After(b"HTTP/1.1 200", second))
                answer.begin()
                assert answer.read() == expected  # in its pieces, and in their order
            assert preview(client, noise).content == expected
        assert _in_the_end(lambda: shown(client, "nlrn_held_bytes") == 0)


class _After(io.RawIOBase):
    """What was read already, then a connection."""

    def __init__(self, begun: bytes, connection: socket.socket) -> None:
        self.begun, self.connection = begun, connection

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        if not self.begun:
            return self.connection.recv_into(into)
        size = min(len(into), len(self.begun))
        into[:size], self.begun = self.begun[:size], self.begun[size:]
        return size


@pytest.mark.parametrize(
    "dripping", [pytest.param(False, id="unread", marks=pytest.mark.slow), pytest.param(True, id="dripping")]
)
def test_an_answer_that_is_not_taken_in_time_is_given_up(tmp_path: Path, noise: bytes, dripping: bool) -> None:
    """One deadline for all of it: who takes a part now and then has no more time."""
    data, room = (photograph(4500), 512 << 10) if dripping else (noise, 4096)
    with service(tmp_path, "--send-seconds", "3") as running, running.client() as client:
        size = len(preview(client, data).content)
        with asking(running, data, room) as connection:
            began, got = time.monotonic(), 0
            while shown(client, "nlrn_answers_dropped_total") == 0:
                assert time.monotonic() - began < 60
                time.sleep(0.05)
                got += len(connection.recv(100_000)) if dripping else 0
        assert shown(client, "nlrn_held_bytes") == 0
        assert got < size - MIB


def test_it_ends_though_nobody_takes_an_answer(tmp_path: Path, noise: bytes) -> None:
    with service(tmp_path, "--stop-seconds", "1") as running, asking(running, noise):
        running.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        running.process.wait(30)
        assert time.monotonic() - began < 20  # and it says nothing, as `service` sees


def test_a_result_that_could_not_be_held_is_refused_before_the_work(tmp_path: Path) -> None:
    """A small file, minutes of work, 100 MB: by its samples, and by the limit of pixels."""
    small = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(small, "PNG")
    files = {"image": ("p.png", small.getvalue())}
    with service(tmp_path, "--held-bytes", "90000000", "--max-bytes", "1000000") as running, running.client() as client:
        for scale, more, limit, value in (
            ("5.5", {}, "held_bytes", "90,750,000"),
            ("4", {"depth": "16"}, "held_bytes", "96,000,000"),
            ("10.1", {}, "result", "10100 x 10100"),
        ):
            began = time.monotonic()
            answer = client.post("/v1/upscale", files=files, data={"scale": scale, "model": "toy-sr"} | more)
            assert answer.status_code == 413
            assert answer.json()["limit"] == limit
            assert value in answer.json()["error"]
            assert "(nlrn serve --" in answer.json()["error"]
            assert time.monotonic() - began < 30
        assert client.post("/v1/preview", files=files).status_code == 200


def _in_the_end(condition: object, within: float = 20) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False
