"""What the experiments share: runs that are done once, and intervals over seeds."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.config.spec import Plan
from pronk.errors import UserError, nearest
from pronk.storage.files import write_json_atomically
from pronk.types import Array


def digest(what: Mapping[str, Any]) -> str:
    """Eight characters by which settings are told apart in a file's name."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:8]


def chosen(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """What `--tasks` names, or all; raises UserError for one that there is not."""
    names = list(known)
    for task in wanted:
        if task not in names:
            raise UserError(
                f"`--tasks` has '{task}'{nearest(task, names) or ';'} known are"
                f" {', '.join(map(repr, names))}."
            )
    return list(wanted) or names


def plan_identity(plan: Plan) -> dict[str, Any]:
    """What of a plan decides what is learnt, but for the seed."""
    return {k: v for k, v in plan.as_json().items() if k != "run"} | {
        k: plan.as_json()["run"][k] for k in ("steps", "policy_lag")
    }


def once(
    folder: Path, name: str, what: Mapping[str, Any], work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `work` found, as JSON kept in `folder`: done by the first call only, however often the
    experiment is begun again.

    what: all settings that it depends on; with others it is done anew, beside what is there.
    """
    path = folder / f"{name}-{digest(what)}.json"
    if not path.exists():
        start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, work())
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    return json.loads(path.read_text())


class Interval(NamedTuple):
    """A mean over seeds with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interval(values: list[float]) -> Interval:
    """Of one value per seed."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, size=(10_000, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


def band(curves: Sequence[Sequence[float]]) -> tuple[Array, Array, Array]:
    """Mean over seeds and a 95 % bootstrap band, `[points]` each; games that did not end are left
    out."""
    values = np.array(curves, float)
    drawn = np.random.default_rng(0).integers(len(values), size=(500, len(values)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no game has ended yet
        means = np.array([np.nanmean(values[rows], axis=0) for rows in drawn])
        low, high = np.nanpercentile(means, [2.5, 97.5], axis=0)
        return np.nanmean(values, axis=0), low, high
