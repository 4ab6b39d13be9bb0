"""The plan that `pronk train AGENT ENV [flags]` or `pronk pbt AGENT ENV [flags]` asks for.

Environments are imported only if there is an ENV, so that help answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from pronk.config import names
from pronk.config.arguments import parse
from pronk.config.assignments import parse_assignments
from pronk.config.fields import flag
from pronk.config.pbt import PBTConfig
from pronk.config.registry import AGENTS, AgentModule, agent_module
from pronk.config.run import RunConfig
from pronk.config.spec import Plan, here
from pronk.errors import UserError, nearest, printable
from pronk.run.resolve import auto_preset, complete_env_args

_HELP = ("-h", "--help")


def usage(command: str) -> str:
    """What `pronk COMMAND --help` says without an agent."""
    return (
        f"usage: pronk {command} AGENT ENV [flags]\n\n"
        f"AGENT is one of: {', '.join(AGENTS)}; or your own module, my_package.my_agent. ENV is a"
        " Gymnasium id\n(CartPole-v1), an Atari game (ALE/Pong-v5) or one of pronk's own"
        " (pronk/Catch-v0): see `pronk list`.\nENV,ENV,… or suite/NAME is several tasks for one"
        f" agent.\n`pronk {command} AGENT --help` lists the flags, and `pronk {command} AGENT ENV"
        " --help` also the values\nthat ENV would get.\n"
    )


def plan_of(
    command: str, kind: Any, args: Sequence[str], stack: contextlib.ExitStack
) -> tuple[Plan, Any] | None:
    """The plan and the arguments, of `kind`; None where only usage was asked for and printed.

    stack: keeps what is learnt of the environment, so that it is not made again for that. Raises
    UserError for a mistake, and SystemExit where help was asked for and printed.
    """
    if not args or args[0] in _HELP:
        print(usage(command), end="")
        return None
    home = here()  # before an environment can change it
    name, *rest = args
    if name.startswith("-"):
        raise UserError(f"expected `pronk {command} AGENT ENV [flags]`, got '{name}' for AGENT.")
    agent = agent_module(name)
    kinds = [kind, RunConfig, agent.config, *([PBTConfig] if command == "pbt" else [])]
    _check_names(f"pronk {command} {name}", rest, kinds)
    asked, rest = any(a in _HELP for a in rest), [a for a in rest if a not in _HELP]
    parser = _Parser(command, kind, agent)
    if asked and (all(a.startswith("-") for a in rest) or not parser.accepts(rest)):
        parser.parse(["--help"], "", {})  # there is no ENV, or a mistake in other flags
    # Once to learn which environment and preset are meant, then with that preset's defaults.
    parsed = parser.parse(rest, "", {})
    from pronk import envs

    stack.enter_context(envs.looked_at_once())
    given = parse_assignments(parsed.env_arg, "`--env-arg`")
    env_args = complete_env_args(agent, parsed.env, given)
    preset = parsed.preset
    if preset == "auto":
        preset = auto_preset(agent, parsed.env, env_args)
    parsed = parser.parse([*rest, *(["--help"] if asked else [])], preset, env_args, parsed.env)
    plan = Plan(agent.name, parsed.env, parsed.run, parsed.agent_config, env_args, preset, home)
    return plan, parsed


class _Parser:
    """Parses the flags of an agent, whose help says where each value is from."""

    def __init__(self, command: str, kind: Any, agent: AgentModule):
        self.command, self.kind, self.agent = command, kind, agent

    def accepts(self, args: list[str]) -> bool:
        """Whether these arguments are whole and right."""
        try:
            self.parse(args, "", {}, console_outputs=False)
        except (SystemExit, UserError):
            return False
        return True

    def parse(
        self,
        args: list[str],
        preset: str,
        env_args: Mapping[str, Any],
        env: str = "",
        **options: Any,
    ) -> Any:
        """The arguments; what is not among them is of `preset`, or "" for the agent's defaults."""
        agent = self.agent
        defaults = agent.preset(preset) if preset else agent.config()
        return parse(
            self.kind[agent.config],
            f"{self.command} {agent.name}",
            args,
            default=self.kind(env=tyro.MISSING, run=agent.run_config(), agent_config=defaults),
            description=self._description(preset, env_args, env),
            marks={agent.config: f"preset {preset}", RunConfig: f"default of {agent.name}"},
            **options,
        )

    def _description(self, preset: str, env_args: Mapping[str, Any], env: str) -> str:
        name = self.agent.name
        what = name if self.command == "train" else f"a population of {name}"
        shown = (
            "The values below are the agent's defaults, which a preset changes; give ENV as well as"
            " --help to see those that it would get."
        )
        if env:
            shown = f"The values below are those for {env}: of preset {preset} where it says so."
            if env_args:
                listed = ", ".join(f"{k}={v}" for k, v in env_args.items())
                shown += f" Arguments of the environment: {listed}."
        paragraphs = (
            f"Train {what} on ENV. The same command resumes; Ctrl-C saves and exits.",
            shown,
            "A number that the agent reads at every update may be a schedule, such as"
            " --learning-rate linear:3e-4:0 (docs/schedules.md).",
            "Presets (--preset; auto selects one for the environment), with what they set:",
        )
        presets = [
            f"- {each}: {', '.join(f'{k} {v}' for k, v in settings.items()) or 'the defaults'}"
            for each, settings in self.agent.presets.items()
        ]
        return "\n".join(["\n\n".join(map(_wrapped, paragraphs)), *map(_wrapped, presets)])


def _wrapped(text: str) -> str:
    """A paragraph of help. Its further lines begin with spaces, or tyro would join them."""
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(printable(text), width, subsequent_indent="  ", break_on_hyphens=False)


def _check_names(command: str, args: Sequence[str], kinds: Sequence[Any]) -> None:
    """Raise UserError, naming the right one, for a flag that there is not, or that was renamed."""
    known = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    known = known - {"env", "run", "agent_config", "pbt"} | {"help"}
    for arg in args:
        name = arg.partition("=")[0][2:].replace("-", "_")
        if not arg.startswith("--") or not name or {name, name.removeprefix("no_")} & known:
            continue
        meant = nearest(flag(name), map(flag, sorted(known))) or "."
        raise UserError(
            names.hint(name, known)
            or f"`{flag(name)}` is not a flag of `{command}`{meant} `{command} --help` lists them."
        )
