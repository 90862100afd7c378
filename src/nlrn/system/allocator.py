"""What glibc's allocator does with freed memory. Imports nothing of the package: the nlrn command begins with it."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process use freed memory again instead of asking the system for zeroed pages; False where it cannot.

    glibc returns every block above 32 MiB at once, and an image's feature maps are larger: the pages' faults
    take as long as the arithmetic. For this package's commands only; a library must not change its user's allocator.
    """
    return _set(mmap=1 << 30, trim=(1 << 31) - 1)


def return_freed_memory() -> bool:
    """Let this process give freed blocks of 1 MiB and more back to the system at once; False where it cannot.

    For a process that computes nothing and holds what others send: without it, a copy that is freed behind another
    block stays resident.
    """
    return _set(mmap=1 << 20, trim=1 << 20)


def _set(*, mmap: int, trim: int) -> bool:
    """Whether both thresholds, in bytes, are set now."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, mmap), mallopt(_M_TRIM_THRESHOLD, trim)])
