"""NGU with several intrinsic scales β in one program: which of them solves a task.

Usage: python benchmarks/ngu_scales.py DeepSea [--seconds 300] [--scales 0 0.003 0.01 0.03 0.1 0.3]

All members have the settings of `pronk reproduce ngu-ablations` and the same seed; β alone differs.
Each line has the members' mean returns while training, their episodes with a return above 0.5 so
far, and the mean return of an evaluation, with i = 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import agents, envs
from pronk.config.registry import agent_module
from pronk.envs.jax_suite import stepper
from pronk.experiments.reproduce import exploration
from pronk.runtime import fused

# The length of each task's episodes.
HORIZONS = {"KeyDoor": 150, "DeepSea": 10, "Catch": 9}
ENVS, CALLS, SLOTS = 32, 4, 16  # slots: of an evaluation
SETTINGS: dict[str, Any] = {
    name: value
    for name, value in exploration.COMMON.items()
    if name not in ("preset", "runtime", "samples_per_insert")
}


class Sweep:
    """The members' programs: `start` and `advance`."""

    def __init__(self, task: str, draws: int):
        settings, self.horizon = exploration.TASKS[task], HORIZONS[task]
        env = envs.jax_env_of(settings.env, settings.args)
        assert env is not None
        self.config = dataclasses.replace(
            agent_module("ngu").preset("small"), **SETTINGS, memory_size=settings.memory
        )
        self.agent = agents.make("ngu", self.config, env.spec, horizon=1)
        self.init, self.update = fused.build(
            self.agent,
            env,
            unroll=self.config.sequence_length,
            num_envs=ENVS,
            draws=draws,
            draw_size=self.config.batch_size,
        )
        self.evaluated = stepper(env, SLOTS)
        self.advance = jax.jit(self._advance, donate_argnums=0)

    def start(self, scales: list[float], seed: int) -> Any:
        """Members with these β, all of one seed."""
        agent_key, run_key = jax.random.split(jax.random.key(seed))

        def one(scale: Any) -> Any:
            learner = self.agent.init(agent_key)
            hyper = {**learner.hyper, "intrinsic_scale": scale}
            return self.init(learner._replace(hyper=hyper), run_key)

        return jax.jit(jax.vmap(one))(jnp.array(scales))

    def _advance(self, runs: Any) -> tuple[Any, Any, Any, Any]:
        """CALLS updates; also the members' mean returns, their episodes above 0.5, and the mean
        returns of their evaluations."""
        runs, out = jax.lax.scan(lambda r, _: jax.vmap(self.update)(r), runs, length=CALLS)
        axes = (0, 2, 3)
        count = jnp.maximum(out.ended.sum(axes), 1)
        returns = jnp.where(out.ended, out.episode_return, 0.0)
        evaluations = jax.vmap(self._evaluate)(runs.learner)
        return runs, returns.sum(axes) / count, (returns > 0.5).sum(axes), evaluations

    def _evaluate(self, learner: Any) -> Any:
        behaviour, key = self.agent.behaviour(learner), jax.random.key(0)
        state, timestep = self.evaluated.start(key)
        carry = self.agent.initial_carry(key, jnp.arange(SLOTS), SLOTS, True)

        def step(before: Any, key: Any) -> tuple[Any, Any]:
            state, timestep, carry = before
            action, carry, _ = self.agent.act(behaviour, carry, timestep, key)
            state, timestep, (ended, returned, _) = self.evaluated.advance(state, action)
            return (state, timestep, carry), (ended, jnp.where(ended, returned, 0.0))

        keys = jax.random.split(key, self.horizon + 5)
        _, (ended, returned) = jax.lax.scan(step, (state, timestep, carry), keys)
        return returned.sum() / jnp.maximum(ended.sum(), 1)


def main() -> None:
    """Train for some time and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=HORIZONS)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--draws", type=int, default=32, help="updates per 640 agent steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[0.0, 0.003, 0.01, 0.03, 0.1, 0.3]
    )
    options = parser.parse_args()
    sweep = Sweep(options.task, options.draws)
    runs, start, wins, shown = sweep.start(options.scales, options.seed), time.monotonic(), 0, 0.0
    print("β:", *(f"{x:7.3f}" for x in options.scales), flush=True)
    steps, last = 0, False
    while not last:
        runs, returns, more, evaluations = sweep.advance(runs)
        steps += CALLS * ENVS * sweep.config.sequence_length
        wins = wins + np.asarray(more)
        now = time.monotonic() - start
        last = now > options.seconds
        if last or now - shown > 12:
            shown = now
            words = [" ".join(f"{float(x):7.3f}" for x in row) for row in (returns, evaluations)]
            updates = int(runs.learner.updates[0])
            print(
                f"{now:5.0f} s, {steps:7,} steps, {updates:6,} updates: training {words[0]};"
                f" above 0.5: {' '.join(map(str, wins))}; evaluation {words[1]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
