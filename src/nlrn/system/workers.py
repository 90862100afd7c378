"""Worker processes that share the threads of this one and end with it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context

import torch

from nlrn.system.allocator import keep_freed_memory


@contextmanager
def pool(workers: int, first: Callable[[], None]) -> Iterator[ProcessPoolExecutor]:
    """A pool of so many fresh processes, each with a share of this one's threads; each calls `first` first.

    Only this process receives Ctrl-C; when the context ends, by an error or an interrupt too, its processes are
    terminated, whatever they do. They end by themselves when this one is killed.
    """
    threads, others = max(1, torch.get_num_threads() // workers), set(active_children())
    executor = ProcessPoolExecutor(workers, get_context("spawn"), begin, (threads, os.getpid(), first))
    try:
        yield executor
    finally:
        for process in set(active_children()) - others:
            process.terminate()
        executor.shutdown(cancel_futures=True)


def begin(threads: int, parent: int, then: Callable[[], None]) -> None:
    """Set up a worker process: so many threads, Ctrl-C ignored, and an end when the process `parent` ends."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    then()


def _end_with(parent: int) -> None:
    """A process whose parent was killed is given another."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
