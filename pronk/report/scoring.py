"""One score per run: at its end, at a step, or over all of training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pronk.report.runs import EVALUATION, TRAINING, Row, Run
from pronk.report.statistics import area_under_curve

AUTO, AUC = "auto", "auc"
METRICS = (AUTO, EVALUATION, TRAINING, AUC)


@dataclass(frozen=True)
class Scored:
    """A run and its score."""

    run: Run
    metric: str  # EVALUATION or TRAINING: where the score comes from
    score: float
    step: int  # of the newest row that counts
    episodes: int | None  # that the score averages; None: not known


@dataclass(frozen=True)
class Rule:
    """How a run's score is made of its rows.

    metric: one of METRICS; `auto` and `auc` take evaluations of a run that has some, and else its
    training. last: the number of episodes to average over; None: the newest row, that is, the last
    evaluation, or the last 100 episodes of training. at: the step whose score counts; None: the
    end.
    """

    metric: str = AUTO
    last: int | None = None
    at: int | None = None

    def source(self, run: Run) -> str:
        """The metric of the rows that count."""
        if self.metric in (EVALUATION, TRAINING):
            return self.metric
        return EVALUATION if run.of(EVALUATION) else TRAINING

    def score(self, run: Run) -> Scored | str:
        """The run's score, or why it has none."""
        if run.damage:
            return run.damage
        metric = self.source(run)
        rows = run.of(metric)
        if not rows:
            return f"it has no score of {metric} yet"
        if (at := self.at) is not None:
            newest = min(rows, key=lambda row: abs(row.step - at))
            if 2 * abs(newest.step - at) > _spacing(rows):
                which = "first" if newest.step > at else "last"
                return f"its {which} score is at {newest.step:,} steps"
            rows = rows[: rows.index(newest) + 1]
        if self.metric == AUC:
            weights = new_episodes(rows)
            total = sum(weights) if all(row.episodes for row in rows) else None
            score = area_under_curve([row.score for row in rows], weights)
            return Scored(run, metric, score, rows[-1].step, total)
        counted = _newest(rows, self.last)
        weights = [row.episodes or 1 for row in counted]
        total = sum(weights) if all(row.episodes for row in counted) else None
        score = float(np.average([row.score for row in counted], weights=weights))
        return Scored(run, metric, score, rows[-1].step, total)

    def curve(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """The steps and scores of the rows that count, each `[N]`."""
        rows = run.of(self.source(run))
        return np.array([row.step for row in rows]), np.array([row.score for row in rows])

    def words(self, metric: str) -> str:
        """What a score from `metric` is, for people."""
        where = "at the end" if self.at is None else f"at {self.at:,} steps"
        if self.metric == AUC:
            until = "" if self.at is None else f" up to {self.at:,} steps"
            of = "all evaluations" if metric == EVALUATION else "all episodes"
            return f"mean return of {of} of training{until} (area under the curve)"
        if metric == EVALUATION and self.last is None:
            return f"mean return of the last evaluation {where}"
        of = "evaluation" if metric == EVALUATION else "training"
        return f"mean return of the last {self.last or 100} episodes of {of} {where}"


def new_episodes(rows: Sequence[Row]) -> list[int]:
    """How many episodes each row stands for: those since the row before it, where rows share
    episodes, and else its own; 1 where that is not known."""
    counts, before = [], 0
    for row in rows:
        if row.total_episodes is None:
            counts.append(row.episodes or 1)
        else:
            counts.append(max(0, row.total_episodes - before))
            before = row.total_episodes
    return counts if sum(counts) else [1] * len(rows)


def _newest(rows: Sequence[Row], last: int | None) -> list[Row]:
    """The newest rows that share no episodes and together have `last` of them, or all there are."""
    counted, episodes, begin = [rows[-1]], rows[-1].episodes or 1, _begin(rows[-1])
    for row in reversed(rows[:-1]):
        if last is None or episodes >= last:
            break
        if begin is not None and row.total_episodes is not None and row.total_episodes > begin:
            continue  # shares episodes with one that counts
        counted.append(row)
        episodes += row.episodes or 1
        begin = _begin(row)
    return counted


def _begin(row: Row) -> int | None:
    """How many episodes ended before those that a row averages."""
    return None if row.total_episodes is None else row.total_episodes - (row.episodes or 1)


def _spacing(rows: Sequence[Row]) -> int:
    """The largest distance of two rows, or of the first one from the start, in steps."""
    steps = [0, *(row.step for row in rows)]
    return max(after - before for before, after in itertools.pairwise(steps))
