"""Environments by id or factory: Gymnasium's, ALE's Atari games, pronk's own in JAX, and suites."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec as GymEntry

from pronk.config import modules
from pronk.envs import main_module, waiting
from pronk.envs.episodes import derived_seed
from pronk.envs.gym_env import SerialVectorEnv
from pronk.envs.process_env import ProcessVectorEnv
from pronk.envs.slot import gym_spec
from pronk.envs.suite import SUITES, Task, suite_spec, tasks_of
from pronk.envs.suite_env import SuiteEnvs
from pronk.errors import UserError, nearest
from pronk.maths.spaces import random_actions
from pronk.types import EnvSpec, VectorEnv

if TYPE_CHECKING:  # jax must not be imported by worker processes
    from pronk.envs.jax_env import JaxEnv
    from pronk.envs.jax_suite import JaxSuite

EnvLike = str | Callable[..., gym.Env]

_JAX = {  # module and function
    "pronk/Acrobot-v0": ("acrobot", "make"),
    "pronk/Breakout-v0": ("breakout", "make"),
    "pronk/CartPole-v1": ("cartpole", "make"),
    "pronk/CartPoleBalance-v0": ("cartpole_force", "make_balance"),
    "pronk/CartPoleSwingUp-v0": ("cartpole_force", "make_swing_up"),
    "pronk/Catch-v0": ("catch", "make"),
    "pronk/ConnectFour-v0": ("boards", "make_connect_four"),
    "pronk/DeepSea-v0": ("deep_sea", "make"),
    "pronk/DoublePendulum-v0": ("double_pendulum", "make"),
    "pronk/KeyDoor-v0": ("key_door", "make"),
    "pronk/MemoryCue-v0": ("memory_cue", "make"),
    "pronk/MountainCar-v0": ("mountain_car", "make"),
    "pronk/Orchard-v0": ("orchard", "make"),
    "pronk/Patience-v0": ("patience", "make"),
    "pronk/RandomCoin-v0": ("random_coin", "make"),
    "pronk/RandomDiscoMaze-v0": ("disco_maze", "make"),
    "pronk/SpaceInvaders-v0": ("space_invaders", "make"),
    "pronk/TicTacToe-v0": ("boards", "make_tic_tac_toe"),
}
_BOARDS = ("pronk/ConnectFour-v0", "pronk/TicTacToe-v0")
_PROBE_STEPS = 40
_SLOW_STEP = 1e-3  # seconds; a message to a worker and back costs about a tenth of it


@dataclass(frozen=True)
class GymFactory:
    """Creates one Gymnasium environment; picklable if `source` is.

    `source` is a registered environment's entry, so that a worker process needs not register it, or
    a function of `kwargs`.
    """

    source: GymEntry | Callable[..., gym.Env]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> gym.Env:
        if isinstance(self.source, GymEntry):
            # `Slot` checks every observation and reward itself.
            return gym.make(self.source, disable_env_checker=True, **self.kwargs)
        return self.source(**self.kwargs)

    @property
    def name(self) -> str:
        if isinstance(self.source, GymEntry):
            return self.source.id
        return getattr(self.source, "__name__", type(self.source).__name__)


@dataclass(frozen=True)
class Options:
    """How a vector of environments is stepped, and how it handles failures."""

    workers: int | None = None
    """Worker processes of Gymnasium environments; 0 steps them in the caller's thread, None decides
    by timing one of them, and by whether worker processes can make them."""
    threads: int = 1
    """Threads of Atari games."""
    replayable: bool = False
    """Declares that the same seed and actions repeat an episode, which makes `state()` exact."""
    fault_log: Path | None = None
    """The file that faults of Gymnasium environments are appended to."""
    max_faults: int = 10
    """Faults of Gymnasium environments after which stepping raises UserError."""
    hang_after: float = math.inf
    """Seconds without a result after which a worker process is replaced."""


def make(
    env: EnvLike,
    num_envs: int,
    *,
    seed: int = 0,
    first_env_id: int = 0,
    env_args: Mapping[str, Any] | None = None,
    task: int | None = None,
    evaluate: bool = False,
    **options: Any,
) -> VectorEnv:
    """`num_envs` environments stepped together, numbered from `first_env_id`.

    env: an id (`names()`), a suite (`pronk.envs.suite`), or a function of `env_args` that returns a
    `gymnasium.Env`. task: the number of a suite's task that all slots get. evaluate: a lost life
    does not end an episode. options: the fields of `Options`. The vector's `placement` says how it
    is stepped.

    Raises `UserError` for an unknown id, arguments that the environment does not accept, a missing
    package, or a space that is not supported.
    """
    settings = Options(**options)
    for name, value, least in (
        ("num_envs", num_envs, 1),
        ("seed", seed, 0),
        ("first_env_id", first_env_id, 0),
        ("workers", settings.workers or 0, 0),
        ("threads", settings.threads, 1),
        ("max_faults", settings.max_faults, 0),
    ):
        if value < least:
            raise UserError(f"`{name}` is {value}, expected at least {least}")
    tasks = tasks_of(env)
    if tasks is not None:
        specs = task_specs(tasks, env_args)

        def make_part(k: int, num_envs: int, first_env_id: int) -> VectorEnv:
            return make(
                tasks[k].env,
                num_envs,
                seed=derived_seed(seed, k),
                first_env_id=first_env_id,
                env_args=tasks[k].args(env_args),
                evaluate=evaluate,
                **options,
            )

        spec = suite_spec(str(env), tasks, specs)
        return SuiteEnvs(tasks, spec, specs, make_part, num_envs, first_env_id, only=task)
    args = evaluation_args(env, env_args) if evaluate else dict(env_args or {})
    if _is_game(env):
        from pronk.envs.atari import AtariEnvs

        return AtariEnvs(
            env,
            num_envs,
            seed=seed,
            first_env_id=first_env_id,
            num_threads=settings.threads,
            replayable=settings.replayable,
            **args,
        )
    if env == waiting.NAME:
        return _call_with_args(waiting.NAME, waiting.make, num_envs, seed, first_env_id, **args)
    jax_env = _single_jax_env(env, args)
    if jax_env is not None:
        from pronk.envs.jax_env import JaxVectorEnv

        return JaxVectorEnv(jax_env, num_envs, seed, first_env_id)
    return _make_gym(gym_factory(env, args), num_envs, seed, first_env_id, settings)


def _make_gym(
    factory: GymFactory, num_envs: int, seed: int, first_env_id: int, options: Options
) -> VectorEnv:
    """Gymnasium environments, in worker processes if requested, or if steps are slow and that is
    possible."""
    looked = _look(factory)
    common: dict[str, Any] = {
        "replayable": options.replayable,
        "fault_log": options.fault_log,
        "max_faults": options.max_faults,
        "hang_after": options.hang_after,
    }

    def in_processes(workers: int) -> VectorEnv:
        return ProcessVectorEnv(
            factory, looked.spec, num_envs, seed, first_env_id, workers=workers, **common
        )

    if options.workers:
        return in_processes(options.workers)
    note = ""
    if options.workers is None:
        if looked.step_seconds is None:
            looked.step_seconds = _step_seconds(factory, looked.spec)
            looked.obstacle = main_module.obstacle(factory)
        note = f"{looked.step_seconds * 1e3:.2g} ms a step"
        if looked.step_seconds > _SLOW_STEP and num_envs > 1:
            if not looked.obstacle:
                try:
                    vector = in_processes(min(os.cpu_count() or 1, num_envs))
                except UserError as error:
                    looked.obstacle = str(error)
                else:
                    vector.placement += f" ({note})"
                    return vector
            note += f"; not in worker processes, which would be faster: {looked.obstacle}"
    vector = SerialVectorEnv(factory, looked.spec, num_envs, seed, first_env_id, **common)
    vector.placement += f" ({note})" if note else ""
    return vector


@dataclass
class _Looked:
    """What is known of the environments of a factory, from making one."""

    source: Any  # kept, so that no other has its id
    spec: EnvSpec
    seconds: float  # to make one
    step_seconds: float | None = None  # once it was measured
    obstacle: str = ""  # why worker processes cannot make them


_looked: dict[Any, _Looked] = {}
_looking = 0  # contexts of `looked_at_once`, also of other threads
_looking_lock = threading.Lock()


@contextlib.contextmanager
def looked_at_once() -> Iterator[None]:
    """Within this context, the spaces and the speed of an environment are determined once and then
    reused, because its constructor may take long."""
    global _looking
    with _looking_lock:
        _looking += 1
    try:
        yield
    finally:
        with _looking_lock:
            _looking -= 1
            if not _looking:
                _looked.clear()


def _look(factory: GymFactory) -> _Looked:
    key = None
    if _looking:
        with contextlib.suppress(TypeError, ValueError):  # arguments that cannot be compared
            key = id(factory.source), json.dumps(dict(factory.kwargs), sort_keys=True)
    if (known := _looked.get(key)) is not None:
        return known
    seconds = []

    def timed() -> gym.Env:
        begin = time.perf_counter()
        env = factory()
        seconds.append(time.perf_counter() - begin)
        return env

    spec = gym_spec(timed, factory.name)
    looked = _Looked(factory.source, spec, seconds[0])
    if key is not None:
        _looked[key] = looked
    return looked


def construction_seconds(env: EnvLike, env_args: Mapping[str, Any] | None = None) -> float:
    """The seconds that making one environment takes; of a suite, the slowest. 0 for those that are
    not Gymnasium's, which are made together."""
    tasks = tasks_of(env)
    if tasks is not None:
        return max(construction_seconds(task.env, task.args(env_args)) for task in tasks)
    args = dict(env_args or {})
    if _is_game(env) or env == waiting.NAME or _single_jax_env(env, args) is not None:
        return 0.0
    return _look(gym_factory(env, args)).seconds


