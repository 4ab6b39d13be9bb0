"""Doing harm to a run that trains in this process: a thread that follows it and strikes between."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pronk.experiments.bench.harm import Progress


@contextlib.contextmanager
def harmed(
    run_dir: Path, harm: Callable[[Progress], None], *, survives: bool = True
) -> Iterator[None]:
    """Have a thread do `harm` to what trains within; a run that survives is then interrupted."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            progress = Progress(run_dir)
            harm(progress)
            if survives:
                progress.goes_on()
        except BaseException as error:
            errors.append(error)
        if survives or errors:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()
    assert not errors, errors
