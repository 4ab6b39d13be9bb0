"""What the experiments with exploration share: small tasks, which an episode solves or not, the
settings of agents on them, and tables of success rates.

The score of a run is the success rate of its policy, the mean of the last evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.experiments.reproduce import common, matrix
from pronk.experiments.reproduce.matrix import Done, Scores, Variant
from pronk.experiments.reproduce.settings import Matrix, RandomCoin
from pronk.types import Array


class Task(NamedTuple):
    """A task that an episode solves or not."""

    env: str
    args: dict[str, Any]
    failure: float  # the return of an episode without success
    success: float
    scale: float  # β of the agents with intrinsic rewards
    memory: int  # embeddings that they remember
    further: Mapping[str, Any] = {}  # settings of all agents


TASKS = {
    # An episode ends at the goal, and the novelty with it: a larger β makes the goal a loss.
    "KeyDoor": Task("pronk/KeyDoor-v0", {"size": 3}, 0.0, 1.0, 0.01, 150),
    # Moves in vain cost at most 0.01, which does not count.
    "DeepSea": Task("pronk/DeepSea-v0", {"size": 10}, 0.0, 0.99, 0.1, 10),
    "Catch": Task("pronk/Catch-v0", {}, -1.0, 1.0, 0.01, 10),
}
# The preset of all agents, as the fused runtime needs it, without a memory that the tasks do not
# need: their observations show all there is to know.
COMMON: dict[str, Any] = {
    "preset": "small",
    "runtime": "fused",
    "torso": "mlp",
    "recurrent_core": "none",
    "priority_exponent": 0.0,
    "overlap": 0,
    "burn_in": 0,
    "samples_per_insert": 32.0,
}
EVALUATIONS, EPISODES = 20, 32
SCORE = "last_evaluations"
SOLVED = 0.9  # of the episodes: the run counts as one that solved the task


def with_novelty(task: Task, agent: str, **changed: Any) -> Variant:
    """A variant with an intrinsic reward, with the task's scale and memory."""
    return Variant(agent, {"intrinsic_scale": task.scale, "memory_size": task.memory, **changed})


def train(
    settings: Matrix | RandomCoin,
    output: Path,
    tasks: Mapping[str, Task],
    variants: Callable[[Task], Mapping[str, Variant]],
) -> list[Done]:
    """Train the runs that are missing in `output`; returns all. variants: a function of the task
    that returns its variants, by name."""
    return [
        one
        for name, task in tasks.items()
        for one in matrix.train(
            output,
            {name: task.env},
            variants(task),
            seeds=settings.seeds,
            steps=settings.steps,
            env_args={name: task.args},
            eval_every=max(1, settings.steps // EVALUATIONS),
            eval_episodes=EPISODES,
            **{**COMMON, **task.further},
        )
    ]


def success(task: Task, mean_return: Array) -> Array:
    """The share of episodes that succeed, from the mean return of all."""
    return np.clip((mean_return - task.failure) / (task.success - task.failure), 0.0, 1.0)


def rates(results: Path, name: str, tasks: Mapping[str, Task]) -> Scores:
    """The success rates of the runs in `NAME-scores.csv`, by variant and task."""
    scores = matrix.scores_of(common.read_csv(results / f"{name}-scores.csv"), SCORE)
    return {
        variant: {task: success(tasks[task], own[task]) for task in tasks if task in own}
        for variant, own in scores.items()
    }


def table(found: Scores, tasks: Mapping[str, Task]) -> str:
    """Variants by tasks: the success rate, mean over seeds with a 95 % interval, and how many of
    the runs solved the task. Empty if no run recorded an evaluation."""
    if not found:
        return ""
    shown = [task for task in tasks if any(task in own for own in found.values())]
    lines = []
    for variant, own in found.items():
        cells = []
        for task in shown:
            if task not in own:
                cells.append("–")
                continue
            solved = f"{(own[task] >= SOLVED).sum()} of {len(own[task])}"
            cells.append(f"{common.interval(list(own[task])).short()}; {solved}")
        lines.append([variant, *cells])
    return common.markdown(["success rate; runs that solved it", *shown], lines)
