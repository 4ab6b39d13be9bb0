"""The agents: pronk's own, and modules from anywhere else that offer the same.

An agent is a Python module. It must offer

- `Config`: a frozen dataclass of settings, every field with a default, among them `unroll` (agent
  steps per trajectory) and `batch_size` (trajectories, or sequences, per update). Fields may carry
  range, source and PBT's part: `pronk.config.fields`.
- `make(config, spec, *, horizon) -> Agent`: the agent as pure functions (`pronk.types.Agent`) for
  environments of this `EnvSpec`; schedules end at `horizon` agent steps.

It may offer

- `PRESETS`: a dict of preset names to dicts of settings that differ from the defaults. One that is
  called `board` is what `--preset auto` selects for board games.
- `preset_for(*, atari, continuous) -> str`: the preset that `--preset auto` selects for an Atari
  game, or for continuous actions. Without it: the defaults.
- `RUN_DEFAULTS`: a dict of `RunConfig` settings that the agent wants unless the user gives others.
- `ATARI_DEFAULTS`: a dict of arguments of Atari games that the agent wants unless given.
- `CAPABILITIES`: a dict of strings, shown by `pronk list`.

One of pronk's own is a name in `AGENTS`, and its settings are in a module of their own beside it,
which imports neither jax nor an environment, so that `pronk train AGENT --help` answers at once.
Another one is named by its module, `my_package.my_agent`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from pronk.config import modules
from pronk.config.fields import tuned
from pronk.config.run import RunConfig
from pronk.errors import UserError, nearest

# Name: module. The settings of `pronk.agents.NAME` are in `pronk.agents.NAME_config`.
AGENTS = {
    "impala": "pronk.agents.impala",
    "r2d2": "pronk.agents.r2d2",
    "ngu": "pronk.agents.ngu",
    "agent57": "pronk.agents.agent57",
    "muzero": "pronk.agents.muzero",
    "ddpg": "pronk.agents.ddpg",
    "sac": "pronk.agents.sac",
    "reinforce": "pronk.agents.reinforce",
    "rwr": "pronk.agents.rwr",
    "reps": "pronk.agents.reps",
    "npg": "pronk.agents.npg",
    "tnpg": "pronk.agents.tnpg",
    "trpo": "pronk.agents.trpo",
    "ppo": "pronk.agents.ppo",
    "cem": "pronk.agents.cem",
    "cma_es": "pronk.agents.cma_es",
}

AgentLike: TypeAlias = str | ModuleType  # a name in `AGENTS`, a module's name, or a module


class AgentModule(NamedTuple):
    """What a module offers, with defaults for what it does not."""

    name: str  # as `config.json` has it
    config: type  # the dataclass `Config`
    make: Callable[..., Any]
    presets: Mapping[str, Mapping[str, Any]]
    preset_for: Callable[..., str]
    run_defaults: Mapping[str, Any]
    atari_defaults: Mapping[str, Any]
    capabilities: Mapping[str, str]

    def preset(self, name: str) -> Any:
        """The configuration of a preset; raises UserError for an unknown one."""
        if name not in self.presets:
            raise UserError(
                f"preset '{name}' of {self.name} is unknown{nearest(name, self.presets) or '.'}"
                f" Known presets: auto, {', '.join(self.presets)}."
            )
        return self.config(**self.presets[name])

    def run_config(self, **settings: Any) -> RunConfig:
        """The settings of a run: those given, else the agent's, else `RunConfig`'s."""
        return RunConfig(**{**self.run_defaults, **settings})

    def description(self) -> dict[str, str]:
        """What `pronk list` shows."""
        shown = {"presets": self.presets, "tuned by pbt": tuned(self.config)}
        return {**self.capabilities, **{k: ", ".join(v) or "none" for k, v in shown.items()}}


def agent_name(agent: AgentLike) -> str:
    """The name by which an agent is stored; raises UserError for a module that has none."""
    if isinstance(agent, str):
        return agent
    if not isinstance(agent, ModuleType):
        raise UserError(
            f"`agent` is {agent!r}; expected one of {', '.join(AGENTS)}, or a module that offers"
            " `Config` and `make`, or its name."
        )
    if agent.__name__ == "__main__":
        raise UserError(
            "`agent` is the program itself (`__main__`), by whose name a run could not find it"
            " again; move the agent into a module of its own and give that module."
        )
    if sys.modules.get(agent.__name__) is not agent:
        raise UserError(
            f"`agent` is the module '{agent.__name__}', which is not what that name imports; put it"
            " where Python finds it, so that the run can be resumed, and import it from there."
        )
    known = {module: name for name, module in AGENTS.items()}
    return known.get(agent.__name__, agent.__name__)


def is_agent(name: str) -> bool:
    """Whether `name` is one of pronk's agents, or a module that can be imported."""
    return name in AGENTS or modules.exists(name)


