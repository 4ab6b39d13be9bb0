"""Evaluation of a frozen policy: whole episodes, raw rewards, no exploration by default."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pronk import envs
from pronk.config.run import EVAL_MAX_STEPS as MAX_STEPS
from pronk.errors import counted
from pronk.maths import scores
from pronk.runtime.actor import Player
from pronk.types import Agent, EnvSpec, Episode, Key, PyTree, TimeStep, VectorEnv


@dataclass(frozen=True)
class Evaluation:
    """Statistics of the episodes of a frozen policy."""

    episodes: int
    mean_return: float
    standard_error: float
    minimum: float
    maximum: float
    mean_length: float  # agent steps
    human_normalised: float | None  # (score − random) / (human − random), where known
    cut_off: int = 0  # episodes that did not end within `max_steps`; their return so far counts
    wins: int | None = None  # of board games, as are draws and losses
    draws: int | None = None
    losses: int | None = None

    def lines(self, policy: str, how: str) -> list[str]:
        """The result of `policy` for people; how: its actions were chosen."""
        human = self.human_normalised
        length = f"{counted(round(self.mean_length), 'step')} long"
        length += "" if human is None else f", {human:.1%} human-normalised"
        if self.wins is not None:
            length += f", {self.wins} won, {self.draws} drawn, {self.losses} lost"
        if self.episodes == 1:
            return [f"{policy}: {self.mean_return:.2f} (1 episode, {how}, {length})"]
        return [
            f"{policy}: {self.mean_return:.2f} ± {self.standard_error:.2f} (mean ± standard error"
            f" of {self.episodes} episodes, {how}, {self.minimum:g} to {self.maximum:g}, {length})"
        ]

    def as_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """The numbers of a training record."""
        numbers = {name: value for name, value in asdict(self).items() if value is not None}
        return numbers if self.cut_off else {k: v for k, v in numbers.items() if k != "cut_off"}


@dataclass(frozen=True)
class SuiteEvaluation:
    """Statistics of the episodes of a frozen policy in each task of a suite."""

    tasks: dict[str, Evaluation]
    normalised: dict[str, float]  # (score − random) / (reference − random), where known
    scores: dict[str, float]  # `scores.aggregates` of `normalised`, if known for all tasks

    def as_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """The numbers of a training record."""
        returns = {f"return/{name}": one.mean_return for name, one in self.tasks.items()}
        returns["mean_return"] = float(np.mean([x.mean_return for x in self.tasks.values()]))
        return returns | {f"score/{name}": value for name, value in self.scores.items()}

    def lines(self, policy: str, how: str) -> list[str]:
        """A table for people; it names neither the policy nor how its actions were chosen."""
        del policy, how
        width = max(map(len, self.tasks))
        lines = [
            f"{'task':{width}}  {'mean return':>12}  {'± error':>9}  {'episodes':>8}  {'score':>7}"
        ]
        for name, found in self.tasks.items():
            score = self.normalised.get(name)
            shown = "–" if score is None else f"{score:.1%}"
            error = f"{found.standard_error:.3g}" if found.episodes > 1 else "–"
            lines.append(
                f"{name:{width}}  {found.mean_return:12.4g}  {error:>9}"
                f"  {found.episodes:8}  {shown:>7}"
            )
        if self.scores:
            words = {"mean": "mean", "median": "median", "mean_capped": "mean of capped"}
            listed = ", ".join(f"{words[k]} {v:.1%}" for k, v in self.scores.items())
            lines.append(f"normalised scores: {listed}")
        return lines


@dataclass(frozen=True)
class Tally:
    """Sums over finished episodes, an element per task of a suite (one without a suite)."""

    total: list[float]  # of returns
    squares: list[float]  # of squared returns
    count: list[int]  # of episodes

    @staticmethod
    def from_json(saved: Mapping[str, Any], tasks: int) -> Tally:
        """The tally whose `as_json` is `saved`; zeros for `tasks` tasks where it is empty."""
        empty = {"total": [0.0] * tasks, "squares": [0.0] * tasks, "count": [0] * tasks}
        return Tally(**{name: list(saved.get(name, value)) for name, value in empty.items()})

    def add(self, episode: Episode) -> None:
        """Count one more episode."""
        self.total[episode.task] += episode.episode_return
        self.squares[episode.task] += episode.episode_return**2
        self.count[episode.task] += 1

    def plus(self, other: Tally, sign: int = 1) -> Tally:
        """The sum with another tally or, with `sign` −1, the difference."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Tally(*([a + sign * b for a, b in zip(*pair, strict=True)] for pair in pairs))

    def as_json(self) -> dict[str, list[Any]]:
        """As plain JSON types."""
        return asdict(self)


