"""Errors that are the user's to mend: shown as one paragraph, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something given to pronk cannot work; the message says what was given, expected, and to do.

    The command line prints the message alone and exits with status 2.
    """


class Diverged(UserError):
    """Nothing is learnt any more: gradients are not finite, one after another."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'X'?"` for the known word most like `word`, or an empty string."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    match = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return f"; did you mean '{lowered[match[0]]}'?" if match else ""
