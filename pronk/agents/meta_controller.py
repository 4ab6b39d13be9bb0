"""Agent57's meta-controller: which mixture acts in an episode.

Badia et al. 2020, "Agent57: Outperforming the Atari Human Benchmark" (arXiv:2003.13350), section
3.2. The mathematics is `pronk.maths.bandit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from pronk.maths import bandit
from pronk.maths.bandit import Tally
from pronk.types import Array, Key, PyTree, TimeStep


@dataclass(frozen=True, eq=False)
class MetaController:
    """A bandit for each slot, whose arms are the mixtures; for evaluations the learner's mean
    return of each mixture, over all slots.

    A return is the sum of an episode's raw rewards, without discount or intrinsic reward, also of
    an episode that was truncated.
    """

    config: Any

    def initial_private(self, slots: int, evaluate: bool) -> dict[str, PyTree]:
        """What each slot keeps: its bandit, the mixture that acts, and the return so far."""
        return {
            "evaluate": jnp.full(slots, evaluate),
            "mixture": jnp.zeros(slots, jnp.int32),
            "return": jnp.zeros(slots, jnp.float32),
            "bandit": bandit.no_pulls(slots, self.config.bandit_window),
        }

    def choose(
        self, private: dict[str, PyTree], tally: Tally, timestep: TimeStep, key: Key
    ) -> dict[str, PyTree]:
        """The slots' new `private` after rows `[B]`: where an episode ends, the bandit records its
        return; where one begins, the bandit chooses the mixture, or the tally in evaluations."""
        config, first = self.config, timestep.first
        so_far = jnp.where(first, 0.0, private["return"] + timestep.reward)
        ended = (timestep.terminated | timestep.truncated) & ~first
        window = bandit.record(private["bandit"], private["mixture"], so_far, ended)
        chosen = bandit.choose(
            window,
            config.mixtures,
            epsilon=config.bandit_epsilon,
            bonus=config.bandit_bonus,
            key=key,
        )
        chosen = jnp.where(private["evaluate"], bandit.best(tally), chosen)
        mixture = jnp.where(first, chosen, private["mixture"])
        return private | {"mixture": mixture, "return": so_far, "bandit": window}

    def count(
        self,
        tally: Tally,
        timestep: TimeStep,
        extras: dict[str, Array],
        probabilities: Array | None,
    ) -> tuple[Tally, dict[str, Array]]:
        """The tally after the episodes that end in rows `[T, B]`, and metrics.

        The weight of a return is one over the probability with which its sequence was drawn, as if
        sequences were drawn uniformly.
        """
        ended = (timestep.terminated | timestep.truncated) & ~timestep.first
        weight = ended / (1.0 if probabilities is None else probabilities)
        rows = (extras["mixture"], extras["episode_return"], weight.astype(jnp.float32))
        tally = bandit.add(tally, *(x.reshape(-1) for x in rows), decay=self.config.evaluator_decay)
        best = bandit.best(tally)
        returned = bandit.means(tally)[best]
        return tally, {
            "best_mixture": best.astype(jnp.float32),
            "best_mixture_return": jnp.where(jnp.isfinite(returned), returned, 0.0),
        }
