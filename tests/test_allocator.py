"""The process keeps freed memory: the next buffer of that size causes no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import numpy as np
if sys.argv[1] == "kept":
    from pronk.run.allocator import keep_freed_memory
    keep_freed_memory()

def faults(size=2 << 30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(size, np.uint8)[:] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = []
thread = threading.Thread(target=lambda: counts.extend(faults() for _ in range(3)))
thread.start()
thread.join()
print(min(counts[1:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_buffers_are_used_again() -> None:
    faults = {}
    for how in ("kept", "default"):
        command = [sys.executable, "-c", FAULTS, how]
        faults[how] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    # 2 GiB are 524,288 pages of 4 KiB, or 1,024 of 2 MiB.
    assert faults["kept"] < 100
    assert faults["default"] > 500
