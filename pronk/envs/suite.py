"""Suites: several tasks that one agent learns together, seen through common spaces.

A suite is a list of environments, `ENV,ENV,…`, or a name in `SUITES`. An environment of a list may
have arguments of its own, `pronk/Catch-v0?delay=10&reward_scale=100`, of which `weight` and
`reward_scale` are the task's: how many of the slots it gets, and what its rewards are multiplied
by. Importing this module imports neither jax nor an environment.

Every slot keeps its task for its whole life, and says which in `TimeStep.task`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pronk.errors import UserError, nearest
from pronk.maths import scores
from pronk.types import Array, EnvSpec, Episode, PyTree, TimeStep, VectorEnv


@dataclass(frozen=True)
class Task:
    """One environment of a suite."""

    name: str
    env: str
    env_args: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0  # slots are given out in these proportions
    reward_scale: float = 1.0
    # Mean returns, of rewards as the environment pays them, of random play and of what counts as 1.
    reference: tuple[float, float] | None = None
    # Arguments that the environment has in a suite, unless anybody gives them.
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def args(self, common: Mapping[str, Any] | None) -> dict[str, Any]:
        """The environment's arguments, where those for all tasks are `common`."""
        return {**self.defaults, **(common or {}), **self.env_args}

    @property
    def scaled_reference(self) -> tuple[float, float] | None:
        """`reference` in the rewards that the agent gets."""
        if self.reference is None:
            return None
        return self.reference[0] * self.reward_scale, self.reference[1] * self.reward_scale


# Rewards from 10⁻² to 10⁴, for which no memory is needed. What counts as 1 is the best there is,
# and for Breakout what an agent of its own reaches (`pronk reproduce popart`).
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


# So that an action means the same in all games (but Skiing, which knows 9 of the 18, in an order of
# its own).
_CONSOLE = {"full_action_space": True}


def _atari(games: Sequence[str]) -> tuple[Task, ...]:
    """Games with all of the console's actions."""
    return tuple(
        Task(game, f"ALE/{game}-v5", defaults=_CONSOLE, reference=scores.ATARI[game])
        for game in games
    )


SUITES: dict[str, tuple[Task, ...]] = {
    "suite/scales-v0": _SCALES,
    "suite/atari-57-v0": _atari(list(scores.ATARI)),
}
_OWN = ("weight", "reward_scale")
_MOST = 1e15  # of either: squares of what it multiplies, too, are finite in float32


def tasks_of(env: Any) -> tuple[Task, ...] | None:
    """The tasks that `env` names, or None where it is a single environment.

    Raises UserError for an unknown suite, arguments that can't be read, and a task named twice.
    """
    if not isinstance(env, str):
        return None
    if env in SUITES:
        return SUITES[env]
    if "," not in env and "?" not in env:
        if not env.startswith("suite/"):
            return None
        raise UserError(
            f"suite '{env}' is unknown{nearest(env, SUITES) or '.'} Known: {', '.join(SUITES)}; or"
            " list environments, as in CartPole-v1,Acrobot-v1."
        )
    found = [_parsed(text.strip()) for text in env.split(",")]
    if len(found) > 1 and all(task.env.startswith("ALE/") for task in found):
        found = [dataclasses.replace(task, defaults=_CONSOLE) for task in found]
    names = [task.name for task in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"`env` '{env}' has '{name}' {names.count(name)} times; expected every task once:"
                " give it a larger weight instead, as in ENV?weight=2."
            )
    return tuple(found)


def task_number(env: Any, tasks: Sequence[Task] | None, name: str | None) -> int:
    """Which of `tasks`, those of `env`, has this name: of a suite of one, and of a single
    environment (0), it may be left out. Raises UserError where there is none."""
    if tasks is None and name is not None:
        raise UserError(f"`task` is '{name}', and '{env}' is no suite of tasks: leave it out.")
    names = [task.name for task in tasks or ()]
    if name is None and len(names) < 2:
        return 0
    if name not in names:
        raise UserError(
            f"`task` is {'not given' if name is None else repr(name)}"
            f"{nearest(name or '', names) or ';'} '{env}' has {', '.join(names)}: choose one."
        )
    return names.index(name)


