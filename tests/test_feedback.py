"""What `learn` returns for its batch's source reaches it, or is refused when it is traced."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk import envs
from pronk.agents import impala, impala_config, r2d2, r2d2_config
from pronk.errors import UserError
from pronk.runtime import fused
from pronk.types import Agent, Batch, Feedback, Learnt, Replayed, Sequences

ENV = "pronk/Catch-v0"
KEY = jax.random.key(0)
SMALL: dict[str, Any] = {"hidden_sizes": (4,), "recurrent_core": "none", "head_units": 4}


def rewriting() -> Agent:
    """R2D2 that returns the probabilities of what it drew plus ten."""
    sequences = Sequences(capacity=80, length=5)
    config = r2d2_config.Config(**SMALL, burn_in=0, overlap=0, sequence_length=5, unroll=5)
    agent = r2d2.make(config, envs.spec_of(ENV), horizon=100)

    def learn(state: Any, batch: Batch) -> Learnt:
        learnt = agent.learn(state, batch)
        extras = {"probability": batch.trajectory.extras["probability"] + 10.0}
        return learnt._replace(feedback=Feedback(extras=extras))

    return agent._replace(learn=learn, source=Replayed(sequences, 4, 1.0))


def test_the_fused_replay_is_rewritten() -> None:
    """Where sequences were drawn, once for each update, and nowhere else."""
    agent = rewriting()
    init, update = fused.build(agent, envs.jax_env_of(ENV, {}), unroll=5, num_envs=4, draws=1)
    run, _ = jax.jit(update)(jax.jit(init)(jax.jit(agent.init)(KEY), KEY))
    rewritten = np.asarray(run.replay.rows[2]["probability"][:4] > 5).all(axis=1)
    assert 1 <= rewritten.sum() <= 4
    probability = np.asarray(run.replay.rows[2]["probability"])
    assert ((probability <= 1) | ((probability > 9) & (probability <= 11))).all()


def test_feedback_without_a_replay_is_refused() -> None:
    config = impala_config.Config(hidden_sizes=(4,), unroll=5, batch_size=4)
    plain = impala.make(config, envs.spec_of(ENV), horizon=100)

    def learn(state: Any, batch: Batch) -> Learnt:
        learnt = plain.learn(state, batch)
        return learnt._replace(feedback=Feedback(priorities=jnp.zeros(4)))

    agent = plain._replace(learn=learn, halves=None)
    init, update = fused.build(agent, envs.jax_env_of(ENV, {}), unroll=5, num_envs=4)
    run = jax.jit(init)(jax.jit(agent.init)(KEY), KEY)
    with pytest.raises(UserError, match="its source is Fresh, which keeps nothing"):
        jax.eval_shape(update, run)
