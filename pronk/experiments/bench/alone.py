"""A measurement in a process of its own, which has one core."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pronk.errors import UserError
from pronk.run.setup import configure_jax


def alone(measure: Callable[..., Any], *args: Any) -> Any:
    """What `measure`, a function of a module, returns there; raises its UserErrors."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_on_one_core, args=(theirs, measure, *args))
    process.start()
    theirs.close()
    try:
        mistake, result = ours.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"the process that measured '{measure.__name__}' alone died with exit code"
            f" {process.exitcode}; what it said is above."
        ) from None
    process.join()
    if mistake is not None:
        raise UserError(mistake)
    return result


def _on_one_core(connection: Connection, measure: Callable[..., Any], *args: Any) -> None:
    core = sorted(os.sched_getaffinity(0))[-1]
    os.sched_setaffinity(0, {core})  # before jax starts its threads
    configure_jax()
    try:
        connection.send((None, measure(*args)))
    except UserError as error:
        connection.send((str(error), None))
