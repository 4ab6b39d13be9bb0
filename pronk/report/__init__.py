"""Reports on many runs: statistics over seeds and tasks, with intervals.

    from pronk import report

    made = report.make(report.read(["runs"]), normalise="human", compare=("impala", "r2d2"))
    print(report.text(made))

`docs/report.md` defines every number. Imports no JAX.
"""

from __future__ import annotations

from dataclasses import replace

from pronk.report import long_csv
from pronk.report.bootstrap import distribution, interval
from pronk.report.build import Report, make
from pronk.report.ranks import kendall_tau, mean_ranks, ranks
from pronk.report.render import markdown, plain_head, text
from pronk.report.runs import Row, Run
from pronk.report.sources import check_outputs, read
from pronk.report.statistics import (
    AGGREGATES,
    aggregates,
    area_under_curve,
    capped_mean,
    iqm,
    mean,
    median,
    normalised,
    optimality_gap,
    percentile,
    probability_of_improvement,
    profile,
    tasks_above,
)
from pronk.report.welch import among_best, welch

__all__ = [
    "AGGREGATES",
    "Report",
    "Row",
    "Run",
    "aggregates",
    "among_best",
    "area_under_curve",
    "as_csv",
    "capped_mean",
    "check_outputs",
    "distribution",
    "interval",
    "iqm",
    "kendall_tau",
    "make",
    "markdown",
    "mean",
    "mean_ranks",
    "median",
    "normalised",
    "optimality_gap",
    "percentile",
    "probability_of_improvement",
    "profile",
    "ranks",
    "read",
    "tasks_above",
    "text",
    "welch",
]


def as_csv(report: Report) -> str:
    """The long CSV of the scores behind a report, from which the same report can be made."""
    runs = [*(one.run for one in report.scored()), *(run for run, _ in report.left_out)]
    counted = (replace(run, rows=tuple(run.of(report.rule.source(run)))) for run in runs)
    return long_csv.write(counted, report.by, plain_head(report))
