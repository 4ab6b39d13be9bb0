"""Configuration: frozen dataclasses, one file per agent, each default with its source.

They live apart from the agents' code, and import neither jax nor an environment, so that
`pronk train AGENT --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import Any

from pronk.errors import UserError, nearest

AGENTS = ("impala", "r2d2")


def config_module(agent: str) -> Any:
    """The module `pronk.config.registry.AGENT`: `Config`, `PRESETS`, `ATARI_ARGS` and `preset_for`.

    Raises UserError for an unknown agent.
    """
    if agent not in AGENTS:
        raise UserError(
            f"agent '{agent}' is unknown{nearest(agent, AGENTS) or '.'} Known agents:"
            f" {', '.join(AGENTS)}."
        )
    return importlib.import_module(f"pronk.agents.{agent}_config")
