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


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    # [K19, table 2]: made for 10 billion frames.
    "paper": {},
    # For a few million agent steps on one small machine.
    "atari": {
        "torso": "shallow",
        "hidden_sizes": (256,),
        "recurrent_units": 256,
        "head_units": 256,
        "batch_size": 16,
        "sequence_length": 20,
        "overlap": 10,
        "burn_in": 5,
        "unroll": 20,
        "discount": 0.99,
        "replay_capacity": 400_000,
        "replay_minimum": 500,
        "samples_per_insert": 2.0,
        "target_every": 250,
        "learning_rate": 2e-4,
        "optimiser_epsilon": 1e-7,
        "loss_reduction": "mean",
    },
    # Small problems.
    "small": {
        "torso": "auto",
        "hidden_sizes": (64,),
        "recurrent_units": 64,
        "head_units": 64,
        "batch_size": 32,
        "sequence_length": 20,
        "overlap": 10,
        "burn_in": 10,
        "unroll": 10,
        "discount": 0.99,
        "replay_capacity": 200_000,
        "replay_minimum": 100,
        "samples_per_insert": 16.0,
        "target_every": 100,
        "learning_rate": 5e-4,
        "optimiser_epsilon": 1e-5,
        "loss_reduction": "mean",
    },
}

# A lost life ends nothing. [K19, 2.3] With `life_loss=true` it is the paper's `reset` variant, with
# `life_loss=roll` its `roll`. [K19, section 5]
ATARI_DEFAULTS: dict[str, Any] = {"life_loss": False}

CAPABILITIES = sequence_q_config.CAPABILITIES


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    del continuous
    return "atari" if atari else "small"
