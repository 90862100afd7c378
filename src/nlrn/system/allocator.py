"""Memory that is used again. Imports nothing, so that the nlrn command can begin with it."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process use freed memory again instead of asking the system for zeroed pages; False where it cannot.

    glibc returns every block above 32 MiB at once, and an image's feature maps are larger: the pages' faults
    take as long as the arithmetic. For this package's commands only; a library must not change its user's allocator.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, 1 << 30), mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)])
