"""The routes."""

from __future__ import annotations

import asyncio
import email.message
import json
import pathlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Annotated, Any

from fastapi import FastAPI, Form, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from nlrn import __version__
from nlrn.io.written import WRITTEN
from nlrn.web.fields import Denoising, Explaining, Upload, Upscaling
from nlrn.web.limits import Limits, RefusedError
from nlrn.web.messages import Answer, Task
from nlrn.web.metrics import Metrics
from nlrn.web.middleware import Guard
from nlrn.web.queue import Jobs

_MAX_FIELDS = 20
_SAID = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "limit": {"type": "string"}, "field": {"type": "string"}},
    "required": ["error"],
    "additionalProperties": False,
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": _SAID}}}
    for status, what in {
        400: "a host, an origin or a form that is not taken",
        404: "nothing is at this path",
        408: "the body came too slowly",
        413: "more bytes or pixels than are taken",
        415: "not an image, or not a form",
        422: "a field or an image that is invalid",
        503: "the queue is full, the work took too long, or the service is about to end",
    }.items()
}
_OF_WORK = {status: said for status, said in _REFUSALS.items() if status != 404}
_OF_QUESTIONS: dict[int | str, dict[str, Any]] = {status: _REFUSALS[status] for status in (400, 408, 413, 503)}
_IMAGE = {kind.media: {"schema": {"type": "string", "format": "binary"}} for kind in WRITTEN.values()}


