"""The basic tasks of Duan et al. 2016, table 1, with a fifth of its batches and steps.

The metric is the paper's: the mean undiscounted return of all episodes of training. Per task, bold
is the best agent and every other whose mean does not differ significantly (Welch's t, p < 0.05).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk import report
from pronk.experiments.reproduce import common, matrix
from pronk.experiments.reproduce.matrix import JAX_TASKS, RANDOM, Scores, Variant
from pronk.experiments.reproduce.settings import Duan
from pronk.report import published, statistics
from pronk.run.setup import configure_jax
from pronk.types import Array

_DUAN = {"preset": "duan"}
# The Fisher information of a fifth of the batch, for speed; Schulman et al. 2015 take a tenth.
_NATURAL = {"preset": "duan", "fisher_every": 5}
# An update for every eighth step, for speed; the paper has one for each.
_DDPG = {"preset": "duan", "envs_per_actor": 8, "updates_per_step": 0.125}
# PPO is not in the paper; its settings are those of its own paper but for the batch and the policy.
_PPO = {
    "preset": "paper",
    "unroll": 1250,
    "batch_size": 8,
    "minibatch_size": 100,
    "hidden_sizes": (100, 50, 25),
    "observation_normalisation": False,
}
# Further agents take one line each; `published.DUAN` says which of them the paper has.
AGENTS = {
    "reinforce": Variant("reinforce", _DUAN),
    "npg": Variant("npg", _NATURAL),
    "tnpg": Variant("tnpg", _NATURAL),
    "trpo": Variant("trpo", _NATURAL),
    "rwr": Variant("rwr", _DUAN),
    "reps": Variant("reps", _DUAN),
    "cem": Variant("cem", _DUAN),
    "cma_es": Variant("cma_es", _DUAN),
    "ddpg": Variant("ddpg", _DDPG),
    "ppo": Variant("ppo", _PPO),
}
QUICK = ("CartPoleSwingUp", "DoublePendulum")
REPEATS = 10_000  # of the bootstrap


def run(settings: Duan, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    settings, tasks = matrix.choose(settings, JAX_TASKS, QUICK, seeds=2, share=25)
    agents = common.choose("agents", settings.agents, AGENTS)
    done = matrix.train(
        output,
        tasks,
        {name: AGENTS[name] for name in agents},
        seeds=settings.seeds,
        steps=settings.steps,
        runtime="fused",
    )
    matrix.write(done, results, "duan", f"pronk reproduce duan, {settings.steps:,} agent steps")
    matrix.play_randomly(output, results, "duan", tasks)
    return "\n\n".join([*tables(results), draw(results)])


def tables(results: Path) -> list[str]:
    """The tables of the report, from those in `results`."""
    scores, random = _read(results)
    tasks = matrix.complete(scores)
    left_out = sorted({task for own in scores.values() for task in own} - {*tasks})
    found = [table(scores, random)]
    if tasks:
        _, below = matrix.above_random(scores, tasks, random)
        found += [summary(scores, random, tasks), below, agreement(scores, tasks)]
    if left_out:
        found.append(f"in no mean, as an agent has no episode there: {', '.join(left_out)}")
    return [text for text in found if text]


def _read(results: Path) -> tuple[Scores, dict[str, float]]:
    scores = matrix.scores_of(common.read_csv(results / "duan-scores.csv"), "all_episodes")
    rows = common.read_csv(results / "duan-random.csv")
    return scores, {row["task"]: row["mean_return"] for row in rows}


def table(scores: Scores, random: Mapping[str, float]) -> str:
    """Tasks by agents, as in the paper: mean ± standard deviation."""
    lines = []
    for task, zero in random.items():
        own = {name: runs[task] for name, runs in scores.items() if task in runs}
        bold = dict(zip(own, report.among_best(list(own.values())), strict=True)) if own else {}
        cells = [
            matrix.spread(own[name], bold=bold[name]) if name in own else "–" for name in scores
        ]
        lines.append([task, f"{zero:.1f}", *cells])
    return common.markdown(["", RANDOM, *scores], lines)


def summary(scores: Scores, random: Mapping[str, float], tasks: list[str]) -> str:
    """Per agent, normalised scores and ranks, means over tasks, beside the published ones.

    The means of normalised scores are of the tasks of `matrix.above_random`.
    """
    above, _ = matrix.above_random(scores, tasks, random)
    ranks = report.mean_ranks(matrix.means(scores, tasks))
    compared, theirs = _published(scores, tasks)
    share = ["–"] * len(scores)
    their_share = ["–"] * len(compared)
    if above:
        share = [f"{x:.3f}" for x in matrix.normalised_means(scores, above, random).mean(0)]
        their_share = [f"{x:.3f}" for x in _published_share(compared, above)]
    ours = report.mean_ranks(matrix.means({n: scores[n] for n in compared}, tasks))
    lines = []
    for i, name in enumerate(scores):
        cells = ["", "", ""]
        if name in compared:
            k = compared.index(name)
            cells = [f"{ours[k]:.2f}", f"{theirs[k]:.2f}", their_share[k]]
        lines.append([name, share[i], f"{ranks[i]:.2f}", *cells])
    theirs_too = ["rank among the paper's agents", "published rank", "published normalised score"]
    return common.markdown(["", "normalised score", "mean rank", *theirs_too], lines)


def _published(scores: Scores, tasks: list[str]) -> tuple[list[str], Array]:
    """The agents that the paper has, and their mean ranks among themselves there."""
    rows = [published.DUAN[f"pronk/{task}"] for task in tasks]
    compared = [name for name in scores if _key(name) in rows[0]]
    means = np.array([[row[_key(name)].mean for name in compared] for row in rows])
    return compared, report.mean_ranks(means)


def _published_share(compared: list[str], tasks: list[str]) -> Array:
    """The paper's normalised scores, means over tasks; 1 is the best mean of all its agents."""
    rows = [published.DUAN[f"pronk/{task}"] for task in tasks]
    means = np.array([[row[_key(name)].mean for name in compared] for row in rows])
    zero = np.array([[row[RANDOM].mean] for row in rows])
    best = np.array([[max(result.mean for result in row.values())] for row in rows])
    return ((means - zero) / (best - zero)).mean(0)


