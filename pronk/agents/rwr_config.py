"""RWR's configuration.

Sources: [P07] Peters and Schaal 2007, "Reinforcement Learning by Reward-Weighted Regression for
Operational Space Control". [D16] Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for
Continuous Control", and its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.agents import on_policy_config
from pronk.config.fields import choice, fraction, number
from pronk.errors import UserError

RUN_DEFAULTS = on_policy_config.RUN_DEFAULTS
CAPABILITIES = on_policy_config.CAPABILITIES
preset_for = on_policy_config.preset_for


@dataclass(frozen=True)
class Config(on_policy_config.RegressionConfig):
    """Reward-weighted regression."""

    gae_lambda: float = fraction(1.0, source="D16", near_one=True)
    """λ of the advantages (GAE); 1: returns minus the baseline."""
    reward_normalisation: bool = choice(False, source="D16")
    """Divide rewards by the deviation of the discounted sum of rewards since the episode began."""
    reward_clip: float = number(0.0, at_least=0, limit=math.inf, source="D16")
    """Clip scaled rewards to ± this; 0 leaves them alone."""
    advantage_normalisation: Literal["none", "batch", "minibatch"] = choice("batch", source="D16")
    """Standardise advantages over the batch. It sets the units of `temperature`."""
    baseline: Literal["network", "linear"] = choice("linear", source="D16")
    """Value function. linear: linear in the observation, its square and the time in the episode,
    fitted by least squares."""
    weighting: Literal["shifted", "exponential"] = choice(
        "shifted", source="D16, code; P07: exponential"
    )
    """Weight of a transition of advantage A. shifted: A minus the batch's smallest. exponential:
    exp(A / β)."""
    temperature: float = number(1.0, above=0)
    """β of exponential weights: the smaller it is, the fewer transitions have much weight."""
    fit_iterations: int = number(20, above=0, limit=1000, source="D16, code")
    """Largest number of L-BFGS steps of the policy's fit."""

    def check(self) -> None:
        """Raise UserError for settings that do not go together."""
        super().check()
        if self.weighting == "shifted" and self.temperature != type(self).temperature:
            raise UserError(
                f"`--temperature` is {self.temperature}, and `--weighting` is shifted, which has no"
                " temperature: use `--weighting exponential`, or leave `--temperature` out."
            )

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "temperature")


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # The linear baseline would have two features per pixel.
    "atari": on_policy_config.ATARI | {"baseline": "network"},
    # [D16].
    "duan": on_policy_config.DUAN,
    # Small problems. Small batches are soon overfitted.
    "small": on_policy_config.SMALL | {"fit_iterations": 10},
}
