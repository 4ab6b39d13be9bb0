"""Atari games: ALE's C++ vector environment as a `VectorEnv`, preprocessed as in IMPALA."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

from pronk.envs.episodes import EpisodeCounter, episode_seed, replay_warning, slot_states
from pronk.errors import UserError, nearest
from pronk.types import Array, EnvSpec, Episode, PyTree, TimeStep

# Espeholt et al. 2018, appendix G: 84 x 84 grey, 4 frames stacked, action repeat 4,
# up to 30 no-ops, episodes of at most 30 minutes; no sticky actions, and the minimal action set.
_SETTINGS: dict[str, Any] = {
    "repeat_action_probability": 0.0,
    "full_action_space": False,
    "noop_max": 30,
    "max_num_frames_per_episode": 108_000,
    "frameskip": 4,
    "stack_num": 4,
    "use_fire_reset": False,
    "grayscale": True,
    "img_height": 84,
    "img_width": 84,
}


def atari_ids() -> list[str]:
    """The ids of ALE's games, `ALE/Pong-v5` and so on."""
    return [_id(rom) for rom in roms.get_all_rom_ids()]


def atari_spec(name: str, env_args: dict[str, Any] | None = None) -> EnvSpec:
    """The spec of a game; raises the errors of `AtariEnvs`."""
    settings = _settings(name, env_args or {})
    settings.pop("life_loss")
    return _spec(name, _vector(name, 1, 1, settings), settings)


def _id(rom: str) -> str:
    return f"ALE/{''.join(w[0].upper() + w[1:] for w in rom.split('_')).replace('3d', '3D')}-v5"


def _settings(name: str, env_args: dict[str, Any]) -> dict[str, Any]:
    known = {"life_loss": True, **_SETTINGS}
    for key in env_args:
        if key not in known:
            raise UserError(
                f"`env_args` of '{name}' has no '{key}'{nearest(key, known)} "
                f"(known: {', '.join(sorted(known))})"
            )
    return known | env_args


def _vector(name: str, num_envs: int, num_threads: int, settings: dict[str, Any]) -> AtariVectorEnv:
    rom = {_id(rom): rom for rom in roms.get_all_rom_ids()}.get(name)
    if rom is None:
        raise UserError(f"`env` '{name}' is not registered{nearest(name, atari_ids())}")
    try:
        return AtariVectorEnv(
            rom, num_envs, num_threads=num_threads, reward_clipping=False, **settings
        )
    except Exception as e:
        raise UserError(f"`env` '{name}' cannot be created with {settings}: {e}") from e


def _spec(name: str, vector: AtariVectorEnv, settings: dict[str, Any]) -> EnvSpec:
    return EnvSpec(
        name,
        vector.single_observation_space,
        vector.single_action_space,
        frames_per_step=settings["frameskip"],
    )


class _Games(Protocol):
    """Games stepped together, with NEXT_STEP autoreset; arrays are `[B, ...]`."""

    vector: AtariVectorEnv

    def reset(self) -> tuple[Array, Array]:
        """observation, lives"""
        ...

    def step(self, action: Array) -> tuple[Array, Array, Array, Array, Array]:
        """observation, reward, terminated, truncated, lives"""
        ...


class _OneVector(_Games):
    """All games in one C++ vector, which resets them itself: fast, but without replay."""

    def __init__(self, name: str, env_ids: range, seed: int, threads: int, settings: dict):
        self.vector = _vector(name, len(env_ids), threads, settings)
        self._seeds: Array | None = np.array([episode_seed(seed, e, 0) for e in env_ids])

    def reset(self) -> tuple[Array, Array]:
        # Only the first episodes are seeded; later ones continue the game's random numbers.
        observation, info = self.vector.reset(seed=self._seeds)
        self._seeds = None
        return observation, info["lives"]

    def step(self, action: Array) -> tuple[Array, Array, Array, Array, Array]:
        observation, reward, terminated, truncated, info = self.vector.step(action)
        return observation, reward, terminated, truncated, info["lives"]


