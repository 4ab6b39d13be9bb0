"""Fields of settings that carry their range, their source and how PBT treats them.

    @dataclass(frozen=True)
    class Config:
        learning_rate: float = number(6e-4, above=0, source="E18, table G.1", tune=(5e-6, 5e-3))
        \"\"\"Learning rate at the start.\"\"\"

A field that is declared without these functions works too: its type is checked and nothing else.
Imports neither jax nor an environment.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple

from pronk.config.schedules import EXPECTED, is_schedule, parse
from pronk.errors import UserError, nearest, printable

_KEY = "pronk"  # of a field's metadata
_MANY = 1e6  # the default of `Rule.limit`
_TINIEST = 2.0**-126  # float32's smallest normal number; smaller settings would become 0


class Rule(NamedTuple):
    """What a field carries besides its type and default."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    source: str = ""  # where the default comes from
    tune: bool | tuple[float, float] = False  # whether PBT adapts it by default, and from where
    near_one: bool = False  # whether PBT perturbs 1 − x instead of x
    not_empty: bool = False  # of several values
    meaning: bool = False  # whether parameters mean something else with another value
    limit: float = _MANY  # the largest absolute value; infinity allows infinity, too

    def allows(self, value: float) -> bool:
        """Whether `value` is in the range; NaN is in none."""
        return self._is_sane(value) and (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def _is_sane(self, value: float) -> bool:
        """Whether `value` is within the limit, and not zero in float32 where it is not zero."""
        return not value or _TINIEST <= abs(value) <= max(self.limit, self.at_most or 0)

    def expected(self, value: float) -> str:
        """What is expected instead of `value`, in words."""
        if self._is_sane(value) or value != value or self.at_most is not None:
            return self.range
        or_zero = ", or zero" if self.allows(0) else ""
        size = f"at most {self.limit:g}" if abs(value) > 1 else f"at least {_TINIEST:.2g}{or_zero}"
        return f"{self.range} and {size}" if self.range else f"a number of {size}"

    @property
    def range(self) -> str:
        """The range in words."""
        if self.at_least is not None and self.at_most is not None:
            return f"a number from {self.at_least} to {self.at_most}"
        words = []
        if self.above is not None:
            words.append(f"a number above {self.above or 'zero'}")
        if self.at_least is not None:
            words.append(f"at least {self.at_least}" if self.at_least else "zero or more")
        if self.below is not None:
            words.append(f"below {self.below}")
        if self.at_most is not None:
            words.append(f"at most {self.at_most}")
        return " and ".join(words)


def number(
    default: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    source: str = "",
    tune: bool | tuple[float, float] = False,
    near_one: bool = False,
    meaning: bool = False,
    limit: float = _MANY,
) -> Any:
    """A field for a number, an integer by its annotation, with a range.

    source: paper and equation or table of the default. tune: whether PBT adapts it unless told
    otherwise; a tuple is the range from which first values are drawn log-uniformly, True begins
    with the run's own value. near_one: PBT draws and multiplies 1 − x, for numbers such as γ, so
    that the horizon 1 / (1 − γ) changes by the factor. meaning: parameters that were learnt with
    one value mean something else with another. limit: the largest absolute value; larger ones are
    refused as typing errors.
    """
    bounds = above, at_least, below, at_most
    rule = Rule(*bounds, source, tune, near_one, meaning=meaning, limit=limit)
    return dataclasses.field(default=default, metadata={_KEY: rule})


def fraction(default: float, *, source: str = "", near_one: bool = False) -> Any:
    """A field for a number from 0 to 1."""
    return number(default, at_least=0, at_most=1, source=source, near_one=near_one)


def choice(default: Any, *, source: str = "", meaning: bool = False) -> Any:
    """A field without a range whose default has a source: a Literal, a bool, a text. meaning: see
    `number`."""
    rule = Rule(source=source, meaning=meaning)
    return dataclasses.field(default=default, metadata={_KEY: rule})


def widths(default: tuple[int, ...], *, source: str = "") -> Any:
    """A field for one or more layer widths of at least 1."""
    return dataclasses.field(
        default=default,
        metadata={_KEY: Rule(at_least=1, source=source, not_empty=True)},
    )


def rules(config_class: type) -> dict[str, Rule]:
    """The rule of every field, by name."""
    return {f.name: f.metadata.get(_KEY, Rule()) for f in dataclasses.fields(config_class)}


def near_one(config_class: type) -> frozenset[str]:
    """The fields of which PBT perturbs 1 − x."""
    return frozenset(name for name, rule in rules(config_class).items() if rule.near_one)


def tuned(config_class: type) -> tuple[str, ...]:
    """What PBT adapts by default, as `--tune` takes it: NAME=LOW:HIGH or NAME, in field order."""
    found = []
    for name, rule in rules(config_class).items():
        if isinstance(rule.tune, tuple):
            found.append(f"{name}={rule.tune[0]:g}:{rule.tune[1]:g}")
        elif rule.tune:
            found.append(name)
    return tuple(found)


def flag(name: str) -> str:
    """A field's name as a command-line flag."""
    return f"--{name.replace('_', '-')}"


@functools.cache
def numeric(config_class: type) -> frozenset[str]:
    """The fields for floats, which are the ones that an agent may have schedules of."""
    hints = _hints(config_class)
    return frozenset(n for n, hint in hints.items() if float in (hint, *typing.get_args(hint)))


def check(config: Any, *, schedules: bool = False) -> None:
    """Raise UserError for a value that is not of its field's type, or out of its range.

    schedules: floats may be schedules (`pronk.config.schedules`), whose values are all checked.
    """
    hints = _hints(type(config))
    declared = {f.name for f in dataclasses.fields(config) if _KEY in f.metadata}
    for name, rule in rules(type(config)).items():
        value, hint = getattr(config, name), hints[name]
        if is_schedule(value) and schedules and {int, float} & {hint, *typing.get_args(hint)}:
            _check_schedule(config, name, value, rule if name in declared else Rule())
            continue
        if not _fits(value, hint):
            options = typing.get_args(hint) if _is_literal(hint) else ()
            meant = nearest(str(value), map(str, options)) or "."
            raise UserError(f"`{flag(name)}` is {value!r}; expected {_words(hint)}{meant}")
        if name not in declared:
            continue
        several = isinstance(value, tuple | list)
        numbers = [v for v in (value if several else [value]) if isinstance(v, int | float)]
        wrong = [v for v in numbers if not rule.allows(v)]
        if wrong:
            expected = rule.expected(wrong[0])
            expected = f"only numbers of {expected}" if several else expected
            raise UserError(f"`{flag(name)}` is {value}; expected {expected}.")
        if rule.not_empty and not value:
            raise UserError(f"`{flag(name)}` is {value}; expected one or more numbers.")


def _check_schedule(config: Any, name: str, text: str, rule: Rule) -> None:
    """Raise UserError for a schedule that is none, that the field cannot have, or that leaves the
    field's range."""
    if name not in numeric(type(config)):
        raise UserError(f"`{flag(name)}` is '{text}'; expected int: it has no schedule.")
    changeable = getattr(config, "hyper_names", None)
    if changeable is not None and name not in changeable():
        raise UserError(
            f"`{flag(name)}` is '{text}'; expected a number: the agent reads it only once. It can"
            f" have schedules of {', '.join(sorted(changeable()))}."
        )
    try:
        schedule = parse(text)
    except ValueError as error:
        raise UserError(
            f"`{flag(name)}` is '{text}', which is no schedule: {error}. Expected a number, or"
            f" {EXPECTED} (docs/schedules.md)."
        ) from None
    # A learning rate of 0 is useless, and one that goes to 0 is not.
    wrong = [v for v in schedule.values if not (rule.allows(v) or (v == 0 == rule.above))]
    if wrong:
        raise UserError(
            f"`{flag(name)}` is '{text}', with the value {wrong[0]:g}; expected"
            f" {rule.expected(wrong[0])} throughout."
        )


def plain(config: Any) -> Any:
    """The settings with NumPy's numbers as Python's, arrays and lists as tuples, in fields for
    integers whole floats such as 3e5 as integers, and schedules written in one way."""
    changes = plainer(config)
    return dataclasses.replace(config, **changes) if changes else config


def plainer(config: Any) -> dict[str, Any]:
    """The values in which `plain(config)` differs, by field."""
    hints, changes = _hints(type(config)), {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        new = _plain(value, hints[f.name])
        if new is not value:
            changes[f.name] = new
    return changes


def _plain(value: Any, hint: Any) -> Any:
    if hasattr(value, "tolist") and getattr(value, "ndim", 2) < 2:  # an array, or its scalar
        value = value.tolist()
    options = typing.get_args(hint) if not _is_literal(hint) else ()
    if is_schedule(value) and float in (hint, *options):
        with contextlib.suppress(ValueError):  # `check` says what is wrong
            return parse(value).text
    if isinstance(value, list | tuple):
        of = [typing.get_args(o)[0] for o in (hint, *options) if typing.get_origin(o) is tuple]
        if not of:
            return value
        new = tuple(_plain(v, of[0]) for v in value)
        same = isinstance(value, tuple) and all(a is b for a, b in zip(new, value, strict=True))
        return value if same else new
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and int in (hint, *options) and float not in options else value


def integer(text: str) -> int:
    """The integer that `text` is, as in 300000, 300_000 and 3e5; raises ValueError."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not (value.is_integer() and abs(value) < 2**53):
            raise ValueError(f"'{text}' is not an integer below 2^53") from None
        return int(value)


def float_or_schedule(text: str) -> float | str:
    """The float that `text` is, or the text of a schedule; raises ValueError."""
    return text.strip() if is_schedule(text) else float(text)


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the annotated type; an annotation of another kind allows anything."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in options
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if options[1:] != (Ellipsis,):
            return len(value) == len(options) and all(map(_fits, value, options))
        return all(_fits(v, options[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str | Path)
    return origin is not None or not isinstance(hint, type) or isinstance(value, hint)


def _words(hint: Any) -> str:
    options = typing.get_args(hint)
    if _is_literal(hint):
        return f"one of {', '.join(map(str, options))}"
    if typing.get_origin(hint) is tuple:
        return f"a list of {_words(options[0])}"
    if options:
        return " or ".join(map(_words, options))
    return "nothing" if hint is type(None) else getattr(hint, "__name__", str(hint))


def descriptions(config_class: type, config: Any = None, mark: str = "") -> dict[str, str]:
    """The text below each field, with the source of its value in brackets, as `--help` has it.

    That is the source of the field's default, or `mark` where the value in `config` differs.
    """
    texts: dict[str, str] = {}
    for base in reversed(config_class.__mro__[:-1]):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):  # made without a file
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as words)),
                ):
                    texts[name] = printable(" ".join(words.split()))
    usual = None if config is None else config_class()
    for name, rule in rules(config_class).items():
        source = rule.source
        if usual is not None and getattr(config, name) != getattr(usual, name):
            source = mark
        texts[name] = f"{texts.get(name, '')} {f'[{source}]' if source else ''}".strip()
    return texts
