"""What is averaged between two records of metrics."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pronk.config.run import RunConfig
from pronk.runtime.api import Update

RECORDS = 100  # of a whole run, at least
SHORTEST = 0.2  # seconds between them, so that recording costs next to nothing


class Meter:
    """Metrics, policy lag and speed since the last record."""

    def __init__(self, steps: int):
        self.metrics: deque[Any] = deque(maxlen=200)
        self._lags: list[float] = []
        self._steps = steps
        self._since = time.perf_counter()

    def add(self, update: Update) -> None:
        """Count an update."""
        self.metrics.append(update.metrics)
        self._lags.append(update.policy_lag)

    def seconds(self) -> float:
        """Seconds of training since the last record."""
        return time.perf_counter() - self._since

    def is_due(self, run: RunConfig, steps: int) -> bool:
        """Whether a record is due after `steps` agent steps although no line is: after each
        hundredth of the run, so that a short run has a curve, too."""
        part = max(1, run.steps // RECORDS)
        return self.seconds() >= SHORTEST and steps // part > self._steps // part

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time within out, as that of an evaluation."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def record(self, steps: int) -> dict[str, float]:
        """Speed, policy lag and the means of the metrics, after `steps` agent steps."""
        values = jax.device_get(list(self.metrics))
        names = sorted(values[0].keys() - {"steps"})
        return {
            "steps_per_second": (steps - self._steps) / max(self.seconds(), 1e-9),
            "policy_lag": float(np.mean(self._lags)),
            **{name: float(np.mean([v[name] for v in values])) for name in names},
        }
