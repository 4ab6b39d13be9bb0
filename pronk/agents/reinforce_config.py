"""REINFORCE's configuration.

Sources: [W92] Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist
Reinforcement Learning". [TS] Tianshou's REINFORCE for MuJoCo. [D16] Duan et al. 2016, "Benchmarking
Deep Reinforcement Learning for Continuous Control", and its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.agents import on_policy_config
from pronk.config.fields import choice, fraction, number

RUN_DEFAULTS = on_policy_config.RUN_DEFAULTS
CAPABILITIES = on_policy_config.CAPABILITIES
preset_for = on_policy_config.preset_for


@dataclass(frozen=True)
class Config(on_policy_config.RegressionConfig):
    """REINFORCE with a baseline."""

    gae_lambda: float = fraction(1.0, source="W92", near_one=True)
    """λ of the advantages (GAE); 1: returns minus the baseline."""
    reward_normalisation: bool = choice(False, source="W92")
    """Divide rewards by the deviation of the discounted sum of rewards since the episode began."""
    reward_clip: float = number(0.0, at_least=0, limit=math.inf, source="W92")
    """Clip scaled rewards to ± this; 0 leaves them alone."""
    advantage_normalisation: Literal["none", "batch", "minibatch"] = choice("batch", source="D16")
    """Standardise advantages over the batch."""
    learning_rate: float = number(1e-3, above=0, limit=10, source="TS", tune=(1e-5, 1e-1))
    """Learning rate of the policy's Adam."""
    entropy_cost: float = number(0.0, at_least=0, source="W92", tune=True)
    """Weight of the entropy bonus."""
    episodes: Literal["bootstrapped", "complete"] = choice("bootstrapped", source="D16: complete")
    """What is learnt of episodes that the end of a batch cuts. bootstrapped: all, with the baseline
    for the return that follows. complete: nothing of the cut part; returns have no bootstrap but at
    time limits, and actions that take longer than a batch to end are never learnt from."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "learning_rate", "entropy_cost")


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "atari": on_policy_config.ATARI | {"entropy_cost": 0.01},
    # [D16].
    "duan": on_policy_config.DUAN,
    # Small problems.
    "small": on_policy_config.SMALL | {"learning_rate": 3e-3},
}
