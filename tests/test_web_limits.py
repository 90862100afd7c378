"""What the service refuses, with which code, and that it says it as one JSON object."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from imagefiles import png
from PIL import Image
from webserver import Service, image_file

ROUTES = ("/v1/denoise", "/v1/upscale", "/v1/preview", "/v1/explain")
MIB = 1 << 20
SERVE = ("--allow-host", "Images.example", "--max-result-pixels", "20000")


@pytest.fixture(scope="module")
def small(folder: Path) -> bytes:
    return image_file(folder / "small.png", size=(16, 12)).read_bytes()


def refused(answer: httpx.Response, status: int, **said: str) -> str:
    """The sentence of a refusal; the object beside it must hold what is expected."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert {key: found[key] for key in said} == said
    assert found["error"]
    assert "\n" not in found["error"]
    assert set(found) <= {"error", "limit", "field"}
    return str(found["error"])


def post(client: httpx.Client, data: bytes, path: str = "/v1/denoise", **fields: str) -> httpx.Response:
    extra = {"x": "1", "y": "1"} if path == "/v1/explain" else {}
    return client.post(path, files={"image": ("p.png", data)}, data=extra | fields)


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_no_image_is_415_and_what_is_damaged_422(client: httpx.Client, small: bytes, path: str) -> None:
    refused(post(client, b"no image", path), 415)
    refused(post(client, b"", path), 415)
    assert "truncated" in refused(post(client, small[:-20], path), 422)
    refused(client.post(path, json={"image": "http://example.org/a.png"}), 415, field="Content-Type")
    refused(client.post(path, content=small, headers={"content-type": "image/png"}), 415)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sigma": "76"}, "sigma"),
        ({"sigma": "nan"}, "sigma"),
        ({"sigma": "much"}, "sigma"),
        ({"strength": "1.1"}, "strength"),
        ({"strength": "inf"}, "strength"),
        ({"model": "denoise-grey"}, "model"),
        ({"model": "../toy"}, "model"),
        ({"model": "/etc/passwd"}, "model"),
        ({"model": "toy.safetensors"}, "model"),
        ({"format": "gif"}, "format"),
        ({"format": "../../x"}, "format"),
        ({"depth": "12"}, "depth"),
        ({"mode": "whole"}, "mode"),
        ({"tile": "-1"}, "tile"),
        ({"tta": "perhaps"}, "tta"),
        ({"gain": "4"}, "noise"),
        ({"noise": "poisson", "read_noise": "2"}, "gain"),
        ({"noise": "poisson", "gain": "4", "sigma": "5"}, "gain"),
        ({"watch": "../../../etc/passwd"}, "watch"),
        ({"url": "http://example.org/a.png"}, "url"),
        ({"output": "/tmp/x.png"}, "output"),
    ],
    ids=lambda value: str(value),
)
def test_a_field_that_makes_no_sense_is_named(
    client: httpx.Client, small: bytes, fields: dict[str, str], field: str
) -> None:
    refused(post(client, small, **fields), 422, field=field)


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "utf-16", "nonsense"])
def test_fields_are_read_as_utf_8_alone(client: httpx.Client, small: bytes, charset: str) -> None:
    """Other codecs take time with the square of the length, or make what no answer can repeat."""
    head = f"multipart/form-data; boundary=BB; charset={charset}"
    field = 'Content-Disposition: form-data; name="model"\r\n\r\n' + "a" * 200_000 + "-" + "a" * 200_000
    started = time.monotonic()
    answer = client.post("/v1/denoise", content=f"--BB\r\n{field}\r\n--BB--\r\n", headers={"content-type": head})
    refused(answer, 415, field="Content-Type")
    assert time.monotonic() - started < 30
    twice = 'Content-Disposition: form-data; name="\\ud800"\r\n\r\n1'
    body = f"--BB\r\n{twice}\r\n--BB\r\n{twice}\r\n--BB--\r\n"
    refused(client.post("/v1/denoise", content=body, headers={"content-type": head}), 415)
    whole = client.build_request("POST", "/v1/denoise", files={"image": ("p.png", small)}, data={"sigma": "25"})
    assert client.post(
        "/v1/denoise",
        content=whole.read(),
        headers={"content-type": whole.headers["content-type"] + '; charset="UTF-8"'},
    ).is_success


