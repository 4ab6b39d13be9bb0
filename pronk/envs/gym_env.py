"""Gymnasium environments as a `VectorEnv`: in the caller's thread, or in worker processes.

Both forms step the same `Slot`s, which own everything that happens to one environment: seeding,
autoreset, checking what it returns, its faults, and its replay after an interruption. Neither
imports jax, so that workers start quickly.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Episode, PyTree, TimeStep

Factory = Callable[[], gym.Env]

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
_ALIGNMENT = 64  # bytes; a cache line, so that no two arrays of a block share one
_CLOSE_SECONDS = 2.0


def episode_seed(seed: int, env_id: int, episode: int) -> int:
    """The seed of one episode of one environment, in `[0, 2^31)` as ALE requires.

    Distinct environments and episodes get independent seeds, in whichever process they are.
    """
    return int(np.random.SeedSequence([seed, env_id, episode]).generate_state(1)[0] >> 1)


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


def _leaves(space: gym.Space) -> list[gym.Space]:
    if isinstance(space, spaces.Dict):
        return [leaf for s in space.values() for leaf in _leaves(s)]
    if isinstance(space, spaces.Tuple):
        return [leaf for s in space for leaf in _leaves(s)]
    if isinstance(space, _LEAVES):
        return [space]
    raise UserError(
        f"observation space {space} is not supported; Box, Discrete, MultiBinary, MultiDiscrete, "
        "and Dict and Tuple of these are: wrap the environment"
    )


def _flatten(space: gym.Space, value: Any) -> list[Any]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, s in space.items() for leaf in _flatten(s, value[key])]
    if isinstance(space, spaces.Tuple):
        return [leaf for s, v in zip(space, value, strict=True) for leaf in _flatten(s, v)]
    return [value]


def _assemble(space: gym.Space, leaves: Iterator[Array]) -> PyTree:
    if isinstance(space, spaces.Dict):
        return {key: _assemble(s, leaves) for key, s in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_assemble(s, leaves) for s in space)
    return next(leaves)


def _delivered(space: gym.Space) -> gym.Space:
    """The space of what pronk hands on: float64 boxes become float32."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _delivered(s) for key, s in space.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_delivered(s) for s in space])
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        with np.errstate(over="ignore"):  # a bound beyond float32 is no bound
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, space.shape, np.float32)
    return space


