"""Threads after a fork: they are gone, while torch's pool still counts on them.

A process that has computed and then forks, as multiprocessing did by default on Linux up to Python 3.13, leaves its
child a pool of threads that do not exist: the child's first computation would wait for them forever. With one thread
nothing waits, so the child begins with one. Asking for more there is refused at once.
"""

from __future__ import annotations

import os

import torch

from nlrn.errors import BackendError

_computed = False  # in this process, or before the fork that made it
_forked = False  # after that


def note_computation() -> None:
    """Called before each computation. Raises BackendError where it would never end."""
    global _computed
    if _forked and torch.get_num_threads() > 1:
        raise BackendError(
            f"this process was forked from one that had computed, and is to use {torch.get_num_threads()} threads,"
            " which do not survive a fork: use multiprocessing.get_context('spawn'), or torch.set_num_threads(1)"
        )
    _computed = True


def _after_fork() -> None:
    global _forked
    if _computed:
        _forked = True
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
