"""The CPU cores of this process and of its threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from pronk.errors import UserError


def available_cpus() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pin_threads(count: int | None) -> Callable[[], None]:
    """A function that pins the calling thread to `count` of this process's cores; None: to any.

    All threads that call it share the same cores. Raises UserError if there are not so many, and on
    systems that do not let a program choose its cores.
    """
    if count is None:
        return lambda: None
    if not hasattr(os, "sched_setaffinity"):
        raise UserError(
            f"`--actor-cores` is {count}, but this system does not let a program choose its cores;"
            " leave it out."
        )
    mine = sorted(os.sched_getaffinity(0))
    if count > len(mine):
        raise UserError(
            f"`--actor-cores` is {count}; this process may use {len(mine)} cores: give as many"
            " or fewer, or leave it out."
        )
    # 0 is the calling thread, not the whole process.
    return functools.partial(os.sched_setaffinity, 0, mine[-count:])
