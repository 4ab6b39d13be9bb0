"""The settings that the natural-gradient agents share.

Sources: [S15] Schulman et al. 2015, "Trust Region Policy Optimization". [D16] Duan et al. 2016,
"Benchmarking Deep Reinforcement Learning for Continuous Control", and its code. [BL] OpenAI
Baselines' trpo_mpi for MuJoCo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pronk.agents import on_policy_config
from pronk.agents.on_policy_config import RegressionConfig
from pronk.config.fields import choice, fraction, number
from pronk.errors import UserError


@dataclass(frozen=True)
class Config(RegressionConfig):
    """Shared settings; an agent's own are in its subclass."""

    unroll: int = number(1024, above=0, source="BL")
    """Agent steps per trajectory, T."""
    gae_lambda: float = fraction(0.98, source="BL", near_one=True)
    """λ of the advantages (GAE); 1: returns minus the baseline."""
    reward_normalisation: bool = choice(False, source="BL")
    """Divide rewards by the deviation of the discounted sum of rewards since the episode began."""
    reward_clip: float = number(0.0, at_least=0, limit=float("inf"), source="BL")
    """Clip scaled rewards to ± this; 0 leaves them alone."""
    advantage_normalisation: Literal["none", "batch", "minibatch"] = choice("batch", source="BL")
    """Standardise advantages over the batch."""
    cg_iterations: int = number(10, above=0, source="S15, appendix C.1")
    """Iterations of conjugate gradients, at most."""
    damping: float = number(0.1, at_least=0, source="BL")
    """ζ, added to the diagonal of the Fisher information, which has the units 1 / parameter²."""
    fisher_every: int = number(1, above=0, source="S15, appendix C.1: 10; BL: 5")
    """Average the Fisher information over one of so many transitions; KL and surrogate over all."""

    def check(self) -> None:
        """Raise UserError for settings that do not go together."""
        super().check()
        if self.fisher_every > 1 and self.recurrent_core != "none":
            raise UserError(
                f"`--fisher-every` is {self.fisher_every}, and a recurrent core needs whole"
                " trajectories; expected 1."
            )
        batch = self.unroll * self.batch_size
        if self.fisher_every > batch:
            raise UserError(
                f"`--fisher-every` is {self.fisher_every:,}, and a batch has {batch:,} transitions"
                " (--unroll × --batch-size); expected at most as many."
            )

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "damping")


# [S15, table 3; BL, Atari].
ATARI: dict[str, Any] = on_policy_config.ATARI | {"damping": 1e-3, "gae_lambda": 1.0}