def _parsed(text: str) -> Task:
    """`ENV?name=value&…` as a task."""
    env, asked, query = text.partition("?")
    args: dict[str, Any] = {}
    for pair in query.split("&") if asked else ():
        name, equals, value = pair.partition("=")
        if not env or not equals or not name:
            raise UserError(
                f"`env` has '{text}'; expected ENV or ENV?NAME=VALUE&NAME=VALUE, as in"
                " pronk/Catch-v0?delay=10."
            )
        try:
            args[name] = json.loads(value)
        except json.JSONDecodeError:
            args[name] = value
    if not env:
        raise UserError("`env` has an empty name between its commas; expected ENV,ENV,…")
    if env.startswith("suite/"):
        raise UserError(
            f"`env` has '{text}' for a task, which is a suite; expected environments, or one suite"
            " by its name alone."
        )
    own = {name: args.pop(name) for name in _OWN if name in args}
    for name, value in own.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < _MOST:
            raise UserError(
                f"`env` '{text}' has {name}={value!r}; expected a number above zero, and below"
                f" {_MOST:g}."
            )
    human = scores.ATARI.get(scores.game(env) or "")
    return Task(text, env, args, reference=human, **own)


def assignment(weights: Sequence[float], num_envs: int, first_env_id: int = 0) -> np.ndarray:
    """Which task the slots `first_env_id + i` have, int32 `[num_envs]`.

    Slot by slot the task that is furthest behind its share gets the next one (the earlier of two),
    so that any number of slots from 0 on is divided in proportion to `weights` as nearly as it can.
    """
    total, given = sum(weights), np.zeros(len(weights))
    tasks = np.zeros(first_env_id + num_envs, np.int32)
    share = np.array(weights) / total
    for i in range(len(tasks)):
        tasks[i] = np.argmax(share * (i + 1) - given)
        given[tasks[i]] += 1
    return tasks[first_env_id:]


def check_slots(env: Any, num_envs: int, first_env_id: int = 0) -> None:
    """Raise UserError where some task of a suite would get none of `num_envs` slots, of which the
    first one is `first_env_id`."""
    tasks = tasks_of(env) or ()
    if not tasks:
        return
    weights = [task.weight for task in tasks]
    given = set(assignment(weights, num_envs, first_env_id).tolist())
    missing = [task.name for k, task in enumerate(tasks) if k not in given]
    if missing:
        raise UserError(
            f"with {num_envs} environments, {len(missing)} of the {len(tasks)} tasks of"
            f" '{env}' would get none, such as '{missing[0]}'; expected one for each: raise --envs,"
            " --actors or, where there are as many environments as --batch-size says, that."
        )


@dataclass(frozen=True)
class Common:
    """The spaces that all tasks are brought to, and how.

    Observations: where they differ, images of one layout are padded to the largest at the bottom
    and right, everything else becomes a vector of float32, padded at its end; a suite of both has a
    dict of the two, in which what a task has not is zero. Actions: where the discrete ones differ
    in number there are as many as the largest has, and a mask.
    """

    observation_space: gym.Space
    action_space: gym.Space
    has_action_mask: bool
    kinds: tuple[str, ...]  # of each task's observation: same, image or vector

    def observation(self, k: int, space: gym.Space, value: PyTree, xp: Any) -> PyTree:
        """What task `k` sees, `[B, …]` of `space`, in the common space; `xp` is numpy or jax's."""
        kind = self.kinds[k]
        if kind == "same":
            return value
        if kind == "vector":
            value = _vector(space, value, xp)
        whole = self.observation_space
        if not isinstance(whole, spaces.Dict):
            return _padded(value, whole.shape, xp)
        return {
            name: _padded(value, part.shape, xp)
            if name == kind
            else xp.zeros((value.shape[0], *(part.shape or ())), part.dtype)
            for name, part in whole.items()
        }

    def action_mask(self, space: gym.Space, mask: Array | None, batch: int, xp: Any) -> Array:
        """The mask of a task whose actions are `space`, `[B, actions]`, in the common space."""
        n = int(space.n)  # type: ignore[attr-defined]
        allowed = xp.ones((batch, n), bool) if mask is None else mask
        return _padded(allowed, (int(self.action_space.n),), xp)  # type: ignore[attr-defined]


