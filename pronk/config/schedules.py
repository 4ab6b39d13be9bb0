"""Schedules of numeric settings, as texts: `linear:3e-4:0` goes from 3e-4 to 0 during the run.

The grammar, with A, B, … numbers, S, T, … agent steps, and p the part of the run that is over:

    linear:A:B                     A + (B − A) p
    linear:A@0,B@S,C@T             straight lines between these points, then constant
    cosine:A:B                     B + (A − B) (1 + cos π p) / 2
    exponential:A:B                A (B / A)^p
    piecewise:A@0,B@S,C@T          A, from S on B, from T on C

A setting keeps the text as its value; `pronk.agents.schedules` computes with it. Imports neither
jax nor an environment.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pronk.errors import counted

KINDS = ("linear", "cosine", "exponential", "piecewise")
EXPECTED = "linear:A:B, cosine:A:B, exponential:A:B, or linear: or piecewise:A@0,B@STEP,…"
_MOST_STEPS = 10**12  # the limit of `--steps`


class Schedule(NamedTuple):
    """A number as a function of the agent steps learnt from."""

    kind: str
    values: tuple[float, ...]
    starts: tuple[int, ...] = ()  # agent steps of the values; empty: 0 and the run's end

    @property
    def first(self) -> float:
        """The value at the start of training."""
        return self.values[0]

    @property
    def text(self) -> str:
        """The text from which `parse` makes this schedule; equal schedules have equal texts."""
        if not self.starts:
            return ":".join([self.kind, *map(_text, self.values)])
        points = zip(self.values, self.starts, strict=True)
        return f"{self.kind}:{','.join(f'{_text(v)}@{s}' for v, s in points)}"

    def starting_at(self, first: float, *, near_one: bool = False) -> Schedule:
        """The schedule whose values x, or 1 − x with `near_one`, are all multiplied by the factor
        that makes the first one `first`. Where the first is 0, only that one is replaced."""

        def flipped(x: float) -> float:
            return 1 - x if near_one else x

        base = flipped(self.first)
        factor = flipped(first) / base if base else 1.0
        rest = tuple(flipped(flipped(value) * factor) for value in self.values[1:])
        return self._replace(values=(first, *rest))


def _text(value: float) -> str:
    return f"{value:.12g}"


def is_schedule(value: Any) -> bool:
    """Whether a setting's value is the text of a schedule, or means to be one."""
    return isinstance(value, str) and ":" in value


def parse(text: str) -> Schedule:
    """The schedule that `text` is; raises ValueError saying what is wrong."""
    kind, _, rest = text.strip().partition(":")
    if kind not in KINDS:
        raise ValueError(f"'{kind}' is none of {', '.join(KINDS)}")
    if "@" in rest or kind == "piecewise":
        if kind not in ("linear", "piecewise"):
            raise ValueError(f"{kind} has no steps (@)")
        return _points(kind, rest.split(","))
    values = tuple(_number(part) for part in rest.split(":"))
    if len(values) != 2:
        raise ValueError(f"{kind} has {counted(len(values), 'number')} instead of two")
    if kind == "exponential" and not values[0] * values[1] > 0:
        raise ValueError("exponential needs two numbers of one sign, neither of them 0")
    return Schedule(kind, values)


def _points(kind: str, parts: list[str]) -> Schedule:
    values, starts = [], []
    for part in parts:
        value, at, start = part.partition("@")
        if not at:
            raise ValueError(f"'{part}' has no step; expected NUMBER@STEP")
        values.append(_number(value))
        steps = _number(start)
        if not (steps.is_integer() and 0 <= steps <= _MOST_STEPS):
            raise ValueError(f"'{start}' is not a number of steps from 0 to {_MOST_STEPS:.0e}")
        starts.append(int(steps))
    if starts[0] != 0:
        raise ValueError(f"its first step is {starts[0]} instead of 0")
    if sorted(set(starts)) != starts:
        raise ValueError("its steps do not increase")
    return Schedule(kind, tuple(values), tuple(starts))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"'{text}' is not a finite number")
    return value
