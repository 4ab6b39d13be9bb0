"""The episodes of a run: their returns, counted and averaged."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pronk.run.evaluate import Tally, suite_scores
from pronk.run.monitor import LEAST_EXPLORING
from pronk.types import EnvSpec, Episode

LAST = 100  # episodes of each task over which returns are averaged


class EpisodeLog:
    """Counts episodes, and keeps the returns of each task's last ones."""

    def __init__(self, spec: EnvSpec):
        self._spec = spec
        self.count = 0
        self.tally = Tally.from_json({}, spec.num_tasks)  # of all episodes
        # Of all slots, and of those that hardly explore.
        self._recent, self._greedy = (self._empty() for _ in range(2))

    def _empty(self) -> list[deque[float]]:
        return [deque(maxlen=LAST) for _ in range(self._spec.num_tasks)]

    def add(self, episodes: Sequence[Episode]) -> None:
        """Count episodes that ended."""
        self.count += len(episodes)
        for episode in episodes:
            self.tally.add(episode)
            self._recent[episode.task].append(episode.episode_return)
            if not episode.explores:
                self._greedy[episode.task].append(episode.episode_return)

    def metrics(self, *, explores: bool) -> dict[str, Any]:
        """The number of episodes and the mean returns; of a suite those of each task, and its
        scores. explores: whether the agent's slots explore at different rates."""
        means = self._means(self._recent)
        metrics = {"mean_return": _mean(means)}
        if explores and (greedy := self._means(self._greedy)):
            metrics[LEAST_EXPLORING] = _mean(greedy)
        metrics["episodes"] = self.count
        if self._spec.tasks:
            _, scores = suite_scores(self._spec, means)
            metrics |= {f"return/{name}": value for name, value in means.items()}
            metrics |= {f"score/{name}": value for name, value in scores.items()}
        return metrics

    def _means(self, returns: Sequence[deque[float]]) -> dict[str, float]:
        """The mean return of each task of which an episode has ended."""
        names = self._spec.tasks or ("",)
        return {
            name: float(np.mean(last)) for name, last in zip(names, returns, strict=True) if last
        }

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "episodes": self.count,
            "recent_returns": [list(returns) for returns in self._recent],
            "greedy_returns": [list(returns) for returns in self._greedy],
            "tally": self.tally.as_json(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from `as_json`."""
        self.count = saved["episodes"]
        self.tally = Tally.from_json(saved.get("tally", {}), self._spec.num_tasks)
        recent = saved["recent_returns"]
        if not (recent and isinstance(recent[0], list)):
            recent = [recent]  # of a population's member
        for kept, returns in ((self._recent, recent), (self._greedy, saved.get("greedy_returns"))):
            for own, last in zip(kept, returns or [], strict=False):
                own.extend(last)


def _mean(means: Mapping[str, float]) -> float:
    return float(np.mean(list(means.values()))) if means else math.nan
