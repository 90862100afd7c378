"""Requests made from the service's own document, right and wrong: every one gets an answer that the document knows."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webserver import image_file

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", "0", "-1", "1e999", "nan", "inf", "null", "[]", "{}", "../../etc/passwd", "\0", "\r\nA: b"]),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "NONE"])
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
        return st.floats(low, min(high, 4 * max(low, 0) + 4)).map(str)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z"))
    return st.sampled_from(["toy", "toy-sr", "other"])


@dataclass(frozen=True)
class Operation:
    """One of the document's: what it takes, and what it may answer."""

    path: str
    method: str
    fields: dict[str, Any]  # of its form
    parameters: dict[str, Any]  # of its path
    answers: dict[int, dict[str, Any]]  # by status: schemas by type

    def request(
        self, client: httpx.Client, values: dict[str, str], form: dict[str, str], **more: Any
    ) -> httpx.Response:
        """Sent, its parameters in their places, its answer as the document says."""
        path = self.path
        for name, value in values.items():
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        answer = client.request(self.method.upper(), path, data=form or None, **more)
        assert answer.status_code in self.answers, (self.method, path, form, answer.text)
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in self.answers[answer.status_code], (path, answer.status_code, kind)
        if kind == "application/json":
            schema = self.answers[answer.status_code][kind].get("schema", {})
            assert isinstance(answer.json(), {"array": list, "object": dict}.get(schema.get("type"), object))
            assert answer.status_code == 200 or {"error"} <= set(answer.json()) <= set(schema["properties"])
        return answer


def operations(document: dict[str, Any]) -> list[Operation]:
    """All that the document has; whatever it says in a way that is not known here fails."""
    found = []
    for path, item in document["paths"].items():
        for method, shown in item.items():
            assert set(shown) <= {"summary", "operationId", "parameters", "requestBody", "responses"}
            assert all(one["in"] == "path" for one in shown.get("parameters", []))
            form = {}
            if "requestBody" in shown:
                ((kind, body),) = shown["requestBody"]["content"].items()
                assert kind == "multipart/form-data"
                form = document["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]["properties"]
            parameters = {one["name"]: one["schema"] for one in shown.get("parameters", [])}
            answers = {int(status): one.get("content", {}) for status, one in shown["responses"].items()}
            found.append(Operation(path, method, dict(form), parameters, answers))
    return found


PIXEL = {"x": "3", "y": "4"}  # what /v1/explain requires


def test_requests_made_from_the_document(
    client: httpx.Client,
    document: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    count: Callable[[int], int],
) -> None:
    """Every operation of the document: the plainest request is right, and no other has an undocumented result."""
    data = image_file(tmp_path_factory.mktemp("images") / "p.png", size=(20, 18)).read_bytes()
    known = operations(document)
    assert {one.method for one in known} == {"get", "post"}
    sent, right = Counter[tuple[str, str]](), 0

    def one_of(operation: Operation) -> None:
        @settings(max_examples=-(-count(500) // len(known)))
        @given(st.data())
        def one(draw: st.DataObject) -> None:
            nonlocal right
            wrong = draw.draw(st.integers(0, 3)) == 0
            values = {
                name: draw.draw(HOSTILE if wrong else value(schema)) for name, schema in operation.parameters.items()
            }
            names = sorted(set(operation.fields) - {"image"})
            chosen = draw.draw(st.sets(st.sampled_from(names), max_size=5)) if names else set()
            form = {name: draw.draw(HOSTILE if wrong else value(operation.fields[name])) for name in sorted(chosen)}
            more: dict[str, Any] = {"params": draw.draw(st.dictionaries(HOSTILE, HOSTILE, max_size=2))}
            if operation.fields:
                form |= PIXEL if "x" in operation.fields and not wrong else {}
                body = data if draw.draw(st.integers(0, 5)) else draw.draw(st.binary(max_size=200))
                more["files"] = {"image": ("p.png", body)}
            answer = operation.request(client, values, form, **more)
            assert answer.status_code != 503 or answer.json()["limit"] == "deadline", answer.text
            sent[operation.path, operation.method] += 1
            right += answer.status_code == 200

        one()

    for operation in known:
        files = {"files": {"image": ("p.png", data)}} if operation.fields else {}
        values = dict.fromkeys(operation.parameters, "0123456789abcdef")
        plain = operation.request(client, values, PIXEL if "x" in operation.fields else {}, **files)
        assert plain.status_code == 200, plain.text
        one_of(operation)
    print(f"{sent.total()} requests, {right} of them right; {dict(sent)}")
    assert right > 0


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
