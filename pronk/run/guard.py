"""A run's protection: from another process in its directory, and from signals half-way."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pronk.errors import UserError
from pronk.storage.files import cannot_write


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Lock the run's directory; raises UserError if another process trains in it."""
    try:
        file = (run_dir / ".lock").open("w")
    except OSError as error:
        raise cannot_write(run_dir, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in '{run_dir}'; wait for it, or give another"
                " --run-dir."
            ) from None
        yield


@contextlib.contextmanager
def catch_signals() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second SIGINT raises KeyboardInterrupt.

    In threads other than the main one, signals are left alone.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, _: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    previous = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
