"""The cross-entropy method with extra noise.

Szita and Lőrincz 2006, "Learning Tetris Using the Noisy Cross-Entropy Method"; the constants are in
`pronk.agents.cem_config`. The parameters of a policy are drawn from independent normal
distributions. The next generation's distributions have the mean and deviation of the best members.
To their variance a term is added that decreases; without it the search ends too early.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from pronk.agents import vector_policy
from pronk.agents.cem_config import Config
from pronk.agents.evolution import Evolution
from pronk.maths import evolution
from pronk.maths.evolution import CrossEntropy
from pronk.types import Agent, Array, EnvSpec, Hyper


@dataclass(frozen=True, eq=False)
class CrossEntropyMethod:
    """`evolution.Method` of `size` parameters."""

    config: Config
    size: int

    @property
    def members(self) -> int:
        """The number of members in a generation."""
        return self.config.population_size

    @property
    def parents(self) -> int:
        """The number of members in the elite."""
        return self.config.elite

    def start(self, hyper: Hyper) -> CrossEntropy:
        """The first generation's shape."""
        std = jnp.float32(self.config.search_std)
        return evolution.cross_entropy_start(self.size, std, hyper["extra_std"])

    def offset(self, shape: CrossEntropy, normals: Array) -> Array:
        """Members minus the mean."""
        return evolution.cross_entropy_offset(shape, normals)

    def next(
        self, mean: Array, shape: CrossEntropy, normals: Array, hyper: Hyper
    ) -> tuple[Array, CrossEntropy]:
        """The next generation's mean and shape."""
        return evolution.cross_entropy_next(
            mean, shape, normals, hyper["extra_std"], self.config.extra_generations
        )

    def metrics(self, shape: CrossEntropy) -> dict[str, Array]:
        """Mean deviations, without and with the extra noise."""
        return {
            "elite_std": jnp.mean(shape.deviation),
            "search_std": jnp.mean(shape.sampled),
        }


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """The cross-entropy method for environments of this `spec`; schedules end after `horizon` agent
    steps.

    Raises UserError for settings that do not go together, where a space of the environment can't be
    handled, and for a suite.
    """
    config.check()
    policy = vector_policy.make(config, spec)
    method = CrossEntropyMethod(config, policy.size)
    note = f"{policy.size:,} parameters are searched, with {method.members} members"
    return Evolution(config, policy, method, horizon).as_agent(note)