class _Singles(_Games):
    """Each game in its own C++ vector, so that every episode has its own seed and a log of its
    actions, from which it can be replayed. At most `threads` games are stepped at a time."""

    def __init__(self, name: str, env_ids: range, seed: int, threads: int, settings: dict):
        self._name, self._env_ids, self._seed, self._threads = name, env_ids, seed, threads
        self._vectors = [_vector(name, 1, 1, settings) for _ in env_ids]
        self.vector = self._vectors[0]
        n = len(env_ids)
        shape = self.vector.single_observation_space.shape or ()
        self._observation = np.zeros((n, *shape), np.uint8)
        self._reward = np.zeros(n, np.int32)
        self._terminated, self._truncated = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self._lives = np.zeros(n, np.int32)
        self._done = np.ones(n, np.bool_)
        self._episode = np.full(n, -1, np.int64)
        self._actions: list[list[int]] = [[] for _ in env_ids]

    def reset(self) -> tuple[Array, Array]:
        for i in range(len(self._vectors)):
            self._begin(i)
        return self._observation, self._lives.copy()

    def step(self, action: Array) -> tuple[Array, Array, Array, Array, Array]:
        running = [i for i, done in enumerate(self._done) if not done]
        ended = [i for i, done in enumerate(self._done) if done]
        self._play(running, action)
        for i in running:
            self._actions[i].append(int(action[i]))
        for i in ended:
            self._begin(i)
        return (
            self._observation,
            self._reward.copy(),
            self._terminated.copy(),
            self._truncated.copy(),
            self._lives.copy(),
        )

    def state(self, i: int) -> dict[str, PyTree]:
        return {
            "episode": self._episode[i].copy(),
            "done": self._done[i].copy(),
            "actions": np.array(self._actions[i], np.int32),
            "observation": self._observation[i].copy(),
        }

    def restore(self, states: list[dict[str, PyTree]]) -> list[str | None]:
        """Replay the games together; a warning for each that does not replay exactly."""
        warnings: list[str | None] = [None] * len(states)
        logs = [s["actions"] for s in states]
        for i, state in enumerate(states):
            self._done[i] = True
            if not state["done"]:
                self._episode[i] = int(state["episode"]) - 1
                self._begin(i)
            self._episode[i] = state["episode"]
        for t in range(max(len(log) for log in logs)):
            running = [i for i, log in enumerate(logs) if t < len(log) and not self._done[i]]
            self._play(running, {i: logs[i][t] for i in running})
        for i, state in enumerate(states):
            self._actions[i] = [int(a) for a in logs[i]]
            if state["done"]:
                continue
            if self._done[i]:
                warnings[i] = replay_warning(self._name, self._env_ids[i], "it ended early")
            elif not np.array_equal(self._observation[i], state["observation"]):
                self._done[i] = True
                warnings[i] = replay_warning(
                    self._name, self._env_ids[i], "the observation differs"
                )
        return warnings

    def lives(self) -> Array:
        return self._lives.copy()

    def _begin(self, i: int) -> None:
        self._episode[i] += 1
        seed = episode_seed(self._seed, self._env_ids[i], int(self._episode[i]))
        observation, info = self._vectors[i].reset(seed=np.array([seed]))
        self._observation[i] = observation[0]
        self._lives[i] = info["lives"][0]
        self._reward[i] = 0
        self._terminated[i] = self._truncated[i] = self._done[i] = False
        self._actions[i] = []

    def _play(self, running: list[int], action: Any) -> None:
        """Execute `action[i]` in the games `running`."""
        for k in range(len(running) + self._threads):
            if k < len(running):
                self._vectors[running[k]].send(np.array([action[running[k]]], np.int32))
            if 0 <= k - self._threads < len(running):
                self._receive(running[k - self._threads])

    def _receive(self, i: int) -> None:
        observation, reward, terminated, truncated, info = self._vectors[i].recv()
        self._observation[i] = observation[0]
        self._reward[i] = reward[0]
        self._terminated[i], self._truncated[i] = terminated[0], truncated[0]
        self._done[i] = terminated[0] or truncated[0]
        self._lives[i] = info["lives"][0]


