"""The main module in worker processes, which are new interpreters and import it again.

A script without `if __name__ == "__main__":` would run again in each of them, and what a notebook
defines cannot be imported at all.
"""

from __future__ import annotations

import ast
import contextlib
import sys
import threading
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

_lock = threading.Lock()


def obstacle(factory: Any) -> str:
    """Why no worker process can make the factory's environments; empty if one can."""
    try:
        pickled = bytes(ForkingPickler.dumps(factory))
    except Exception as error:
        return f"the function that makes it cannot be pickled ({error})"
    if b"__main__" not in pickled:
        return ""
    path = _path()
    if path is None:
        return "it is defined in a notebook or console, which they cannot import"
    if not _is_guarded(path):
        return (
            "it is defined in a script that would run again in each of them, because its top-level"
            ' code is not under `if __name__ == "__main__":`'
        )
    return ""


@contextlib.contextmanager
def hidden_if_unguarded() -> Iterator[None]:
    """Processes that are started within this context do not import the main module if that would
    run it again, or fail because it has no file.

    `obstacle` says whether they need the main module.
    """
    path = _path()
    if path is not None and _is_guarded(path):
        yield
        return
    main = sys.modules["__main__"]
    with _lock:
        names = {"__file__", "__spec__"} & main.__dict__.keys()
        kept = {name: main.__dict__.pop(name) for name in names}
        main.__spec__ = None
        try:
            yield
        finally:
            main.__dict__.update(kept)


def _path() -> Path | None:
    """The main module's file; None if it has none."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file) if file is not None and Path(file).is_file() else None


def _is_guarded(path: Path) -> bool:
    """Whether importing the main module would not execute the statement that it executes now."""
    main = sys.modules["__main__"]
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    line = 0
    while frame is not None:
        if frame.f_globals is main.__dict__ and frame.f_code.co_name == "<module>":
            line = frame.f_lineno
        frame = frame.f_back
    try:
        statements = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return True
    for statement in statements:
        if statement.lineno <= line <= (statement.end_lineno or 0):
            return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
    return True  # it has been executed already
