"""One Gymnasium environment: seeding, autoreset, checks, fault handling and replay.

A `Slot` writes its results into `Rows`, which may lie in shared memory.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from pronk.envs.construct import Factory, construct, described
from pronk.envs.episodes import episode_seed, replay_warning
from pronk.errors import UserError, counted
from pronk.maths.spaces import (
    LEAVES,
    MASK,
    Observations,
    agent_space,
    as_mask,
    as_reward,
    env_action,
    from_leaves,
    has_mask,
    leaf_spaces,
    mask_size,
)
from pronk.types import Array, EnvSpec, PyTree, TimeStep

_ALIGNMENT = 64  # bytes; a cache line, so that no two arrays of a block share one


def gym_spec(factory: Factory, name: str) -> EnvSpec:
    """The spec of the environment; makes one, and resets it to see that it can be, and whether it
    has action masks."""
    env = construct(factory, name)
    try:
        if not isinstance(env, gym.Env):
            raise UserError(
                f"the factory '{name}' returned a {type(env).__name__}, expected a gymnasium.Env"
            )
        for which in ("observation_space", "action_space"):
            if not isinstance(getattr(env, which, None), gym.Space):
                raise UserError(
                    f"`env` '{name}' has no `{which}`; expected a space of gymnasium.spaces"
                )
        space = agent_space(env.observation_space)
        return EnvSpec(name, space, env.action_space, has_action_mask=_gives_mask(env, space, name))
    finally:
        _close(env)


def _gives_mask(env: gym.Env, space: gym.Space, name: str) -> bool:
    """Whether the environment says which actions are allowed, in one of the places where `Slot`
    looks; `space` is its observations'. Raises UserError if its first reset is none."""
    if not isinstance(env.action_space, LEAVES):  # which is refused elsewhere
        return False
    observed = has_mask(space, env.action_space, name)
    can_have = mask_size(env.action_space) > 0
    try:
        observation, info = _unpacked("reset", env.reset(seed=0))
        Observations(space).leaves(observation)
        given = info.get(MASK)
        if can_have and given is not None:
            as_mask(env.action_space, given)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        raise UserError(f"`env` '{name}' failed in its first reset: {described(e)}") from e
    return can_have and (observed or given is not None or _mask_method(env) is not None)


def _mask_method(env: gym.Env) -> Callable[[], Any] | None:
    """The method `action_masks`, by which Stable-Baselines3's contributors give masks."""
    method = env.get_wrapper_attr("action_masks") if env.has_wrapper_attr("action_masks") else None
    return method if callable(method) else None


def _close(env: gym.Env) -> None:
    """Close an environment, ignoring its exceptions."""
    with contextlib.suppress(Exception, SystemExit):
        env.close()


_RESULTS = {
    "reset": "(observation, info)",
    "step": "(observation, reward, terminated, truncated, info)",
}


def _unpacked(method: str, result: Any) -> tuple[Any, ...]:
    """What `reset` or `step` returned, with `{}` for an info of None; raises ValueError if it is
    not what Gymnasium expects."""
    is_tuple = isinstance(result, tuple | list)
    expected = _RESULTS[method]
    if not is_tuple or len(result) != expected.count(",") + 1:
        found = counted(len(result), "value") if is_tuple else f"a {type(result).__name__}"
        raise ValueError(f"{method}() returned {found}, expected {expected}")
    *values, info = result
    if info is not None and type(info) is not dict and not isinstance(info, Mapping):
        found = f"a {type(info).__name__}"
        raise ValueError(f"the last value of {method}() is {found}, expected a dict: {expected}")
    return *values, info or {}