def common(specs: Sequence[EnvSpec]) -> Common:
    """The common spaces of these tasks; raises UserError, naming two of them, where there are
    none."""
    observation_space, kinds = _common_observation(specs)
    first, *others = specs
    differing = next((s for s in others if s.action_space != first.action_space), None)
    action_space = first.action_space
    masked = any(s.has_action_mask for s in specs)
    if differing is not None:
        odd = next((s for s in specs if not isinstance(s.action_space, spaces.Discrete)), None)
        if odd is not None:
            other = differing if odd is first else first
            raise UserError(
                f"the actions of '{odd.name}', {odd.action_space}, and of '{other.name}',"
                f" {other.action_space}, have no common space; expected the same ones, or a number"
                " of discrete ones (Discrete) in all tasks of a suite."
            )
        sizes = [int(s.action_space.n) for s in specs]  # type: ignore[attr-defined]
        action_space = spaces.Discrete(max(sizes))
        masked = masked or len(set(sizes)) > 1
    elif isinstance(action_space, spaces.Discrete):
        action_space = spaces.Discrete(int(action_space.n))  # tasks count from 0
    return Common(observation_space, action_space, masked, kinds)


def _common_observation(specs: Sequence[EnvSpec]) -> tuple[gym.Space, tuple[str, ...]]:
    first = specs[0]
    if all(s.observation_space == first.observation_space for s in specs):
        return first.observation_space, ("same",) * len(specs)
    kinds = tuple(_kind(s) for s in specs)
    parts: dict[str, gym.Space] = {}
    images = [s for s, kind in zip(specs, kinds, strict=True) if kind == "image"]
    if images:
        shapes = [s.observation_space.shape or (0, 0, 0) for s in images]
        for spec, shape in zip(images, shapes, strict=True):
            first_here, first_there = (s[0] < s[-1] for s in (shapes[0], shape))
            if first_here != first_there:
                raise UserError(
                    f"the images of '{images[0].name}' {shapes[0]} and '{spec.name}' {shape} have"
                    " their channels at different ends; expected the same in all tasks of a suite:"
                    " wrap one of them."
                )
        largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        parts["image"] = spaces.Box(0, 255, largest, np.uint8)
    sizes = [
        spaces.flatdim(s.observation_space)
        for s, kind in zip(specs, kinds, strict=True)
        if kind == "vector"
    ]
    if sizes:
        parts["vector"] = spaces.Box(-np.inf, np.inf, (max(sizes),), np.float32)
    return (next(iter(parts.values())) if len(parts) == 1 else spaces.Dict(parts)), kinds


def _kind(spec: EnvSpec) -> str:
    space = spec.observation_space
    flat = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
    if not isinstance(space, flat):
        raise UserError(
            f"'{spec.name}' has observations {space}, which have no common space with those of the"
            " other tasks; expected Box, Discrete, MultiBinary or MultiDiscrete: wrap it."
        )
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3:
        return "image"
    return "vector"


def _vector(space: gym.Space, x: Array, xp: Any) -> Array:
    """Observations `[B, …]` that are no image as features `[B, flatdim]`: numbers as they are,
    bytes from 0 to 1, and one of several as one-hot."""
    x = xp.asarray(x)
    if isinstance(space, spaces.Discrete):
        return (x[:, None] == xp.arange(space.start, space.start + space.n)).astype(np.float32)
    if isinstance(space, spaces.MultiDiscrete):
        starts, sizes = space.start.reshape(-1), space.nvec.reshape(-1)
        x = x.reshape(x.shape[0], -1)
        parts = enumerate(zip(starts, sizes, strict=True))
        hot = [x[:, i, None] == start + xp.arange(n) for i, (start, n) in parts]
        return xp.concatenate(hot, axis=-1).astype(np.float32)
    flat = x.reshape(x.shape[0], -1).astype(np.float32)
    return flat / 255.0 if space.dtype == np.uint8 and isinstance(space, spaces.Box) else flat


def _padded(x: Array, shape: tuple[int, ...] | None, xp: Any) -> Array:
    """`[B, …]` with zeros behind it in every axis, up to `shape`."""
    widths = [(0, 0), *((0, n - m) for n, m in zip(shape or (), x.shape[1:], strict=True))]
    return x if not any(after for _, after in widths) else xp.pad(x, widths)


def suite_spec(env: str, tasks: Sequence[Task], specs: Sequence[EnvSpec]) -> EnvSpec:
    """What an agent may know of a suite of `tasks`, whose own are `specs`."""
    repeats = {spec.frames_per_step: spec for spec in specs}
    if len(repeats) > 1:
        listed = ", ".join(f"{n} in '{spec.name}'" for n, spec in repeats.items())
        raise UserError(
            f"the tasks of `env` '{env}' repeat actions for different numbers of frames ({listed});"
            " expected the same in all, so that frames can be counted."
        )
    shared = common(specs)
    return EnvSpec(
        env,
        shared.observation_space,
        shared.action_space,
        frames_per_step=specs[0].frames_per_step,
        has_action_mask=shared.has_action_mask,
        tasks=tuple(task.name for task in tasks),
        references=tuple(task.scaled_reference for task in tasks),
    )


