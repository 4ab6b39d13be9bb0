"""One Gymnasium environment: seeding, autoreset, checks, fault handling and replay.

A `Slot` writes its results into `Rows`, which may lie in shared memory.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pronk.envs.episodes import episode_seed, replay_warning
from pronk.errors import UserError
from pronk.maths.spaces import LEAVES, as_float32, from_leaves, leaf_spaces, leaf_values
from pronk.types import Array, EnvSpec, PyTree, TimeStep

Factory = Callable[[], gym.Env]

_ALIGNMENT = 64  # bytes; a cache line, so that no two arrays of a block share one


def _cast(space: gym.Space, value: Any) -> np.ndarray:
    """`value` in the dtype of `space`; raises ValueError if it does not fit."""
    array = np.asarray(value)
    if array.shape != space.shape:
        raise ValueError(f"an observation has shape {array.shape}, expected {space.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an observation has dtype {array.dtype}, expected {space.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # the checks below have better messages
        cast = array.astype(space.dtype, copy=False)
    if cast.dtype.kind == "f":
        if not np.isfinite(cast).all():
            raise ValueError("an observation is not finite (NaN or infinity)")
    elif cast.dtype != array.dtype and not np.array_equal(cast, array):
        raise ValueError(f"an observation of dtype {array.dtype} does not fit {space.dtype}")
    return cast


def construct(factory: Factory, name: str) -> gym.Env:
    """Make the environment; raises UserError with the reason if that fails."""
    try:
        return factory()
    except UserError:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as e:
        raise UserError(f"`env` '{name}' needs a package that is not installed: {e}") from e
    except TypeError as e:
        if "unexpected keyword argument" not in str(e):
            raise UserError(f"`env` '{name}' cannot be created: TypeError: {e}") from e
        raise UserError(f"`env` '{name}' does not accept these `env_args`: {e}") from e
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # also of `sys.exit`
        raise UserError(f"`env` '{name}' cannot be created: {_described(e)}") from e


def gym_spec(factory: Factory, name: str) -> EnvSpec:
    """The spec of the environment; makes one, and resets it to look for an action mask."""
    env = construct(factory, name)
    try:
        if not isinstance(env, gym.Env):
            raise UserError(
                f"the factory '{name}' returned a {type(env).__name__}, expected a gymnasium.Env"
            )
        has_action_mask = False
        if isinstance(env.action_space, spaces.Discrete):
            try:
                _, info = env.reset(seed=0)
            except KeyboardInterrupt:
                raise
            except BaseException as e:
                raise UserError(f"`env` '{name}' failed in its first reset: {_described(e)}") from e
            has_action_mask = "action_mask" in info
        leaf_spaces(env.observation_space)  # raises for an unsupported space
        return EnvSpec(
            name,
            as_float32(env.observation_space),
            env.action_space,
            has_action_mask=has_action_mask,
        )
    finally:
        _close(env)


def _described(error: BaseException) -> str:
    """The kind of an error, and its message if it has one."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _close(env: gym.Env) -> None:
    """Close an environment, ignoring its exceptions."""
    with contextlib.suppress(Exception, SystemExit):
        env.close()


class Fault(NamedTuple):
    """One failure of an environment: the slot and step, the cause, and the traceback."""

    where: str
    cause: str
    detail: str


