"""Reads text files that people give."""

from __future__ import annotations

import stat
from pathlib import Path

from pronk.config.json_files import MAX_FILE
from pronk.errors import UserError


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
