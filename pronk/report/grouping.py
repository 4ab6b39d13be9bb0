"""Groups of runs whose scores are compared: the values of chosen settings are their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pronk.errors import UserError, nearest
from pronk.report.runs import Run
from pronk.report.scoring import Scored

# Group, task, the scores of its runs.
Groups = dict[str, dict[str, list[Scored]]]
_FIELDS = ("agent", "env", "version", "seed", "config_hash", "software", "status")
MISSING = "(none)"


def grouped(scores: Iterable[Scored], by: Sequence[str]) -> Groups:
    """The scores by the names of groups, in the order of their runs, and by tasks, sorted.

    Raises UserError for a setting that no run has.
    """
    scores = list(scores)
    by = [name.replace("-", "_") for name in by]
    for name in by:
        check(name, [one.run for one in scores])
    found: Groups = {}
    for one in scores:
        tasks = found.setdefault(label(one.run, by), {})
        tasks.setdefault(one.run.env, []).append(one)
    return {name: dict(sorted(tasks.items())) for name, tasks in found.items()}


def label(run: Run, by: Sequence[str]) -> str:
    """The name of a run's group, such as `impala learning_rate=0.001`."""
    values = [(name, setting(run, name)) for name in by]
    return " ".join(
        value if name == "agent" else f"{name.rpartition('.')[2]}={value}" for name, value in values
    )


def setting(run: Run, name: str) -> str:
    """A setting by its dotted name, or by the last part of it; `(none)` where a run lacks it."""
    if name in _FIELDS:
        return getattr(run, name) or MISSING
    exact = run.settings.get(name)
    if exact is not None:
        return exact or MISSING
    found = _matches(run, name)
    return run.settings[found[0]] or MISSING if found else MISSING


def _matches(run: Run, name: str) -> list[str]:
    return [key for key in run.settings if key.rpartition(".")[2] == name]


def check(name: str, runs: Sequence[Run]) -> None:
    """Raise UserError for a setting that no run has, or of which the name is not enough."""
    if name in _FIELDS or any(name in run.settings for run in runs):
        return
    known = {key.rpartition(".")[2] for run in runs for key in run.settings} | {*_FIELDS}
    if name not in known:
        hint = nearest(name, known) or "."
        raise UserError(
            f"`--by` is '{name}', which is no setting of any of these runs{hint}"
            " Expected agent, a name in their config.json, or a column of the CSV; several with"
            " commas, agent,learning_rate."
        )
    for run in runs:
        if len(found := _matches(run, name)) > 1:
            raise UserError(
                f"`--by` is '{name}', which may be {' or '.join(found)} in '{run.name}'; give the"
                " whole name."
            )
