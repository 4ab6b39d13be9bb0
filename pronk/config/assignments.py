"""NAME=VALUE arguments, as in `--env-arg delay=20` and `pronk/Catch-v0?delay=20`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
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


def saveable(value: Any, name: str) -> Any:
    """An argument of an environment as `config.json` can hold it: NumPy's numbers become Python's.

    name: of the argument, for the message. Raises UserError for values that JSON cannot hold, such
    as arrays and objects: `pronk eval` and `pronk record` make the environment from what was saved,
    and a resumed run is compared with it.
    """
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: saveable(inner, f"{name}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        kept = [saveable(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
        return kept if isinstance(value, list) else tuple(kept)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    hint = "make it inside the environment's function"
    if isinstance(value, Path) or hasattr(value, "tolist"):
        hint = "give a string" if isinstance(value, Path) else "give a list"
    raise UserError(
        f"`env_args` has {name}={value!r}, a {type(value).__name__}, which a run cannot save;"
        f" expected numbers, strings, and lists or dicts (with strings as keys) of them: {hint}."
    )
