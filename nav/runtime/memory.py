"""Keeps freed memory in the process while guiding, so that pictures and images do not fault their pages in anew.

Every pane picture (0.4 MB, about 150 a second) and every received image (0.3 MB, 30 a second) is a new array. By
default glibc takes such blocks from the kernel and gives them back when freed: hundreds of page faults per block, under
a lock that all threads of the process share.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Parameter numbers of mallopt(3), glibc.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_SETTINGS = (
    (_M_MMAP_THRESHOLD, 32 << 20),  # the largest that glibc accepts: blocks below come from the heap
    (_M_TRIM_THRESHOLD, 512 << 20),
    (_M_TOP_PAD, 16 << 20),
    (_M_ARENA_MAX, 1),  # freed by one thread, used again by another
)


def keep_freed_memory() -> bool:
    """Set the allocator, before the live threads start. False where the C library is not glibc (nothing is set)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS)
