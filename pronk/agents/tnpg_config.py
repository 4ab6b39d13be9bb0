"""TNPG's configuration.

Sources: [D16] Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control",
and its code. [S15] Schulman et al. 2015, "Trust Region Policy Optimization".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronk.agents import on_policy_config, trust_region_config
from pronk.config.fields import choice, number

RUN_DEFAULTS = on_policy_config.RUN_DEFAULTS
CAPABILITIES = on_policy_config.CAPABILITIES
preset_for = on_policy_config.preset_for


@dataclass(frozen=True)
class Config(trust_region_config.Config):
    """TNPG: what it shares with TRPO has TRPO's defaults."""

    max_kl: float = number(0.01, above=0, limit=100, source="S15, section 8", tune=(1e-3, 1e-1))
    """δ, the mean KL(π_old ‖ π) of a step, where the KL is quadratic."""
    reject: bool = choice(True, source="D16, code")
    """Leave the policy as it is where a step's KL is above δ or the surrogate is no better."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "max_kl")


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "atari": trust_region_config.ATARI,
    # [D16]. With so little damping, nearly every step's KL is a little above δ (docs/agents).
    "duan": on_policy_config.DUAN | {"damping": 1e-5, "reject": False},
    # Small problems.
    "small": on_policy_config.SMALL,
}