def evaluate(
    agent: Agent,
    behaviour: PyTree,
    env: VectorEnv,
    *,
    episodes: int,
    key: Key,
    sample: bool = False,
    stop: Callable[[], bool] = lambda: False,
    max_steps: int = MAX_STEPS,
    log: Callable[[str], None] = lambda _: None,
) -> Evaluation | None:
    """Play `episodes` episodes in `env`, which the caller closes.

    Every slot plays a fixed number of them: taking those that end first would favour short ones.
    sample: draw actions instead of taking the most likely. max_steps: agent steps after which an
    episode is cut off, and counts with the return so far; `log` receives a message about the first.
    Returns None once `stop()` is true.
    """
    num_envs = env.num_envs
    quota = [episodes // num_envs + (i < episodes % num_envs) for i in range(num_envs)]
    env_ids = np.arange(num_envs, dtype=np.int32)
    player = Player(agent, key, env_ids, num_envs, evaluate=not sample)
    timestep = env.reset()
    done: list[Episode] = []
    running, cut_off = _Running(num_envs), 0
    while any(quota):
        if stop():
            return None
        timestep = env.step(player.act(behaviour, timestep).action)
        rest = running.rest.copy()
        late = running.update(timestep, max_steps)
        for episode in env.episodes():
            if not rest[episode.env_id % num_envs]:
                _count(episode, quota, done)
        counted = sum(_count(episode, quota, done) for episode in late)
        if counted and not cut_off:
            log(
                f"evaluation: an episode of `env` '{env.spec.name}' has not ended after"
                f" {max_steps:,} steps and is cut off; later ones are cut off without a message"
                " (the limit is `--eval-max-steps`, or `--max-steps` of `pronk eval`)"
            )
        cut_off += counted
    return dataclasses.replace(summarise(env.spec.name, done), cut_off=cut_off)


def _count(episode: Episode, quota: list[int], done: list[Episode]) -> bool:
    """Add an episode to those that are `done`, unless its slot has played its `quota`; whether it
    was added."""
    slot = episode.env_id % len(quota)
    if not quota[slot]:
        return False
    quota[slot] -= 1
    done.append(episode)
    return True


class _Running:
    """The episodes that are under way, one per slot."""

    def __init__(self, num_envs: int):
        self.rest = np.zeros(num_envs, bool)  # of an episode that was cut off: it does not count
        self._lengths = np.zeros(num_envs, np.int64)
        self._returns = np.zeros(num_envs, np.float64)

    def update(self, timestep: TimeStep, max_steps: int) -> list[Episode]:
        """Add a row; returns the episodes, numbered by slot, that are cut off at it."""
        first = np.asarray(timestep.first)
        ended = np.asarray(timestep.terminated) | np.asarray(timestep.truncated)
        self._lengths = np.where(first, 0, self._lengths + 1)
        self._returns = np.where(first, 0.0, self._returns + np.asarray(timestep.reward))
        self.rest &= ~(ended | first)  # a fault ends an episode without a flag
        late = np.flatnonzero((self._lengths >= max_steps) & ~ended)
        found = [
            Episode(float(self._returns[i]), int(self._lengths[i]), int(i), int(timestep.task[i]))
            for i in late
        ]
        self.rest[late], self._lengths[late], self._returns[late] = True, 0, 0.0
        return found


def evaluate_all(
    agent: Agent,
    behaviour: PyTree,
    make_env: Callable[[int | None], VectorEnv],
    spec: EnvSpec,
    *,
    episodes: int,
    key: Key,
    sample: bool = False,
    stop: Callable[[], bool] = lambda: False,
    max_steps: int = MAX_STEPS,
    log: Callable[[str], None] = lambda _: None,
) -> Evaluation | SuiteEvaluation | None:
    """`evaluate` in `make_env(None)` or, for a suite, `episodes` episodes of every task k in
    `make_env(k)`; the environments are closed."""
    results: list[Evaluation] = []
    for task in range(len(spec.tasks)) if spec.tasks else (None,):
        with contextlib.closing(make_env(task)) as env:
            one = evaluate(
                agent,
                behaviour,
                env,
                episodes=episodes,
                key=key,
                sample=sample,
                stop=stop,
                max_steps=max_steps,
                log=log,
            )
        if one is None:
            return None
        results.append(one)
    if not spec.tasks:
        return results[0]
    tasks = dict(zip(spec.tasks, results, strict=True))
    means = {name: one.mean_return for name, one in tasks.items()}
    return SuiteEvaluation(tasks, *suite_scores(spec, means))


def suite_scores(
    spec: EnvSpec, mean_returns: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Normalised scores of the tasks with known references, and, if those are all tasks of the
    suite, their `scores.aggregates`."""
    normalised = {
        name: scores.normalize(mean_returns[name], reference)
        for name, reference in zip(spec.tasks, spec.references, strict=True)
        if reference is not None and name in mean_returns
    }
    if len(normalised) < len(spec.tasks):
        return normalised, {}
    return normalised, scores.aggregates(list(normalised.values()))


def summarise(env_name: str, episodes: list[Episode]) -> Evaluation:
    """Statistics of `episodes`, with the human-normalised score where it is known, and the numbers
    of wins, draws and losses of a board game."""
    returns = np.array([e.episode_return for e in episodes])
    board: dict[str, int] = {}
    if envs.is_board(env_name):
        outcomes = {"wins": returns > 0, "draws": returns == 0, "losses": returns < 0}
        board = {name: int(which.sum()) for name, which in outcomes.items()}
    error = float(returns.std(ddof=1) / math.sqrt(len(returns))) if len(returns) > 1 else math.nan
    return Evaluation(
        episodes=len(returns),
        mean_return=float(returns.mean()),
        standard_error=error,
        minimum=float(returns.min()),
        maximum=float(returns.max()),
        mean_length=float(np.mean([e.length for e in episodes])),
        human_normalised=scores.human_normalized(env_name, float(returns.mean())),
        **board,
    )
