"""Requests made from the service's own document, right and wrong: every one gets an answer that the document knows."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webserver import picture

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", "0", "-1", "1e999", "nan", "inf", "null", "[]", "{}", "../../etc/passwd", "\0", "\r\nA: b"]),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONE"])
SERVE = ("--job-seconds", "20")


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def value(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    """Values that a field's schema allows, as a form holds them."""
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of([value(one) for one in schema[several] if one.get("type") != "null"])
    if "enum" in schema:
        return st.sampled_from([str(one) for one in schema["enum"]])
    if "const" in schema:
        return st.just(str(schema["const"]))
    kind = schema.get("type")
    if kind == "boolean":
        return st.sampled_from(["true", "false"])
    low, high = schema.get("minimum", 0), schema.get("maximum", 100)
    if kind == "integer":
        return st.integers(low, min(high, low + 64)).map(str)
    if kind == "number":
        return st.floats(low, min(high, 4 * low + 4)).map(str)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z"))
    return st.sampled_from(["toy", "toy-sr", "other"])


def fields(document: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    body = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    return dict(document["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"])


def test_requests_made_from_the_document(
    client: httpx.Client,
    document: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    count: Callable[[int], int],
) -> None:
    data = picture(tmp_path_factory.mktemp("pictures") / "p.png", size=(12, 10)).read_bytes()
    posts = [path for path, item in document["paths"].items() if "post" in item]
    right = [0]

    @settings(max_examples=count(500))
    @given(st.data())
    def one(draw: st.DataObject) -> None:
        path = draw.draw(st.sampled_from(posts))
        known = {name: schema for name, schema in fields(document, path).items() if name != "picture"}
        chosen = draw.draw(st.sets(st.sampled_from(sorted(known)), max_size=5)) if known else set()
        wrong = draw.draw(st.integers(0, 3)) == 0
        form = {name: draw.draw(HOSTILE if wrong else value(known[name])) for name in sorted(chosen)}
        if path == "/v1/explain" and not wrong:
            form |= {"x": "3", "y": "4"}
        body = data if draw.draw(st.integers(0, 5)) else draw.draw(st.binary(max_size=200))
        answer = client.post(path, files={"picture": ("p.png", body)}, data=form)
        allowed = {int(status) for status in document["paths"][path]["post"]["responses"]}
        assert answer.status_code in allowed, (path, form, answer.text)
        if answer.status_code == 200:
            right[0] += 1
            declared = document["paths"][path]["post"]["responses"]["200"]["content"]
            assert answer.headers["content-type"] in declared
        else:
            assert isinstance(answer.json()["error"], str)
        assert answer.status_code != 503 or answer.json()["limit"] == "deadline", answer.text

    one()
    assert right[0] > 0  # some of them are right


def test_requests_that_no_document_knows(client: httpx.Client, count: Callable[[int], int]) -> None:
    paths = st.one_of(
        st.sampled_from(["/", "/v1/denoise", "/v1/models", "/metrics", "/openapi.json", "/v1/progress/x", "*", "a"]),
        st.text(st.characters(codec="ascii", exclude_categories=("Cc", "Zs")), max_size=30).map("/{}".format),
    )

    @settings(max_examples=count(500))
    @given(METHODS, paths, st.binary(max_size=300), st.sampled_from(["", "multipart/form-data; boundary=x", "text/x"]))
    def one(method: str, path: str, body: bytes, kind: str) -> None:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=30)
        ) as connection:
            connection.request(method, path, body, {"content-type": kind})
            answer = connection.getresponse()
            said = answer.read()
        assert answer.status < 500, (method, path, body, said)
        if answer.status >= 400 and method != "HEAD":
            assert set(json.loads(said)) <= {"error", "limit", "field"}

    one()