def application(jobs: Jobs, limits: Limits, hosts: Iterable[str] = ()) -> Guard:
    """The service as an ASGI application, guarded."""
    app = FastAPI(
        title="nlrn",
        version=__version__,
        description="Denoising and enlarging of images by the Non-Local Recurrent Network.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = _Route
    metrics = Metrics(jobs)
    _say_refusals(app)
    _add_work(app, jobs, metrics)
    _add_questions(app, jobs, metrics, limits)
    _add_page(app)
    return Guard(app, limits, metrics, hosts)


def _add_work(app: FastAPI, jobs: Jobs, metrics: Metrics) -> None:
    responses = {200: {"description": "the image's file", "content": _IMAGE}, **_OF_WORK}
    seen = {"description": "the image as a PNG", "content": {"image/png": _IMAGE["image/png"]}}

    async def done(request: Request, kind: str, form: Upload) -> Response:
        jobs.check()
        options = form.model_dump(exclude={"image", "watch"})
        task = Task(kind, await form.image.read(), options)
        await form.image.close()  # the form's own copy: the guard counts one
        answer, seconds = await _while_there(request, jobs.run(task, getattr(form, "watch", None)))
        metrics.seconds.labels(kind).observe(seconds)
        return Response(answer.content, media_type=answer.media, headers=answer.headers)

    @app.post("/v1/denoise", response_class=Response, responses=responses, summary="Remove noise")
    async def denoise(request: Request, form: Annotated[Denoising, Form(media_type=_FORM)]) -> Response:
        return await done(request, "denoise", form)

    @app.post("/v1/upscale", response_class=Response, responses=responses, summary="Enlarge")
    async def upscale(request: Request, form: Annotated[Upscaling, Form(media_type=_FORM)]) -> Response:
        return await done(request, "upscale", form)

    @app.post("/v1/preview", response_class=Response, responses={**_OF_WORK, 200: seen}, summary="A PNG of 8 bits")
    async def preview(request: Request, form: Annotated[Upload, Form(media_type=_FORM)]) -> Response:
        return await done(request, "preview", form)

    @app.post("/v1/explain", responses=_OF_WORK, summary="The pixels that a pixel attends to, state by state")
    async def explain(request: Request, form: Annotated[Explaining, Form(media_type=_FORM)]) -> Response:
        return await done(request, "explain", form)


def _add_questions(app: FastAPI, jobs: Jobs, metrics: Metrics, limits: Limits) -> None:
    text: dict[int | str, Any] = {200: {"description": "Prometheus' text", "content": {"text/plain": {}}}}
    by_word = {**_OF_QUESTIONS, 404: _REFUSALS[404], 422: _REFUSALS[422]}

    @app.get("/v1/models", responses=_OF_QUESTIONS, summary="The models that are offered")
    async def models() -> list[dict[str, str | int]]:
        return jobs.worker.models

    @app.get("/v1/limits", responses=_OF_QUESTIONS, summary="The largest image, result and request that are taken")
    async def largest() -> dict[str, int]:
        return {name: getattr(limits, name) for name in ("max_pixels", "max_result_pixels", "max_bytes")}

    @app.get("/v1/progress/{watch}", responses=by_word, summary="How far the job is that was sent with that word")
    async def progress(watch: Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{16,64}$")]) -> dict[str, Any]:
        return jobs.watched(watch)

    @app.get("/healthz", responses=_OF_QUESTIONS, summary="Whether the service is there")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/metrics", response_class=Response, responses={**_OF_QUESTIONS, **text}, summary="For Prometheus")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


_PAGE = pathlib.Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


def _add_page(app: FastAPI) -> None:
    """The files of the page, read once and served by name, "/" for the page; no other path leads to a file."""

    def handler(content: bytes, media: str) -> Callable[[], Coroutine[Any, Any, Response]]:
        async def file() -> Response:
            return Response(content, media_type=media)

        return file

    for file in sorted(path for path in _PAGE.rglob("*") if path.suffix in _TYPES):
        path = f"/{file.relative_to(_PAGE).as_posix()}".replace("/index.html", "/")
        app.get(path, response_class=Response, include_in_schema=False)(handler(file.read_bytes(), _TYPES[file.suffix]))


# -- requests ------------------------------------------------------------------------------------------------------

_FORM = "multipart/form-data"
_FORMER_FIELD = "picture"  # of the image in requests to 0.2  # codespell:ignore


class _InMemory(MultiPartParser):
    """complete: the closing boundary was there. What it is missing from was cut, and may lack fields."""

    spool_max_size = 1 << 30  # an image is never put on a disk; the guard has counted it
    complete = False

    def on_end(self) -> None:
        self.complete = True


class _Route(APIRoute):
    """Reads the form within its limits."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        usual = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method == "POST":
                request._form = await _form(request)
            return await usual(request)

        return handle


async def _form(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise RefusedError(415, f"expected {_FORM} with the field image", field="Content-Type")
    charset = email.message.Message()  # of its own choice a client could have fields decoded by codecs that take hours
    charset["content-type"] = request.headers["content-type"]
    if str(charset.get_param("charset", "utf-8")).lower() not in ("utf-8", "utf8"):
        raise RefusedError(415, "fields are read as UTF-8 only", field="Content-Type")
    try:
        parser = _InMemory(request.headers, request.stream(), max_files=1, max_fields=_MAX_FIELDS)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        raise RefusedError(400, f"the form cannot be read: {error}") from error
    if not parser.complete:
        await form.close()
        raise RefusedError(400, "the form ends before its closing boundary: send all of it")
    twice = sorted({name for name, _ in form.multi_items() if len(form.getlist(name)) > 1})
    if twice:
        raise RefusedError(422, f"{twice[0][:80]} is given more than once", field=twice[0][:80])
    if _FORMER_FIELD in form and "image" not in form:
        return FormData([("image" if name == _FORMER_FIELD else name, value) for name, value in form.multi_items()])
    return form


async def _while_there(request: Request, work: Coroutine[Any, Any, tuple[Answer, float]]) -> tuple[Answer, float]:
    """What the work gives. When the client goes away, or this is cancelled, so is the work."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# -- refusals ------------------------------------------------------------------------------------------------------


_UNROUTED = {404: "there is nothing at this path", 405: "this path is not for that method"}


def _json(said: dict[str, Any], status: int, headers: Any = None) -> Response:
    """In ASCII, whatever a client made up."""
    return Response(json.dumps(said), status, headers, media_type="application/json")


def _say_refusals(app: FastAPI) -> None:
    async def refused(request: Request, error: Any) -> Response:
        return _json(error.said, error.status)

    async def gone(request: Request, error: Any) -> Response:
        return _json({"error": "the client went away"}, 499)  # unread

    async def invalid(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:2]) or "form"
        words = "expected the bytes of a file" if field == "image" else first["msg"]
        return _json({"error": f"{field}: {words}"[:300], "field": field[:80]}, 422)

    async def other(request: Request, error: Any) -> Response:
        headers = dict(error.headers or {})
        if "GET" in headers.get("Allow", ""):  # the guard makes a GET of a HEAD
            headers["Allow"] = "GET, HEAD"
        return _json({"error": _UNROUTED.get(error.status_code, str(error.detail))}, error.status_code, headers)

    async def failed(request: Request, error: Exception) -> Response:
        raise error  # to the guard, which answers; the framework would with a 500

    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
