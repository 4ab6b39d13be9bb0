"""DDPG's configuration: presets of the paper, of a comparison with other agents, and of practice.

Sources: [L16] Lillicrap et al. 2016, "Continuous Control with Deep Reinforcement Learning"
(arXiv:1509.02971), section 7. [D16] Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for
Continuous Control", and its code, rllab. [F18] Fujimoto et al. 2018, "Addressing Function
Approximation Error in Actor-Critic Methods" (TD3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronk.agents import continuous_q_config
from pronk.config.fields import number, widths

RUN_DEFAULTS = continuous_q_config.RUN_DEFAULTS
CAPABILITIES = continuous_q_config.CAPABILITIES


@dataclass(frozen=True)
class Config(continuous_q_config.Config):
    """DDPG: the defaults are the paper's for observations that are not images."""

    batch_size: int = number(64, above=0, source="L16")
    """Transitions per update."""
    target_rate: float = number(0.001, above=0, at_most=1, source="L16")
    """τ: the fraction of the way to the learning networks that targets move after each update."""
    learning_rate: float = number(1e-4, above=0, limit=10, source="L16", tune=(1e-5, 1e-2))
    """Adam's learning rate of the policy."""
    critic_learning_rate: float = number(1e-3, above=0, limit=10, source="L16", tune=(1e-5, 1e-2))
    """Adam's learning rate of the action values."""
    critic_weight_decay: float = number(0.01, at_least=0, source="L16")
    """λ: half of it, times the sum of the squared weights of Q, is added to the loss of Q."""
    hidden_sizes: tuple[int, ...] = widths((400, 300), source="L16")
    """Layer widths of the policy and of the action values."""
    last_scale: float = number(3e-3, at_least=0, source="L16")
    """Last layers begin uniformly between ± this; 0: orthogonal."""
    noise_std: float = number(
        0.38, at_least=0, source="L16: σ / √(1 − (1 − θ)²), with θ = 0.15 and σ = 0.2"
    )
    """Standard deviation of the noise that is added to actions, where ±1 are their bounds."""
    noise_correlation: float = number(0.85, at_least=0, below=1, source="L16: 1 − θ")
    """Correlation of the noise of consecutive actions: 0 is independent noise, more an
    Ornstein-Uhlenbeck process."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "critic_weight_decay")


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    # [L16].
    "paper": {},
    # [D16]; where it says nothing, [L16], but no weight decay, as in rllab.
    "duan": {"batch_size": 32, "reward_scale": 0.1, "critic_weight_decay": 0.0},
    # Any environment: independent noise, as in [F18]; otherwise as SAC's `continuous`.
    "continuous": {
        "batch_size": 256,
        "target_rate": 0.005,
        "replay_minimum": 1000,
        "learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "critic_weight_decay": 0.0,
        "hidden_sizes": (256, 256),
        "last_scale": 0.0,
        "noise_std": 0.1,
        "noise_correlation": 0.0,
    },
}


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    del atari, continuous
    return "continuous"
