"""Speed of the replay alone: inserting, sampling, updating priorities; and its memory."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pronk.experiments.bench.settings import Replay as Settings
from pronk.experiments.bench.timing import median_seconds
from pronk.replay import Replay
from pronk.run.allocator import keep_freed_memory
from pronk.runtime.actor import StartRecorder
from pronk.types import Array, Feedback, Sequences, TimeStep, Trajectory

STACK, SIZE, CORE = 4, 84, 512
EPISODE = 1000  # steps


def measure(settings: Settings) -> dict[str, Any]:
    """Observations inserted, sequences sampled and priorities updated per second; bytes."""
    keep_freed_memory()
    spec = Sequences(
        capacity=settings.observations,
        burn_in=40,
        length=80,
        overlap=40,
        priority_exponent=0.9,
        compress=settings.compress,
    )
    stream = _Stream(settings.num_envs, settings.unroll, spec)
    example = jax.tree.map(lambda x: x[0, 0], stream.trajectory()[:3])
    stream = _Stream(settings.num_envs, settings.unroll, spec)
    before = _resident()
    replay = Replay(spec, example, tuple(np.zeros(CORE, np.float32) for _ in range(2)))
    seconds = 0.0
    while replay.transitions < settings.observations:
        trajectory = stream.trajectory()
        start = time.perf_counter()
        replay.add(0, trajectory)
        seconds += time.perf_counter() - start
    used = _resident() - before
    rng = np.random.default_rng(0)
    batch, keys = replay.sample(settings.batch_size, rng)
    size = sum(x.nbytes for x in jax.tree.leaves(batch))
    sample = median_seconds(lambda: replay.sample(settings.batch_size, rng), settings.seconds)
    source = np.ones(size, np.uint8)
    copy = median_seconds(lambda: source.copy(), settings.seconds / 2)
    feedback = Feedback(rng.random(settings.batch_size))
    update = median_seconds(lambda: replay.revise(keys, feedback), settings.seconds / 2)
    return {
        "observations": settings.observations,
        "sequences": len(replay),
        "batch": f"{settings.batch_size} × {spec.burn_in + spec.length}",
        "compressed": settings.compress,
        "inserts_per_second": replay.transitions / seconds,
        "samples_per_second": settings.batch_size / sample,
        "updates_per_second": settings.batch_size / update,
        "bytes_per_observation": used / replay.transitions,
        "sample_milliseconds": sample * 1e3,
        "sample_gigabytes_per_second": size / sample / 1e9,
        "copy_gigabytes_per_second": size / copy / 1e9,
        "share_of_copy": copy / sample,
    }


def _resident() -> int:
    """Resident bytes of this process; 0 where there is no /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * resource.getpagesize() if path.exists() else 0


class _Stream:
    """Trajectories of stacked moving frames, of episodes of 1,000 steps."""

    def __init__(self, envs: int, unroll: int, spec: Sequences):
        rng = np.random.default_rng(0)
        self._envs, self._unroll, self._t = envs, unroll, 0
        self._starts = StartRecorder(spec, envs)
        # Each step shows another part of a picture much larger than a frame.
        self._world = np.repeat(rng.integers(0, 256, (512, 128), np.uint8), 4, axis=1)
        self._ends = rng.integers(EPISODE, size=envs)

    def _frame(self, t: int) -> Array:
        offset = (t + 17 * np.arange(self._envs)) % (512 - SIZE)
        return np.stack([self._world[i : i + SIZE, i % 400 : i % 400 + SIZE] for i in offset])

    def trajectory(self) -> Trajectory:
        """The next unroll; its row 0 is the last row of the one before."""
        steps, start = self._unroll, self._t
        self._t += steps
        frames = np.stack([self._frame(t) for t in range(start - STACK + 1, start + steps + 1)])
        observation = np.stack([frames[k : k + steps + 1] for k in range(STACK)], axis=2)
        ended = (np.arange(start, start + steps + 1)[:, None] + self._ends) % EPISODE == 0
        first = (np.arange(start, start + steps + 1)[:, None] + self._ends) % EPISODE == 1
        first[0] |= start == 0
        shape = ended.shape
        no, zero = np.zeros(shape, np.bool_), np.zeros(shape, np.int32)
        reward = np.zeros(shape, np.float32)
        core = tuple(np.zeros((self._envs, CORE), np.float32) for _ in range(2))
        for t in range(steps):
            self._starts.advance(first[t])
            self._starts.record(t, core)
        timestep = TimeStep(observation, reward, ended & ~first, no, first, zero)
        version = np.zeros(self._envs, np.int32)
        starts = self._starts.take()
        return Trajectory(timestep, zero, {"probability": reward}, core, version, starts)
