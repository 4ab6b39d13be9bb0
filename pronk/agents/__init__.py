"""The agents: one file per system, each with a `make(config, spec, horizon=...) -> Agent`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pronk.config.registry import config_module

if TYPE_CHECKING:
    from pronk.types import Agent, EnvSpec


def make(agent: str, config: Any, spec: EnvSpec, *, horizon: int) -> Agent:
    """The agent of this name as a bundle of pure functions; `horizon` ends its schedules.

    Raises UserError for an unknown agent, or a space the agent can't handle.
    """
    config_module(agent)  # says what is known if the name isn't
    return importlib.import_module(f"pronk.agents.{agent}").make(config, spec, horizon=horizon)
