"""Suites: several tasks that one agent learns together, in common spaces.

A suite is a list of environments, `ENV,ENV,…`, or a name in `SUITES`. An environment of a list may
have its own arguments, `pronk/Catch-v0?delay=10&reward_scale=100`, of which `weight` and
`reward_scale` belong to the task: its share of the slots, and a factor of its rewards. Importing
this module imports neither jax nor an environment.

A slot never changes its task, whose number is in `TimeStep.task`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pronk.config.assignments import parse_assignments
from pronk.envs.common_spaces import common_spaces
from pronk.errors import UserError, counted, nearest
from pronk.maths import scores
from pronk.types import EnvSpec


@dataclass(frozen=True)
class Task:
    """One environment of a suite."""

    name: str
    env: str
    env_args: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0  # the task's share of slots, relative to the other tasks'
    reward_scale: float = 1.0
    # Mean unscaled returns of random play, and of the play whose normalised score is 1.
    reference: tuple[float, float] | None = None
    # Default arguments of the environment in a suite.
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def args(self, common: Mapping[str, Any] | None) -> dict[str, Any]:
        """The environment's arguments, given those for all tasks."""
        return {**self.defaults, **(common or {}), **self.env_args}

    @property
    def scaled_reference(self) -> tuple[float, float] | None:
        """`reference` in scaled rewards, as the agent receives them."""
        if self.reference is None:
            return None
        return self.reference[0] * self.reward_scale, self.reference[1] * self.reward_scale


# Rewards from 10⁻² to 10⁴, in tasks that need no memory. A score of 1 is the best possible return,
# and for Breakout that of an agent trained on it alone (`pronk reproduce popart`).
_SCALES = (
    Task("catch", "pronk/Catch-v0", {}, 1.0, 1e-2, (-0.6, 1.0)),
    Task("deep-sea", "pronk/DeepSea-v0", {"size": 6}, 1.0, 1e-1, (0.0, 0.99)),
    Task("cartpole", "pronk/CartPole-v1", {"max_steps": 200}, 1.0, 1.0, (22.0, 200.0)),
    Task(
        "orchard",
        "pronk/Orchard-v0",
        {"rows": 6, "columns": 5, "seen": 6, "falls": 20},
        1.0,
        10.0,
        (8.0, 200.0),
    ),
    Task("delayed-catch", "pronk/Catch-v0", {"delay": 5}, 1.0, 1e3, (-0.6, 1.0)),
    Task("breakout", "pronk/Breakout-v0", {}, 1.0, 1e4, (0.2, 5.0)),
)


# With it an action means the same in all games (except Skiing, which has 9 of the 18 in its own
# order).
_CONSOLE = {"full_action_space": True}


def _atari(games: Sequence[str]) -> tuple[Task, ...]:
    """Tasks with all of the console's actions."""
    return tuple(
        Task(game, f"ALE/{game}-v5", defaults=_CONSOLE, reference=scores.ATARI[game])
        for game in games
    )


SUITES: dict[str, tuple[Task, ...]] = {
    "suite/scales-v0": _SCALES,
    "suite/atari-57-v0": _atari(list(scores.ATARI)),
}
_TASK_ARGUMENTS = ("weight", "reward_scale")
_UPPER_BOUND = 1e15  # of both, so that squares of scaled rewards are finite in float32


def tasks_of(env: Any) -> tuple[Task, ...] | None:
    """The tasks that `env` names, or None if it is a single environment.

    Raises UserError for an unknown suite, malformed arguments, and a task that is listed twice.
    """
    if not isinstance(env, str):
        return None
    if env in SUITES:
        return SUITES[env]
    if "," not in env and "?" not in env:
        if not env.startswith("suite/"):
            return None
        raise UserError(
            f"`env` '{env}' is not a suite{nearest(env, SUITES) or ';'} expected one of"
            f" {', '.join(SUITES)}, or a list of environments, as in CartPole-v1,Acrobot-v1."
        )
    tasks = [_parse_task(text.strip()) for text in env.split(",")]
    if len(tasks) > 1 and all(task.env.startswith("ALE/") for task in tasks):
        tasks = [dataclasses.replace(task, defaults=_CONSOLE) for task in tasks]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"`env` '{env}' lists '{name}' {names.count(name)} times; expected every task once:"
                " for more slots set its weight, as in ENV?weight=2."
            )
    return tuple(tasks)