class Rows:
    """The arrays of `num_envs` slots, `[B, ...]`, in one block of memory.

    The fields of a TimeStep, the actions to execute, and the state that a replaced worker needs:
    `done` (the next step begins an episode), `episode` (its index, -1 before the first), `faulted`
    (the episode ended by a fault and isn't counted).
    """

    def __init__(self, spec: EnvSpec, num_envs: int, buffer: Any = None):
        layout = self._layout(spec, num_envs)
        self.memory = np.frombuffer(
            bytearray(self.size(spec, num_envs)) if buffer is None else buffer, np.uint8
        )
        offset = 0
        arrays: list[np.ndarray] = []
        for shape, dtype in layout:
            arrays.append(np.ndarray(shape, dtype, self.memory, offset))
            offset += self._bytes(shape, dtype)
        (
            self.action,
            self.reward,
            self.terminated,
            self.truncated,
            self.first,
            self.done,
            self.faulted,
            self.episode,
            self.mask,
        ) = arrays[:9]
        self.leaves = arrays[9:]
        self.arrays = arrays
        self._spec = spec
        self._task = np.zeros(num_envs, np.int32)

    @classmethod
    def size(cls, spec: EnvSpec, num_envs: int) -> int:
        """The size of the block in bytes."""
        return sum(cls._bytes(shape, dtype) for shape, dtype in cls._layout(spec, num_envs))

    @staticmethod
    def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
        return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT

    @staticmethod
    def _layout(spec: EnvSpec, num_envs: int) -> list[tuple[tuple[int, ...], Any]]:
        space = spec.action_space
        if not isinstance(space, LEAVES):
            raise UserError(
                f"the action space {space} of `env` '{spec.name}' is not supported; expected Box,"
                " Discrete, MultiBinary or MultiDiscrete: wrap the environment."
            )
        discrete = np.issubdtype(space.dtype, np.integer)
        leaves = leaf_spaces(spec.observation_space)
        n, flag = num_envs, np.bool_
        mask = int(space.n) if isinstance(space, spaces.Discrete) and spec.has_action_mask else 0
        return [
            ((n, *(space.shape or ())), np.int64 if discrete else space.dtype),
            ((n,), np.float32),  # reward
            *[((n,), flag)] * 5,  # terminated, truncated, first, done, faulted
            ((n,), np.int64),  # episode
            ((n, mask), flag),
            *[((n, *(leaf.shape or ())), leaf.dtype) for leaf in leaves],
        ]

    def begin(self) -> None:
        """Set the state before the first episodes."""
        self.done[:] = True
        self.episode[:] = -1
        self.mask[:] = True

    def timestep(self) -> TimeStep:
        """Views of the latest rows."""
        return TimeStep(
            from_leaves(self._spec.observation_space, self.leaves),
            self.reward,
            self.terminated,
            self.truncated,
            self.first,
            self._task,
            self.mask if self._spec.has_action_mask else None,
        )


