"""The journal of a population: a file of JSON lines that is only appended to, and of which nothing
is lost that was written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pronk.errors import UserError
from pronk.storage.files import cannot_write, to_json

JOURNAL = "journal.jsonl"  # in the population's directory
# What an event has, besides what only one execution needs.
_SCORED = ("member", "steps", "episodes", "score", "error")
_FIELDS = {
    "start": ("member", "hyper"),
    "ready": (*_SCORED, "generation", "donor", "donor_steps", "after", "factors"),
    "end": (*_SCORED, "hyper"),
}


class Journal:
    """The journal at `path`, made if there is none; what a killed process left half-written at its
    end is cut off. Raises UserError where it can't be written."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = open(path, "ab")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise cannot_write(path, error) from None
        self.cut(_whole(path.read_bytes()))

    @property
    def size(self) -> int:
        """In bytes."""
        return self._file.tell()

    def append(self, *events: Mapping[str, Any]) -> None:
        """Write a line for each; they are on the disk when this returns."""
        lines = [json.dumps(dict(e), default=to_json, allow_nan=False) + "\n" for e in events]
        try:
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def cut(self, size: int) -> None:
        """Forget all beyond the first `size` bytes; raises UserError where there are fewer."""
        found = self.path.stat().st_size
        if found < size:
            raise UserError(
                f"`{self.path}` has {found:,} bytes, and the checkpoint beside it was saved after"
                f" {size:,}: it was cut short or replaced. Put back a copy of it, or give another"
                " --run-dir."
            )
        try:
            self._file.truncate(size)
            self._file.seek(0, os.SEEK_END)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """Safe to call twice. What could not be written has been told by `append`."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The events, without a line that is still being written. Raises UserError where there is no
    journal, or a line of it is none of ours."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}") from None
    events = []
    for number, line in enumerate(data[: _whole(data)].splitlines(), 1):
        try:
            event = json.loads(line)
            if not isinstance(event["event"], str):
                raise TypeError("its event is no name")
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, number, error) from None
        events.append(event)
    return events


def events_of(directory: Path) -> list[dict[str, Any]]:
    """The journal of a population; raises UserError where there is none, or a line of it is none of
    ours."""
    path = directory / JOURNAL
    events, begun = read_journal(path), set()
    for number, event in enumerate(events, 1):
        name = event["event"]
        if name not in _FIELDS:
            raise _damaged(path, number, f"'{name}' is no event of a population")
        missing = [field for field in _FIELDS[name] if field not in event]
        if missing:
            raise _damaged(path, number, f"no '{missing[0]}'")
        if name == "start":
            begun.add(event["member"])
        elif event["member"] not in begun:
            raise _damaged(path, number, f"member {event['member']} has no start")
    return events


def _damaged(path: Path, line: int, why: object) -> UserError:
    return UserError(
        f"`{path}` is damaged in line {line} ({why}); put back a copy of it, or give another"
        " --run-dir."
    )


def _whole(data: bytes) -> int:
    """Bytes up to the last line's end."""
    return data.rfind(b"\n") + 1
