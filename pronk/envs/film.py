"""One environment to film: a vector of size 1, and a function that renders its current state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from pronk import envs
from pronk.config.spec import env_name
from pronk.envs.suite import Task, suite_spec, task_number, tasks_of
from pronk.envs.suite_env import SuiteEnvs
from pronk.errors import UserError
from pronk.types import Array, Episode, TimeStep


class FilmedEnv(Protocol):
    """The part of a `VectorEnv` of size 1 that filming needs."""

    def reset(self) -> TimeStep: ...
    def step(self, action: Array) -> TimeStep: ...
    def episodes(self) -> list[Episode]: ...
    def close(self) -> None: ...


class Film(NamedTuple):
    """A vector of one environment; `picture()` renders its current state, uint8 `[H, W, 3]`."""

    env: FilmedEnv
    picture: Callable[[], Array]
    frames_per_second: float


def make(
    env: Any, *, seed: int = 0, env_args: Mapping[str, Any] | None = None, task: str | None = None
) -> Film:
    """An environment to film, as in evaluation; `task` names one task of a suite.

    Raises UserError if it cannot be rendered, and for an unknown task.
    """
    tasks = tasks_of(env)
    k = task_number(env, tasks, task)
    if tasks is not None:
        return _film_task(str(env), tasks, k, seed, env_args or {})
    args = envs.evaluation_args(env, env_args)
    if envs.is_atari(env):
        return _atari(env, seed, args)
    own = envs.jax_env_of(env, args)
    if own is not None:
        from pronk.envs.jax_env import JaxEnv, JaxVectorEnv

        assert isinstance(own, JaxEnv)  # suites are handled above

        vector = JaxVectorEnv(own, 1, seed)
        render = own.render
        if render is None:
            raise UserError(f"`env` '{env}' cannot be filmed: it has no render function.")
        return Film(vector, lambda: np.asarray(render(vector.first_state())), own.frames_per_second)
    return _gymnasium(env, seed, args)


def _film_task(
    env: str, tasks: tuple[Task, ...], k: int, seed: int, args: Mapping[str, Any]
) -> Film:
    specs = envs.task_specs(tasks, args)
    film = make(tasks[k].env, seed=seed, env_args=tasks[k].args(args))
    vector: Any = film.env
    spec = suite_spec(env, tasks, specs)
    return film._replace(env=SuiteEnvs(tasks, spec, specs, lambda *_: vector, 1, only=k))


class _Twins:
    """Two Atari games with the same seed and actions: one as the agent sees it, one in colour."""

    def __init__(self, env: str, seed: int, args: dict[str, Any]):
        from pronk.envs.atari import AtariEnvs

        colour = {**args, "grayscale": False, "stack_num": 1, "img_height": 210, "img_width": 160}
        # One seed per episode (`replayable`), so that the two are the same in every episode.
        self._agent_env = AtariEnvs(env, 1, seed=seed, replayable=True, **args)
        self._colour_env = AtariEnvs(env, 1, seed=seed, replayable=True, **colour)
        self.placement = "filmed"
        self.frames_per_second = 60 / self._agent_env.spec.frames_per_step
        self.frame: Array = np.zeros((210, 160, 3), np.uint8)

    def _set_frame(self, observation: Array) -> None:
        self.frame = np.array(observation[0, 0])

    def reset(self) -> TimeStep:
        self._set_frame(self._colour_env.reset().observation)
        return self._agent_env.reset()

    def step(self, action: Array) -> TimeStep:
        self._set_frame(self._colour_env.step(action).observation)
        return self._agent_env.step(action)

    def episodes(self) -> list[Episode]:
        return self._agent_env.episodes()

    def close(self) -> None:
        self._agent_env.close()
        self._colour_env.close()


def _atari(env: str, seed: int, args: dict[str, Any]) -> Film:
    twins = _Twins(env, seed, args)
    return Film(twins, lambda: twins.frame, twins.frames_per_second)


_USUAL_RATE = 30.0  # frames per second


def _gymnasium(env: Any, seed: int, args: dict[str, Any]) -> Film:
    current: list[Any] = []  # the environment, which is replaced after a fault
    name = env_name(env)

    def factory() -> Any:
        made = _renderable(env, args)
        current[:] = [made]
        return made

    factory.__name__ = name
    vector = envs.make(factory, 1, seed=seed, workers=0)

    def picture() -> Array:
        try:
            return as_frame(current[0].render())
        except ValueError as error:
            raise UserError(f"`env` '{name}' cannot be filmed: {error}.") from None
        except Exception as error:  # whatever an environment raises
            cause = f"{type(error).__name__}: {error}"
            raise UserError(f"`env` '{name}' cannot be filmed: render() failed: {cause}") from error

    rate = (getattr(current[0], "metadata", None) or {}).get("render_fps")
    is_rate = isinstance(rate, int | float) and 0 < rate < math.inf
    return Film(vector, picture, float(rate) if is_rate else _USUAL_RATE)  # type: ignore[arg-type]


def _renderable(env: Any, args: dict[str, Any]) -> Any:
    """The environment, asked for pictures if it can be asked. Raises UserError if it makes none."""
    try:
        return envs.gym_factory(env, {**args, "render_mode": "rgb_array"})()
    except TypeError as error:
        if "render_mode" not in str(error):
            raise
    made = envs.gym_factory(env, args)()
    if getattr(made, "render_mode", None) not in ("rgb_array", "rgb_array_list"):
        raise UserError(
            f"`env` '{env_name(env)}' cannot be filmed: it takes no `render_mode`, and makes no"
            " pictures without; expected a parameter render_mode of its constructor or function,"
            ' which receives "rgb_array".'
        )
    return made


def as_frame(picture: Any) -> Array:
    """What an environment rendered as a frame, uint8 `[H, W, 3]`; of a list the last picture.

    Grey pictures and those with alpha are converted; floats count from 0 to 1. Raises ValueError
    for anything else.
    """
    if isinstance(picture, list) and picture:
        picture = picture[-1]
    frame = np.asarray(picture)
    if frame.ndim == 2:
        frame = frame[..., None]
    kind = frame.dtype.kind
    if kind not in "buif" or frame.ndim != 3 or frame.shape[2] not in (1, 3, 4) or not frame.size:
        found = f"{frame.dtype} {frame.shape}" if kind in "buif" else f"a {type(picture).__name__}"
        raise ValueError(f"render() returned {found}, expected an array [height, width, 3]")
    limit = 1 if kind in "bf" else 255
    low, high = (0, 255) if frame.dtype == np.uint8 else (float(frame.min()), float(frame.max()))
    if not (low >= 0 and high <= limit):  # NaN, too
        given = f"{frame.dtype} from {low:g} to {high:g}"
        raise ValueError(f"render() returned {given}, expected uint8, or floats from 0 to 1")
    if kind in "bf":
        frame = np.round(frame * 255.0)
    frame = frame.astype(np.uint8)[..., :3]
    return np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame
