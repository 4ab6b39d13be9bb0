"""NAME=VALUE arguments, as in `--env-arg delay=20` and `pronk/Catch-v0?delay=20`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pronk.errors import UserError


def parse_assignments(pairs: Iterable[str], source: str) -> dict[str, Any]:
    """The values by name; a value is read as JSON if it is valid JSON, else as a string.

    source: where the pairs come from, the subject of an error message. Raises UserError for a pair
    without a name or without `=`.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"{source} is '{pair}'; expected NAME=VALUE, as in delay=20.")
        try:
            parsed[name] = json.loads(value)
        except (ValueError, RecursionError):  # no JSON, or beyond its limits
            parsed[name] = value
    return parsed
