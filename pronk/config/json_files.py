"""Reads JSON that may be damaged or a stranger's: run directories, and the texts in array files.

Whatever is there, the result is of the expected kind and within the limits, or one UserError says
what is wrong. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pronk.errors import UserError

MAX_BYTES = 2**24  # of one object, or of a line
MAX_FILE = 2**33  # bytes of a file of lines
MAX_DEPTH = 64
MAX_DIGITS = 300  # of an integer, so that a float can hold it


class UnreadableJSON(UserError):
    """A file or a string does not hold the JSON object that was expected."""


class MissingJSON(UnreadableJSON):
    """There is no such file."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises UnreadableJSON, or MissingJSON where there is none."""
    with _open(path) as file:
        try:
            data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise _cannot_read(path, error) from None
    return parse_object(data, str(path))


def parse_object(text: str | bytes, source: str) -> dict[str, Any]:
    """The JSON object that `text` is; raises UnreadableJSON, naming `source`."""
    try:
        return _parsed(text)
    except ValueError as error:
        raise UnreadableJSON(
            f"`{source}` can't be read ({error}); it was damaged, or written by another program:"
            " put back a copy of it."
        ) from None


def read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | ValueError]]:
    """The complete lines of a file of JSON objects, each as bytes and object, or the error why it
    is none. A last line without its end, which a killed process leaves, is left out.

    Raises UnreadableJSON, also for a file that is too long, or MissingJSON where there is none.
    """
    with _open(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE:
            raise UnreadableJSON(
                f"`{path}` has more than {MAX_FILE:,} bytes, the most that pronk reads; move it"
                " away, or put back a copy of it."
            )
        while True:
            try:
                line = file.readline(MAX_BYTES + 1)
            except OSError as error:
                raise _cannot_read(path, error) from None
            if not line.endswith(b"\n"):
                if len(line) <= MAX_BYTES:
                    return
                raise UnreadableJSON(
                    f"`{path}` has a line of more than {MAX_BYTES:,} bytes; it was damaged, or"
                    " written by another program: put back a copy of it."
                )
            try:
                yield line, _parsed(line)
            except ValueError as error:
                yield line, error


def holds(directory: Path, name: str) -> bool:
    """Whether there is a file `name` in `directory`; False where that cannot be found out."""
    return os.path.isfile(os.path.join(directory, name))


def _open(path: Path) -> Any:
    """An open file, of a regular file only: a pipe would block, and a device never end."""
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingJSON(f"there is no `{path}`.") from None
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnreadableJSON(f"`{path}` is not a regular file; put back a copy of that file.")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _cannot_read(path: Path, error: Exception) -> UnreadableJSON:
    return UnreadableJSON(f"`{path}` cannot be read: {getattr(error, 'strerror', None) or error}.")


def _parsed(text: str | bytes) -> dict[str, Any]:
    """The object; raises ValueError for anything else, and beyond a limit."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, parse_int=_integer)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer has more than {MAX_DIGITS} digits")
    return int(text)


def _inner(value: Any) -> list[Any]:
    """The lists and objects directly in a list or an object."""
    items = value.values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, dict | list)]
