"""One environment to film: a vector of size 1, and a function that renders its current state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np

from pronk import envs
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
        return Film(vector, lambda: np.asarray(render(vector.first_state())), 8)
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


def _gymnasium(env: Any, seed: int, args: dict[str, Any]) -> Film:
    current: list[Any] = []  # the environment, which is replaced after a fault

    def factory() -> Any:
        made = envs.gym_factory(env, {**args, "render_mode": "rgb_array"})()
        current[:] = [made]
        return made

    vector = envs.make(factory, 1, seed=seed, workers=0)

    def picture() -> Array:
        try:
            frame = current[0].render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"`env` '{env}' cannot be filmed: {error}") from None
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise UserError(
                f"`env` '{env}' cannot be filmed: render() returned {type(frame).__name__},"
                " expected an array [H, W, 3]."
            )
        return frame

    return Film(vector, picture, current[0].metadata.get("render_fps", 30))
