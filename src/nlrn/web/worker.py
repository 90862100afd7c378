"""The one process that computes: it can be ended at any time, and the next task gets a fresh one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, cast

from nlrn.errors import BackendError, ModelError
from nlrn.web.limits import RefusedError
from nlrn.web.messages import Answer, ServiceConfig, Task

_LOG = logging.getLogger("nlrn")
_GRACE = 2.0  # seconds that a task has to come to the end of its tile when it is asked to stop
_START = 120.0  # seconds to import torch in
_STOP = "stop"


class StoppedError(Exception):
    """The task received to stop."""


class Worker:
    """The parent's side: one task at a time, from one thread at a time."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.models: list[dict[str, str | int]] = []
        self._process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Begin the process. Raises ModelError, or BackendError where it cannot run."""
        self.kill()
        spawn = get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_run, args=(theirs, self.config, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        what, said = "failed", "the worker did not start"
        with contextlib.suppress(EOFError, OSError):
            if self._connection.poll(_START):
                what, said = self._connection.recv()
        if what != "ready":
            self.kill()
            raise (ModelError if what == "model" else BackendError)(said)
        self.models = said  # type: ignore[assignment]

    def ask(self, task: Task, tick: Callable[[int, int], None], stop: threading.Event) -> Answer:
        """The answer. Raises RefusedError, and StoppedError once `stop` is set and the process is free or gone."""
        if self._process is None or not self._process.is_alive():
            try:
                self.start()
            except (ModelError, BackendError, OSError) as error:
                raise RefusedError(503, "the process that does the work cannot be begun again") from error
        assert self._connection is not None
        try:
            self._connection.send(task)
            return self._answer(self._connection, tick, stop)
        except (EOFError, OSError) as error:
            self.kill()
            if stop.is_set():
                raise StoppedError from error
            raise RefusedError(503, "the process that did the work ended, probably out of memory") from error

    def _answer(self, connection: Connection, tick: Callable[[int, int], None], stop: threading.Event) -> Answer:
        asked = 0.0
        while True:
            if connection.poll(0.05):
                what, said = connection.recv()
                if what == "tick":
                    tick(*said)
                elif what == "stopped" or asked:
                    raise StoppedError
                elif what == "refused":
                    raise RefusedError(said[0], **said[1])
                else:
                    return cast(Answer, said)
            if stop.is_set() and not asked:
                asked = time.monotonic()
                connection.send(_STOP)
            if asked and time.monotonic() - asked > _GRACE:
                self.kill()
                raise StoppedError

    def kill(self) -> None:
        """End the process and what it started, whatever they are at."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is not None:
            with contextlib.suppress(OSError, AttributeError):  # Windows has no groups
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join(5)
        if connection is not None:
            connection.close()


# -- the process ---------------------------------------------------------------------------------------------------


def _run(connection: Connection, config: ServiceConfig, parent: int) -> None:
    import torch

    from nlrn.errors import NLRNError
    from nlrn.ops.cpu import leave_warning_to_parent, say_if_missing
    from nlrn.system.workers import begin
    from nlrn.web.handlers import Handlers, listed

    if hasattr(os, "setsid"):
        os.setsid()  # so that it is ended together with what decodes for it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if config.device == "cpu" or not torch.cuda.is_available():
        say_if_missing()
    begin(torch.get_num_threads(), parent, leave_warning_to_parent)
    try:
        handlers = Handlers(config)
    except (NLRNError, OSError) as error:
        connection.send(("model", str(error)))
        return
    connection.send(("ready", listed(handlers.offered)))
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            if task != _STOP:  # one that came after the end of its task
                connection.send(_done(handlers, task, connection))


def _done(handlers: Any, task: Any, connection: Connection) -> tuple[str, Any]:
    def progress(done: int, total: int) -> None:
        if connection.poll() and connection.recv() == _STOP:
            raise StoppedError
        connection.send(("tick", (done, total)))

    try:
        return "done", handlers.perform(task, progress)
    except StoppedError:
        return "stopped", None
    except RefusedError as refusal:
        return "refused", (refusal.status, refusal.said)
    except Exception:
        _LOG.exception("a task failed in a way that was not foreseen")
        return "refused", (503, {"error": "the work failed; the log of the service has the error"})
