"""The number of actors and of environments each, chosen by trying them for a few seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pronk.config.run import DEFAULT_ACTORS, DEFAULT_ENVS
from pronk.runtime.columns import agent_steps
from pronk.runtime.cpus import pin_threads
from pronk.runtime.places.supervise import Unroller
from pronk.runtime.threads import OwnThreads
from pronk.types import PyTree

MAX_ACTORS = 64
# Trajectories under way, in batches: with more, the data would be too far off-policy.
IN_FLIGHT = 4
SECONDS = 0.6  # of acting, per attempt
PATIENCE = 4.0  # seconds after which an attempt without an improvement is the last
SLOW = 0.1  # seconds to make an environment, with which nothing is tried
WORTH_ENVS = 1.1  # how much faster twice the environments must be
WORTH_ACTORS = 1.15  # and twice the actors, which need more threads


class Pick(NamedTuple):
    """The numbers of actors and of environments of each, and the reason for the log."""

    actors: int
    envs: int
    why: str


def pick(
    make: Callable[[int, int], Sequence[Unroller]],
    behaviour: PyTree,
    *,
    batch_size: int,
    actors: int | None = None,
    envs: int | None = None,
    actor_cores: int | None = None,
    construction: float = 0.0,
) -> Pick:
    """Doubles the environments, then the actors, for as long as they then act faster.

    make: actors by their number and that of their environments. What is given stays as it is; at
    most IN_FLIGHT batches of `batch_size` trajectories are under way. construction: seconds that
    making an environment takes, each of which would be made again for every attempt.
    """
    most = IN_FLIGHT * batch_size
    start_actors = actors or DEFAULT_ACTORS
    best = (start_actors, envs or max(1, min(DEFAULT_ENVS, most // start_actors)))
    more_envs = envs is None and 2 * best[0] * best[1] <= most
    more_actors = actors is None and 2 * best[0] * best[1] <= most
    if not (more_envs or more_actors):
        return Pick(*best, f"with a batch of {batch_size}, no more trajectories may be under way")
    if construction > SLOW:
        return Pick(
            *best, f"other numbers are not tried: an environment takes {construction:.2g} s to make"
        )
    start = time.perf_counter()
    settle = pin_threads(actor_cores)
    tried = {best: _steps_per_second(make, *best, behaviour, settle)}

    def grow(actors: int, envs: int, factor: float) -> bool:
        """Try so many times the environments or actors, and keep them if that is worth it."""
        nonlocal best
        more = (actors * best[0], envs * best[1])
        if more[0] * more[1] > most or more[0] > MAX_ACTORS:
            return False
        tried[more] = _steps_per_second(make, *more, behaviour, settle)
        if tried[more] <= factor * tried[best]:
            return False
        best = more
        return True

    if time.perf_counter() - start < PATIENCE:
        while more_envs and grow(1, 2, WORTH_ENVS):
            pass
        while more_actors and grow(2, 1, WORTH_ACTORS):
            pass
    listed = ", ".join(f"{m} × {n}: {rate:,.0f}" for (m, n), rate in tried.items())
    return Pick(*best, f"acting alone, steps/s of actors × environments: {listed}")


def _steps_per_second(
    make: Callable[[int, int], Sequence[Unroller]],
    actors: int,
    envs: int,
    behaviour: PyTree,
    settle: Callable[[], None],
) -> float:
    """Of so many actors in threads, after an unroll that compiles."""
    with contextlib.ExitStack() as stack:
        made = make(actors, envs)
        for actor in made:
            stack.callback(actor.close)

        def act(actor: Unroller) -> int:
            steps = 0
            while time.perf_counter() < end or not steps:
                steps += agent_steps(actor.unroll(behaviour, 0).trajectory)
            return steps

        threads = OwnThreads(actors, "attempt", settle)
        stack.callback(threads.close)
        # Their environments may belong to the threads.
        stack.callback(lambda: list(threads.map(lambda actor: actor.close(), made)))
        end = 0.0  # one unroll each
        list(threads.map(act, made))
        start = time.perf_counter()
        end = start + SECONDS
        return sum(threads.map(act, made)) / (time.perf_counter() - start)
