"""nlrn serve."""

from __future__ import annotations

import argparse
from typing import Any

from nlrn.cli.shared import add_command, count, mebibytes, number
from nlrn.errors import BackendError

_LIMITS = (  # option, field of Limits, type, usual value and what it is
    ("--max-pixels", "max_pixels", count, "of an image (default: 25000000)"),
    ("--max-result-pixels", "max_result_pixels", count, "of a result (default: 100000000)"),
    ("--max-bytes", "max_bytes", count, "of a request (default: 33554432)"),
    ("--held-bytes", "held_bytes", count, "of all requests and unread answers together (default: 1073741824)"),
    ("--queue", "queue", count, "jobs that may wait (default: 16)"),
    ("--connections", "connections", count, "at once (default: 512)"),
)
_DEADLINES = (
    ("--header-seconds", "header_seconds", "for the first lines of a request (default: 10)"),
    ("--body-seconds", "body_seconds", "for all of its body (default: 60)"),
    ("--send-seconds", "send_seconds", "for all of an answer to be taken (default: 300)"),
    ("--job-seconds", "job_seconds", "for the work on one image (default: 600)"),
    ("--stop-seconds", "stop_seconds", "for work under way when asked to end (default: 10)"),
)

EXAMPLES = """
nlrn serve                                          then open http://127.0.0.1:8000
nlrn serve --model mine.safetensors --port 8080
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn serve` to the subparsers of argparse."""
    parser = add_command(commands, "serve", "a page and an HTTP service on this machine", EXAMPLES)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8000, help="default: 8000; 0: a free one")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="one more name that clients may call it by"
    )
    parser.add_argument(
        "--model", action="append", default=[], metavar="FILE", help="weights to offer in addition to the shipped ones"
    )
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--memory", type=mebibytes, metavar="MIB", help="what a computation may take (default: 4096)")
    group = parser.add_argument_group("limits")
    for option, field, kind, words in _LIMITS:
        group.add_argument(option, dest=field, type=kind, metavar="N", help=words)
    for option, field, words in _DEADLINES:
        group.add_argument(option, dest=field, type=_seconds, metavar="S", help=words)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BackendError(f"nlrn serve needs {error.name}: pip install 'nlrn[web]'") from error
    from nlrn.web.limits import Limits
    from nlrn.web.messages import ServiceConfig
    from nlrn.web.server import serve

    names = [field for _, field, *_ in (*_LIMITS, *_DEADLINES)]
    limits = Limits(**{name: getattr(options, name) for name in names if getattr(options, name) is not None})
    config = ServiceConfig(tuple(options.model), options.device, options.memory, limits)
    return serve(config, options.host, options.port, options.allow_host)


def _port(text: str) -> int:
    return int(number(text, "port", 0, 65535))


def _seconds(text: str) -> float:
    return number(text, "number of seconds", 0.1, 86400)
