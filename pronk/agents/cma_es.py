"""CMA-ES, the evolution strategy with covariance matrix adaptation.

Hansen 2016, "The CMA Evolution Strategy: A Tutorial" (arXiv:1604.00772); the constants are in
`pronk.maths.evolution` and `pronk.agents.cma_es_config`. The mean of the search distribution moves
to a weighted mean of the better half of the members. The step size follows the length of the path
that the mean has taken, and the covariance the directions of the path and of the members.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from pronk.agents import vector_policy
from pronk.agents.cma_es_config import Config
from pronk.agents.evolution import Evolution
from pronk.maths import evolution
from pronk.maths.evolution import Adapted, Constants
from pronk.types import Agent, Array, EnvSpec, Hyper


@dataclass(frozen=True, eq=False)
class CovarianceAdaptation:
    """`evolution.Method` of `size` parameters."""

    config: Config
    size: int
    members: int
    separable: bool
    constants: Constants

    @property
    def parents(self) -> int:
        """μ."""
        return len(self.constants.weights)

    def start(self, hyper: Hyper) -> Adapted:
        """The first generation's shape."""
        del hyper
        return evolution.adapted_start(
            self.size, jnp.float32(self.config.search_std), self.separable
        )

    def offset(self, shape: Adapted, normals: Array) -> Array:
        """Members minus the mean."""
        return evolution.adapted_offset(shape, normals)

    def next(
        self, mean: Array, shape: Adapted, normals: Array, hyper: Hyper
    ) -> tuple[Array, Adapted]:
        """The next generation's mean and shape."""
        return evolution.adapted_next(mean, shape, normals, self.constants, hyper["mean_rate"])

    def metrics(self, shape: Adapted) -> dict[str, Array]:
        """σ, the mean deviation of a parameter, and the condition number of C."""
        covariance = shape.covariance
        variance = covariance if covariance.ndim == 1 else jnp.diagonal(covariance)
        return {
            "step_size": shape.step_size,
            "search_std": shape.step_size * jnp.mean(jnp.sqrt(variance)),
            "condition_number": shape.condition,
        }


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """CMA-ES for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError for settings that do not go together, where a space of the environment can't be
    handled, for a suite, and for a full covariance of too many parameters.
    """
    config.check()
    policy = vector_policy.make(config, spec)
    size, separable = policy.size, config.separable(policy.size)
    members = config.population_size or evolution.population_size(size)
    constants = evolution.constants(size, members, separable)
    method = CovarianceAdaptation(config, size, members, separable, constants)
    kind = "separable: one variance per parameter" if separable else "full: of all pairs"
    note = f"{size:,} parameters are searched, with {members} members; the covariance is {kind}"
    return Evolution(config, policy, method, horizon).as_agent(note)