def _checked(space: gym.Space, value: Any) -> np.ndarray:
    """`value` in the dtype of `space`; ValueError where that loses something."""
    array = np.asarray(value)
    if array.shape != space.shape:
        raise ValueError(f"an observation has shape {array.shape}, expected {space.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an observation has dtype {array.dtype}, expected {space.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # the checks below say it better
        cast = array.astype(space.dtype, copy=False)
    if cast.dtype.kind == "f":
        if not np.isfinite(cast).all():
            raise ValueError("an observation is not finite (NaN or infinity)")
    elif cast.dtype != array.dtype and not np.array_equal(cast, array):
        raise ValueError(f"an observation of dtype {array.dtype} does not fit {space.dtype}")
    return cast


def construct(factory: Factory, name: str) -> gym.Env:
    """The environment; `UserError` saying why where it can't be made."""
    try:
        return factory()
    except UserError:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as e:
        raise UserError(f"`env` '{name}' needs a package that is not installed: {e}") from e
    except TypeError as e:
        if "unexpected keyword argument" not in str(e):
            raise UserError(f"`env` '{name}' cannot be made: TypeError: {e}") from e
        raise UserError(f"`env` '{name}' does not accept these `env_args`: {e}") from e
    except Exception as e:
        raise UserError(f"`env` '{name}' cannot be made: {type(e).__name__}: {e}") from e


def gym_spec(factory: Factory, name: str) -> EnvSpec:
    """What an agent may know of the environment; makes it, and resets it once for its mask."""
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
            except Exception as e:
                raise UserError(
                    f"`env` '{name}' failed in its first reset: {type(e).__name__}: {e}"
                ) from e
            has_action_mask = "action_mask" in info
        _leaves(env.observation_space)  # an unsupported space is told now
        return EnvSpec(
            name,
            _delivered(env.observation_space),
            env.action_space,
            has_action_mask=has_action_mask,
        )
    finally:
        with contextlib.suppress(Exception):
            env.close()


class Fault(NamedTuple):
    """One failure of an environment: where it was, what went wrong, and the traceback."""

    where: str
    cause: str
    detail: str


class Rows:
    """The arrays of `num_envs` slots, `[B, ...]`, in one block of memory.

    What the slots say (a TimeStep), the actions they shall execute, and what their owner must
    know to go on for them: `done` (the next step begins an episode), `episode` (its index, -1
    before the first), `faulted` (the episode ended by a fault and isn't counted).
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
        """Bytes of the block."""
        return sum(cls._bytes(shape, dtype) for shape, dtype in cls._layout(spec, num_envs))

    @staticmethod
    def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
        return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT

    @staticmethod
    def _layout(spec: EnvSpec, num_envs: int) -> list[tuple[tuple[int, ...], Any]]:
        space = spec.action_space
        if not isinstance(space, _LEAVES):
            raise UserError(
                f"`env` '{spec.name}' has the action space {space}, which is not supported; "
                "Box, Discrete, MultiBinary and MultiDiscrete are: wrap the environment"
            )
        discrete = np.issubdtype(space.dtype, np.integer)
        leaves = _leaves(spec.observation_space)
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
        """As before the first episodes."""
        self.done[:] = True
        self.episode[:] = -1
        self.mask[:] = True

    def timestep(self) -> TimeStep:
        """Views of what the slots said last."""
        return TimeStep(
            _assemble(self._spec.observation_space, iter(self.leaves)),
            self.reward,
            self.terminated,
            self.truncated,
            self.first,
            self._task,
            self.mask if self._spec.has_action_mask else None,
        )


class Slot:
    """One Gymnasium environment with its seeds, its faults and its replay, writing row `row`.

    Each episode is reseeded with `episode_seed(seed, env_id, episode)`. An exception or an
    invalid observation or reward is a fault: it is appended to `faults`, the row is truncated
    with the last valid observation and reward 0, and a new environment begins the next episode.
    Where beginning one fails, it is tried again up to `attempts` times.
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
        self._leaves = _leaves(spec.observation_space)
        self._start = getattr(spec.action_space, "start", 0)
        self._actions: list[Array] = []
        self._steps = 0
        # After a fault, or in a worker that replaces a dead one, `begin` makes the environment.
        fresh = rows.episode[row] < 0
        self._env: gym.Env | None = construct(factory, spec.name) if fresh else None

    def begin(self) -> None:
        """Begin the next episode."""
        for _ in range(self._attempts):
            self._rows.episode[self._row] += 1
            try:
                observation, info = self._reset()
                self._write(observation, info, ended=False)
            except Exception as e:
                self._fault(e)
            else:
                self._say(reward=0.0, first=True)
                return

    def step(self) -> None:
        """Execute this row's action, or begin the next episode where the last one has ended."""
        rows, row = self._rows, self._row
        if rows.done[row]:
            self.begin()
            return
        self._steps += 1
        try:
            assert self._env is not None
            observation, reward, terminated, truncated, info = self._env.step(
                self._decoded(rows.action[row])
            )
            value = np.asarray(reward, np.float32)
            if value.shape != () or not np.isfinite(value):
                raise ValueError(f"the reward is {reward!r}, expected a finite number")
            terminated, truncated = bool(terminated), bool(truncated)
            self._write(observation, info, ended=terminated or truncated)
        except Exception as e:
            self._fault(e)
            self.abandon()
            return
        if self._replayable:
            self._actions.append(rows.action[row].copy())
        self._say(float(value), terminated=terminated, truncated=truncated)

    def abandon(self) -> None:
        """End the episode here, uncounted: truncated, the last valid observation repeated."""
        self._say(reward=0.0, truncated=True, faulted=True)

    def state(self) -> dict[str, PyTree]:
        """What `restore` needs; `{"episode", "done", "actions", "observation"}`."""
        rows, row = self._rows, self._row
        space = rows.action[:0]
        return {
            "episode": rows.episode[row].copy(),
            "done": rows.done[row].copy(),
            "actions": np.stack(self._actions) if self._actions else space.copy(),
            "observation": {str(i): leaf[row].copy() for i, leaf in enumerate(rows.leaves)},
        }

    def restore(self, state: dict[str, PyTree]) -> str | None:
        """Replay the episode of `state`; returns a warning where that isn't bit for bit the same,
        in which case the next step begins a new episode."""
        rows, row = self._rows, self._row
        rows.episode[row] = state["episode"]
        rows.done[row] = True
        if state["done"]:
            return None
        try:
            observation, info = self._reset()
            for action in state["actions"]:
                assert self._env is not None
                observation, _, terminated, truncated, info = self._env.step(self._decoded(action))
                if terminated or truncated:
                    raise ValueError("the episode ended early")
            self._write(observation, info, ended=False)
        except Exception as e:
            self.close()
            return replay_warning(self._spec.name, self._env_id, f"{type(e).__name__}: {e}")
        saved = [state["observation"][str(i)] for i in range(len(rows.leaves))]
        if any(
            leaf[row].tobytes() != np.asarray(s).tobytes()
            for leaf, s in zip(rows.leaves, saved, strict=True)
        ):
            return replay_warning(self._spec.name, self._env_id, "another observation")
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

    def _decoded(self, action: Array) -> Any:
        space = self._spec.action_space
        if isinstance(space, spaces.Discrete):
            return int(action + self._start)
        # A fresh array: the environment may keep it.
        return np.asarray(action + self._start, space.dtype)

    def _write(self, observation: Any, info: dict[str, Any], ended: bool) -> None:
        # All is checked before anything is written: a fault repeats the last valid observation.
        space = self._spec.observation_space
        values = [
            _checked(leaf, value)
            for leaf, value in zip(self._leaves, _flatten(space, observation), strict=True)
        ]
        mask: Any = True
        if self._spec.has_action_mask and not ended:
            mask = np.asarray(info["action_mask"]).astype(np.bool_)
            if mask.shape != self._rows.mask.shape[1:] or not mask.any():
                raise ValueError(f"info['action_mask'] is {info['action_mask']!r}")
        for array, value in zip(self._rows.leaves, values, strict=True):
            array[self._row] = value
        self._rows.mask[self._row] = mask

    def _say(
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

    def _fault(self, error: Exception) -> None:
        where = (
            f"slot {self._row} (environment {self._env_id}), "
            f"episode {self._rows.episode[self._row]}, step {self._steps}"
        )
        detail = "".join(traceback.format_exception(error))
        self._faults.append(Fault(where, f"{type(error).__name__}: {error}", detail))
        self.close()

    def close(self) -> None:
        """Close the environment, ignoring its complaints; `begin` makes another."""
        if self._env is not None:
            with contextlib.suppress(Exception):
                self._env.close()
        self._env = None


class _Slots:
    """A contiguous chunk of slots, `rows[lo:hi]`, and the commands they obey."""

    def __init__(self, config: _Config, rows: Rows, lo: int, hi: int):
        self._faults: list[Fault] = []
        self._slots = [
            Slot(
                config.factory,
                config.spec,
                rows,
                row,
                seed=config.seed,
                env_id=config.first_env_id + row,
                replayable=config.replayable,
                attempts=config.max_faults + 1,
                faults=self._faults,
            )
            for row in range(lo, hi)
        ]
        self._done = rows.done[lo:hi]

    def run(self, command: str, payload: Any) -> tuple[list[Any], list[Fault]]:
        """One answer per slot, and the faults met on the way."""
        slots = self._slots
        if command == "step":
            answers = [slot.step() for slot in slots]
        elif command == "reset":
            answers = [slot.begin() for slot in slots]
        elif command == "recover":
            answers = [
                slot.begin() if done else slot.abandon()
                for slot, done in zip(slots, self._done, strict=True)
            ]
        elif command == "abandon":
            answers = [slot.abandon() for slot in slots]
        elif command == "state":
            answers = [slot.state() for slot in slots]
        elif command == "restore":
            answers = [slot.restore(p) for slot, p in zip(slots, payload, strict=True)]
        else:
            raise ValueError(command)
        faults = list(self._faults)
        self._faults.clear()
        return answers, faults

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


class _Config(NamedTuple):
    factory: Factory
    spec: EnvSpec
    num_envs: int
    seed: int
    first_env_id: int
    replayable: bool
    max_faults: int


class _SlotVectorEnv:
    """What the serial and the process form share: `_run` and `close` are theirs."""

    def __init__(
        self,
        factory: Factory,
        spec: EnvSpec,
        num_envs: int,
        seed: int = 0,
        first_env_id: int = 0,
        *,
        replayable: bool = False,
        fault_log: Path | None = None,
        max_faults: int = 10,
    ):
        self.spec = spec
        self.num_envs = num_envs
        self._config = _Config(factory, spec, num_envs, seed, first_env_id, replayable, max_faults)
        self._fault_log = fault_log
        self._num_faults = 0
        self._warnings: list[str] = []
        self._counter = EpisodeCounter(num_envs, first_env_id)
        self._rows = Rows(spec, num_envs)
        self._rows.begin()
        self._start()

    def reset(self) -> TimeStep:
        """Begin new episodes everywhere; `first` is set throughout."""
        self._rows.done[:] = True
        return self._advance("reset")

    def step(self, action: Array) -> TimeStep:
        """Execute `action` `[B, ...]`, where a discrete one counts from 0 whatever the space's
        `start`; slots whose episode has ended begin the next one instead.

        Raises `UserError` when the environments have failed more than `max_faults` times.
        """
        action = np.asarray(action)
        if action.shape != self._rows.action.shape:
            raise ValueError(
                f"`action` has shape {action.shape}, expected {self._rows.action.shape}"
            )
        np.copyto(self._rows.action, action, casting="same_kind")
        return self._advance("step")

    def episodes(self) -> list[Episode]:
        """The games finished since the last call; not those that ended by a fault."""
        return self._counter.episodes()

    def state(self) -> PyTree | None:
        """`{"slot_0": {...}, ...}`, NumPy: the running episodes' indices and actions; None where
        the environment isn't declared replayable."""
        if not self._config.replayable:
            return None
        return {
            f"slot_{i}": {**state, **self._counter.state(i)}
            for i, state in enumerate(self._run("state"))
        }

    def restore(self, state: PyTree) -> None:
        """Reseed and replay the episodes of `state()`, and check that they look the same.

        Where one doesn't, the next step begins a new episode and `warnings()` says so.
        """
        states = slot_states(state, self.num_envs)
        for i, (saved, warning) in enumerate(
            zip(states, self._run("restore", states), strict=True)
        ):
            self._counter.restore(i, saved)
            if warning is not None:
                self._warnings.append(warning)

    def warnings(self) -> list[str]:
        """What went otherwise than asked for since the last call, a line each."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        raise NotImplementedError

    def _start(self) -> None:
        """Make the slots."""
        raise NotImplementedError

    def _run(self, command: str, payload: list[Any] | None = None) -> list[Any]:
        """The answers of all slots."""
        raise NotImplementedError

    def _advance(self, command: str) -> TimeStep:
        self._run(command)
        rows = self._rows
        self._counter.update(rows.reward, rows.first, rows.done & ~rows.faulted)
        return rows.timestep()

    def _note(self, faults: list[Fault]) -> None:
        if not faults:
            return
        self._num_faults += len(faults)
        if self._fault_log is not None:
            with self._fault_log.open("a") as file:
                for fault in faults:
                    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                    file.write(f"{stamp} {self.spec.name}, {fault.where}: {fault.cause}\n")
                    file.write(f"{fault.detail}\n")
        if self._num_faults <= self._config.max_faults:
            return
        self.close()
        log = f"; all are in {self._fault_log}" if self._fault_log is not None else ""
        raise UserError(
            f"`env` '{self.spec.name}' failed {self._num_faults} times, and `max_faults` is "
            f"{self._config.max_faults}. The last: {faults[-1].where}: {faults[-1].cause}{log}"
        )


class SerialVectorEnv(_SlotVectorEnv):
    """Gymnasium environments stepped one after the other in the caller's thread.

    `factory` makes one environment, `spec` is its `gym_spec`. Slot i is environment
    `first_env_id + i`, which with `seed` decides all its episodes. `replayable` declares that
    reseeding and repeating the actions repeats an episode, and keeps the actions. Faults (see
    `Slot`) are appended to `fault_log`. Raises `UserError` where an environment can't be made,
    and from `step` and `reset` after more than `max_faults` faults.
    """

    placement = "stepped in the actor's thread"

    def _start(self) -> None:
        self._slots = _Slots(self._config, self._rows, 0, self.num_envs)

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        self._slots.close()

    def _run(self, command: str, payload: list[Any] | None = None) -> list[Any]:
        answers, faults = self._slots.run(command, payload)
        self._note(faults)
        return answers


class _Worker:
    """The parent's end of one worker process, which owns the rows `lo` to `hi`."""

    def __init__(self, config: _Config, memory: str, lo: int, hi: int):
        context = multiprocessing.get_context("spawn")  # fork deadlocks once jax has started
        self.lo, self.hi = lo, hi
        self._sent = 0
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, config, memory, lo, hi), name=f"pronk-env-{lo}", daemon=True
        )
        try:
            self._process.start()
        finally:
            theirs.close()  # so that its end closes with the process

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        self._process.join(_CLOSE_SECONDS)
        return self._process.exitcode

    def send(self, command: str, payload: Any = None) -> None:
        """A dead worker is noticed by `receive`."""
        self._sent += 1
        with contextlib.suppress(OSError):
            self._connection.send((self._sent, command, payload))

    def receive(self) -> Any | None:
        """The answer to the last command, or None where the process has ended."""
        while True:
            # The sentinel too: a child of the environment's may hold the pipe open.
            ready = wait([self._connection, self._process.sentinel])
            if self._connection not in ready:
                return None
            try:
                number, answer = self._connection.recv()
            except (EOFError, OSError):
                return None
            if number == self._sent:  # else to a command whose sender was interrupted
                return answer

    def hang_up(self) -> None:
        """Ask the process to end."""
        self._connection.close()

    def end(self, deadline: float) -> None:
        """Wait for the process until `deadline` (`time.monotonic`), then kill it."""
        self._connection.close()
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(connection: Connection, config: _Config, memory: str, lo: int, hi: int) -> None:
    """A worker process: obeys commands until the other end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Under spawn the resource tracker is the parent's, which unlinks: registering again is a no-op.
    options: dict[str, Any] = {"track": False} if sys.version_info >= (3, 13) else {}
    block = SharedMemory(memory, **options)
    try:
        _obey(connection, config, Rows(config.spec, config.num_envs, block.buf), lo, hi)
    finally:
        with contextlib.suppress(BufferError):  # an environment kept a view; the end is near
            block.close()


def _obey(connection: Connection, config: _Config, rows: Rows, lo: int, hi: int) -> None:
    try:
        slots = _Slots(config, rows, lo, hi)
    except UserError as e:
        connection.send((0, str(e)))
        return
    with contextlib.suppress(EOFError, OSError):
        connection.send((0, ""))
        while True:
            number, command, payload = connection.recv()
            connection.send((number, slots.run(command, payload)))
    slots.close()


class _Processes:
    """What must be released: the workers and the shared memory they write."""

    def __init__(self, config: _Config):
        self.workers: list[_Worker] = []
        self._memory = SharedMemory(create=True, size=Rows.size(config.spec, config.num_envs))
        self.name = self._memory.name
        self.rows: Rows | None = Rows(config.spec, config.num_envs, self._memory.buf)

    def release(self) -> None:
        """Runs once, at `close`, when the environment is garbage, or at exit."""
        self._memory.unlink()
        for worker in self.workers:
            worker.hang_up()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for worker in self.workers:
            worker.end(deadline)
        self.rows = None  # its views forbid unmapping
        with contextlib.suppress(BufferError):  # interrupted amid a copy; unmapped at exit
            self._memory.close()


class ProcessVectorEnv(_SlotVectorEnv):
    """Gymnasium environments stepped by `workers` processes, each with a contiguous chunk.

    Arguments, episodes and errors are those of `SerialVectorEnv`; `factory` must be picklable. A
    worker that dies is replaced and counts as one fault; its episodes are truncated.
    """

    def __init__(
        self,
        factory: Factory,
        spec: EnvSpec,
        num_envs: int,
        seed: int = 0,
        first_env_id: int = 0,
        *,
        workers: int,
        **options: Any,
    ):
        self._num_workers = min(workers, num_envs)
        plural = "es" if self._num_workers > 1 else ""
        self.placement = f"stepped in {self._num_workers} worker process{plural}"
        super().__init__(factory, spec, num_envs, seed, first_env_id, **options)

    def _start(self) -> None:
        config, n = self._config, self._num_workers
        try:
            ForkingPickler.dumps(config.factory)
        except Exception as e:
            raise UserError(
                f"the factory of `env` '{config.spec.name}' cannot be sent to a worker process "
                f"({e}); pass a function defined at the top level of a module, or workers=0"
            ) from e
        self._processes = _Processes(config)
        self._finalizer = weakref.finalize(self, self._processes.release)
        np.copyto(self._shared.memory, self._rows.memory)
        bounds = [self.num_envs * k // n for k in range(n + 1)]
        try:
            for lo, hi in pairwise(bounds):
                self._processes.workers.append(_Worker(config, self._processes.name, lo, hi))
            for worker in self._processes.workers:
                if not self._greeted(worker):
                    raise UserError(
                        f"a worker process of `env` '{config.spec.name}' ended while starting "
                        f"(exit code {worker.exitcode}; what it said is above). A script needs "
                        "`if __name__ == '__main__':` around what it runs; or pass workers=0"
                    )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes within about two seconds and free the memory; safe to call twice."""
        self._finalizer()

    @property
    def _shared(self) -> Rows:
        # Never kept in a variable: a view in some traceback's frame would forbid `close`.
        assert self._processes.rows is not None, "used after close()"
        return self._processes.rows

    @staticmethod
    def _greeted(worker: _Worker) -> bool:
        """Whether it started; `UserError` where its environments can't be made."""
        # Before any command a worker answers number 0, with what is wrong or nothing.
        wrong = worker.receive()
        if wrong:
            raise UserError(wrong)
        return wrong is not None

    def _run(self, command: str, payload: list[Any] | None = None) -> list[Any]:
        np.copyto(self._shared.action, self._rows.action)
        np.copyto(self._shared.done, self._rows.done)
        workers = self._processes.workers
        for worker in workers:
            worker.send(command, payload and payload[worker.lo : worker.hi])
        answers: list[Any] = []
        for k, worker in enumerate(workers):
            result = worker.receive()
            if result is None:
                result = self._revive(k, command, payload)
            answers.extend(result[0])
            self._note(result[1])
        # A copy, because memory that the caller can see must outlive `close`; and what a dying
        # worker leaves half-written is repaired from it.
        np.copyto(self._rows.memory, self._shared.memory)
        return answers

    def _revive(self, k: int, command: str, payload: list[Any] | None) -> Any:
        """Replace worker `k`, which died of `command`; the answer of its successor."""
        workers = self._processes.workers
        dead = workers[k]
        chunk = slice(dead.lo, dead.hi)
        # The episodes it had begun, though the parent hasn't heard of them; and at least 0, since a
        # successor makes its environments lazily, so that their failure is a fault.
        episodes = np.maximum(self._shared.episode[chunk], 0)
        while True:
            first = self._config.first_env_id + dead.lo
            where = f"slots {dead.lo} to {dead.hi - 1} (environments from {first})"
            cause = f"their worker process ended with exit code {dead.exitcode}"
            dead.end(time.monotonic())
            self._note([Fault(where, cause, "")])
            self._repair(chunk)
            self._shared.episode[chunk] = episodes
            workers[k] = dead = _Worker(self._config, self._processes.name, dead.lo, dead.hi)
            if not self._greeted(dead):
                continue
            if command in ("state", "restore"):
                if not self._ask(dead, "abandon"):
                    continue
                self._warnings.append(f"{where}: {cause}; new episodes are begun there")
                result = self._ask(dead, command, payload and payload[chunk])
            else:
                result = self._ask(dead, "recover")
            if result is not None:
                return result

    def _repair(self, chunk: slice) -> None:
        for theirs, ours in zip(self._shared.arrays, self._rows.arrays, strict=True):
            theirs[chunk] = ours[chunk]

    @staticmethod
    def _ask(worker: _Worker, command: str, payload: Any = None) -> Any | None:
        worker.send(command, payload)
        return worker.receive()
