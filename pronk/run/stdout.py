"""Standard output that holds nothing but a command's own result, as `--json` promises."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def others_to_stderr(active: bool = True) -> Iterator[None]:
    """While `active`, what environments print to standard output goes to standard error.

    That is what this process prints, in Python or C, and the processes that it starts meanwhile.
    """
    if not active:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for stream in (sys.stdout, sys.__stdout__):  # somebody may have kept the second
            if stream is not None:
                stream.flush()
        ctypes.CDLL(None).fflush(None)  # the buffers of C's libraries
        os.dup2(saved, 1)
        os.close(saved)
