"""TRPO: the natural gradient as far as the trust region allows, found by a backtracking search.

Schulman et al. 2015, "Trust Region Policy Optimization"; the constants are in
`pronk.agents.trpo_config`. The surrogate (eq. 14) is maximised subject to a mean KL(π_old ‖ π) of
at most δ: along x = F⁻¹ g, from the step √(2 δ / xᵀ F x), the first shrunken step is taken that
keeps the KL within δ and improves the surrogate, both on the whole batch (appendix C).
"""

from __future__ import annotations

import jax

from pronk.agents import trust_region
from pronk.agents.trpo_config import Config
from pronk.agents.trust_region import Direction
from pronk.maths import natural_gradient
from pronk.maths.natural_gradient import Search
from pronk.types import Agent, EnvSpec


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """TRPO for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError for settings that do not go together, and where a space of the environment
    can't be handled.
    """

    def search(direction: Direction) -> Search:
        params, x, fisher_x, hyper, evaluate = direction
        scale = natural_gradient.trust_region_scale(x, fisher_x, hyper["max_kl"])
        return natural_gradient.line_search(
            evaluate,
            params,
            jax.tree.map(lambda v: scale * v, x),
            hyper["max_kl"],
            shrink=hyper["search_shrink"],
            trials=config.search_trials,
        )

    return trust_region.make(config, spec, search, horizon=horizon)
