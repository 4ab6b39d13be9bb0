"""Keyword settings and an environment become a `Plan`.

Environments are imported late, so that `pronk train AGENT --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pronk.config.registry import config_module
from pronk.config.run import RunConfig
from pronk.config.spec import Plan, env_name, preset_config
from pronk.errors import UserError, nearest


def with_defaults(agent: str, env: Any, env_args: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's arguments as the agent has them unless they are given."""
    from pronk import envs

    return {**(config_module(agent).ATARI_ARGS if envs.is_atari(env) else {}), **env_args}


def default_preset(agent: str, env: Any, env_args: Mapping[str, Any]) -> str:
    """What `--preset auto` means for this environment."""
    import gymnasium as gym

    from pronk import envs

    if envs.is_atari(env):  # without loading ALE
        return config_module(agent).preset_for(atari=True, continuous=False)
    space = envs.spec_of(env, env_args).action_space
    continuous = isinstance(space, gym.spaces.Box)
    return config_module(agent).preset_for(atari=False, continuous=continuous)


def resolve(
    agent: str,
    env: Any,
    *,
    preset: str = "auto",
    env_args: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Plan:
    """The plan for keyword settings, each a field of RunConfig or of the agent's Config.

    Raises UserError for an unknown setting, naming the nearest known one.
    """
    env_args = with_defaults(agent, env, env_args or {})
    config_class = config_module(agent).Config
    run_fields = {f.name for f in dataclasses.fields(RunConfig)}
    config_fields = {f.name for f in dataclasses.fields(config_class)}
    for name in settings:
        if name not in run_fields | config_fields:
            raise UserError(
                f"`{name}` is no setting of {agent}"
                f"{nearest(name, run_fields | config_fields) or '.'}"
            )
    if preset == "auto":
        preset = default_preset(agent, env, env_args)
    config = preset_config(agent, preset)
    config = dataclasses.replace(
        config, **{k: v for k, v in settings.items() if k in config_fields}
    )
    run = RunConfig(**{k: v for k, v in settings.items() if k in run_fields})
    return Plan(agent, env_name(env), run, config, env_args)
