"""An agent that says it plays both sides: IMPALA, for what does not depend on what it learns."""

from __future__ import annotations

from typing import Any

from pronk.agents import impala
from pronk.agents.impala_config import Config
from pronk.types import Agent, EnvSpec

__all__ = ["Config", "make"]


def make(config: Any, spec: EnvSpec, *, horizon: int) -> Agent:
    return impala.make(config, spec, horizon=horizon)._replace(two_players=True)
