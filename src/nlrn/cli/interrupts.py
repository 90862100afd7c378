"""Ctrl-C that is not lost: compiled code that clears errors can drop the exception."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class InterruptHandler:
    """A context that handles SIGINT in place of Python's handler, and records that it arrived.

    It raises KeyboardInterrupt as usual. Where torch drops that, `check_interrupt`, called after each tile, raises it
    again.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal: raises KeyboardInterrupt."""
        self.came = True
        raise KeyboardInterrupt

    def __enter__(self) -> InterruptHandler:
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def check_interrupt(done: int = 0, total: int = 0) -> None:
    """Raises KeyboardInterrupt where a Ctrl-C arrived whose exception was dropped. It can be what receives progress."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, InterruptHandler) and handler.came:
        raise KeyboardInterrupt
