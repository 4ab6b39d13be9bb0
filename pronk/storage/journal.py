"""The journal of a population: a file of JSON lines that is only appended to, and durable."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pronk.config import json_files
from pronk.errors import UserError
from pronk.storage.files import cannot_write, is_number, to_json

JOURNAL = "journal.jsonl"  # in the population's directory
# The fields that every kind of event has, whatever executed the population.
_SCORED = ("member", "steps", "episodes", "score", "error")
_FIELDS = {
    "start": ("member", "hyper"),
    "ready": (*_SCORED, "generation", "donor", "donor_steps", "after", "factors"),
    "end": (*_SCORED, "hyper"),
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def _is_tally(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(sums, list) and all(map(is_number, sums)) for sums in value.values()
    )


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


# What each field's value must be.
_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("member", "steps", "episodes", "generation"), _is_count),
    **dict.fromkeys(("donor", "donor_steps"), _or_none(_is_count)),
    **dict.fromkeys(("score", "error"), _or_none(is_number)),
    **dict.fromkeys(("hyper", "after", "factors"), _are_numbers),
}


class Journal:
    """The journal at `path`, created if missing.

    A line that a killed process left half-written at its end is cut off. Raises UserError where it
    cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = open(path, "ab")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise cannot_write(path, error) from None
        self.truncate(_complete(path.read_bytes()))

    @property
    def size(self) -> int:
        """In bytes."""
        return self._file.tell()

    def append(self, *events: Mapping[str, Any]) -> None:
        """Write a line per event; they are on disk when this returns."""
        lines = [json.dumps(dict(e), default=to_json, allow_nan=False) + "\n" for e in events]
        try:
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def truncate(self, size: int) -> None:
        """Remove everything after the first `size` bytes; UserError where there are fewer."""
        actual = self.path.stat().st_size
        if actual < size:
            raise UserError(
                f"`{self.path}` has {actual:,} bytes, and the checkpoint beside it was saved when"
                f" it had {size:,}: it was truncated or replaced. Put back a copy of it, or give"
                " another --run-dir."
            )
        try:
            self._file.truncate(size)
            self._file.seek(0, os.SEEK_END)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with contextlib.suppress(OSError):  # a failed write has raised in `append`
            self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The events of the journal at `path`, without a line that is still being written.

    Raises UserError where there is no journal, or a line of it is no event.
    """
    events = []
    for number, (_, event) in enumerate(json_files.read_lines(path), 1):
        if isinstance(event, ValueError):
            raise _damaged(path, number, event) from None
        if not isinstance(event.get("event"), str):
            raise _damaged(path, number, "its 'event' is not a string")
        events.append(event)
    return events


def read_events(directory: Path) -> list[dict[str, Any]]:
    """The events of the population in `directory`, checked.

    Raises UserError where there is no journal, or a line of it is no event of a population.
    """
    path = directory / JOURNAL
    events, started = read_journal(path), set()
    for number, event in enumerate(events, 1):
        name = event["event"]
        if name not in _FIELDS:
            raise _damaged(path, number, f"'{name}' is no event of a population")
        for field in _FIELDS[name]:
            if field not in event:
                raise _damaged(path, number, f"no '{field}'")
            if not _KINDS[field](event[field]):
                raise _damaged(path, number, f"'{field}' is {event[field]!r:.60}")
        if not _is_tally(event.get("tally", {})):
            raise _damaged(path, number, "'tally' has no sums")
        if name == "start":
            started.add(event["member"])
        for member in (event["member"], event.get("donor")):
            if member is not None and member not in started:
                raise _damaged(path, number, f"member {member} has no start")
    return events


def _damaged(path: Path, line: int, why: object) -> UserError:
    return UserError(
        f"`{path}` is damaged in line {line} ({why}); put back a copy of it, or give another"
        " --run-dir."
    )


def _complete(data: bytes) -> int:
    """The number of bytes up to the end of the last complete line."""
    return data.rfind(b"\n") + 1