def test_a_scale_beside_a_side_is_422(client: httpx.Client, small: bytes) -> None:
    assert "not both" in refused(post(client, small, "/v1/upscale", scale="2", width="32", model="toy-sr"), 422)


def test_other_things_that_cannot_be_are_422(client: httpx.Client, small: bytes) -> None:
    refused(post(client, small, "/v1/upscale", scale="1.2"), 422, field="scale")
    refused(post(client, small, "/v1/upscale", scale="2", model="toy"), 422)  # of another task
    refused(post(client, small, "/v1/denoise", model="toy-sr"), 422)
    refused(post(client, small, depth="16", format="jpg"), 422)
    refused(post(client, small, tile="8", overlap="8"), 422)
    refused(client.post("/v1/denoise", data={"sigma": "5"}, files={"other": b"x"}), 422)


def test_an_image_is_a_file_once(client: httpx.Client, small: bytes) -> None:
    """Neither an address, nor two files."""
    address = client.post("/v1/denoise", files={"image": (None, "http://example.org/a.png")})
    refused(address, 422, field="image")
    refused(client.post("/v1/denoise", files=[("image", ("a.png", small))] * 2), 400)
    refused(post(client, small, **{f"f{i}": "1" for i in range(40)}), 400)
    parts = [("image", ("a.png", small)), ("sigma", (None, "1")), ("sigma", (None, "2"))]
    twice = client.post("/v1/denoise", files=parts)
    refused(twice, 422, field="sigma")


def test_a_form_that_is_broken_is_400(client: httpx.Client) -> None:
    kinds = ("multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="x')
    for kind in (*kinds, "multipart/form-data; boundary=x"):
        for body in (b"", b"--x\r\nnothing", b"--x\r\n\r\n\r\n--x--", b"\0" * 1000):
            answer = client.post("/v1/denoise", content=body, headers={"content-type": kind})
            assert answer.status_code in (400, 422), (kind, body, answer.text)
            assert "error" in answer.json()


@pytest.mark.parametrize(
    "name",
    ["../../../../tmp/nlrn-was-here.png", "/tmp/nlrn-was-here.png", "..\\nlrn-was-here.png", "a\0b.png", "x" * 5000],
)
def test_a_name_that_looks_like_a_path_is_nothing(client: httpx.Client, small: bytes, name: str) -> None:
    files = {"image": (name, small)}
    answer = client.post("/v1/denoise", files=files, data={"model": "toy", "sigma": "5"})
    plain = post(client, small, model="toy", sigma="5")
    if len(name) > 4096:  # a header of the form has a limit
        assert answer.status_code == 400
        assert "the form cannot be read" in answer.json()["error"]
    else:
        assert answer.status_code == 200, (name, answer.text)
        assert answer.content == plain.content
    assert not Path("/tmp/nlrn-was-here.png").exists()
    assert not list(Path.cwd().rglob("nlrn-was-here*"))


def test_pixels_frames_and_the_size_of_a_result_are_limits(client: httpx.Client, small: bytes, folder: Path) -> None:
    began = time.monotonic()
    bomb = png(6000, 5000, 1, 0, (b"\0" * 751) * 5000)
    assert "25,000,000" in refused(post(client, bomb), 413, limit="pixels")
    assert "--max-pixels" in post(client, bomb).json()["error"]
    large = refused(post(client, small, "/v1/upscale", scale="16"), 413, limit="result")
    assert "20,000 (nlrn serve --max-result-pixels)" in large
    frames = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in (0, 90)]
    frames[0].save(folder / "two.gif", save_all=True, append_images=frames[1:])
    assert "stacks are for the command line: nlrn denoise FILE" in refused(
        post(client, (folder / "two.gif").read_bytes()), 422, limit="frames"
    )
    assert time.monotonic() - began < 30


def test_a_body_is_counted_on_the_stream(client: httpx.Client, running: Service) -> None:
    declared = client.post("/v1/denoise", content=b"x" * (33 * MIB), headers={"content-type": "multipart/form-data"})
    refused(declared, 413, limit="bytes")

    def pieces() -> Iterator[bytes]:  # no Content-Length: sent in chunks
        yield b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(36):
            yield b"x" * MIB

    kind = {"content-type": "multipart/form-data; boundary=x"}
    refused(client.post("/v1/denoise", content=pieces(), headers=kind), 413, limit="bytes")
    assert client.get("/healthz").status_code == 200


