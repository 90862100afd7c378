"""The service from its start to its end."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

from nlrn.errors import BackendError
from nlrn.system.allocator import return_freed_memory
from nlrn.web.app import application
from nlrn.web.limits import fitting_connections
from nlrn.web.messages import ServiceConfig
from nlrn.web.protocol import QUEUE, run
from nlrn.web.queue import Jobs
from nlrn.web.worker import Worker


def serve(config: ServiceConfig, host: str, port: int, hosts: Iterable[str] = ()) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code. Says its address once it can be asked.

    port: 0 takes a free one. hosts: names beside the loopback's that clients may use. Raises ModelError for weights
    that cannot be offered, BackendError where the address cannot be had.
    """
    return_freed_memory()  # the worker computes; here bodies come and go
    connections, at_once = fitting_connections(config.limits.connections)
    if connections < config.limits.connections:
        said = f"{connections} connections at once, not {config.limits.connections}"
        print(f"nlrn: {said}: the system allows this process no more open files (ulimit -n)", file=sys.stderr)
        config = dataclasses.replace(config, limits=dataclasses.replace(config.limits, connections=connections))
    listening = _listening(host, port)
    worker = Worker(config)
    try:
        worker.start()
        asyncio.run(_serve(worker, config, listening, hosts, at_once))
    finally:
        worker.kill()
        listening.close()
    return 0


async def _serve(
    worker: Worker, config: ServiceConfig, listening: socket.socket, hosts: Iterable[str], at_once: int
) -> None:
    asyncio.get_running_loop().set_exception_handler(_OutOfFiles())
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a client's mistake is reported to the client
    jobs = Jobs(worker, config.limits)
    host, port = listening.getsockname()[:2]
    guard = application(jobs, config.limits, hosts)
    print(f"nlrn: serving on http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
    await run(guard, jobs, listening, at_once)


class _OutOfFiles:
    """The loop's handler of errors: where the system has no file for a connection, one line now and then.

    The loop itself would log a traceback for each.
    """

    EVERY = 60.0  # seconds

    def __init__(self) -> None:
        self._said = -self.EVERY

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said >= self.EVERY:
            self._said = time.monotonic()
            logging.getLogger("nlrn").warning("a connection waits: %s", error.strerror)


def _listening(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(QUEUE)
    except OSError as error:
        found.close()
        raise BackendError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    return found
