"""Environments by name or factory: Gymnasium's, ALE's Atari games, pronk's own in JAX, and suites
of several of them."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec as GymEntry

from pronk.envs import waiting
from pronk.envs.episodes import derived_seed
from pronk.envs.gym_env import SerialVectorEnv
from pronk.envs.process_env import ProcessVectorEnv
from pronk.envs.slot import gym_spec
from pronk.envs.suite import SUITES, SuiteEnvs, Task, suite_spec, tasks_of
from pronk.errors import UserError, nearest
from pronk.types import EnvSpec, VectorEnv

if TYPE_CHECKING:  # jax must not be imported by worker processes
    from pronk.envs.jax_env import JaxEnv
    from pronk.envs.jax_suite import JaxSuite

EnvLike = str | Callable[..., gym.Env]

_JAX = {
    "pronk/Breakout-v0": "breakout",
    "pronk/CartPole-v1": "cartpole",
    "pronk/Catch-v0": "catch",
    "pronk/DeepSea-v0": "deep_sea",
    "pronk/MemoryCue-v0": "memory_cue",
    "pronk/Orchard-v0": "orchard",
    "pronk/SpaceInvaders-v0": "space_invaders",
}
_PROBE_STEPS = 40
_SLOW_STEP = 1e-3  # seconds; a message to a worker and back costs about a tenth of it


@dataclass(frozen=True)
class GymFactory:
    """Makes one Gymnasium environment; picklable where `source` is.

    `source` is a registered environment's entry, so that a worker process needn't register it, or
    a function of `kwargs`.
    """

    source: GymEntry | Callable[..., gym.Env]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> gym.Env:
        if isinstance(self.source, GymEntry):
            # pronk checks what environments return itself, all along and not only at first.
            return gym.make(self.source, disable_env_checker=True, **self.kwargs)
        return self.source(**self.kwargs)

    @property
    def name(self) -> str:
        if isinstance(self.source, GymEntry):
            return self.source.id
        return getattr(self.source, "__name__", type(self.source).__name__)


def make(
    env: EnvLike,
    num_envs: int,
    *,
    seed: int = 0,
    first_env_id: int = 0,
    env_args: Mapping[str, Any] | None = None,
    workers: int | None = None,
    threads: int = 1,
    replayable: bool = False,
    evaluate: bool = False,
    fault_log: Path | None = None,
    max_faults: int = 10,
    hang_after: float = math.inf,
    task: int | None = None,
) -> VectorEnv:
    """`num_envs` environments stepped together, numbered from `first_env_id`.

    `env` is an id (`names()`), a suite (`pronk.envs.suite`), or a function of `env_args` that
    returns a `gymnasium.Env`. `task` has all slots play that one of a suite. Gymnasium
    environments are stepped by `workers` processes, 0 for the caller's thread; None decides by
    timing one of them, and `placement` says what was decided. `threads` is for Atari.
    `replayable` declares that episodes can be repeated from their seed and actions, which makes
    `state()` exact. `evaluate` makes a lost life no end. For `fault_log` and `max_faults` see
    `SerialVectorEnv`; `hang_after` is of worker processes, in seconds.

    Raises `UserError` for what can't be made: an unknown id, arguments that the environment does
    not accept, a package that is missing, a space that isn't supported.
    """
    for name, value, least in (
        ("num_envs", num_envs, 1),
        ("seed", seed, 0),
        ("first_env_id", first_env_id, 0),
        ("workers", 0 if workers is None else workers, 0),
        ("threads", threads, 1),
        ("max_faults", max_faults, 0),
    ):
        if value < least:
            raise UserError(f"`{name}` is {value}, expected at least {least}")
    tasks = tasks_of(env)
    if tasks is not None:
        specs = task_specs(tasks, env_args)

        def part(k: int, num_envs: int, first_env_id: int) -> VectorEnv:
            return make(
                tasks[k].env,
                num_envs,
                seed=derived_seed(seed, k),
                first_env_id=first_env_id,
                env_args=tasks[k].args(env_args),
                workers=workers,
                threads=threads,
                replayable=replayable,
                evaluate=evaluate,
                fault_log=fault_log,
                max_faults=max_faults,
                hang_after=hang_after,
            )

        spec = suite_spec(env, tasks, specs)  # type: ignore[arg-type]
        return SuiteEnvs(tasks, spec, specs, part, num_envs, first_env_id, only=task)
    args = as_scored(env, env_args) if evaluate else dict(env_args or {})
    if _is_game(env):
        from pronk.envs.atari import AtariEnvs

        return AtariEnvs(
            env,
            num_envs,
            seed=seed,
            first_env_id=first_env_id,
            num_threads=threads,
            replayable=replayable,
            **args,
        )
    if env == waiting.NAME:
        return _accepting(waiting.NAME, waiting.make, num_envs, seed, first_env_id, **args)
    own = _own(env, args)
    if own is not None:
        from pronk.envs.jax_env import JaxVectorEnv

        return JaxVectorEnv(own, num_envs, seed, first_env_id)
    factory = gym_factory(env, args)
    spec = gym_spec(factory, factory.name)
    note = ""
    if workers is None:
        step_seconds = _step_seconds(factory, spec)
        note = f" ({step_seconds * 1e3:.2g} ms a step)"
        slow = step_seconds > _SLOW_STEP and num_envs > 1
        workers = min(os.cpu_count() or 1, num_envs) if slow and _picklable(factory) else 0
    common: dict[str, Any] = {
        "replayable": replayable,
        "fault_log": fault_log,
        "max_faults": max_faults,
        "hang_after": hang_after,
    }
    if workers:
        made = ProcessVectorEnv(
            factory, spec, num_envs, seed, first_env_id, workers=workers, **common
        )
    else:
        made = SerialVectorEnv(factory, spec, num_envs, seed, first_env_id, **common)
    made.placement += note
    return made


def spec_of(env: EnvLike, env_args: Mapping[str, Any] | None = None) -> EnvSpec:
    """What an agent may know of `env`; raises the errors of `make`."""
    args = dict(env_args or {})
    tasks = tasks_of(env)
    if tasks is not None:
        return suite_spec(env, tasks, task_specs(tasks, args))  # type: ignore[arg-type]
    if _is_game(env):
        from pronk.envs.atari import atari_spec

        return atari_spec(env, args)
    if env == waiting.NAME:
        return _accepting(waiting.NAME, waiting.spec, **args)
    own = _own(env, args)
    if own is not None:
        return own.spec
    factory = gym_factory(env, args)
    return gym_spec(factory, factory.name)


def task_specs(tasks: Sequence[Task], env_args: Mapping[str, Any] | None) -> list[EnvSpec]:
    """What an agent may know of each task of a suite, apart from the others."""
    return [_task_spec(t.env, json.dumps(t.args(env_args), sort_keys=True)) for t in tasks]


@functools.lru_cache(256)
def _task_spec(env: str, env_args: str) -> EnvSpec:
    """Kept, because it takes making the environment, and every task's is asked for each time that
    environments of one are made."""
    return spec_of(env, json.loads(env_args))


def as_scored(env: EnvLike, env_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """`env_args` with which games are counted and filmed: a lost life is no end."""
    args = dict(env_args or {})
    if _is_game(env) or "life_loss" in args:
        args["life_loss"] = False
    return args


def is_atari(env: EnvLike) -> bool:
    """Whether `env` is the id of one of ALE's games, or a suite of nothing else."""
    tasks = tasks_of(env)
    return _is_game(env) if tasks is None else all(_is_game(task.env) for task in tasks)


