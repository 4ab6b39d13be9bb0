"""The command line. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from pronk.config.assignments import parse_assignments
from pronk.config.pbt import PBTConfig
from pronk.config.registry import AGENTS, config_module
from pronk.config.run import RunConfig
from pronk.errors import UserError, nearest

USAGE = """\
usage: pronk COMMAND ...

Distributed deep reinforcement learning: IMPALA and every agent of its family.

  train AGENT ENV    train an agent; the same command again resumes
  pbt AGENT ENV      train a population that adapts its hyperparameters
  eval RUN           play games with a trained agent, or an exported one, and report the score
  record RUN         film a game (MP4 or GIF)
  plot RUN [RUN ..]  draw learning curves, or a population (PNG)
  export RUN FILE    what acts, as one safetensors file to give to others
  inspect RUN        configuration, counters and a digest of a run
  list               agents, environments, and what each agent supports
  bench NAME         measure how fast this machine trains, and what limits it
  reproduce NAME     run an experiment of a paper: tables and figures

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
        " (ALE/Pong-v5)\nor one of pronk's own (pronk/Catch-v0): see `pronk list`. ENV,ENV,… or"
        " suite/NAME is several tasks for one agent.\n`pronk train AGENT --help` lists the flags.\n"
    )


AgentConfig = TypeVar("AgentConfig")


@dataclasses.dataclass(frozen=True)
class TrainArguments(Generic[AgentConfig]):
    """What follows `pronk train AGENT`."""

    env: Positional[str]
    """Environment: a Gymnasium id, ALE/Game-v5, or one of pronk's own; several, ENV,ENV,…, or a
    suite's name, for one agent that learns them all."""
    run: OmitArgPrefixes[RunConfig]
    agent_config: OmitArgPrefixes[AgentConfig]
    preset: str = "auto"
    """The agent's settings to start from; flags override them."""
    env_arg: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the environment; may be given several times."""


@dataclasses.dataclass(frozen=True)
class PBTArguments(TrainArguments[AgentConfig], Generic[AgentConfig]):
    """What follows `pronk pbt AGENT`."""

    pbt: OmitArgPrefixes[PBTConfig] = dataclasses.field(default_factory=PBTConfig)


def train(args: list[str]) -> None:
    """`pronk train AGENT ENV [flags]`."""
    parsed = _plan("train", TrainArguments, args)
    if parsed is None:
        return
    plan, _ = parsed
    from pronk.run.train import run

    summary = run(plan)
    episodes = min(summary["episodes"], 100)
    score = f"mean return {summary['mean_return']:.2f} over the last {episodes} episodes"
    if any(name.startswith("return/") for name in summary):
        score = f"mean return {summary['mean_return']:.2f}, each task's counted alike"
    if not episodes:
        score = "before any episode ended"
    print(f"{summary['status']} at {summary['agent_steps']:,} steps, {score}: {summary['run_dir']}")


def pbt(args: list[str]) -> None:
    """`pronk pbt AGENT ENV [flags]`."""
    parsed = _plan("pbt", PBTArguments, args)
    if parsed is None:
        return
    plan, arguments = parsed
    from pronk.pbt import run

    summary = run(plan, arguments.pbt)
    score = "before any member was scored"
    if summary["best"] is not None:
        hyper = ", ".join(f"{k} {v:.3g}" for k, v in summary["best_hyper"].items())
        score = (
            f"best {summary['best_score']:.4g} (member {summary['best']}: {hyper}), median"
            f" {summary['median_score']:.4g}"
        )
    print(
        f"{summary['status']} at {summary['agent_steps']:,} steps in all, {score}:"
        f" {summary['run_dir']}"
    )


def _plan(command: str, kind: Any, args: list[str]) -> tuple[Any, Any] | None:
    """The plan and the arguments of `pronk train` or `pbt`; None where usage was asked for."""
    if not args or args[0] in ("-h", "--help"):
        print(_train_usage().replace("pronk train", f"pronk {command}"), end="")
        return None
    agent, *rest = args
    if agent.startswith("-"):
        raise UserError(f"expected `pronk {command} AGENT ENV [flags]`, got '{agent}' for AGENT.")
    config_class = config_module(agent).Config
    what = agent if command == "train" else f"a population of {agent}"

    def parse(defaults: Any) -> Any:
        return _parse(
            kind[config_class],
            f"{command} {agent}",
            rest,
            default=kind(env=tyro.MISSING, run=RunConfig(), agent_config=defaults),
            description=f"Train {what} on ENV. The same command resumes; Ctrl-C saves and exits.",
        )

    from pronk.config.spec import Plan, preset_config
    from pronk.run.resolve import default_preset, with_defaults

    # Once to learn which environment and preset are meant, then with that preset's defaults.
    parsed = parse(preset_config(agent, "atari"))
    env_args = with_defaults(agent, parsed.env, parse_assignments(parsed.env_arg, "`--env-arg`"))
    preset = parsed.preset
    if preset == "auto":
        preset = default_preset(agent, parsed.env, env_args)
    parsed = parse(preset_config(agent, preset))
    return Plan(agent, parsed.env, parsed.run, parsed.agent_config, env_args), parsed


@dataclasses.dataclass(frozen=True)
class EvalArguments:
    """What follows `pronk eval`."""

    run: Positional[Path]
    """A run's directory, or what `pronk export` wrote."""
    episodes: int = 30
    """Games to play."""
    sample: bool = False
    """Draw actions from the policy instead of taking the likeliest."""
    seed: int = 1_000_000
    """Of the games; not one that training used."""
    env: str | None = None
    """Play this environment instead of the run's own."""
    env_arg: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the environment instead of the run's own."""
    json: bool = False
    """Print JSON."""