def _as_flag(value: Any, name: str) -> bool:
    """`terminated` or `truncated`; raises ValueError for what is neither true nor false."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biu" or array.item() not in (0, 1):
        raise ValueError(f"`{name}` is {value!r}, expected True or False")
    return bool(array.item())


class Fault(NamedTuple):
    """One failure of an environment: the slot and step, the cause, and the traceback."""

    where: str
    cause: str
    detail: str


class Rows:
    """The arrays of `num_envs` slots, `[B, ...]`, in one block of memory.

    The fields of a TimeStep, the actions to execute, and the state that a replaced worker needs:
    `done` (the next step begins an episode) and `episode` (its index, -1 before the first).
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
            self.episode,
            self.mask,
        ) = arrays[:8]
        self.leaves = arrays[8:]
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
        mask = mask_size(space) if spec.has_action_mask else 0
        return [
            ((n, *(space.shape or ())), np.int64 if discrete else space.dtype),
            ((n,), np.float32),  # reward
            *[((n,), flag)] * 4,  # terminated, truncated, first, done
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
    `sys.exit` included, or an invalid result is a fault: it is appended to `faults`, and the same
    step begins the next episode, in a new environment. No row is made up: the one before the fault
    is the episode's last, without an end flag, and the transition after it is a dummy. A reset that
    fails is repeated up to `attempts` times. KeyboardInterrupt, which comes from the user, is not
    caught. `begin` and `step` raise UserError for an action mask of an environment whose first
    reset had none, because actions were chosen without it.
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
        self._observations = Observations(spec.observation_space)
        self._observes_mask = has_mask(spec.observation_space, spec.action_space, spec.name)
        self._actions: list[Array] = []
        self._steps = 0
        # In a worker that replaces a dead one, and after a fault, `begin` makes the environment.
        is_new = rows.episode[row] < 0
        self._env: gym.Env | None = construct(factory, spec.name) if is_new else None
        self._masks: Callable[[], Any] | None = None  # of the environment

    def begin(self) -> None:
        """Begin the next episode."""
        for _ in range(self._attempts):
            self._rows.episode[self._row] += 1
            try:
                observation, info = self._reset()
                self._write(observation, info, ended=False)
            except (UserError, KeyboardInterrupt):
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
            observation, reward, terminated, truncated, info = self._env_step(rows.action[row])
            reward = as_reward(reward)
            terminated = _as_flag(terminated, "terminated")
            truncated = _as_flag(truncated, "truncated")
            self._write(observation, info, ended=terminated or truncated)
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as e:
            self._fault(e)
            self.begin()
            return
        if self._replayable:
            self._actions.append(rows.action[row].copy())
        self._write_flags(reward, terminated=terminated, truncated=truncated)

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
                observation, _, terminated, truncated, info = self._env_step(action)
                if terminated or truncated:
                    raise ValueError("the episode ended early")
            self._write(observation, info, ended=False)
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            self.close()
            return replay_warning(self._spec.name, self._env_id, described(e))
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

    def _reset(self) -> tuple[Any, Mapping[str, Any]]:
        self._actions, self._steps = [], 0
        if self._env is None:
            self._env = self._factory()
            self._masks = None
        if self._masks is None and self._spec.has_action_mask:
            self._masks = _mask_method(self._env)
        episode = int(self._rows.episode[self._row])
        seed = episode_seed(self._seed, self._env_id, episode)
        observation, info = _unpacked("reset", self._env.reset(seed=seed))
        return observation, info

    def _env_step(self, action: Array) -> tuple[Any, ...]:
        assert self._env is not None
        return _unpacked("step", self._env.step(env_action(self._spec.action_space, action)))

    def _write(self, observation: Any, info: Mapping[str, Any], ended: bool) -> None:
        values = self._observations.leaves(observation)
        mask: Any = True
        if not self._spec.has_action_mask:
            self._refuse_mask(info)
        elif not ended:
            mask = self._mask(observation, info)
        for array, value in zip(self._rows.leaves, values, strict=True):
            array[self._row] = value
        self._rows.mask[self._row] = mask

    def _mask(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        """The actions allowed: of the info, the observation, or the environment's method."""
        given = info.get(MASK)
        if given is None and self._observes_mask:
            given = observation[MASK]
        if given is None and self._masks is not None:
            given = self._masks()
        if given is None:
            raise ValueError(
                f"there is no info['{MASK}'], and there was one in the first reset; expected one"
                " from reset() and from every step() that does not end the episode"
            )
        return as_mask(self._spec.action_space, given)

    def _refuse_mask(self, info: Mapping[str, Any]) -> None:
        if info.get(MASK) is None:
            return
        space = self._spec.action_space
        why = "there was none in its first reset"
        if not mask_size(space):
            why = f"masks are for Discrete, MultiDiscrete and MultiBinary actions, not {space}"
        raise UserError(
            f"`env` '{self._spec.name}' gives info['{MASK}'] in step {self._steps} of an episode,"
            f" and {why}; expected one from reset() and from every step() that does not end the"
            " episode, or none at all."
        )

    def _write_flags(
        self,
        reward: float,
        *,
        first: bool = False,
        terminated: bool = False,
        truncated: bool = False,
    ) -> None:
        rows, row = self._rows, self._row
        rows.reward[row] = reward
        rows.first[row] = first
        rows.terminated[row] = terminated
        rows.truncated[row] = truncated
        rows.done[row] = terminated or truncated

    def _fault(self, error: BaseException) -> None:
        where = (
            f"slot {self._row} (environment {self._env_id}), "
            f"episode {self._rows.episode[self._row]}, step {self._steps}"
        )
        detail = "".join(traceback.format_exception(error))
        self._faults.append(Fault(where, described(error), detail))
        self.close()

    def close(self) -> None:
        """Close the environment, ignoring its exceptions; `begin` makes another."""
        env, self._env = self._env, None
        if env is not None:
            _close(env)
