"""The queue before the one worker: bounded, in order, and left by whoever goes away."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from nlrn.web.limits import Limits, RefusedError
from nlrn.web.messages import Answer, Task
from nlrn.web.worker import StoppedError, Worker

RETRY_AFTER = 5  # seconds
Watched = dict[str, Any]


class Jobs:
    """Tasks one at a time, the others waiting in order. ahead: how many wait; busy: whether one is done."""

    def __init__(self, worker: Worker, limits: Limits) -> None:
        self.worker, self.limits = worker, limits
        self.ahead, self.busy, self.closing = 0, False, False
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1)
        self._watched: dict[str, Watched] = {}
        self._stop = threading.Event()
        self._waiting: set[asyncio.Task[Any]] = set()

    def check(self) -> None:
        """Raises RefusedError where no other job is taken now."""
        if self.closing:
            raise RefusedError(503, "the service is about to end")
        if self.ahead >= self.limits.queue:
            raise RefusedError(503, f"{self.ahead} jobs wait already; try again later", limit="queue")

    def watched(self, token: str) -> Watched:
        """How far the job of that token is: {"state": "unknown"}, or waiting, or running with done and total."""
        return dict(self._watched.get(token, {"state": "unknown"}))

    async def run(self, task: Task, token: str | None = None) -> tuple[Answer, float]:
        """(the answer, seconds of work). Raises RefusedError. When cancelled, the work ends at the next tile."""
        self.check()
        if token in self._watched:
            raise RefusedError(422, "that watch is taken by another job", field="watch")
        seen: Watched = {"state": "waiting"}
        if token is not None:
            self._watched[token] = seen
        try:
            await self._wait()
            try:
                return await self._work(task, seen)
            finally:
                self.busy = False
                self._turn.release()
        finally:
            if token is not None:
                del self._watched[token]

    async def _wait(self) -> None:
        """For the turn. Raises RefusedError when the service ends before it comes."""
        own = asyncio.current_task()
        assert own is not None
        self.ahead += 1
        self._waiting.add(own)
        try:
            await self._turn.acquire()
        except asyncio.CancelledError:
            if not self.closing:
                raise
            own.uncancel()
            raise RefusedError(503, "the service is about to end") from None
        finally:
            self.ahead -= 1
            self._waiting.discard(own)

    async def _work(self, task: Task, seen: Watched) -> tuple[Answer, float]:
        self.busy, self._stop = True, threading.Event()
        stop, began = self._stop, time.monotonic()

        def tick(done: int, total: int) -> None:
            seen.update(done=done, total=total)

        seen["state"] = "running"
        future = asyncio.get_running_loop().run_in_executor(self._thread, self.worker.ask, task, tick, stop)
        try:
            answer = await asyncio.wait_for(asyncio.shield(future), self.limits.job_seconds)
            return answer, time.monotonic() - began
        except TimeoutError:
            seconds = self.limits.job_seconds
            raise RefusedError(503, f"the work took longer than {seconds:g} seconds", limit="deadline") from None
        except StoppedError:
            raise RefusedError(503, "the service is about to end") from None
        finally:
            stop.set()
            while not future.done():  # the worker must be free, or gone, before the next
                with suppress(asyncio.CancelledError, Exception):
                    await asyncio.wait({future})
            if not future.cancelled():
                future.exception()  # it was looked at

    def close(self) -> None:
        """Take no more, refuse those that wait; the one under way continues."""
        self.closing = True
        for task in list(self._waiting):
            task.cancel()

    def end(self) -> None:
        """End the work that is under way too, and the worker."""
        self.closing = True
        self._stop.set()
        self.worker.kill()
        self._thread.shutdown(wait=False, cancel_futures=True)
