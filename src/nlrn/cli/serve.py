"""nlrn serve."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from nlrn.cli.shared import add_command, count, mebibytes, number
from nlrn.errors import BackendError
from nlrn.web.limits import Limits

_SECONDS = number("number of seconds", 0.1, 86400)
_LIMITS = (  # each of a field of Limits: type, sign of its value, what it is
    ("--max-pixels", count, "N", "of an image"),
    ("--max-result-pixels", count, "N", "of a result"),
    ("--max-bytes", count, "N", "of a request"),
    ("--held-bytes", count, "N", "of all requests and unread answers together"),
    ("--queue", count, "N", "jobs that may wait"),
    ("--connections", count, "N", "at once"),
    ("--header-seconds", _SECONDS, "S", "for the first lines of a request"),
    ("--body-seconds", _SECONDS, "S", "for all of its body"),
    ("--send-seconds", _SECONDS, "S", "for all of an answer to be taken"),
    ("--job-seconds", _SECONDS, "S", "for the work on one image"),
    ("--stop-seconds", _SECONDS, "S", "for work under way when asked to end"),
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
    parser.add_argument("--memory", type=mebibytes, metavar="MIB", help="memory limit in MiB (default: 4096)")
    group = parser.add_argument_group("limits")
    for option, kind, sign, words in _LIMITS:
        usual = getattr(Limits, option[2:].replace("-", "_"))
        group.add_argument(option, type=kind, default=usual, metavar=sign, help=f"{words} (default: {usual:.10g})")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BackendError(f"nlrn serve needs {error.name}: pip install 'nlrn[web]'") from error
    from nlrn.web.messages import ServiceConfig
    from nlrn.web.server import serve

    limits = Limits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)})
    config = ServiceConfig(tuple(options.model), options.device, options.memory, limits)
    return serve(config, options.host, options.port, options.allow_host)


def _port(text: str) -> int:
    return int(number("port", 0, 65535)(text))
