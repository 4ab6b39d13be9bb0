"""The natural policy gradient's configuration.

Sources: [K01] Kakade 2001, "A Natural Policy Gradient". [TS] Tianshou's NPG for MuJoCo. [D16] Duan
et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronk.agents import on_policy_config, trust_region_config
from pronk.config.fields import number

RUN_DEFAULTS = on_policy_config.RUN_DEFAULTS
CAPABILITIES = on_policy_config.CAPABILITIES
preset_for = on_policy_config.preset_for


@dataclass(frozen=True)
class Config(trust_region_config.Config):
    """The natural policy gradient: what it shares with TRPO has TRPO's defaults."""

    learning_rate: float = number(0.1, above=0, limit=10, source="TS", tune=(1e-3, 1.0))
    """α, the step along F⁻¹ g."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "learning_rate")


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "atari": trust_region_config.ATARI,
    # [D16].
    "duan": on_policy_config.DUAN | {"damping": 1e-5},
    # Small problems.
    "small": on_policy_config.SMALL,
}
