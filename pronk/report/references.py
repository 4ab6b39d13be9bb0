"""Tables of reference scores: the mean returns of random play, and of the play that scores 1."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pronk.errors import UserError, nearest
from pronk.maths import scores
from pronk.report import published
from pronk.report.tables import Table

# Mean returns of uniformly random actions, in environments without arguments. Of at least 992
# episodes, with standard errors below 2 % or 0.02; in Gymnasium's MuJoCo tasks (v5) of 496, with
# standard errors below 5 %, or of 4 (Ant), 0.5 (Swimmer) and 0.3 (Walker2d).
RANDOM_PLAY: dict[str, float] = {
    "pronk/Catch": -0.58,
    "pronk/CartPole": 22.2,
    "pronk/DeepSea": 0.0,
    "pronk/MemoryCue": 0.25,
    "pronk/Orchard": 6.65,
    "pronk/Breakout": 0.39,
    "pronk/SpaceInvaders": 4.0,
    "pronk/Acrobot": -1226.0,
    "pronk/CartPoleBalance": 78.6,
    "pronk/CartPoleSwingUp": -153.0,
    "pronk/DoublePendulum": 158.0,
    "pronk/MountainCar": -412.0,
    "pronk/KeyDoor": 0.0,
    "pronk/Patience": 1.5,
    "pronk/RandomCoin": 0.295,
    "pronk/RandomDiscoMaze": 0.0075,
    "CartPole": 22.2,
    "Acrobot": -499.0,
    "MountainCar": -200.0,
    "MountainCarContinuous": -33.1,
    "Pendulum": -1232.0,
    "Ant": -53.0,
    "HalfCheetah": -279.0,
    "Hopper": 17.7,
    "Humanoid": 113.0,
    "InvertedDoublePendulum": 47.2,
    "InvertedPendulum": 5.0,
    "Pusher": -150.0,
    "Reacher": -42.8,
    "Swimmer": 0.2,
    "Walker2d": 2.0,
}
# Random play and the best agent of each row, after 25 million steps: Duan et al. 2016, table 1.
DUAN: dict[str, tuple[float, float]] = {
    task: (row["random"].mean, max(result.mean for result in row.values()))
    for task, row in published.DUAN.items()
}
COLUMNS = ("task", "random", "reference")
_TASK = re.compile(r"(?P<name>[^?]+?)(?:-(?P<version>v[0-9]+))?(?P<arguments>\?.*)?", re.DOTALL)


@dataclass(frozen=True)
class References:
    """A table: by `key_of` a task, the returns whose normalised scores are 0 and 1.

    None instead of the second: the best group of the report. exact: the table has the tasks' own
    names instead.
    """

    name: str
    about: str
    table: Mapping[str, tuple[float, float | None]]
    exact: bool = False

    def key(self, task: str) -> str:
        """What the table calls a task."""
        return task if self.exact else key_of(task)

    def of(self, tasks: Sequence[str], best: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """The references `(random, one)` of each task. best: the best group's mean score, by task.

        Raises UserError for tasks that the table lacks, and where the second is not above the
        first: a higher return would have the same normalised score, or a lower one.
        """
        lacking = [task for task in tasks if self.key(task) not in self.table]
        if lacking:
            shown = ", ".join(f"'{task}'" for task in lacking[:5])
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            raise UserError(
                f"the references {self.name} have no row for {shown}{more}; expected one for every"
                " task: give --normalise FILE.csv with the columns task, random, reference; or"
                " --normalise none; or leave the runs of these tasks out."
            )
        found, bad = {}, []
        for task in tasks:
            random, one = self.table[self.key(task)]
            whose = "best group" if one is None else "reference"
            one = best[task] if one is None else one
            if not one > random:
                bad.append(f"'{task}' (random play {random:.6g}, {whose} {one:.6g})")
            found[task] = (random, one)
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            raise UserError(
                f"the references {self.name} cannot normalise the scores of {', '.join(bad[:5])}"
                f"{more}; expected a reference above random play, since higher returns are better:"
                " leave the runs of these tasks out, give --normalise FILE.csv with other"
                " references, or --normalise none. Change the signs of costs, in scores and in"
                " references."
            )
        return found


def split_version(env: str) -> tuple[str, str]:
    """The name and the version of an environment's id: `ALE/Pong-v5` is `ALE/Pong` and `v5`.

    Arguments, as in `pronk/Catch-v0?delay=5`, stay with the name.
    """
    found = _TASK.fullmatch(env)
    if found is None or found["version"] is None:
        return env, ""
    return found["name"] + (found["arguments"] or ""), found["version"]


def key_of(task: str) -> str:
    """What tables call a task: `pong` for `ALE/Pong`, `PongNoFrameskip`, `Pong` and `pong`.

    Arguments stay, since they change what a return means; of an Atari game only a scale of rewards
    does.
    """
    name, has_arguments, arguments = split_version(task)[0].partition("?")
    if name.startswith("ALE/") and "reward_scale" not in arguments:
        has_arguments = ""
    name = re.sub(r"(NoFrameskip|Deterministic)$", "", name.removeprefix("ALE/"))
    key = re.sub(r"[^a-z0-9/]", "", name.lower())
    return f"{key}?{arguments}" if has_arguments else key


def _keyed(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key_of(task): pair for task, pair in table.items()}


def _scales() -> dict[str, tuple[float, float | None]]:
    from pronk.envs.suite import SUITES  # imports Gymnasium

    return {
        task.name: task.scaled_reference
        for task in SUITES["suite/scales-v0"]
        if task.scaled_reference is not None
    }


MUZERO = "random and human play of Schrittwieser et al. 2020 (MuZero), table S1"
_TABLES: dict[str, tuple[str, Mapping[str, tuple[float, float]]]] = {
    "muzero-s1": (MUZERO, scores.ATARI),
    "agent57": (
        "random and human play, one decimal, as in Badia et al. 2020 (Agent57)",
        scores.AGENT57,
    ),
    "dqn-zoo": ("random and human play of DQN Zoo's atari_data.py", scores.DQN_ZOO),
    "duan2016": ("random play and the best agent of Duan et al. 2016, table 1", DUAN),
}
NAMES = ("none", "human", "random-best", *_TABLES, "scales")


def load(normalise: str) -> References | None:
    """The table of a name, or in a CSV file; None for `none`.

    Raises UserError for an unknown name, and for a file that is no table.
    """
    if normalise == "none":
        return None
    if normalise == "human":
        return load("muzero-s1")
    if normalise in _TABLES:
        about, table = _TABLES[normalise]
        return References(normalise, about, _keyed(table))
    if normalise == "scales":
        return References("scales", "those of the tasks of suite/scales-v0", _scales(), exact=True)
    if normalise == "random-best":
        random = {task: (value, None) for task, value in RANDOM_PLAY.items()}
        atari = {game: (pair[0], None) for game, pair in scores.ATARI.items()}
        about = "0 is random play, 1 the mean score of the best group in this report"
        return References("random-best", about, _keyed({**random, **atari}))
    if normalise.endswith(".csv") or Path(normalise).is_file():
        return _read(Path(normalise))
    raise UserError(
        f"`--normalise` is '{normalise}'{nearest(normalise, NAMES) or ';'} expected one of"
        f" {', '.join(NAMES)}, or a file, FILE.csv, with the columns {', '.join(COLUMNS)}."
    )


def _read(path: Path) -> References:
    rows = Table(path)
    missing = [name for name in COLUMNS if name not in rows.columns]
    if missing:
        raise UserError(
            f"the references '{path}' have no column {', '.join(missing)}; expected"
            f" {', '.join(COLUMNS)}, where an empty reference stands for the best group's score."
        )
    table: dict[str, tuple[float, float | None]] = {}
    seen: dict[str, str] = {}  # by the table's name of a task: where it was found
    for line in rows.rows():
        task, random, one = (line.cells[name] for name in COLUMNS)
        key = key_of(task) if task else ""
        if not key:
            raise UserError(f"{line.where} has no task; expected its name, or no such line.")
        if key in seen:
            raise UserError(
                f"{line.where} has references for '{task}', and so has {seen[key]}; expected one"
                " row for each task: remove one of them. Names that differ in case, in spaces and"
                " signs, in the version, or in a prefix ALE/, are of one task."
            )
        seen[key] = line.where
        try:
            pair = float(random), float(one) if one else None
        except ValueError:
            pair = math.nan, None
        if not all(math.isfinite(value) for value in pair if value is not None):
            raise UserError(
                f"{line.where} has random '{random}' and reference '{one}' for '{task}'; expected"
                " finite numbers."
            )
        table[key] = pair
    return References(str(path), f"the file {path}", table)
