"""Reads the CSV files that people give."""

from __future__ import annotations

import csv
import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pronk.config.json_files import MAX_FILE
from pronk.errors import UserError, counted


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    where: str  # for messages: its line number and its file
    cells: dict[str, str]  # by column, without spaces around them


def read_text(path: Path) -> str:
    """The text of a file; raises UserError where there is none, or none that can be read."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would block, and a device never end
            raise UserError(f"'{path}' is not a regular file; expected a CSV file.")
        if found.st_size > MAX_FILE:
            raise UserError(f"'{path}' has more than {MAX_FILE:,} bytes, the most that is read.")
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no '{path}'; check the path.") from None
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not text in UTF-8; expected a CSV file.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"'{path}' cannot be read: {reason}.") from None


def _is_row(text: str) -> bool:
    return bool(text.strip()) and not text.startswith("#")


class Table:
    """A CSV with column names in its first line; lines that begin with `#` are comments.

    Raises UserError, with the number of the line, where the file is no such table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = read_text(path).splitlines()
        self._numbers = [i for i, text in enumerate(lines, 1) if _is_row(text)]
        text = "\n".join(lines[i - 1] for i in self._numbers)
        self._reader = csv.reader(io.StringIO(text), strict=True)
        self.columns = next(self._rows(), ("", []))[1]
        twice = [name for name in self.columns if name and self.columns.count(name) > 1]
        if twice:
            raise UserError(
                f"{self._where()} names the column '{twice[0]}' {self.columns.count(twice[0])}"
                " times; expected each name once: rename or remove one of them."
            )

    def _where(self) -> str:
        return f"line {self._numbers[self._reader.line_num - 1]} of '{self.path}'"

    def _rows(self) -> Iterator[tuple[str, list[str]]]:
        try:
            for cells in self._reader:
                yield self._where(), [cell.strip() for cell in cells]
        except csv.Error as error:
            raise UserError(
                f"'{self.path}' can't be read as CSV ({error}); check its quotes."
            ) from None

    def rows(self) -> Iterator[Line]:
        """The rows below the column names; cells that a line lacks at its end are empty."""
        for where, cells in self._rows():
            if len(cells) > len(self.columns):
                raise UserError(
                    f"{where} has {counted(len(cells), 'cell')}, and the table"
                    f" {counted(len(self.columns), 'column')}; expected a cell for each column:"
                    " write numbers with a decimal point, and text that contains commas in quotes."
                )
            missing = [""] * (len(self.columns) - len(cells))
            yield Line(where, dict(zip(self.columns, cells + missing, strict=True)))