class Slot:
    """One Gymnasium environment, which writes row `row`.

    Each episode is seeded with `episode_seed(seed, env_id, episode)`. An exception, that of
    `sys.exit` included, or an invalid observation or reward is a fault: it is appended to `faults`,
    the row is truncated with the last valid observation and reward 0, and a new environment begins
    the next episode. A reset that fails is repeated up to `attempts` times. KeyboardInterrupt is
    the user's, and not caught.
    """

    def __init__(
        self,
        factory: Factory,
        spec: EnvSpec,
        rows: Rows,
        row: int,
        *,
        seed: int,
        env_id: int,
        replayable: bool,
        attempts: int,
        faults: list[Fault],
    ):
        self._factory, self._spec, self._rows, self._row = factory, spec, rows, row
        self._seed, self._env_id, self._attempts = seed, env_id, attempts
        self._replayable, self._faults = replayable, faults
        self._leaves = leaf_spaces(spec.observation_space)
        self._start = getattr(spec.action_space, "start", 0)
        self._actions: list[Array] = []
        self._steps = 0
        # In a worker that replaces a dead one, and after a fault, `begin` makes the environment.
        is_new = rows.episode[row] < 0
        self._env: gym.Env | None = construct(factory, spec.name) if is_new else None

    def begin(self) -> None:
        """Begin the next episode."""
        for _ in range(self._attempts):
            self._rows.episode[self._row] += 1
            try:
                observation, info = self._reset()
                self._write(observation, info, ended=False)
            except KeyboardInterrupt:
                raise
            except BaseException as e:
                self._fault(e)
            else:
                self._write_flags(reward=0.0, first=True)
                return

    def step(self) -> None:
        """Execute this row's action, or begin the next episode if the last one has ended."""
        rows, row = self._rows, self._row
        if rows.done[row]:
            self.begin()
            return
        self._steps += 1
        try:
            assert self._env is not None
            observation, reward, terminated, truncated, info = self._env.step(
                self._env_action(rows.action[row])
            )
            value = np.asarray(reward, np.float32)
            if value.shape != () or not np.isfinite(value):
                raise ValueError(f"the reward is {reward!r}, expected a finite number")
            terminated, truncated = bool(terminated), bool(truncated)
            self._write(observation, info, ended=terminated or truncated)
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            self._fault(e)
            self.abandon()
            return
        if self._replayable:
            self._actions.append(rows.action[row].copy())
        self._write_flags(float(value), terminated=terminated, truncated=truncated)

    def abandon(self) -> None:
        """Truncate the episode with the last valid observation; it is not counted."""
        self._write_flags(reward=0.0, truncated=True, faulted=True)

    def state(self) -> dict[str, PyTree]:
        """The argument of `restore`: `{"episode", "done", "actions", "observation"}`."""
        rows, row = self._rows, self._row
        return {
            "episode": rows.episode[row].copy(),
            "done": rows.done[row].copy(),
            "actions": np.stack(self._actions) if self._actions else rows.action[:0].copy(),
            "observation": {str(i): leaf[row].copy() for i, leaf in enumerate(rows.leaves)},
        }

    def restore(self, state: dict[str, PyTree]) -> str | None:
        """Replay the episode of `state`. If the result differs in any bit, the next step begins a
        new episode, and a warning is returned."""
        rows, row = self._rows, self._row
        rows.episode[row] = state["episode"]
        rows.done[row] = True
        if state["done"]:
            return None
        try:
            observation, info = self._reset()
            for action in state["actions"]:
                assert self._env is not None
                observation, _, terminated, truncated, info = self._env.step(
                    self._env_action(action)
                )
                if terminated or truncated:
                    raise ValueError("the episode ended early")
            self._write(observation, info, ended=False)
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            self.close()
            return replay_warning(self._spec.name, self._env_id, _described(e))
        saved = [state["observation"][str(i)] for i in range(len(rows.leaves))]
        if any(
            leaf[row].tobytes() != np.asarray(s).tobytes()
            for leaf, s in zip(rows.leaves, saved, strict=True)
        ):
            return replay_warning(self._spec.name, self._env_id, "the observation differs")
        rows.done[row] = False
        self._actions = list(state["actions"])
        self._steps = len(self._actions)
        return None

    def _reset(self) -> tuple[Any, dict[str, Any]]:
        self._actions, self._steps = [], 0
        if self._env is None:
            self._env = self._factory()
        episode = int(self._rows.episode[self._row])
        return self._env.reset(seed=episode_seed(self._seed, self._env_id, episode))

    def _env_action(self, action: Array) -> Any:
        """A row's action in the environment's own space, which may not start at 0."""
        space = self._spec.action_space
        if isinstance(space, spaces.Discrete):
            return int(action + self._start)
        # A fresh array: the environment may keep it.
        return np.asarray(action + self._start, space.dtype)

    def _write(self, observation: Any, info: dict[str, Any], ended: bool) -> None:
        # Check everything before writing anything: a fault repeats the last valid observation.
        space = self._spec.observation_space
        values = [
            _cast(leaf, value)
            for leaf, value in zip(self._leaves, leaf_values(space, observation), strict=True)
        ]
        mask: Any = True
        if self._spec.has_action_mask and not ended:
            mask = np.asarray(info["action_mask"]).astype(np.bool_)
            if mask.shape != self._rows.mask.shape[1:] or not mask.any():
                raise ValueError(
                    f"info['action_mask'] is {info['action_mask']!r}, expected"
                    f" {self._rows.mask.shape[1]} booleans, at least one of them true"
                )
        for array, value in zip(self._rows.leaves, values, strict=True):
            array[self._row] = value
        self._rows.mask[self._row] = mask

    def _write_flags(
        self,
        reward: float,
        *,
        first: bool = False,
        terminated: bool = False,
        truncated: bool = False,
        faulted: bool = False,
    ) -> None:
        rows, row = self._rows, self._row
        rows.reward[row] = reward
        rows.first[row] = first
        rows.terminated[row] = terminated
        rows.truncated[row] = truncated
        rows.faulted[row] = faulted
        rows.done[row] = terminated or truncated

    def _fault(self, error: BaseException) -> None:
        where = (
            f"slot {self._row} (environment {self._env_id}), "
            f"episode {self._rows.episode[self._row]}, step {self._steps}"
        )
        detail = "".join(traceback.format_exception(error))
        self._faults.append(Fault(where, _described(error), detail))
        self.close()

    def close(self) -> None:
        """Close the environment, ignoring its exceptions; `begin` makes another."""
        env, self._env = self._env, None
        if env is not None:
            _close(env)
