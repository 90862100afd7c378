"""Where a request ends, what is held of it, and how many connections there is room for."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from webserver import Service, image_file, service

from nlrn.errors import BackendError
from nlrn.web import limits

MIB = 1 << 20
SERVE = ("--held-bytes", str(256 * MIB))
HOST = b"Host: 127.0.0.1\r\n"


def part(name: str, content: bytes, file: str = "") -> bytes:
    end = f'; filename="{file}"' if file else ""
    return b'--edge\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (
        name.encode(),
        end.encode(),
        content,
    )


@pytest.fixture(scope="module")
def form(folder: Path) -> bytes:
    """An image, then options: what is cut off at the end would be one of these."""
    data = image_file(folder / "cut.png", size=(12, 9)).read_bytes()
    return part("image", data, "a.png") + part("sigma", b"5") + part("model", b"toy") + b"--edge--\r\n"


def sent(client: httpx.Client, body: bytes, *, chunked: bool = False) -> httpx.Response:
    content = iter([body[:50], body[50:]]) if chunked else body
    return client.post("/v1/denoise", content=content, headers={"content-type": "multipart/form-data; boundary=edge"})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_form_is_taken_whole_or_not_at_all(client: httpx.Client, form: bytes, chunked: bool) -> None:
    """Cut anywhere, it is 400: the options behind the cut are missing, and what is left was not requested."""
    end = form.rindex(b"--edge--")
    assert sent(client, form, chunked=chunked).status_code == 200
    assert sent(client, form[: end + 8], chunked=chunked).status_code == 200  # the last end of line belongs to no field
    starts = [form.index(b"--edge", 1), form.index(b'"sigma"'), form.rindex(b"--edge\r\n", 0, end), end - 1, end]
    for cut in (*starts, end + 1, end + 6, end + 7):
        answer = sent(client, form[:cut], chunked=chunked)
        assert answer.status_code == 400, (cut, answer.text)
        assert "boundary" in answer.json()["error"] or "cannot be read" in answer.json()["error"]
    assert sent(client, form + b"what mail programs put here\r\n").status_code == 200  # the standard's epilogue


def answers(running: Service, request: bytes) -> tuple[list[int], bytes]:
    """The status codes that come until the service closes, and all that came; a client that waits for the end."""
    got = b""
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(request)
        while piece := connection.recv(65536):
            got += piece
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+)", got)], got


@pytest.mark.parametrize(
    ("first", "lengths"),
    [
        (b"POST /v1/denoise HTTP/1.1", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        (b"POST /v1/denoise HTTP/1.1", b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
        (b"POST /v1/preview HTTP/1.1", b"Content-Length: 5\r\ntransfer-encoding: CHUNKED\r\n"),
        (b"GET /healthz HTTP/1.1", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        (b"GET /nowhere HTTP/1.1", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        (b"POST /v1/denoise HTTP/1.0", b"Transfer-Encoding: chunked\r\n"),
        (b"POST /v1/denoise HTTP/1.1", b"Content-Length: 5\r\nContent-Length: 6\r\n"),
        (b"POST /v1/denoise HTTP/1.1", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    ],
)
def test_a_body_of_two_lengths_ends_the_connection(running: Service, first: bytes, lengths: bytes) -> None:
    """What is behind it is read as no request: another server between may take it for the body."""
    head = first + b"\r\n" + HOST + b"Content-Type: multipart/form-data; boundary=a\r\n" + lengths + b"\r\n"
    behind = b"0\r\n\r\nGET /healthz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    codes, got = answers(running, head + behind)
    assert len(codes) == 1
    assert codes[0] in (400, 501)
    assert b'"status"' not in got


def test_one_length_is_no_trouble(running: Service) -> None:
    behind = b"GET /healthz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    for lengths, body in ((b"Content-Length: 0\r\n", b""), (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n")):
        codes, _ = answers(running, b"GET /healthz HTTP/1.1\r\n" + HOST + lengths + b"\r\n" + body + behind)
        assert codes == ([200, 200] if b"Content" in lengths else [200])  # chunks are not waited for by a GET


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell what a process holds")
@pytest.mark.parametrize(
    ("count", "size"), [(4, 31), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((7, 20), (14, 10)))]
)
def test_what_waits_is_held_once(folder: Path, count: int, size: int) -> None:
    """Bodies whose jobs wait behind another: what the service grows by is what it counts."""
    large = image_file(folder / "large.png", size=(1500, 1500)).read_bytes()
    with service(folder, *SERVE) as running:

        def resident() -> float:
            return int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]) * 4096 / MIB

        def post(data: bytes, *fields: bytes) -> socket.socket:
            body = part("image", data, "a") + b"".join(fields) + b"--edge--\r\n"
            kind = b"Content-Type: multipart/form-data; boundary=edge\r\n"
            connection = socket.create_connection(("127.0.0.1", running.port), timeout=60)
            head = b"POST /v1/denoise HTTP/1.1\r\n" + HOST + kind + b"Content-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            return connection

        connections = [post(large, part("sigma", b"25"), part("tta", b"true"))]
        until = time.monotonic() + 30
        with running.client() as client:
            while "nlrn_worker_busy 1.0" not in client.get("/metrics").text:
                assert time.monotonic() < until
                time.sleep(0.1)
        time.sleep(1)  # what a first request makes is made
        before = resident()
        connections += [post(large[:1000] + bytes(size * MIB)) for _ in range(count)]
        with running.client() as client:
            until = time.monotonic() + 90
            held = 0.0
            while held < count * size and time.monotonic() < until:
                time.sleep(0.5)
                held = float(re.findall(r"^nlrn_held_bytes (\S+)", client.get("/metrics").text, re.M)[0]) / MIB
        until = time.monotonic() + 90
        while (grown := resident() - before) >= 1.1 * held and time.monotonic() < until:
            time.sleep(0.5)  # the last body may have been counted while its form was still being read
        for connection in connections:
            connection.close()
    assert count * size <= held <= count * size + 10
    assert grown < 1.1 * held, (grown, held)


@pytest.mark.skipif(sys.platform == "win32", reason="sockets are no files there")
@pytest.mark.parametrize(
    ("files", "begun"),
    [
        pytest.param(files, begun, marks=[pytest.mark.slow] * ((files, begun) != (56, b"GET / HT")))
        for files in (56, 128)
        for begun in (b"", b"GET / HT", b"POST /v1/denoise HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
    ],
)
def test_clients_do_not_take_the_last_file(folder: Path, files: int, begun: bytes) -> None:
    """More connections than the system allows files: the ones beyond receive an error, and the service continues."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(service(folder, "--header-seconds", "3", open_files=files))
        held = []
        for _ in range(2 * files):
            connection = socket.create_connection(("127.0.0.1", running.port), timeout=30)
            stack.enter_context(connection)
            with contextlib.suppress(OSError):  # refused already
                connection.sendall(begun)
            held.append(connection)
        until = time.monotonic() + 30
        while len(closed := [c for c in held if select.select([c], [], [], 0)[0]]) < files:
            assert time.monotonic() < until
            time.sleep(0.1)
        shown = [data for c in closed if (data := _received(c))]
        assert shown
        said = [json.loads(data.partition(b"\r\n\r\n")[2])["limit"] for data in shown]
        assert said.count("connections") >= len(said) - files  # of those that were let in, some were too slow by now
        assert "connections" in said
        until = time.monotonic() + 30  # those that hold a place will have said nothing for too long
        while not all(select.select([c], [], [], 0)[0] for c in held):
            assert time.monotonic() < until
            time.sleep(0.1)
        with running.client() as client:
            name = folder / "after.png"
            answer = client.post(
                "/v1/denoise", files={"image": image_file(name).read_bytes()}, data={"sigma": "5", "model": "toy"}
            )
            assert answer.status_code == 200, answer.text


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:  # reset: its request was not read
        return b""


@pytest.mark.skipif(limits.resource is None, reason="there is no such limit")
@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "least"),
    [(64, 64, 512, 8), (256, 256, 512, 150), (256, 4096, 512, 512), (256, 8192, 5000, 5000), (1024, 1024, 10, 10)],
)
def test_connections_fit_the_files_that_are_allowed(soft: int, hard: int, wanted: int, least: int) -> None:
    """In a process of its own; the soft limit is raised where the hard one allows."""
    code = (
        f"import resource, os; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"from nlrn.web.limits import fitting_connections\nfound, at_once = fitting_connections({wanted})\n"
        "files = [os.open('/dev/null', os.O_RDONLY) for _ in range(found + 4 * at_once + 10)]\n"
        "print(found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert least <= int(done.stdout) <= wanted


@pytest.mark.skipif(limits.resource is None, reason="there is no such limit")
def test_where_no_connection_fits_the_service_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (20, 20))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda *_: None)
    with pytest.raises(BackendError, match="ulimit -n"):
        limits.fitting_connections(512)