def evaluate(args: list[str]) -> None:
    """`pronk eval RUN`."""
    parsed = _parse(EvalArguments, "eval", args, description="Play games and report the score.")
    if parsed.episodes < 1:
        raise UserError(f"`--episodes` is {parsed.episodes}; expected at least 1.")
    from pronk.run.evaluate import SuiteEvaluation
    from pronk.run.policy import load
    from pronk.run.setup import configure_jax
    from pronk.storage.files import without_nan

    configure_jax()
    policy = load(parsed.run)
    result = policy.evaluate(
        episodes=parsed.episodes,
        sample=parsed.sample,
        seed=parsed.seed,
        env=parsed.env,
        env_args=parse_assignments(parsed.env_arg, "`--env-arg`"),
    )
    if parsed.json:
        print(json.dumps(without_nan({"steps": policy.steps, **result.as_json()}), indent=2))
        return
    if isinstance(result, SuiteEvaluation):
        print(_suite_table(result))
        return
    human = result.human_normalised
    normalised = "" if human is None else f", {human:.1%} human-normalised"
    print(
        f"{policy.plan.agent} on {parsed.env or policy.plan.env} after {policy.steps:,} steps:"
        f" {result.mean_return:.2f} ± {result.standard_error:.2f} (mean ± standard error of"
        f" {result.episodes} games, {'sampled' if parsed.sample else 'greedy'}, {result.minimum:g}"
        f" to {result.maximum:g}, {result.mean_length:,.0f} steps long{normalised})"
    )


