"""The tasks of a suite as one `VectorEnv`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pronk.envs.common_spaces import common_spaces
from pronk.envs.suite import Task, assignment
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Episode, PyTree, TimeStep, VectorEnv

MakePart = Callable[[int, int, int], VectorEnv]


class SuiteEnvs:
    """A `VectorEnv` whose slots are divided among the environments of several tasks.

    make_part: (k, num_envs, first_env_id) -> the environments of task k, whose slots are numbered
    from 0 across all actors. Slot i is the run's slot `first_env_id + i`. only: all slots are of
    this task.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        spec: EnvSpec,
        specs: Sequence[EnvSpec],
        make_part: MakePart,
        num_envs: int,
        first_env_id: int = 0,
        *,
        only: int | None = None,
    ):
        self.spec, self.num_envs = spec, num_envs
        self._tasks, self._specs, self._common = tasks, specs, common_spaces(specs)
        self._first_env_id = first_env_id
        weights = [task.weight for task in tasks]
        if only is not None:
            weights = [float(k == only) for k in range(len(tasks))]
        self._task = assignment(weights, num_envs, first_env_id)
        before = assignment(weights, first_env_id)
        self._slots: dict[int, np.ndarray] = {}
        self._parts: dict[int, VectorEnv] = {}
        self._first_part_ids: dict[int, int] = {}
        try:
            for k in range(len(tasks)):
                slots = np.flatnonzero(self._task == k)
                if slots.size:
                    self._first_part_ids[k] = int(np.sum(before == k))
                    self._slots[k] = slots
                    self._parts[k] = make_part(k, slots.size, self._first_part_ids[k])
        except BaseException:
            self.close()
            raise
        placements = list(dict.fromkeys(part.placement for part in self._parts.values()))
        others = ", …" if len(placements) > 1 else ""
        self.placement = f"{len(self._parts)} of {len(tasks)} tasks, {placements[0]}{others}"
        self._rows: TimeStep | None = None

    def reset(self) -> TimeStep:
        """Begin new episodes everywhere; `first` is set throughout."""
        return self._merge({k: part.reset() for k, part in self._parts.items()})

    def step(self, action: Array) -> TimeStep:
        """Execute `action` `[B, …]`; slots whose episode has ended begin the next one instead."""
        action = np.asarray(action)
        return self._merge({k: p.step(action[self._slots[k]]) for k, p in self._parts.items()})

    def _merge(self, timesteps: dict[int, TimeStep]) -> TimeStep:
        """One TimeStep of all slots, from those of the tasks."""
        from jax import tree  # here, because worker processes import this module

        for k, timestep in timesteps.items():
            slots, spec = self._slots[k], self._specs[k]
            mask = None
            if self._common.has_action_mask:
                mask = self._common.action_mask(
                    spec.action_space, timestep.action_mask, slots.size, np
                )
            part = timestep._replace(
                observation=self._common.observation(
                    k, spec.observation_space, timestep.observation, np
                ),
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
        """The episodes finished since the last call, with their task and scaled returns."""
        episodes = []
        for k, part in self._parts.items():
            for episode in part.episodes():
                slot = self._slots[k][episode.env_id - self._first_part_ids[k]]
                scaled = episode.episode_return * self._tasks[k].reward_scale
                episodes.append(
                    Episode(scaled, episode.length, self._first_env_id + int(slot), task=k)
                )
        return episodes

    def state(self) -> PyTree | None:
        """The states of the tasks' environments, or None if one of them has none."""
        states = {f"task_{k}": part.state() for k, part in self._parts.items()}
        return None if any(state is None for state in states.values()) else states

    def restore(self, state: PyTree) -> None:
        """Continue from `state()`."""
        if set(state) != {f"task_{k}" for k in self._parts}:
            raise UserError(
                f"the saved state has {', '.join(sorted(state))}, expected"
                f" {', '.join(f'task_{k}' for k in self._parts)} of '{self.spec.name}'; resume with"
                " the same suite, actors and environments."
            )
        for k, part in self._parts.items():
            part.restore(state[f"task_{k}"])

    def warnings(self) -> list[str]:
        """The warnings of the tasks' environments since the last call, with the task's name."""
        return [
            f"task '{self._tasks[k].name}': {line}"
            for k, part in self._parts.items()
            for line in part.warnings()
        ]

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        for part in self._parts.values():
            part.close()
