"""Atomic writes of files, JSON, and the error messages for writes that fail.

Imports nothing heavy, so that the command line starts quickly.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pronk.config import json_files
from pronk.errors import UserError

_ADVICE = {
    errno.ENOSPC: "free some space there, or choose another directory with `{flag}`",
    errno.EDQUOT: "free some of your quota there, or choose another directory with `{flag}`",
    errno.EROFS: "choose a writable directory with `{flag}`",
    errno.EACCES: "make it writable for you, or choose another directory with `{flag}`",
    errno.EPERM: "make it writable for you, or choose another directory with `{flag}`",
    errno.EEXIST: "move away the file that stands in its place, or choose another `{flag}`",
    errno.ENOTDIR: "move away the file that stands in its place, or choose another `{flag}`",
}


def cannot_write(path: Path, error: OSError, flag: str = "--run-dir") -> UserError:
    """The UserError for a failed write below `path`, the value of the flag `flag`: what failed,
    why, and what to do."""
    advice = _ADVICE.get(error.errno or 0, "check the directory and the disk it is on")
    advice = advice.format(flag=flag)
    return UserError(f"cannot write `{path}`: {error.strerror or error}; {advice}")


def check_file_name(path: Path, flag: str = "--run-dir") -> None:
    """Raise UserError where `path`, the value of the flag `flag`, can be no file's: a directory is
    there, or its name is missing."""
    if path.name in ("", "..") or os.path.isdir(path):
        raise UserError(
            f"cannot write `{path}`: it is a directory; expected the name of a file: choose another"
            f" `{flag}`"
        )


def fsync_directory(path: Path) -> None:
    """Make files created or renamed in the directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_and_sync(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after another, to the new file `path` and wait until they are on disk.

    Raises OSError.
    """
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, *parts: bytes | memoryview, flag: str = "--run-dir") -> None:
    """Replace the content of `path` by `parts`; a reader, or a crash, sees the old or the new one.

    Missing parent directories are created. A process killed in between leaves a `.tmp-*` file.
    Raises UserError where the write fails; `flag` is the flag that chose `path`.
    """
    check_file_name(path, flag)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_and_sync(temporary, *parts)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)
    except OSError as error:
        raise cannot_write(path, error, flag) from error


def to_json(value: Any) -> Any:
    """The `default` of `json.dumps` for NumPy and jax scalars and arrays, and for paths."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def write_json_atomically(path: Path, obj: Any) -> None:
    """Replace the content of `path` by `obj` as indented JSON, atomically.

    NumPy scalars become numbers and paths strings; NaN and infinities are written as Python's
    `json` writes and reads them. Raises UserError where the write fails.
    """
    text = json.dumps(obj, indent=2, default=to_json) + "\n"
    write_atomically(path, text.encode())


def without_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `record`, and of the mappings in it, with None for NaN and infinities, which JSON
    lacks."""
    result = {}
    for name, value in record.items():
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, Mapping):
            value = without_nan(value)
        result[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return result


def read_lines(
    path: Path, damaged: Callable[[str], None] = lambda _: None
) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a `metrics.jsonl`, each as (bytes, parsed record), without torn ones.

    A process killed during a write leaves a last line that is not JSON or lacks its line end.
    damaged: receives what is wrong with each complete line that is left out. Raises UserError where
    the file cannot be read.
    """
    result = []
    for number, (line, record) in enumerate(json_files.read_lines(path), start=1):
        if isinstance(record, dict) and is_number(record.get("steps")):
            result.append((line, record))
        else:
            why = "it has no number of steps" if isinstance(record, dict) else record
            damaged(f"line {number} of `{path}` is not a record of a run ({why})")
    return result


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number, and of a size that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100
