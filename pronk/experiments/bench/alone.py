"""Run a measurement in a process of its own, pinned to one core."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pronk.errors import UserError
from pronk.run.setup import configure_jax


def alone(measure: Callable[..., Any], *args: Any) -> Any:
    """The result of `measure(*args)`, a module-level function; re-raises its UserErrors."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_on_one_core, args=(theirs, measure, *args))
    process.start()
    theirs.close()
    try:
        message, result = ours.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"the process of the measurement '{measure.__name__}' ended with exit code"
            f" {process.exitcode}; see its output above."
        ) from None
    process.join()
    if message is not None:
        raise UserError(message)
    return result


def _on_one_core(connection: Connection, measure: Callable[..., Any], *args: Any) -> None:
    core = sorted(os.sched_getaffinity(0))[-1]
    os.sched_setaffinity(0, {core})  # before jax starts its threads
    configure_jax()
    try:
        connection.send((None, measure(*args)))
    except UserError as error:
        connection.send((str(error), None))