def _suite_table(result: Any) -> str:
    """A `SuiteEvaluation` for people."""
    width = max(map(len, result.tasks))
    lines = [f"{'task':{width}}  {'mean return':>12}  {'± error':>9}  {'games':>5}  {'score':>7}"]
    for name, found in result.tasks.items():
        score = result.normalised.get(name)
        shown = "–" if score is None else f"{score:.1%}"
        lines.append(
            f"{name:{width}}  {found.mean_return:12.4g}  {found.standard_error:9.3g}"
            f"  {found.episodes:5}  {shown:>7}"
        )
    if result.scores:
        words = {"mean": "mean", "median": "median", "mean_capped": "mean of capped"}
        listed = ", ".join(f"{words[k]} {v:.1%}" for k, v in result.scores.items())
        lines.append(f"normalised scores: {listed}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class RecordArguments:
    """What follows `pronk record`."""

    run: Positional[Path]
    """A run's directory, or what `pronk export` wrote."""
    output: Path | None = None
    """The film, .mp4 or .gif. [RUN/film.mp4, or film.mp4 beside the file]"""
    episodes: int = 1
    """Games to film."""
    max_steps: int = 10_000
    """Agent steps at most."""
    sample: bool = False
    """Draw actions from the policy instead of taking the likeliest."""
    seed: int = 1_000_000
    """Of the games."""
    task: str | None = None
    """Which task, of a suite."""


def record(args: list[str]) -> None:
    """`pronk record RUN`."""
    parsed = _parse(RecordArguments, "record", args, description="Film games.")
    for flag in ("episodes", "max_steps"):
        if getattr(parsed, flag) < 1:
            raise UserError(
                f"`--{flag.replace('_', '-')}` is {getattr(parsed, flag)}; expected at least 1."
            )
    from pronk.run.policy import load
    from pronk.run.record import record as film
    from pronk.run.setup import configure_jax

    beside = parsed.run.parent if parsed.run.is_file() else parsed.run
    output = parsed.output or beside / "film.mp4"
    configure_jax()
    returns = film(
        load(parsed.run),
        output,
        episodes=parsed.episodes,
        max_steps=parsed.max_steps,
        seed=parsed.seed,
        sample=parsed.sample,
        task=parsed.task,
    )
    print(f"{output}: returns {', '.join(f'{r:g}' for r in returns) or 'none, no game ended'}")


@dataclasses.dataclass(frozen=True)
class PlotArguments:
    """What follows `pronk plot`."""

    runs: Positional[tuple[Path, ...]]
    """Directories of runs; those that differ in their seed only are drawn as one curve. Or the one
    of a population: scores, copies, and hyperparameters over time."""
    output: Path = Path("plot.png")
    """The picture."""
    x: str = "steps"
    """Metric across: steps, frames, wall_seconds, updates."""
    y: str = "mean_return"
    """Metric upwards: any name in metrics.jsonl."""
    smooth: int = 1
    """Records to average over."""
    title: str | None = None
    """Above the picture."""
    csv: Path | None = None
    """Also write the curves here."""


def plot(args: list[str]) -> None:
    """`pronk plot RUN [RUN ...]`."""
    parsed = _parse(PlotArguments, "plot", args, description="Draw learning curves.")
    if not parsed.runs:
        raise UserError("expected `pronk plot RUN [RUN ...]`, got no run.")
    populations = [run for run in parsed.runs if (run / "pbt.json").exists()]
    if populations:
        if len(parsed.runs) > 1:
            raise UserError(
                f"'{populations[0]}' holds a population, which has a picture to itself; give it"
                f" alone, not with {len(parsed.runs) - 1} more."
            )
        for flag in ("x", "y", "smooth", "csv"):
            value, usual = getattr(parsed, flag), getattr(PlotArguments(()), flag)
            if value != usual:
                raise UserError(
                    f"`--{flag}` is {value}, and '{populations[0]}' holds a population, whose"
                    " picture has none; leave it out, or give some of its members."
                )
        from pronk.run.plot_population import draw as draw_population

        print(draw_population(parsed.runs[0], parsed.output, title=parsed.title))
        return
    from pronk.run.plot import plot as draw

    print(
        draw(
            parsed.runs,
            parsed.output,
            x=parsed.x,
            y=parsed.y,
            smooth=parsed.smooth,
            title=parsed.title,
            csv=parsed.csv,
        )
    )


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """What follows `pronk export`."""

    run: Positional[Path]
    """A run's directory."""
    output: Positional[Path]
    """The file, .safetensors."""


def export(args: list[str]) -> None:
    """`pronk export RUN FILE`."""
    description = "Write the newest policy of a run to one file."
    parsed = _parse(ExportArguments, "export", args, description=description)
    if parsed.output.suffix != ".safetensors":
        raise UserError(f"`{parsed.output}` is no name for it; expected one ending .safetensors.")
    from pronk.run.policy import export as write

    steps = write(parsed.run, parsed.output)
    print(f"{parsed.output}: the policy after {steps:,} steps")


@dataclasses.dataclass(frozen=True)
class InspectArguments:
    """What follows `pronk inspect`."""

    run: Positional[Path]
    """A run's directory."""
    json: bool = False
    """Print JSON."""


def inspect(args: list[str]) -> None:
    """`pronk inspect RUN`."""
    parsed = _parse(InspectArguments, "inspect", args, description="What a run is and holds.")
    from pronk.run.inspect import inspect as look

    found = look(parsed.run)
    if parsed.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, inner in value.items():
                print(f"  {key:22} {inner}")
        else:
            shown = f"{value:,}" if isinstance(value, int) else value
            print(f"{name:24} {shown}")


@dataclasses.dataclass(frozen=True)
class ListArguments:
    """What follows `pronk list`."""

    match: Positional[str] = ""
    """Show only environments whose id contains this."""
    json: bool = False
    """Print JSON."""


def list_known(args: list[str]) -> None:
    """`pronk list`."""
    parsed = _parse(ListArguments, "list", args, description="Agents and environments.")
    from pronk import envs

    found = [name for name in envs.names() if parsed.match.lower() in name.lower()]
    agents = {name: config_module(name).SUPPORTS for name in AGENTS}
    if parsed.json:
        print(json.dumps({"agents": agents, "environments": found}, indent=2))
        return
    for name, supports in agents.items():
        print(f"{name}:")
        for what, which in supports.items():
            print(f"  {what:14} {which}")
    families: dict[str, list[str]] = {}
    for name in found:
        family = name.split("/")[0] if "/" in name else "Gymnasium"
        families.setdefault(family, []).append(name)
    for family, members in families.items():
        print(f"\n{family} ({len(members)}):")
        for line in textwrap.wrap(", ".join(members), 96, break_on_hyphens=False):
            print(f"  {line}")


def benchmark(args: list[str]) -> None:
    """`pronk bench NAME`."""
    from pronk.experiments.bench.settings import BENCHMARKS

    if not args or args[0] in ("-h", "--help"):
        print("usage: pronk bench NAME [flags]\n")
        for name, settings in BENCHMARKS.items():
            print(f"  {name:12} {settings.__doc__}")
        print("\n`pronk bench NAME --help` says more.")
        return
    name, *rest = args
    if name not in BENCHMARKS:
        raise UserError(
            f"benchmark '{name}' is unknown{nearest(name, BENCHMARKS) or '.'} Known:"
            f" {', '.join(BENCHMARKS)}."
        )
    settings = _parse(BENCHMARKS[name], f"bench {name}", rest)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and value <= 0:
            flag = field.name.replace("_", "-")
            raise UserError(f"`--{flag}` is {value}; expected a number above zero.")
    from pronk.experiments import bench
    from pronk.storage.files import cannot_write, write_json_atomically

    file = None if settings.json in (None, "-") else Path(settings.json)
    if file is not None:
        try:
            file.touch()  # before measuring for minutes what then can't be written
        except OSError as error:
            raise cannot_write(file, error) from None
    result = bench.run(name, settings)
    if file is not None:
        write_json_atomically(file, result)
    print(json.dumps(result, indent=2) if settings.json == "-" else bench.table(result))


def reproduce(args: list[str]) -> None:
    """`pronk reproduce NAME`."""
    from pronk.experiments.reproduce.settings import EXPERIMENTS

    name, *rest = args or ["--help"]
    if name in ("-h", "--help"):
        print("usage: pronk reproduce NAME [flags]\n")
        for known, settings in EXPERIMENTS.items():
            print(f"  {known:16} {settings.__doc__}")
        print("\n`pronk reproduce NAME --help` says more.")
        return
    if name not in EXPERIMENTS:
        raise UserError(
            f"experiment '{name}' is unknown{nearest(name, EXPERIMENTS) or '.'} Known:"
            f" {', '.join(EXPERIMENTS)}."
        )
    settings = _parse(EXPERIMENTS[name], f"reproduce {name}", rest)
    for field in ("seeds", "steps", "episodes", "population"):
        if getattr(settings, field, 1) < 1:
            raise UserError(f"`--{field}` is {getattr(settings, field)}; expected at least 1.")
    if not getattr(settings, "scale", 1.0) > 0:
        raise UserError(f"`--scale` is {settings.scale}; expected a number above zero.")
    from pronk.experiments import reproduce as experiments

    print(experiments.run(name, settings))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "pbt": pbt,
    "eval": evaluate,
    "record": record,
    "plot": plot,
    "export": export,
    "inspect": inspect,
    "list": list_known,
    "bench": benchmark,
    "reproduce": reproduce,
}


if __name__ == "__main__":
    main()
