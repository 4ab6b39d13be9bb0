"""TNPG, the truncated natural policy gradient: a step of a given KL along F⁻¹ g, without a search.

Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control". The linear
system F x = g is solved by a few iterations of conjugate gradients, hence "truncated". The step is
√(2 δ / xᵀ F x) along x. The constants are in `pronk.agents.tnpg_config`.
"""

from __future__ import annotations

import jax

from pronk.agents import trust_region
from pronk.agents.tnpg_config import Config
from pronk.agents.trust_region import Direction
from pronk.maths import natural_gradient
from pronk.maths.natural_gradient import Search
from pronk.types import Agent, EnvSpec


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """TNPG for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError for settings that do not go together, and where a space of the environment
    can't be handled.
    """

    def step(direction: Direction) -> Search:
        params, x, fisher_x, hyper, evaluate = direction
        scale = natural_gradient.trust_region_scale(x, fisher_x, hyper["max_kl"])
        whole = jax.tree.map(lambda v: scale * v, x)
        if not config.reject:
            return trust_region.take(direction, whole)
        return natural_gradient.line_search(
            evaluate, params, whole, hyper["max_kl"], shrink=1.0, trials=1
        )

    return trust_region.make(config, spec, step, horizon=horizon)
