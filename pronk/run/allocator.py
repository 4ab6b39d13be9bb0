"""Settings of the C library's allocator for training."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Make the process keep freed memory, for the whole process and for good.

    An update's intermediate results are one buffer of a hundred megabytes or of gigabytes. By
    default it is returned to the kernel after every update, and mapped and zeroed page by page in
    the next one, which took a fifth of the time. Call before threads start: a thread that has an
    arena of its own by then is not affected. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
    mallopt(_M_ARENA_MAX, 1)
