"""The end of a training run by Ctrl-C or SIGTERM: between two steps, or at once outside of the steps."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """A signal requested the end. Not an Exception: no handler of errors may catch it."""


class StopRequests:
    """A context that handles SIGINT and SIGTERM; `number` is the signal that arrived, or 0.

    Inside `beside_the_steps()`, where nothing is computed that a state keeps, the signal raises Stopped at once. A
    second signal has its usual effect. In a thread other than the main one no signal arrives, and none is handled.
    """

    def __init__(self) -> None:
        self.number = 0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # a worker that ignores Ctrl-C keeps ignoring it
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()
        if self._at_once:
            raise Stopped

    @contextmanager
    def beside_the_steps(self) -> Iterator[None]:
        """Around validations and statistics, which can be interrupted at any point."""
        self._at_once = True
        try:
            if self.number:
                raise Stopped
            yield
        finally:
            self._at_once = False

    def ended(self) -> SystemExit:
        """Raise the signal again for the handler from before: KeyboardInterrupt for Ctrl-C, the end for SIGTERM.

        To be called after the context; returns what to raise where that handler returns.
        """
        sys.stdout.flush()
        signal.raise_signal(self.number)
        return SystemExit(128 + self.number)
