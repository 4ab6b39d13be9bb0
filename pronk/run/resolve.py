"""Keyword settings and an environment become a `Plan`.

Environments are imported late, so that `pronk train AGENT --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pronk.config import names
from pronk.config.assignments import saveable
from pronk.config.registry import AgentLike, AgentModule, agent_module
from pronk.config.run import RunConfig
from pronk.config.sources import check_named
from pronk.config.spec import Plan, env_name, here
from pronk.errors import UserError, nearest


def complete_env_args(agent: AgentModule, env: Any, env_args: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's arguments: those given, else the agent's own for an Atari game; raises
    UserError for one that a run cannot save."""
    from pronk import envs

    given = {name: saveable(value, name) for name, value in env_args.items()}
    return {**(agent.atari_defaults if envs.is_atari(env) else {}), **given}


def auto_preset(agent: AgentModule, env: Any, env_args: Mapping[str, Any]) -> str:
    """The preset that `--preset auto` selects for this environment."""
    import gymnasium as gym

    from pronk import envs

    if envs.is_atari(env):  # without loading ALE
        return agent.preset_for(atari=True, continuous=False)
    if envs.is_board(env) and "board" in agent.presets:
        return "board"
    space = envs.spec_of(env, env_args).action_space
    return agent.preset_for(atari=False, continuous=isinstance(space, gym.spaces.Box))


def resolve(
    agent: AgentLike,
    env: Any,
    *,
    preset: str = "auto",
    env_args: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Plan:
    """The plan for keyword settings, each a field of RunConfig or of the agent's Config.

    Raises UserError for an unknown setting, naming the nearest known one, and for a function whose
    name does not identify it, unless `run_dir` is given.
    """
    home = here()  # before an environment can change it
    module = agent_module(agent)
    env_args = complete_env_args(module, env, env_args or {})
    run_fields = {f.name for f in dataclasses.fields(RunConfig)}
    config_fields = {f.name for f in dataclasses.fields(module.config)}
    known = run_fields | config_fields
    for name in settings:
        if name not in known:
            raise UserError(
                names.hint(name, known)
                or f"`{name}` is not a setting of {module.name}{nearest(name, known) or '.'}"
            )
    if callable(env) and settings.get("run_dir") is None:
        check_named(env)
    if preset == "auto":
        preset = auto_preset(module, env, env_args)
    config = dataclasses.replace(
        module.preset(preset), **{k: v for k, v in settings.items() if k in config_fields}
    )
    run = module.run_config(**{k: v for k, v in settings.items() if k in run_fields})
    return Plan(module.name, env_name(env), run, config, env_args, preset, home)
