"""What the experiments share: runs that are done once, and intervals over seeds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.files import write_json_atomically


def once(
    folder: Path, name: str, what: Mapping[str, Any], work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `work` found, as JSON kept in `folder`: done by the first call only, however often the
    experiment is begun again.

    what: all settings that it depends on; with others it is done anew, beside what is there.
    """
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    path = folder / f"{name}-{digest[:8]}.json"
    if not path.exists():
        start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, work())
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    return json.loads(path.read_text())


class Interval(NamedTuple):
    """A mean over seeds with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interval(values: list[float]) -> Interval:
    """Of one value per seed."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, size=(10_000, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))