class AtariEnvs:
    """`num_envs` games of `name` (`ALE/Pong-v5`), stepped by ALE's C++ threads.

    Observations are uint8 `[B, stack_num, img_height, img_width]` (channel-first), rewards raw;
    the defaults are the IMPALA paper's. `settings` are `life_loss` and the keywords of `_SETTINGS`,
    documented by ale_py; frames are the console's. Game i is environment `first_env_id + i`, which
    with `seed` determines all its episodes.

    With `life_loss` a lost life ends the return, but not the game: its row is `terminated`, and the
    next row, the result of an ordinary step, is `first` and has reward 0. If the game ends on that
    next row, the row is both `first` and `terminated`. With `life_loss="roll"` the next row is an
    ordinary one, and recurrent states are kept (R2D2's `roll`, Kapturowski et al. 2019, section 5).
    `episodes()` counts whole games.

    With `replayable` an interrupted game can be continued exactly (`state`); each reset then costs
    about 80 ms of the caller's time, which ALE needs to seed it.

    Raises `UserError` for an unknown game or setting, and ValueError for an invalid action (ALE
    would never return from it).
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        *,
        seed: int = 0,
        first_env_id: int = 0,
        num_threads: int = 1,
        replayable: bool = False,
        **settings: Any,
    ):
        settings = _settings(name, settings)
        self._life_loss = settings.pop("life_loss")
        if not isinstance(self._life_loss, bool) and self._life_loss != "roll":
            raise UserError(
                f"`env_args` of '{name}' has life_loss={self._life_loss!r}; expected true, false or"
                " roll."
            )
        env_ids = range(first_env_id, first_env_id + num_envs)
        self._singles = _Singles(name, env_ids, seed, num_threads, settings) if replayable else None
        self._games: _Games = self._singles or _OneVector(
            name, env_ids, seed, num_threads, settings
        )
        self.spec = _spec(name, self._games.vector, settings)
        self.num_envs = num_envs
        self.placement = f"stepped by {num_threads} ALE thread{'s' if num_threads > 1 else ''}"
        self._num_actions = int(self.spec.action_space.n)  # type: ignore[attr-defined]
        self._task = np.zeros(num_envs, np.int32)
        self._lives = np.zeros(num_envs, np.int32)
        self._lost: Array = np.zeros(num_envs, np.bool_)  # a life was lost at the last row
        self._over: Array = np.zeros(num_envs, np.bool_)  # the game ended at the last row
        self._counter = EpisodeCounter(num_envs, first_env_id)
        self._warnings: list[str] = []

    def reset(self) -> TimeStep:
        """Begin new games everywhere; `first` is set throughout."""
        observation, lives = self._games.reset()
        n = self.num_envs
        false, true = np.zeros(n, np.bool_), np.ones(n, np.bool_)
        return self._timestep(observation, np.zeros(n), false, false.copy(), lives, new_game=true)

    def step(self, action: Array) -> TimeStep:
        """Execute `action`, integers `[B]`; slots whose game has ended begin another instead."""
        action = np.ascontiguousarray(action)
        if action.shape != (self.num_envs,) or action.dtype.kind not in "iu":
            raise ValueError(
                f"`action` is {action.dtype} {action.shape}, expected integers ({self.num_envs},)"
            )
        if action.min() < 0 or action.max() >= self._num_actions:
            raise ValueError(f"`action` is {action}, expected 0 to {self._num_actions - 1}")
        return self._timestep(*self._games.step(action.astype(np.int32)), new_game=self._over)

    def episodes(self) -> list[Episode]:
        """The games finished since the last call: raw rewards, all lives, agent steps."""
        return self._counter.episodes()

    def state(self) -> PyTree | None:
        """`{"slot_0": {...}, ...}`, NumPy: the running games' indices and actions; None without
        `replayable`."""
        if self._singles is None:
            return None
        return {
            f"slot_{i}": {
                **self._singles.state(i),
                "life_lost": self._lost[i].copy(),
                **self._counter.state(i),
            }
            for i in range(self.num_envs)
        }

    def restore(self, state: PyTree) -> None:
        """Reseed and replay the games of `state()`, and compare their observations.

        Where one differs, the next step begins a new game, and `warnings()` has a line. Takes about
        0.3 ms per step of each unfinished game.
        """
        if self._singles is None:
            raise UserError(
                f"the saved state of '{self.spec.name}' needs environments created with "
                "replayable=True"
            )
        states = slot_states(state, self.num_envs)
        for i, warning in enumerate(self._singles.restore(states)):
            self._counter.restore(i, states[i])
            self._over[i] = bool(states[i]["done"]) or warning is not None
            self._lost[i] = states[i]["life_lost"]
            if warning is not None:
                self._warnings.append(warning)
        self._lives = self._singles.lives()

    def warnings(self) -> list[str]:
        """One line for each inexact replay since the last call."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def close(self) -> None:
        """Nothing to do: ALE's threads end with the object."""

    def _timestep(
        self,
        observation: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        lives: Array,
        *,
        new_game: Array,
    ) -> TimeStep:
        over = np.logical_or(terminated, truncated)
        self._counter.update(reward, new_game, over)
        first = np.logical_or(new_game, self._lost)
        lost = (lives < self._lives) & np.logical_not(new_game) & bool(self._life_loss)
        self._lives, self._over = lives, over
        self._lost = lost & (self._life_loss is True)
        reward = np.where(first, 0, reward).astype(np.float32)
        return TimeStep(observation, reward, terminated | lost, truncated, first, self._task)
