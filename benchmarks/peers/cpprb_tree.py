"""cpprb's prioritised sampling alone: microseconds of a sample and of an update; see run.py.

Its transitions hold one number, so that mostly the tree is timed; sampling there also computes the
importance weights.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version

import numpy as np
from cpprb import PrioritizedReplayBuffer


def microseconds(call, seconds: float) -> float:
    """Median duration of a call."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def main() -> None:
    """Fill, then time both."""
    parser = argparse.ArgumentParser(description="cpprb's prioritised sampling.")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    buffer = PrioritizedReplayBuffer(args.items, {"x": {}}, alpha=1.0)
    buffer.add(x=np.zeros(args.items), priorities=rng.random(args.items))
    index = rng.integers(args.items, size=args.batch_size)
    priority = rng.random(args.batch_size)
    print(
        json.dumps(
            {
                "system": "cpprb",
                "version": version("cpprb"),
                "sample_microseconds": microseconds(
                    lambda: buffer.sample(args.batch_size, beta=0.6), args.seconds
                ),
                "update_microseconds": microseconds(
                    lambda: buffer.update_priorities(index, priority), args.seconds
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
