"""The natural policy gradient: θ + α F⁻¹ g, with a fixed α.

Kakade 2001, "A Natural Policy Gradient", eq. 3. F is the Fisher information of the policy averaged
over its own states and actions, and F x = g is solved by conjugate gradients. The constants are in
`pronk.agents.npg_config`.
"""

from __future__ import annotations

import jax

from pronk.agents import trust_region
from pronk.agents.npg_config import Config
from pronk.agents.trust_region import Direction
from pronk.maths.natural_gradient import Search
from pronk.types import Agent, EnvSpec


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """The natural policy gradient for environments of this `spec`; schedules end after `horizon`
    agent steps.

    Raises UserError for settings that do not go together, and where a space of the environment
    can't be handled.
    """

    def step(direction: Direction) -> Search:
        rate = direction.hyper["learning_rate"]
        return trust_region.take(direction, jax.tree.map(lambda v: rate * v, direction.x))

    return trust_region.make(config, spec, step, horizon=horizon)
