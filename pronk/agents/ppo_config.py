"""PPO's configuration: the paper's tables, the recommendations of the large study, small problems.

Sources: [S17] Schulman et al. 2017, "Proximal Policy Optimization Algorithms", table 3 (MuJoCo) and
5 (Atari). [OAI] its code, OpenAI Baselines' ppo2. [A21] Andrychowicz et al. 2021, "What Matters for
On-Policy Deep Actor-Critic Methods? A Large-Scale Study".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.agents import on_policy_config
from pronk.config.fields import choice, number
from pronk.errors import UserError

RUN_DEFAULTS = on_policy_config.RUN_DEFAULTS
CAPABILITIES = on_policy_config.CAPABILITIES


@dataclass(frozen=True)
class Config(on_policy_config.Config):
    """PPO: the defaults are the paper's for MuJoCo, and what its code adds."""

    learning_rate: float = number(3e-4, above=0, limit=10, source="S17", tune=(1e-5, 1e-2))
    """Learning rate of Adam."""
    passes: int = number(10, above=0, source="S17")
    """Passes over a batch, K."""
    minibatch_size: int = number(64, above=0, source="S17")
    """Transitions per gradient step. With a recurrent core, minibatches are of whole trajectories:
    a multiple of `--unroll`."""
    objective: Literal["clip", "adaptive-kl", "fixed-kl", "none"] = choice("clip", source="S17")
    """Surrogate. clip: the ratio is clipped (eq. 7). fixed-kl: minus β KL(π_old ‖ π) (eq. 8).
    adaptive-kl: with a β that follows `--target-kl`. none: neither."""
    clip: float = number(0.2, above=0, limit=1000, source="S17", tune=True)
    """ε, by which the ratio may differ from 1."""
    reciprocal_clip: bool = choice(False, source="A21, code: True")
    """Clip the ratio to [1 / (1 + ε), 1 + ε] instead of [1 − ε, 1 + ε]."""
    kl_cost: float = number(1.0, at_least=0, source="S17, section 4")
    """β of fixed-kl, and the first one of adaptive-kl."""
    target_kl: float = number(0.01, above=0, limit=math.inf, source="S17, section 6.1")
    """Mean KL(π_old ‖ π) per update that adaptive-kl aims at, and of `--stop-early`."""
    stop_early: float = number(0.0, at_least=0, limit=math.inf)
    """Take no further gradient step in an update once a minibatch's mean KL(π_old ‖ π) is more than
    this many times `--target-kl`; 0: take all."""
    entropy_cost: float = number(0.0, at_least=0, source="S17", tune=True)
    """Weight of the entropy bonus."""
    value_cost: float = number(0.5, at_least=0, source="OAI")
    """Weight of the value loss ½ (target − V)²."""
    value_clip: float = number(0.0, at_least=0, limit=math.inf, source="OAI: 0.2")
    """Clip the change of a value in an update to ± this, in the units of the value loss; 0: do
    not."""
    recompute_advantages: bool = choice(False, source="A21: True")
    """Estimate advantages anew before each pass."""

    def check(self) -> None:
        """Raise UserError for minibatches that do not fit."""
        self.check_minibatches("--minibatch-size", self.minibatch_size)
        if self.minibatch_size == 1 and self.advantage_normalisation == "minibatch":
            raise UserError(
                "`--minibatch-size` is 1, and `--advantage-normalisation` is minibatch, which makes"
                " the only advantage of each zero; expected at least 2, or another normalisation."
            )

    @property
    def minibatches(self) -> int:
        """Gradient steps of a pass."""
        return self.unroll * self.batch_size // self.minibatch_size

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (
            *super().hyper_names(),
            *("learning_rate", "clip", "target_kl", "stop_early", "entropy_cost", "value_cost"),
            *(("value_clip",) if self.value_clip else ()),
        )


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    # [S17, table 3], with the additions of [OAI].
    "paper": {},
    # [S17, table 5].
    "atari": {
        "unroll": 128,
        "batch_size": 8,
        "passes": 3,
        "minibatch_size": 256,
        "learning_rate": "linear:2.5e-4:0",
        "clip": "linear:0.1:0",
        "entropy_cost": 0.01,
        "torso": "nature",
        "hidden_sizes": (512,),
        "activation": "relu",
        "separate_value": False,
        "observation_normalisation": False,
        "reward_normalisation": False,
        "reward_clip": 1.0,
    },
    # [A21], section 3: recommendations.
    "study": {
        "clip": 0.25,
        "reciprocal_clip": True,
        "gae_lambda": 0.9,
        "recompute_advantages": True,
        "advantage_normalisation": "none",
        "value_normalisation": "running",
        "reward_normalisation": False,
        "reward_clip": 0.0,
        "optimiser_epsilon": 1e-7,
        "value_hidden_sizes": (256, 256),
        "initial_std": 0.5,
        "squash_actions": True,
    },
    # Small problems with discrete actions.
    "small": {
        "unroll": 128,
        "batch_size": 8,
        "value_normalisation": "running",
        "reward_normalisation": False,
        "reward_clip": 0.0,
    },
    # Continuous actions.
    "continuous": {
        "learning_rate": "linear:3e-4:0",
        "unroll": 256,
        "batch_size": 8,
        "noise_correlation": 0.5,
        "value_normalisation": "running",
        "reward_normalisation": False,
        "reward_clip": 0.0,
    },
}


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    if atari:
        return "atari"
    return "continuous" if continuous else "small"
