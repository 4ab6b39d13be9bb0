"""Small files that are either there whole or not at all, and what to tell a user when they aren't.

Imports nothing heavy, so that the command line can use it at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pronk.errors import UserError

_WHAT_TO_DO = {
    errno.ENOSPC: "free some space there, or choose another directory with `{flag}`",
    errno.EDQUOT: "free some of your quota there, or choose another directory with `{flag}`",
    errno.EROFS: "choose a directory that can be written to with `{flag}`",
    errno.EACCES: "make it writable for you, or choose another directory with `{flag}`",
    errno.EPERM: "make it writable for you, or choose another directory with `{flag}`",
    errno.EEXIST: "move away the file that stands in its place, or choose another `{flag}`",
    errno.ENOTDIR: "move away the file that stands in its place, or choose another `{flag}`",
}


def cannot_write(path: Path, error: OSError, flag: str = "--run-dir") -> UserError:
    """The UserError for a failed write below `path`, which `flag` chose: what failed, why, and what
    to do."""
    advice = _WHAT_TO_DO.get(error.errno or 0, "check the directory and the disk it is on")
    advice = advice.format(flag=flag)
    return UserError(f"cannot write `{path}`: {error.strerror or error}; {advice}")


def fsync_directory(path: Path) -> None:
    """Make what was created or renamed in the directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_and_sync(path: Path, data: bytes) -> None:
    """Write the new file `path` and wait until the disk has it; raises OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` such that a reader, or a crash, sees the old or the new content.

    Raises UserError where the directory cannot be written to.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        try:
            write_and_sync(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def plain(value: Any) -> Any:
    """What `json` cannot write, as something it can: NumPy and jax scalars and arrays, paths."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def write_json_atomically(path: Path, obj: Any) -> None:
    """Replace `path` by `obj` as indented JSON, wholly or not at all.

    NumPy scalars and paths are written as numbers and strings, NaN and infinities as Python's
    `json` writes and reads them. Raises UserError where the directory cannot be written to.
    """
    text = json.dumps(obj, indent=2, default=plain) + "\n"
    write_atomically(path, text.encode())


def without_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `record` in which NaN and infinities, which JSON lacks, are None, and so in the
    mappings that it holds."""
    result = {}
    for name, value in record.items():
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, Mapping):
            value = without_nan(value)
        result[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return result


def read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a `metrics.jsonl`, each as written and parsed; torn ones are left out.

    A process killed in mid-write leaves a last line that is no JSON or lacks its line end.
    """
    result = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not line.endswith(b"\n") or not isinstance(record, dict):
            continue
        if isinstance(record.get("steps"), (int, float)):
            result.append((line, record))
    return result
