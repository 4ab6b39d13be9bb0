"""The command line. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from pronk.configs import AGENTS, config_module
from pronk.configs.run import RunConfig
from pronk.errors import UserError, nearest

USAGE = """\
usage: pronk COMMAND ...

Distributed deep reinforcement learning: IMPALA and every agent of its family.

  train AGENT ENV    train an agent; the same command again resumes
  eval RUN           play games with a trained agent and report the score
  record RUN         film a game (MP4 or GIF)
  plot RUN [RUN ..]  draw learning curves (PNG)
  inspect RUN        configuration, counters and a digest of a run
  list               agents, environments, and what each agent supports

`pronk COMMAND --help` says more. Example: pronk train impala ALE/Pong-v5
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake is one paragraph on stderr and exit status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if not args or args[0] in ("-h", "--help"):
            print(USAGE, end="")
            return
        if args[0] == "--version":
            from importlib.metadata import version

            print(f"pronk {version('pronk')}")
            return
        if args[0] not in COMMANDS:
            raise UserError(
                f"command '{args[0]}' is unknown{nearest(args[0], COMMANDS) or '.'} Commands:"
                f" {', '.join(COMMANDS)}."
            )
        COMMANDS[args[0]](args[1:])
    except UserError as error:
        print(f"pronk: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        print("pronk: interrupted", file=sys.stderr)
        sys.exit(130)


def _parse(kind: Any, command: str, args: list[str], **kwargs: Any) -> Any:
    return tyro.cli(kind, prog=f"pronk {command}", args=args, **kwargs)


def _train_usage() -> str:
    return (
        "usage: pronk train AGENT ENV [flags]\n\n"
        f"AGENT is one of: {', '.join(AGENTS)}. ENV is a Gymnasium id (CartPole-v1), an Atari game"
        " (ALE/Pong-v5)\nor one of pronk's own (pronk/Catch-v0): see `pronk list`."
        " `pronk train AGENT --help` lists the flags.\n"
    )


AgentConfig = TypeVar("AgentConfig")


@dataclasses.dataclass(frozen=True)
class TrainArguments(Generic[AgentConfig]):
    """What follows `pronk train AGENT`."""

    env: Positional[str]
    """Environment: a Gymnasium id, ALE/Game-v5, or one of pronk's own."""
    run: OmitArgPrefixes[RunConfig]
    agent_config: OmitArgPrefixes[AgentConfig]
    preset: str = "auto"
    """The agent's settings to start from; flags override them."""
    env_arg: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the environment; may be given several times."""


def train(args: list[str]) -> None:
    """`pronk train AGENT ENV [flags]`."""
    if not args or args[0] in ("-h", "--help"):
        print(_train_usage(), end="")
        return
    agent, *rest = args
    if agent.startswith("-"):
        raise UserError(f"expected `pronk train AGENT ENV [flags]`, got '{agent}' for AGENT.")
    defaults = _defaults_for(agent, rest)
    config_class = config_module(agent).Config

    parsed = _parse(
        TrainArguments[config_class],  # type: ignore[valid-type]
        f"train {agent}",
        rest,
        default=TrainArguments(env=tyro.MISSING, run=RunConfig(), agent_config=defaults),
        description=f"Train {agent} on ENV. The same command again resumes; Ctrl-C saves and exits.",
    )
    from pronk.plan import Plan

    plan = Plan(agent, parsed.env, parsed.run, parsed.agent_config, _env_args(parsed.env_arg))
    from pronk.train import run

    summary = run(plan)
    print(
        f"{summary['status']} at {summary['agent_steps']:,} steps, mean return"
        f" {summary['mean_return']:.2f} over the last {min(summary['episodes'], 100)} episodes:"
        f" {summary['run_dir']}"
    )


def _defaults_for(agent: str, rest: list[str]) -> Any:
    """The configuration whose values the flags override, from `--preset` and ENV if given."""
    from pronk.plan import default_preset, preset_config

    given = _value_of("--preset", rest)
    env = next((a for a in rest if not a.startswith("-")), None)
    if given not in (None, "auto"):
        return preset_config(agent, given)
    if env is None or {"-h", "--help"} & set(rest):
        atari = env is None or env.startswith("ALE/")
        return preset_config(agent, config_module(agent).preset_for(atari=atari, continuous=False))
    arguments = [a for name, a in zip(rest, rest[1:], strict=False) if name == "--env-arg"]
    return preset_config(agent, default_preset(agent, env, _env_args(arguments)))


def _value_of(flag: str, args: list[str]) -> str | None:
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(flag + "="):
            return arg.split("=", 1)[1]
    return None


def _env_args(pairs: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"`--env-arg` is '{pair}'; expected NAME=VALUE, as in delay=20.")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
}