def spec_of(env: EnvLike, env_args: Mapping[str, Any] | None = None) -> EnvSpec:
    """The spec of `env`; raises the errors of `make`."""
    args = dict(env_args or {})
    tasks = tasks_of(env)
    if tasks is not None:
        return suite_spec(str(env), tasks, task_specs(tasks, args))
    if _is_game(env):
        from pronk.envs.atari import atari_spec

        return atari_spec(env, args)
    if env == waiting.NAME:
        return _call_with_args(waiting.NAME, waiting.spec, **args)
    jax_env = _single_jax_env(env, args)
    if jax_env is not None:
        return jax_env.spec
    return _look(gym_factory(env, args)).spec


def task_specs(tasks: Sequence[Task], env_args: Mapping[str, Any] | None) -> list[EnvSpec]:
    """The spec of each task of a suite, in its own spaces."""
    return [_task_spec(t.env, json.dumps(t.args(env_args), sort_keys=True)) for t in tasks]


@functools.lru_cache(256)
def _task_spec(env: str, env_args: str) -> EnvSpec:
    """Cached, because it creates the environment, and `make` needs the specs of all tasks for each
    of them."""
    return spec_of(env, json.loads(env_args))


def evaluation_args(env: EnvLike, env_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """`env_args` for evaluation and films, in which a lost life does not end an episode.

    A board game gets an opponent, if it has none: "perfect" where the board can be solved, else
    "random".
    """
    args = dict(env_args or {})
    if is_board(env) and args.get("opponent", "none") == "none":
        from pronk.envs import board_solver, boards

        solvable = board_solver.can_solve(boards.board_of(str(env), args))
        args["opponent"] = "perfect" if solvable else "random"
    if _is_game(env) or "life_loss" in args:
        args["life_loss"] = False
    return args


def is_board(env: EnvLike) -> bool:
    """Whether `env` is a board game for two players (`pronk.envs.boards`)."""
    return env in _BOARDS


def is_atari(env: EnvLike) -> bool:
    """Whether `env` is the id of an ALE game, or a suite of ALE games only."""
    tasks = tasks_of(env)
    return _is_game(env) if tasks is None else all(_is_game(task.env) for task in tasks)


def _is_game(env: EnvLike) -> TypeGuard[str]:
    return isinstance(env, str) and env.startswith("ALE/")


def jax_env_of(env: EnvLike, env_args: Mapping[str, Any] | None = None) -> JaxEnv | JaxSuite | None:
    """The pure functions of one of pronk's own environments, or of a suite of these only; None for
    any other environment."""
    tasks = tasks_of(env)
    if tasks is not None:
        from pronk.envs import jax_suite

        parts = [_single_jax_env(task.env, task.args(env_args)) for task in tasks]
        jax_envs = tuple(part for part in parts if part is not None)
        return jax_suite.make(str(env), tasks, jax_envs) if len(jax_envs) == len(parts) else None
    return _single_jax_env(env, env_args)


def _single_jax_env(env: EnvLike, env_args: Mapping[str, Any] | None = None) -> JaxEnv | None:
    if not isinstance(env, str) or not env.startswith("pronk/") or env == waiting.NAME:
        return None
    if env not in _JAX:
        raise _unregistered(env)
    for name, value in (env_args or {}).items():
        if isinstance(value, list | dict):
            raise UserError(f"`env` '{env}' has {name}={value!r}; expected one number or word.")
    module, function = _JAX[env]
    make = getattr(importlib.import_module(f"pronk.envs.{module}"), function)
    made = _call_with_args(env, functools.partial(_made, make), **(env_args or {}))
    return made._replace(spec=copy.deepcopy(made.spec))  # spaces have random numbers of their own


@functools.lru_cache(64, typed=True)
def _made(make: Callable[..., JaxEnv], **env_args: Any) -> JaxEnv:
    """Equal arguments give the same functions, which share what JAX has compiled for them."""
    return make(**env_args)


def _call_with_args(env: str, make: Callable[..., Any], *args: Any, **env_args: Any) -> Any:
    try:
        return make(*args, **env_args)
    except TypeError as e:
        raise UserError(f"`env` '{env}' does not accept these `env_args`: {e}") from e


def gym_factory(env: EnvLike, args: Mapping[str, Any]) -> GymFactory:
    """The factory of a Gymnasium environment; raises UserError for an id that isn't registered, and
    for what is neither an id nor a function."""
    if not isinstance(env, str):
        if not callable(env):
            raise UserError(_no_factory(env))
        return GymFactory(env, args)
    module, _, name = env.rpartition(":")
    if module:  # Gymnasium's `module:Id-v0`: importing the module registers the id
        modules.load(module, f"`env` '{env}'")
    if name not in gym.registry:
        raise _unregistered(name, module)
    return GymFactory(gym.registry[name], args)


def _no_factory(env: Any) -> str:
    """The message for an object that is given in the place of an id or a function."""
    name = type(getattr(env, "unwrapped", env)).__name__
    expected = "expected an id, or a class or function that makes a new environment at each call"
    if not isinstance(env, gym.Env | gym.vector.VectorEnv):
        return f"`env` is a {type(env).__name__}; {expected}."
    entry = getattr(env, "spec", None)
    known = f"'{entry.id}', or " if entry is not None else ""
    return (
        f"`env` is an environment ({name}), and a run needs several; {expected}: {known}{name},"
        f" with its arguments as `env_args`, or `lambda: {name}(...)`."
    )


def names() -> list[str]:
    """The known ids: pronk's, suites, ALE's, and Gymnasium's registry, each sorted."""
    from pronk.envs.atari import atari_ids

    own = sorted([*_JAX, waiting.NAME])
    known = [*own, *sorted(SUITES), *sorted(atari_ids()), *sorted(gym.registry)]
    return list(dict.fromkeys(known))  # importing ale_py also registers its games


def _unregistered(env: str, module: str = "") -> UserError:
    own = f"The module '{module}' was imported, and does not register it."
    if not module:
        own = f"For your own, name the module that registers it, too: my_module:{env}."
    return UserError(f"`env` '{env}' is not registered{nearest(env, names()) or '.'} {own}")


def _step_seconds(factory: GymFactory, spec: EnvSpec) -> float:
    """Median seconds of a step with random actions: a busy machine doubles the mean."""
    env = SerialVectorEnv(factory, spec, 1, max_faults=_PROBE_STEPS * 2)
    try:
        mask = env.reset().action_mask
        space, rng = spec.action_space, np.random.default_rng(0)
        seconds = []
        for _ in range(_PROBE_STEPS):
            action = random_actions(space, 1, rng, mask)
            begin = time.perf_counter()
            mask = env.step(action).action_mask
            seconds.append(time.perf_counter() - begin)
        return float(np.median(seconds))
    finally:
        env.close()
