"""Seeds, episode statistics and replay of the environments that are not written in JAX."""

from __future__ import annotations

from typing import Any

import numpy as np

from pronk.errors import UserError, counted
from pronk.types import Array, Episode, PyTree


def derived_seed(seed: int, *purpose: int) -> int:
    """A seed in `[0, 2^31)`, as ALE requires, derived from `seed`; distinct purposes get
    independent seeds."""
    return int(np.random.SeedSequence([seed, *purpose]).generate_state(1)[0] >> 1)


def episode_seed(seed: int, env_id: int, episode: int) -> int:
    """The seed of one episode of one environment, in `[0, 2^31)` as ALE requires.

    Distinct environments and episodes get independent seeds, which do not depend on the process.
    """
    return derived_seed(seed, env_id, episode)


class EpisodeCounter:
    """Return and length of each slot's current episode, and the finished episodes."""

    def __init__(self, num_envs: int, first_env_id: int):
        self._returns = np.zeros(num_envs, np.float64)
        self._lengths = np.zeros(num_envs, np.int64)
        self._first_env_id = first_env_id
        self._finished: list[Episode] = []

    def update(self, reward: Array, first: Array, finished: Array) -> None:
        """Count one row, `[B]`: its reward, whether it is the first of an episode, and whether it
        finishes one that is to be reported."""
        self._returns += reward
        self._lengths += 1
        self._returns[first] = self._lengths[first] = 0
        for i in np.flatnonzero(finished):
            self._finished.append(
                Episode(float(self._returns[i]), int(self._lengths[i]), self._first_env_id + int(i))
            )

    def episodes(self) -> list[Episode]:
        """The episodes finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def state(self, slot: int) -> dict[str, Array]:
        """Return and length of the unfinished episode of `slot`."""
        return {
            "episode_return": self._returns[slot].copy(),
            "episode_length": self._lengths[slot].copy(),
        }

    def restore(self, slot: int, state: dict[str, Array]) -> None:
        """Continue the episode of `state()`."""
        self._returns[slot] = state["episode_return"]
        self._lengths[slot] = state["episode_length"]


def slot_states(state: PyTree, num_envs: int) -> list[dict[str, Any]]:
    """The entries of a saved state per slot; raises UserError for another number of slots."""
    if len(state) != num_envs:
        raise UserError(
            f"the saved state has {counted(len(state), 'environment')}, and the run {num_envs} for"
            f" each actor; resume with --envs-per-actor {len(state)}"
        )
    return [state[f"slot_{i}"] for i in range(num_envs)]


def replay_warning(name: str, env_id: int, cause: str) -> str:
    """The warning for an episode that could not be continued."""
    return (
        f"environment {env_id} of '{name}' did not replay exactly ({cause}); it begins a new"
        " episode"
    )