class SuiteEnvs:
    """A `VectorEnv` whose slots are divided among the environments of several tasks.

    make_part: (k, num_envs, first_env_id) -> the environments of task k, its own slots numbered
    from 0 on across all actors. Slot i is the run's slot `first_env_id + i`. only: all slots are of
    this task.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        spec: EnvSpec,
        specs: Sequence[EnvSpec],
        make_part: Callable[[int, int, int], VectorEnv],
        num_envs: int,
        first_env_id: int = 0,
        *,
        only: int | None = None,
    ):
        self.spec, self.num_envs = spec, num_envs
        self._tasks, self._specs, self._common = tasks, specs, common(specs)
        self._first_env_id = first_env_id
        weights = [task.weight for task in tasks]
        if only is not None:
            weights = [float(k == only) for k in range(len(tasks))]
        self._task = assignment(weights, num_envs, first_env_id)
        before = assignment(weights, first_env_id)
        self._slots: dict[int, np.ndarray] = {}
        self._parts: dict[int, VectorEnv] = {}
        self._firsts: dict[int, int] = {}
        try:
            for k in range(len(tasks)):
                slots = np.flatnonzero(self._task == k)
                if slots.size:
                    self._firsts[k] = int(np.sum(before == k))
                    self._slots[k] = slots
                    self._parts[k] = make_part(k, slots.size, self._firsts[k])
        except BaseException:
            self.close()
            raise
        placements = list(dict.fromkeys(part.placement for part in self._parts.values()))
        others = ", …" if len(placements) > 1 else ""
        self.placement = f"{len(self._parts)} of {len(tasks)} tasks, {placements[0]}{others}"
        self._rows: TimeStep | None = None

    def reset(self) -> TimeStep:
        """Begin new episodes everywhere; `first` is set throughout."""
        return self._merged({k: part.reset() for k, part in self._parts.items()})

    def step(self, action: Array) -> TimeStep:
        """Execute `action` `[B, …]`; slots whose episode has ended begin the next one instead."""
        action = np.asarray(action)
        return self._merged({k: p.step(action[self._slots[k]]) for k, p in self._parts.items()})

    def _merged(self, found: dict[int, TimeStep]) -> TimeStep:
        from jax import tree  # here, because worker processes import this module

        for k, timestep in found.items():
            slots, spec = self._slots[k], self._specs[k]
            mask = None
            if self._common.has_action_mask:
                mask = self._common.action_mask(
                    spec.action_space, timestep.action_mask, slots.size, np
                )
            seen = self._common.observation(k, spec.observation_space, timestep.observation, np)
            part = timestep._replace(
                observation=seen,
                reward=timestep.reward * np.float32(self._tasks[k].reward_scale),
                task=self._task[slots],
                action_mask=mask,
            )
            if self._rows is None:
                self._rows = tree.map(
                    lambda x: np.zeros((self.num_envs, *x.shape[1:]), x.dtype), part
                )
            tree.map(lambda rows, x, at=slots: rows.__setitem__(at, x), self._rows, part)
        assert self._rows is not None
        return self._rows

    def episodes(self) -> list[Episode]:
        """The games finished since the last call, with their task, in its scaled rewards."""
        found = []
        for k, part in self._parts.items():
            for episode in part.episodes():
                slot = self._slots[k][episode.env_id - self._firsts[k]]
                scaled = episode.episode_return * self._tasks[k].reward_scale
                found.append(
                    Episode(scaled, episode.length, self._first_env_id + int(slot), task=k)
                )
        return found

    def state(self) -> PyTree | None:
        """The parts' states by task, or None where one of them has none."""
        found = {f"task_{k}": part.state() for k, part in self._parts.items()}
        return None if any(state is None for state in found.values()) else found

    def restore(self, state: PyTree) -> None:
        """Continue from `state()`."""
        if set(state) != {f"task_{k}" for k in self._parts}:
            raise UserError(
                f"the saved state is of other tasks than those of '{self.spec.name}' here; resume"
                " with the same suite, actors and environments."
            )
        for k, part in self._parts.items():
            part.restore(state[f"task_{k}"])

    def warnings(self) -> list[str]:
        """What went otherwise than asked for since the last call: a line each, with the task."""
        return [
            f"task '{self._tasks[k].name}': {line}"
            for k, part in self._parts.items()
            for line in part.warnings()
        ]

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        for part in self._parts.values():
            part.close()