def _key(agent: str) -> str:
    return agent.replace("_", "-")


class Agreement(NamedTuple):
    """Kendall's τ with the published ranking, its 95 % interval and median over resampled seeds;
    these are NaN where no agent has more than one run of a task."""

    tau: float
    low: float
    high: float
    median: float


def kendall(scores: Scores, tasks: list[str]) -> Agreement:
    """The agreement of mean ranks over tasks, of the agents that the paper has."""
    compared, theirs = _published(scores, tasks)
    groups = [{task: scores[name][task] for task in tasks} for name in compared]

    def tau(*groups: Any) -> Any:
        means = np.stack([statistics.task_means(group) for group in groups], -1)
        return report.kendall_tau(report.mean_ranks(means), theirs)

    low = median = high = math.nan
    if any(len(runs) > 1 for group in groups for runs in group.values()):
        drawn = report.distribution(tau, *groups, repeats=REPEATS)
        low, median, high = np.quantile(drawn, [0.025, 0.5, 0.975])
    return Agreement(float(tau(*(g.values() for g in groups))), low, high, median)


def agreement(scores: Scores, tasks: list[str]) -> str:
    """Kendall's τ in words; empty with fewer than three agents of the paper's."""
    compared, _ = _published(scores, tasks)
    if len(compared) < 3:
        return ""
    found = kendall(scores, tasks)
    text = (
        f"Kendall's τ of the mean ranks of {', '.join(compared)} on {len(tasks)} tasks with the"
        f" published: {found.tau:.2f}"
    )
    if math.isnan(found.median):
        return text
    return (
        f"{text}; over resampled seeds a median of {found.median:.2f}, 95 % interval"
        f" [{found.low:.2f}, {found.high:.2f}]"
    )


def draw(results: Path) -> str:
    """Draw the learning curves from the table in `results`."""
    return matrix.draw_curves(results, "duan")
