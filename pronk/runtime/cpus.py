"""Which of the machine's cores this process and its threads use."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from pronk.errors import UserError


def usable() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def settle_on(count: int | None) -> Callable[[], None]:
    """A function with which a thread settles on `count` of this process's cores; None: on any.

    All that it is called for settle on the same ones. Raises UserError where there are not so
    many, and on systems that do not let a program choose.
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
