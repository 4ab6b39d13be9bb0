"""The C library's allocator, told to keep large buffers."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Have memory that is freed stay with the process.

    An update's intermediate results are one buffer of a hundred megabytes or of gigabytes. By
    default it is returned to the kernel after every update, and mapped and zeroed page by page in
    the next one, which took a fifth of the time. Call before threads start: those that have an
    arena of their own by then do as before. Nothing happens where the C library isn't glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
    mallopt(_M_ARENA_MAX, 1)
