"""Errors that a user can mend: shown as one paragraph, without a traceback; and text that is safe
to show."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Iterable
from typing import Any

# What to show instead where the output's encoding lacks a character.
_PLAIN = {
    "±": "+-",
    "×": "x",
    "–": "-",
    "−": "-",
    "…": "...",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "γ": "gamma",
    "λ": "lambda",
    "ε": "epsilon",
}


def printable(text: object) -> str:
    """`text` in one line that a terminal shows as it is: other characters than letters, marks,
    digits, signs and spaces, such as line ends, escape sequences and changes of the direction of
    writing, are written as Python does in a string, `\\n` or `\\x1b`."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class UserError(Exception):
    """Bad input; the message says what was given, what was expected, and what to do.

    The command line prints the message alone and exits with status 2. The message is made
    `printable`, since it may quote what a file, a module or an environment says.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class Diverged(UserError):
    """Training has diverged: no gradient is finite any more."""


def message(error: Exception) -> str:
    """What to show a user of an error, in one line. Raises it again unless it is one that a user
    can mend: a UserError, or an allocation that failed, which JAX reports as a RuntimeError."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    why = printable(str(error).partition("\n")[0].rstrip(".") or "an allocation failed")
    return (
        f"the device has too little free memory ({why}); expected settings that need less of it:"
        " fewer environments (`--envs-per-actor`), a smaller `--batch-size`, or, where the agent"
        " has them, a smaller `--replay-capacity` or `--memory-size`."
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'X'?"` for the known word most like `word`, or an empty string."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    match = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return f"; did you mean '{lowered[match[0]]}'?" if match else ""


def counted(count: int, noun: str) -> str:
    """`1 episode`, `20 episodes`: a number of things whose plural ends with s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """An error handler for `codecs`: replaces characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost)
    return "".join(plain), error.end


codecs.register_error("pronk-plainly", _plainly)


def show_all_characters(*streams: Any) -> None:
    """Let text streams, such as `sys.stdout`, replace characters that their encoding lacks, where
    they would raise UnicodeEncodeError; others are left alone."""
    for stream in streams:
        if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(
            stream, "reconfigure"
        ):
            stream.reconfigure(errors="pronk-plainly")
