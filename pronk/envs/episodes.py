"""What all environments that are not written in JAX share: seeds, counts, replay."""

from __future__ import annotations

from typing import Any

import numpy as np

from pronk.errors import UserError
from pronk.types import Array, Episode, PyTree


def derived_seed(seed: int, *purpose: int) -> int:
    """A seed in `[0, 2^31)`, as ALE requires, for one purpose of what has `seed`; distinct purposes
    get independent ones."""
    return int(np.random.SeedSequence([seed, *purpose]).generate_state(1)[0] >> 1)


def episode_seed(seed: int, env_id: int, episode: int) -> int:
    """The seed of one episode of one environment, in `[0, 2^31)` as ALE requires.

    Distinct environments and episodes get independent seeds, in whichever process they are.
    """
    return derived_seed(seed, env_id, episode)


class EpisodeCounter:
    """Return and length of each slot's current game, and the games finished."""

    def __init__(self, num_envs: int, first_env_id: int):
        self._returns = np.zeros(num_envs, np.float64)
        self._lengths = np.zeros(num_envs, np.int64)
        self._first_env_id = first_env_id
        self._finished: list[Episode] = []

    def update(self, reward: Array, begins: Array, ends: Array) -> None:
        """Count one row: `reward`, whether the game `begins`, whether it properly `ends`, `[B]`."""
        self._returns = np.where(begins, 0.0, self._returns + reward)
        self._lengths = np.where(begins, 0, self._lengths + 1)
        for i in np.flatnonzero(ends):
            self._finished.append(
                Episode(float(self._returns[i]), int(self._lengths[i]), self._first_env_id + int(i))
            )

    def episodes(self) -> list[Episode]:
        """The games finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def state(self, slot: int) -> dict[str, Array]:
        """The unfinished game of `slot`."""
        return {
            "episode_return": self._returns[slot].copy(),
            "episode_length": self._lengths[slot].copy(),
        }

    def restore(self, slot: int, state: dict[str, Array]) -> None:
        """Go on with the game of `state()`."""
        self._returns[slot] = state["episode_return"]
        self._lengths[slot] = state["episode_length"]


def slot_states(state: PyTree, num_envs: int) -> list[dict[str, Any]]:
    """The per-slot entries of a saved state; `UserError` if it is of another number of slots."""
    if len(state) != num_envs:
        raise UserError(
            f"the saved environment state is of {len(state)} environments, but `num_envs` is "
            f"{num_envs}; resume with num_envs={len(state)}"
        )
    return [state[f"slot_{i}"] for i in range(num_envs)]


def replay_warning(name: str, env_id: int, cause: str) -> str:
    """What is said when an episode could not be continued."""
    return (
        f"environment {env_id} of '{name}' did not replay exactly ({cause}); "
        "a new episode is begun there"
    )
