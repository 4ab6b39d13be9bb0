"""The parts of a training run, put together in one loop: IMPALA learns Catch in seconds.

    python examples/minimal.py

`pronk train impala pronk/Catch-v0` does the same, and also logs, evaluates, saves, resumes, and
runs actors and learner at the same time (`pronk/run/train.py`, `pronk/run/build.py`). Use these
parts directly if you want a loop of your own. One arrow of the data's way is one call below:

    environment -> actor -> source -> learner -> newest behaviour -> actor
"""

from __future__ import annotations

import time
from collections import deque

import jax
import numpy as np

from pronk import agents, envs
from pronk.agents import impala_config
from pronk.runtime.actor import Actor, Player
from pronk.runtime.columns import agent_steps
from pronk.runtime.learner import Learner
from pronk.runtime.source import Queue


def train(env: str = "pronk/Catch-v0", steps: int = 100_000, seed: int = 0) -> float:
    """Train for `steps` agent steps; returns the mean return of the last 100 episodes."""
    # Settings. The paper's are for 50 million steps of Atari; the preset is for small problems.
    config = impala_config.Config(**impala_config.PRESETS["small"])
    init_key, actor_key = jax.random.split(jax.random.key(seed))

    # Environments, stepped together: NumPy arrays [B, ...] in and out. An episode that has ended
    # is followed by the next one without a call of `reset`.
    vector = envs.make(env, num_envs=config.batch_size, seed=seed)

    # The agent: pure functions made for these settings and spaces. Its learning rate is annealed
    # to zero at `horizon` steps.
    agent = agents.make("impala", config, vector.spec, horizon=steps)

    # An actor acts for T = `config.unroll` steps and returns the T + 1 rows as a `Trajectory`. Its
    # player holds what acting changes: recurrent states and random numbers.
    env_ids = np.arange(vector.num_envs, dtype=np.int32)
    player = Player(agent, actor_key, env_ids, num_envs=vector.num_envs)
    actor = Actor(player, vector, unroll=config.unroll)

    # The source makes batches of unrolls. A replay has the same methods.
    source = Queue(config.batch_size)

    # The learner holds all that learning changes, one tree, and compiles the update. It divides
    # batches into `parts`, so that each CPU core computes the gradient of one.
    state = jax.jit(agent.init)(init_key)
    learner = Learner(agent, state, batch_size=config.batch_size)

    returns: deque[float] = deque(maxlen=100)  # of the last episodes
    metrics: dict[str, jax.Array] = {}  # of the last update
    done, last_print = 0, time.monotonic()
    while done < steps:
        # Act with one snapshot of the parameters. Its version is stored in the trajectory: the
        # difference from the learner's count when it learns from it is the policy lag, here 0.
        version, behaviour = learner.latest
        unroll = actor.unroll(behaviour, version)
        done += agent_steps(unroll.trajectory)
        returns.extend(episode.episode_return for episode in unroll.episodes)

        source.add(0, unroll.trajectory)
        while source.ready():
            taken = source.take(learner.parts)
            batch = learner.prepare(taken.parts)  # to the learner's device
            learnt = learner.update(batch)
            source.feedback(taken.keys, learnt.feedback)  # new priorities, if this were a replay
            learner.publish()  # the new parameters become `learner.latest`
            metrics = learnt.metrics

        if metrics and returns and (done >= steps or time.monotonic() - last_print > 5):
            last_print = time.monotonic()
            loss = float(metrics["loss/value"])
            print(
                f"{done:8,} steps  {learner.updates:5,} updates  value loss {loss:.3f}  "
                f"mean return {np.mean(returns):.2f}"
            )
    actor.close()
    learner.close()
    return float(np.mean(returns))


if __name__ == "__main__":
    train()