def agent_module(agent: AgentLike) -> AgentModule:
    """What an agent offers; imports its module, of pronk's own only its settings.

    Raises UserError for an unknown agent, and for a module that lacks something or is no agent.
    """
    name = agent_name(agent)
    if name in AGENTS:
        return _checked(name, importlib.import_module(f"{AGENTS[name]}_config"))
    if isinstance(agent, ModuleType):
        return _checked(name, agent)
    if not is_agent(name):
        raise UserError(_unknown(name))
    return _checked(name, modules.load(name, f"agent '{name}'"))


def _unknown(name: str) -> str:
    """The message about a name that is neither an agent nor a module."""
    if name.endswith(".py"):
        module = name.removesuffix(".py").strip("./").replace("/", ".")
        return (
            f"agent '{name}' is a file's name; give the module's, {module}, which Python looks for"
            " in the current directory and on PYTHONPATH."
        )
    return (
        f"agent '{name}' is unknown{nearest(name, AGENTS) or '.'} Known agents:"
        f" {', '.join(AGENTS)}; or a module in the current directory or on PYTHONPATH,"
        " such as my_package.my_agent."
    )


def _checked(name: str, module: ModuleType) -> AgentModule:
    """What `module` offers; raises UserError, naming all that is wrong."""
    offers: dict[str, Any] = {
        key: getattr(module, key, None) for key in ("Config", "make", "preset_for")
    }
    if name in AGENTS:
        offers["make"] = _late(AGENTS[name])
    dicts = ("PRESETS", "RUN_DEFAULTS", "ATARI_DEFAULTS", "CAPABILITIES")
    offers |= {key: getattr(module, key, {}) for key in dicts}
    wrong = [f"`{key}` is no dict" for key in dicts if not isinstance(offers[key], Mapping)]
    if not callable(offers["make"]):
        wrong.append("`make(config, spec, *, horizon) -> Agent` is missing")
    wrong += _wrong_config(offers["Config"])
    wrong = wrong or _wrong_settings(offers)
    if wrong:
        raise UserError(
            f"module '{module.__name__}' is not an agent: {'; '.join(wrong)}. What an agent's"
            " module must offer is in docs/extending.md."
        )
    presets, preset_for = offers["PRESETS"], offers["preset_for"]
    if preset_for is None:
        presets, preset_for = {"default": {}, **presets}, _default_preset
    return AgentModule(
        name=name,
        config=offers["Config"],
        make=offers["make"],
        presets=presets,
        preset_for=preset_for,
        run_defaults=offers["RUN_DEFAULTS"],
        atari_defaults=offers["ATARI_DEFAULTS"],
        capabilities=offers["CAPABILITIES"],
    )


def _wrong_config(config: Any) -> list[str]:
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        return ["`Config`, a frozen dataclass, is missing"]
    wrong = []
    if not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        wrong.append("`Config` is not frozen")
    fields = {f.name: f for f in dataclasses.fields(config)}
    wrong += [f"`Config` has no `{n}`" for n in ("unroll", "batch_size") if n not in fields]
    nothing = dataclasses.MISSING
    wrong += [
        f"`Config.{name}` has no default"
        for name, f in fields.items()
        if f.default is nothing and f.default_factory is nothing
    ]
    both = sorted(fields.keys() & {f.name for f in dataclasses.fields(RunConfig)})
    return wrong + [f"`Config.{name}` is also a setting of a run" for name in both]


def _wrong_settings(offers: Mapping[str, Any]) -> list[str]:
    """Names in `PRESETS` and `RUN_DEFAULTS` that are no settings."""
    wrong = []
    for where, settings, of in (
        *((f"PRESETS['{k}']", v, offers["Config"]) for k, v in dict(offers["PRESETS"]).items()),
        ("RUN_DEFAULTS", offers["RUN_DEFAULTS"], RunConfig),
    ):
        unknown = sorted(set(settings) - {f.name for f in dataclasses.fields(of)})
        wrong += [f"`{where}` has `{name}`, which is no setting" for name in unknown]
    return wrong


def _default_preset(*, atari: bool, continuous: bool) -> str:
    del atari, continuous
    return "default"


@functools.cache
def _late(module: str) -> Callable[..., Any]:
    """The `make` of a module that is imported when it is called."""

    def make(*args: Any, **kwargs: Any) -> Any:
        return importlib.import_module(module).make(*args, **kwargs)

    return make
