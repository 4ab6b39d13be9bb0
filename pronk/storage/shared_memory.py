"""Blocks of shared memory, named after the process that creates them."""

from __future__ import annotations

import os
import secrets
import sys
from multiprocessing.shared_memory import SharedMemory
from typing import Any


def create(size: int) -> SharedMemory:
    """Create a block of `size` bytes, `pronk-PID-…` in /dev/shm; the caller must unlink it."""
    name = f"pronk-{os.getpid()}-{secrets.token_hex(4)}"
    return SharedMemory(name, create=True, size=size)


def attach(name: str) -> SharedMemory:
    """Open the block that a parent process created and will unlink."""
    # Under spawn the resource tracker is the parent's: before 3.13, registering again is a no-op.
    options: dict[str, Any] = {"track": False} if sys.version_info >= (3, 13) else {}
    return SharedMemory(name, **options)