def test_a_client_that_never_ends_is_told_and_cut_off(running: Service) -> None:
    """400 MiB in chunks: 413 while it is still sending, and soon after that the connection is closed."""
    begun = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
    chunk, sent, heard = b"x" * MIB, 0, b""
    with socket.create_connection(("127.0.0.1", running.port)) as connection, contextlib.suppress(OSError):
        connection.settimeout(20)
        head = "POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"%x\r\n%s\r\n" % (len(begun), begun))
        while sent < 400 * MIB:  # until it is reset, or the pipe is broken
            connection.sendall(b"%x\r\n%s\r\n" % (MIB, chunk))
            sent += MIB
            if not heard and select.select([connection], [], [], 0)[0]:
                heard = connection.recv(4096)
    assert heard.startswith(b"HTTP/1.1 413")
    assert 32 * MIB <= sent < 120 * MIB


BEGUN = b'--x\r\ncontent-disposition: form-data; name="image"; filename="'


@pytest.mark.parametrize(
    "body",
    [
        BEGUN + b'a"\r\n\r\n' + b"\r\n" * (15 * MIB),
        BEGUN + b'a"\r\n\r\n' + b"\r\n-" * (10 * MIB),
        BEGUN + b'\\"' * (15 * MIB),
        b"--x\r\n" + b"a" * (31 * MIB),
        b"--x\r\n" + b"a: b\r\n" * (5 * MIB),
        (b'--x\r\ncontent-disposition: form-data; name="f"\r\n\r\n\r\n') * (MIB // 2),
    ],
    ids=["ends of lines", "nearly ends", "name", "header", "headers", "parts"],
)
def test_a_form_that_is_made_to_keep_the_service_busy_does_not(client: httpx.Client, body: bytes) -> None:
    began = time.monotonic()
    answer = client.post("/v1/denoise", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 422)
    assert time.monotonic() - began < 30  # a fifth of a second each, on a quiet machine


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]"])
def test_another_host_is_refused_everywhere(client: httpx.Client, host: str) -> None:
    for path in ("/", "/healthz", "/v1/models", "/openapi.json", "/metrics", "/none"):
        refused(client.get(path, headers={"host": host}), 400, field="Host")


