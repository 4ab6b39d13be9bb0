"""One environment that can be watched: a vector of size 1, and a picture of its present moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np

from pronk import envs
from pronk.envs.suite import SuiteEnvs, Task, suite_spec, task_number, tasks_of
from pronk.errors import UserError
from pronk.types import Array, Episode, TimeStep


class Game(Protocol):
    """What filming needs of a `VectorEnv` of size 1."""

    def reset(self) -> TimeStep: ...
    def step(self, action: Array) -> TimeStep: ...
    def episodes(self) -> list[Episode]: ...
    def close(self) -> None: ...


class Film(NamedTuple):
    """A vector of one environment; `picture()` is uint8 `[H, W, 3]` of what it shows now."""

    env: Game
    picture: Callable[[], Array]
    frames_per_second: float


def make(
    env: Any, *, seed: int = 0, env_args: Mapping[str, Any] | None = None, task: str | None = None
) -> Film:
    """A game to film, played as in evaluation; of a suite, this `task`.

    Raises UserError where it can't be rendered, and for a task that there is not.
    """
    tasks = tasks_of(env)
    k = task_number(env, tasks, task)
    if tasks is not None:
        return _of_suite(str(env), tasks, k, seed, env_args or {})
    args = envs.as_scored(env, env_args)
    if envs.is_atari(env):
        return _atari(env, seed, args)
    own = envs.jax_env_of(env, args)
    if own is not None:
        from pronk.envs.jax_env import JaxEnv, JaxVectorEnv

        assert isinstance(own, JaxEnv)  # suites are handled above

        vector = JaxVectorEnv(own, 1, seed)
        render = own.render
        if render is None:
            raise UserError(f"'{env}' has no picture to film.")
        return Film(vector, lambda: np.asarray(render(vector.first_state())), 8)
    return _gymnasium(env, seed, args)


def _of_suite(
    env: str, tasks: tuple[Task, ...], k: int, seed: int, args: Mapping[str, Any]
) -> Film:
    specs = envs.task_specs(tasks, args)
    game = make(tasks[k].env, seed=seed, env_args=tasks[k].args(args))
    vector: Any = game.env
    seen = SuiteEnvs(tasks, suite_spec(env, tasks, specs), specs, lambda *_: vector, 1, only=k)
    return game._replace(env=seen)


class _Twins:
    """Two Atari games with the same seed and actions: as the agent sees it, and as people do."""

    def __init__(self, env: str, seed: int, args: dict[str, Any]):
        from pronk.envs.atari import AtariEnvs

        whole = {**args, "grayscale": False, "stack_num": 1, "img_height": 210, "img_width": 160}
        # One seed per episode, so that the two stay together from episode to episode.
        self._seen = AtariEnvs(env, 1, seed=seed, replayable=True, **args)
        self._shown = AtariEnvs(env, 1, seed=seed, replayable=True, **whole)
        self.placement = "filmed"
        self.frames_per_second = 60 / self._seen.spec.frames_per_step
        self.frame: Array = np.zeros((210, 160, 3), np.uint8)

    def _look(self, observation: Array) -> None:
        self.frame = np.array(observation[0, 0])

    def reset(self) -> TimeStep:
        self._look(self._shown.reset().observation)
        return self._seen.reset()

    def step(self, action: Array) -> TimeStep:
        self._look(self._shown.step(action).observation)
        return self._seen.step(action)

    def episodes(self) -> list[Episode]:
        return self._seen.episodes()

    def close(self) -> None:
        self._seen.close()
        self._shown.close()


def _atari(env: str, seed: int, args: dict[str, Any]) -> Film:
    twins = _Twins(env, seed, args)
    return Film(twins, lambda: twins.frame, twins.frames_per_second)


def _gymnasium(env: Any, seed: int, args: dict[str, Any]) -> Film:
    shown: list[Any] = []

    def factory() -> Any:
        made = envs.gym_factory(env, {**args, "render_mode": "rgb_array"})()
        shown[:] = [made]
        return made

    vector = envs.make(factory, 1, seed=seed, workers=0)

    def picture() -> Array:
        try:
            frame = shown[0].render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"'{env}' can't be filmed: {error}") from None
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise UserError(f"'{env}' returned no picture from render(); it can't be filmed.")
        return frame

    return Film(vector, picture, shown[0].metadata.get("render_fps", 30))
