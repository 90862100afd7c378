"""The service from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable

from nlrn.errors import BackendError
from nlrn.web.app import application
from nlrn.web.messages import House
from nlrn.web.protocol import server
from nlrn.web.queue import Jobs
from nlrn.web.worker import Worker


def serve(house: House, host: str, port: int, hosts: Iterable[str] = ()) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code. Says its address once it can be asked.

    port: 0 takes a free one. hosts: names beside the loopback's that clients may use. Raises ModelError for weights
    that cannot be offered, BackendError where the address cannot be had.
    """
    listening = _listening(host, port)
    worker = Worker(house)
    try:
        worker.start()
        asyncio.run(_serve(worker, house, listening, hosts))
    finally:
        worker.kill()
        listening.close()
    return 0


async def _serve(worker: Worker, house: House, listening: socket.socket, hosts: Iterable[str]) -> None:
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a client's mistake is told to the client
    jobs = Jobs(worker, house.limits)
    host, port = listening.getsockname()[:2]
    app = application(jobs, house.limits, hosts)
    ready = server(app, jobs, house.limits, host, port)
    print(f"nlrn: serving on http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
    await ready.serve([listening])


def _listening(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(512)
    except OSError as error:
        found.close()
        raise BackendError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    return found
