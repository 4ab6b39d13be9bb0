"""Errors that a user can mend: shown as one paragraph, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input; the message says what was given, what was expected, and what to do.

    The command line prints the message alone and exits with status 2.
    """


class Diverged(UserError):
    """Training has diverged: no gradient is finite any more."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'X'?"` for the known word most like `word`, or an empty string."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    match = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return f"; did you mean '{lowered[match[0]]}'?" if match else ""
