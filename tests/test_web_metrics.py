"""Every answer is counted, whoever gives it, and no client can make up a label."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from webserver import Service, image_file

SERVE = ("--header-seconds", "1", "--body-seconds", "1", "--connections", "6", "--max-bytes", "100000", "--queue", "1")
GET, POST = "GET /healthz HTTP/1.1\r\n", "POST /v1/denoise HTTP/1.1\r\n"
HOST = "Host: localhost\r\n"
FORM = "Content-Type: multipart/form-data; boundary=x\r\n"


def counted(client: httpx.Client) -> Counter[tuple[str, int]]:
    """By route and status."""
    lines = re.findall(r'^nlrn_requests_total{route="(.*)",status="(\d+)"} (\S+)$', client.get("/metrics").text, re.M)
    return Counter({(route, int(status)): int(float(n)) for route, status, n in lines})


def shown(running: Service, request: str) -> bytes:
    """All that is said to these bytes."""
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            connection.sendall(request.encode("latin-1"))
        return connection.makefile("rb").read()


@pytest.mark.parametrize(
    ("request_", "route", "status"),
    [
        (f"{GET}Host: evil.example\r\nConnection: close\r\n\r\n", "guard", 400),
        (f"GET http://evil.example/ HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n", "guard", 400),
        (f"{GET}{HOST}Origin: http://evil.example\r\nConnection: close\r\n\r\n", "guard", 400),
        (f"{POST}{HOST}{FORM}Content-Length: 100001\r\n\r\n", "guard", 413),
        (f"{POST}{HOST}{FORM}Content-Length: 10\r\n\r\n", "/v1/denoise", 408),
        (f"{POST}{HOST}Content-Type: text/x\r\nConnection: close\r\n\r\n", "/v1/denoise", 415),
        ("nonsense\r\n\r\n", "connection", 400),
        (f"{GET}{HOST}{HOST}\r\n", "connection", 400),
        (f"{GET}{HOST}", "connection", 408),
        (f"GET /none HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n", "other", 404),
        (f"DELETE /healthz HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n", "/healthz", 405),
        (f"HEAD /healthz HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n", "/healthz", 200),
        (f"GET /v1/progress/x HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n", "/v1/progress/{watch}", 422),
    ],
)
def test_a_refusal_is_counted_once(
    running: Service, client: httpx.Client, request_: str, route: str, status: int
) -> None:
    before = counted(client)
    assert shown(running, request_).split()[1] == b"%d" % status
    after = counted(client)
    after.subtract(before)
    assert +after == {(route, status): 1, ("/metrics", 200): 1}


def test_a_connection_too_many_is_told_and_counted(running: Service, client: httpx.Client) -> None:
    before = counted(client)
    for _ in range(10):  # idle ones are closed after a second, which a busy machine may need for all of this
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            assert client.get("/healthz").status_code == 200  # by the connection that is there
            head, _, body = shown(running, "").partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 503 "):
            break
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in head
    assert b'"limit": "connections"' in body
    assert _soon(client, before, "connection", 503) == 1


def test_who_goes_away_is_counted_as_such(running: Service, client: httpx.Client) -> None:
    before = counted(client)
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(f"{POST}{HOST}{FORM}Content-Length: 10\r\n\r\n".encode())
        time.sleep(0.2)  # before that it is no request yet
    assert _soon(client, before, "/v1/denoise", 499) == 1
    assert {route for route, _ in counted(client) - before} == {"/v1/denoise", "/metrics"}


def _soon(client: httpx.Client, before: Counter[tuple[str, int]], route: str, status: int) -> int:
    """How many more of these answers are counted than before, once any is."""
    until = time.monotonic() + 20
    while not (more := (counted(client) - before)[route, status]) and time.monotonic() < until:
        time.sleep(0.05)
    return more


def test_no_client_makes_up_a_label(running: Service, client: httpx.Client, tmp_path: Path) -> None:
    """Whatever is made up: methods, paths, hosts, fields, protocols."""
    data = image_file(tmp_path / "p.png").read_bytes()
    client.get("/healthz"), client.get("/no-such-path")  # what is known before
    client.post("/v1/denoise", files={"image": data}, data={"wrong": "1"})
    shown(running, f"{GET}Host: evil.example\r\nConnection: close\r\n\r\n"), shown(running, "nonsense\r\n\r\n")
    before = client.get("/metrics").text
    for i in range(5):
        client.request(f"MADE{i}UP", f"/made-{i}-up", headers={"host": "localhost"})
        client.get("/healthz", headers={"host": f"made-{i}-up.example"})
        client.get("/healthz", headers={"origin": f"http://made-{i}-up.example"})
        client.post("/v1/denoise", files={"image": data}, data={f"made-{i}-up": "1", "model": f"made-{i}-up"})
        shown(running, f"GET /made-{i}-up MADE/{i}\r\n\r\n")
    after = client.get("/metrics").text
    assert "made-" not in after.lower()
    names = [re.sub(r" \S+$", "", text, flags=re.M) for text in (before, after)]
    assert names[0] == names[1]