def test_the_hosts_that_are_allowed(client: httpx.Client, running: Service) -> None:
    for host in ("localhost", f"127.0.0.1:{running.port}", "images.example", "IMAGES.example:443", "[::1]:80"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://", "https://images"])
def test_a_page_of_another_origin_is_refused(client: httpx.Client, small: bytes, origin: str) -> None:
    answer = client.post("/v1/preview", files={"image": small}, headers={"origin": origin})
    refused(answer, 400, field="Origin")
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_origin_is_not(client: httpx.Client, running: Service, small: bytes) -> None:
    for host, origin in ((f"localhost:{running.port}", None), ("images.example", "https://images.example")):
        headers = {"host": host, "origin": origin or f"http://{host}"}
        assert client.post("/v1/preview", files={"image": small}, headers=headers).status_code == 200


def test_every_answer_tells_the_browser_to_be_careful(client: httpx.Client, small: bytes) -> None:
    answers = [client.get(path) for path in ("/healthz", "/v1/models", "/openapi.json", "/metrics", "/none")]
    answers += [client.request(method, "/v1/denoise") for method in ("GET", "OPTIONS", "DELETE", "TRACE")]
    answers += [client.get("/healthz", headers={"host": "evil.example"}), post(client, small, model="toy")]
    answers += [post(client, b"x"), client.post("/v1/denoise", content=b"x" * (33 * MIB))]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
        if answer.status_code >= 400:
            assert set(answer.json()) <= {"error", "limit", "field"}


def raw(running: Service, request_: bytes) -> tuple[int, bytes]:
    """The status and the body of the answer to those bytes."""
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.settimeout(20)
        connection.sendall(request_)
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    return int(head.split()[1]), body


PLACES = ("/", "/healthz", "/v1/models", "/v1/progress/0123456789abcdef", "/metrics", "/openapi.json")


@pytest.mark.parametrize("path", PLACES)
def test_a_path_tells_which_methods_it_is_for(client: httpx.Client, path: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONE"):
        answer = client.request(method, path)
        refused(answer, 405)
        assert answer.headers["allow"].split(", ") == ["GET", "HEAD"]


@pytest.mark.parametrize("path", ROUTES)
def test_what_takes_an_image_is_for_post(client: httpx.Client, path: str) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        answer = client.request(method, path)
        refused(answer, 405)
        assert answer.headers["allow"] == "POST"
    assert client.head(path).status_code == 405


@pytest.mark.parametrize("path", ["/none", "/v1", "/v1/denoise/", "/v1/progress/", "/V1/models", "//healthz"])
def test_where_nothing_is_it_says_so(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        refused(client.request(method, str(client.base_url) + path), 404)


@pytest.mark.parametrize("path", [*PLACES, "/none", "/v1/progress/short", "/v1/denoise"])
def test_head_is_get_without_the_body(client: httpx.Client, running: Service, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    own = ("date", "content-length") if path == "/metrics" else ("date",)  # which tells of the one before
    assert head.status_code == whole.status_code
    assert {k: v for k, v in head.headers.items() if k not in own} == {
        k: v for k, v in whole.headers.items() if k not in own
    }
    assert int(head.headers["content-length"]) > 0
    lines = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert raw(running, lines.encode()) == (whole.status_code, b"")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://127.0.0.1:PORT/healthz", "127.0.0.1:PORT", 200),
        ("HTTP://Images.example/healthz?a", "localhost", 200),
        ("https://[::1]/%68ealthz", "localhost", 200),
        ("http://localhost/none", "localhost", 404),
        ("http://localhost", "localhost", 200),
        ("http://localhost/healthz", "evil.example", 200),  # RFC 9112, 3.2.2: the target's counts, not Host's
        ("http://evil.example/healthz", "localhost", 400),
        ("http://localhost@evil.example/healthz", "localhost", 400),
        ("http://localhost:80@evil.example/healthz", "localhost", 400),
        ("http:///healthz", "localhost", 400),
        ("ftp://localhost/healthz", "localhost", 404),
        ("/healthz", "localhost:evil.example", 400),
        ("/healthz", "localhost:80:evil.example", 400),
    ],
)
def test_the_authority_of_a_target_counts_as_the_host(running: Service, target: str, host: str, status: int) -> None:
    lines = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    found, body = raw(running, lines.replace("PORT", str(running.port)).encode())
    assert found == status, body
    assert status != 400 or json.loads(body)["field"] == "Host"


def test_an_origin_is_held_against_the_targets_authority(running: Service) -> None:
    lines = "GET http://images.example/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: "
    assert raw(running, f"{lines}http://images.example\r\n\r\n".encode())[0] == 200
    assert raw(running, f"{lines}http://localhost\r\n\r\n".encode())[0] == 400


def test_a_target_may_stand_for_a_host_that_is_missing(running: Service) -> None:
    assert raw(running, b"GET http://localhost/healthz HTTP/1.0\r\n\r\n")[0] == 200
    assert raw(running, b"GET http://evil.example/healthz HTTP/1.0\r\n\r\n")[0] == 400


@pytest.mark.parametrize("second", ["http://localhost", "http://evil.example", ""])
def test_two_origins_or_hosts_are_refused(running: Service, second: str) -> None:
    ours = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert raw(running, f"{ours}Origin: http://localhost\r\n\r\n".encode())[0] == 200
    for first, last in (("http://localhost", second), (second, "http://localhost")):
        status, body = raw(running, f"{ours}Origin: {first}\r\nOrigin: {last}\r\n\r\n".encode())
        assert status == 400
        assert json.loads(body) == {"error": "more than one Origin", "field": "Origin"}
    for host in ("localhost", "evil.example"):
        status, body = raw(running, f"{ours}Host: {host}\r\n\r\n".encode())
        assert status == 400
        assert "error" in json.loads(body)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/samples/../app.py",
        "//etc/passwd",
        "/page/",
        "/app.py",
        "/healthz/",
    ],
)
def test_no_path_leads_to_a_file_that_is_not_the_page(running: Service, path: str) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert connection.makefile("rb").readline().split()[1] == b"404"


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000,
    ],
)
def test_what_is_no_http_is_400(running: Service, request_: bytes) -> None:
    status, body = raw(running, request_)
    assert status == 400
    assert body.startswith(b'{"error"')