def task_number(env: Any, tasks: Sequence[Task] | None, name: str | None) -> int:
    """The number of the task called `name` among `tasks`, those of `env`.

    `name` may be None for a suite of one task, and for a single environment (0). Raises UserError
    if there is no such task.
    """
    if tasks is None and name is not None:
        raise UserError(f"`task` is '{name}', but '{env}' is not a suite: leave `task` out.")
    names = [task.name for task in tasks or ()]
    if name is None and len(names) < 2:
        return 0
    if name not in names:
        raise UserError(
            f"`task` is {'not given' if name is None else repr(name)}"
            f"{nearest(name or '', names) or ';'} expected one of '{env}': {', '.join(names)}."
        )
    return names.index(name)


def _parse_task(text: str) -> Task:
    """Parse `ENV?NAME=VALUE&…`."""
    env, has_arguments, query = text.partition("?")
    if not env:
        raise UserError(
            f"`env` has a task without an environment, '{text}'; expected ENV,ENV?NAME=VALUE,…"
        )
    pairs = query.split("&") if has_arguments else ()
    args = parse_assignments(pairs, f"an argument of `env` '{text}'")
    if env.startswith("suite/"):
        raise UserError(
            f"`env` has the task '{text}', which is a suite; expected environments, or one suite"
            " alone."
        )
    own = {name: args.pop(name) for name in _TASK_ARGUMENTS if name in args}
    for name, value in own.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < _UPPER_BOUND:
            raise UserError(
                f"`env` '{text}' has {name}={value!r}; expected a number above 0 and below"
                f" {_UPPER_BOUND:g}."
            )
    human = scores.ATARI.get(scores.game(env) or "")
    return Task(text, env, args, reference=human, **own)


def assignment(weights: Sequence[float], num_envs: int, first_env_id: int = 0) -> np.ndarray:
    """The task of each slot `first_env_id + i`, int32 `[num_envs]`.

    Each slot goes to the task that is furthest below its share (the earlier of two), so that any
    number of slots from 0 on is divided in proportion to `weights` as nearly as possible.
    """
    total, counts = sum(weights), np.zeros(len(weights))
    tasks = np.zeros(first_env_id + num_envs, np.int32)
    share = np.array(weights) / total
    for i in range(len(tasks)):
        tasks[i] = np.argmax(share * (i + 1) - counts)
        counts[tasks[i]] += 1
    return tasks[first_env_id:]


def check_slots(env: Any, num_envs: int, first_env_id: int = 0) -> None:
    """Raise UserError if some task of a suite has none of the `num_envs` slots from `first_env_id`
    on."""
    tasks = tasks_of(env) or ()
    if not tasks:
        return
    weights = [task.weight for task in tasks]
    present = set(assignment(weights, num_envs, first_env_id).tolist())
    missing = [task.name for k, task in enumerate(tasks) if k not in present]
    if missing:
        raise UserError(
            f"with {counted(num_envs, 'environment')}, {len(missing)} of the {len(tasks)} tasks of"
            f" '{env}' would get none, such as '{missing[0]}'; expected at least one each: increase"
            " --envs-per-actor or --actors, or --batch-size if it is the number of environments."
        )


def suite_spec(env: str, tasks: Sequence[Task], specs: Sequence[EnvSpec]) -> EnvSpec:
    """The spec of a suite of `tasks` with these specs; raises UserError if they don't fit."""
    repeats = {spec.frames_per_step: spec for spec in specs}
    if len(repeats) > 1:
        listed = ", ".join(f"{n} in '{spec.name}'" for n, spec in repeats.items())
        raise UserError(
            f"the tasks of `env` '{env}' repeat actions for different numbers of frames ({listed});"
            " expected the same number in all tasks, because frames are counted."
        )
    if len({spec.players for spec in specs}) > 1:
        listed = ", ".join(f"{spec.players} in '{spec.name}'" for spec in specs)
        raise UserError(
            f"the tasks of `env` '{env}' have different numbers of players ({listed}); expected the"
            " same in all tasks: give the board games an opponent, as in"
            " pronk/TicTacToe-v0?opponent=random."
        )
    shared = common_spaces(specs)
    return EnvSpec(
        env,
        shared.observation_space,
        shared.action_space,
        frames_per_step=specs[0].frames_per_step,
        has_action_mask=shared.has_action_mask,
        tasks=tuple(task.name for task in tasks),
        references=tuple(task.scaled_reference for task in tasks),
        players=specs[0].players,
    )
