"""R2D2's configuration: the paper's table, and presets that learn on one small machine.

Sources: [K19] Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement
Learning", section 2.3 and table 2; [H18] Horgan et al. 2018, "Distributed Prioritized Experience
Replay" (Ape-X), which that table refers to for the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.agents import sequence_q_config
from pronk.agents.sequence_q_config import TABLE
from pronk.config.fields import choice, fraction, number


@dataclass(frozen=True)
class Config(sequence_q_config.Config):
    """R2D2: the defaults are the paper's for Atari."""

    discount: float = fraction(0.997, source=TABLE, near_one=True)
    """γ."""
    returns: Literal["n-step", "retrace"] = choice("n-step", source="K19, 2.3; Munos et al. 2016")
    """Targets: n-step double Q-learning, or Retrace(λ) for the greedy policy."""
    n_steps: int = number(5, above=0, source="K19, 2.3")
    """Rewards in an n-step return."""
    reward_clip: float = number(
        0.0, at_least=0, limit=math.inf, source="K19, section 5: 1 in `Clipped`"
    )
    """Clip rewards to ± this; 0 leaves them alone. `Clipped` also has no rescaling."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "discount")


# Differences from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # [K19, table 2]: made for 10 billion frames.
    "paper": {},
    "atari": sequence_q_config.ATARI,
    "small": sequence_q_config.SMALL,
}

# A lost life ends nothing. [K19, 2.3] With `life_loss=true` it is the paper's `reset` variant, with
# `life_loss=roll` its `roll`. [K19, section 5]
ATARI_DEFAULTS: dict[str, Any] = {"life_loss": False}

CAPABILITIES = sequence_q_config.CAPABILITIES
preset_for = sequence_q_config.preset_for