def _is_game(env: EnvLike) -> TypeGuard[str]:
    return isinstance(env, str) and env.startswith("ALE/")


def jax_env_of(env: EnvLike, env_args: Mapping[str, Any] | None = None) -> JaxEnv | JaxSuite | None:
    """The pure functions of one of pronk's own environments, or of a suite of nothing else; None
    where `env` is no such one."""
    tasks = tasks_of(env)
    if tasks is not None:
        from pronk.envs import jax_suite

        parts = [_own(task.env, task.args(env_args)) for task in tasks]
        own = tuple(part for part in parts if part is not None)
        return jax_suite.make(str(env), tasks, own) if len(own) == len(parts) else None
    return _own(env, env_args)


def _own(env: EnvLike, env_args: Mapping[str, Any] | None = None) -> JaxEnv | None:
    if not isinstance(env, str) or not env.startswith("pronk/") or env == waiting.NAME:
        return None
    if env not in _JAX:
        raise _unregistered(env)
    module = importlib.import_module(f"pronk.envs.{_JAX[env]}")
    return _accepting(env, module.make, **(env_args or {}))


def _accepting(env: str, make: Callable[..., Any], *args: Any, **env_args: Any) -> Any:
    try:
        return make(*args, **env_args)
    except TypeError as e:
        raise UserError(f"`env` '{env}' does not accept these `env_args`: {e}") from e


def gym_factory(env: EnvLike, args: Mapping[str, Any]) -> GymFactory:
    """What makes one Gymnasium environment; raises UserError for an id that isn't registered."""
    if not isinstance(env, str):
        return GymFactory(env, args)
    module, _, name = env.rpartition(":")
    if module:  # Gymnasium's `module:Id-v0`: importing the module registers the id
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise UserError(f"`env` '{env}': module '{module}' cannot be imported: {e}") from e
    if name not in gym.registry:
        raise _unregistered(name)
    return GymFactory(gym.registry[name], args)


def names() -> list[str]:
    """The known ids: pronk's, suites, ALE's, and what is registered with Gymnasium, sorted in
    each."""
    from pronk.envs.atari import atari_ids

    own = sorted([*_JAX, waiting.NAME])
    known = [*own, *sorted(SUITES), *sorted(atari_ids()), *sorted(gym.registry)]
    return list(dict.fromkeys(known))  # importing ale_py also registers its games


def _unregistered(env: str) -> UserError:
    return UserError(f"`env` '{env}' is not registered{nearest(env, names())}")


def _picklable(factory: GymFactory) -> bool:
    try:
        ForkingPickler.dumps(factory)
    except Exception:
        return False
    return True


def _step_seconds(factory: GymFactory, spec: EnvSpec) -> float:
    """Median seconds of a step with random actions: a busy machine doubles the mean."""
    env = SerialVectorEnv(factory, spec, 1, max_faults=_PROBE_STEPS * 2)
    try:
        env.reset()
        space = gym.vector.utils.batch_space(spec.action_space, 1)
        space.seed(0)
        start = getattr(spec.action_space, "start", 0)

        seconds = []
        for _ in range(_PROBE_STEPS):
            action = np.asarray(space.sample()) - start
            begin = time.perf_counter()
            env.step(action)
            seconds.append(time.perf_counter() - begin)
        return float(np.median(seconds))
    finally:
        env.close()
