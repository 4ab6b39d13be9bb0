"""REPS's configuration.

Sources: [P10] Peters, Mülling and Altün 2010, "Relative Entropy Policy Search". [D16] Duan et al.
2016, "Benchmarking Deep Reinforcement Learning for Continuous Control", and its code. [OAI] OpenAI
Baselines' ppo2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pronk.agents import on_policy_config
from pronk.config.fields import choice, flag, fraction, number
from pronk.errors import UserError

RUN_DEFAULTS = on_policy_config.RUN_DEFAULTS
CAPABILITIES = on_policy_config.CAPABILITIES | {
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; no pixels"
}

# Settings that all on-policy agents have and this one does not use: its value function is the
# dual's, and it has no optimiser but L-BFGS.
UNUSED = (
    *("gae_lambda", "advantage_normalisation", "separate_value", "value_hidden_sizes"),
    *("value_normalisation", "optimiser_epsilon", "max_gradient_norm"),
)


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    del atari, continuous
    return "small"


@dataclass(frozen=True)
class Config(on_policy_config.Config):
    """Relative entropy policy search."""

    discount: float = fraction(1.0, source="P10", near_one=True)
    """γ."""
    reward_normalisation: bool = choice(False, source="D16")
    """Divide rewards by the deviation of the discounted sum of rewards since the episode began."""
    reward_clip: float = number(0.0, at_least=0, limit=math.inf, source="D16")
    """Clip scaled rewards to ± this; 0 leaves them alone."""
    optimiser_epsilon: float = number(1e-5, above=0, source="OAI")
    """Adam's ε."""
    max_kl: float = number(0.5, above=0, limit=100, source="D16", tune=(0.05, 2.0))
    """ε, largest KL of the reweighted samples from the batch, in nats."""
    initial_eta: float = number(15.0, above=0, source="D16, code")
    """η that the first update's search begins with; later ones begin with the last η and ν."""
    dual_penalty: float = number(1.0, above=0)
    """λ, weight of Σ s_i² ν_i² in the dual; s_i² is the mean square flow of feature i. Without the
    penalty the dual often has no minimum."""
    dual_iterations: int = number(50, above=0, limit=1000, source="D16, code")
    """Largest number of L-BFGS steps to minimise the dual."""
    fit_iterations: int = number(50, above=0, limit=1000, source="D16, code")
    """Largest number of L-BFGS steps of the policy's fit."""

    def check(self) -> None:
        """Raise UserError for settings that do not go together."""
        for name in UNUSED:
            if getattr(self, name) != getattr(type(self), name):
                raise UserError(
                    f"`{flag(name)}` is {getattr(self, name)}, and REPS does not use it: it has no"
                    " value network, and no optimiser but L-BFGS. Leave it out."
                )

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return ("discount", "max_kl", "dual_penalty")


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # [D16]: three layers, batches of 50,000 steps; a fifth of that here.
    "duan": {
        "unroll": 1250,
        "batch_size": 8,
        "hidden_sizes": (100, 50, 25),
        "observation_normalisation": False,
    },
    # Small problems. Small batches are soon overfitted.
    "small": {"unroll": 256, "batch_size": 8, "discount": 0.99, "fit_iterations": 10},
}
