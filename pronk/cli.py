"""The command line. Heavy modules are imported only by the commands that need them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pronk.config.arguments import (
    EvalArguments,
    ExportArguments,
    InspectArguments,
    ListArguments,
    PBTArguments,
    PlayArguments,
    PlotArguments,
    RecordArguments,
    ReportArguments,
    TrainArguments,
    parse,
)
from pronk.config.assignments import parse_assignments
from pronk.config.json_files import holds
from pronk.config.modules import search_here
from pronk.config.registry import AGENTS, agent_module, is_agent
from pronk.config.spec import here
from pronk.errors import UserError, counted, message, nearest, printable, show_all_characters
from pronk.run import guard
from pronk.run.stdout import others_to_stderr

USAGE = """\
usage: pronk COMMAND ...

Distributed deep reinforcement learning: IMPALA and every agent of its family.

  train AGENT ENV    train an agent; the same command again resumes
  pbt AGENT ENV      train a population that adapts its hyperparameters
  eval RUN           play episodes with a trained or exported agent and report the score
  play RUN           play a board game against an agent
  record RUN         film episodes (MP4 or GIF)
  plot RUN [RUN ..]  draw learning curves, or a population (PNG)
  report RUNS ...    compare many runs: tables, intervals, tests, pictures
  export RUN FILE    write the policy to one safetensors file
  inspect RUN        show configuration, counters and a digest of a run
  list               list agents, environments, and what each agent supports
  bench NAME         measure how fast this machine trains, and what limits it
  reproduce NAME     run an experiment of a paper: tables and figures

`pronk COMMAND --help` says more. Example: pronk train impala ALE/Pong-v5
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake is one paragraph on stderr and exit status 2.

    Without `argv` the process is this command's, and handles signals until it ends.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    show_all_characters(sys.stdout, sys.stderr)
    search_here()  # for agents and environments of the user's own
    saves = args[:1] in (["train"], ["pbt"])
    guard.run_command(lambda: _run(args), saves=saves, own_process=argv is None)


def _run(args: list[str]) -> None:
    try:
        if not args or args[0] in ("-h", "--help"):
            print(USAGE, end="")
            return
        if args[0] == "--version":
            from pronk.config.spec import version

            print(f"pronk {version()}")
            return
        if args[0] not in COMMANDS:
            raise _unknown("command", args[0], COMMANDS, "Commands")
        COMMANDS[args[0]](args[1:])
    except (UserError, MemoryError, RuntimeError) as error:
        print(f"pronk: {message(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)


def _say(line: str) -> None:
    """Print a line, which may quote what a file, a module or an environment says."""
    print(printable(line))


def _unknown(kind: str, name: str, known: Mapping[str, Any], listed: str = "Known") -> UserError:
    return UserError(
        f"{kind} '{name}' is unknown{nearest(name, known) or '.'} {listed}: {', '.join(known)}."
    )


def train(args: list[str]) -> None:
    """`pronk train AGENT ENV [flags]`."""
    from pronk.run.command import plan_of

    with contextlib.ExitStack() as stack:
        parsed = plan_of("train", TrainArguments, args, stack)
        if parsed is None:
            return
        plan, _ = parsed
        from pronk.run.train import run

        summary = run(plan)
    episodes = min(summary["episodes"], 100)
    score = f"mean return {summary['mean_return']:.2f} over the last {counted(episodes, 'episode')}"
    if any(name.startswith("return/") for name in summary):
        score = f"mean return {summary['mean_return']:.2f}, the mean over tasks"
    if (greedy := summary.get("mean_return_least_exploring")) is not None:
        score += f", {greedy:.2f} of the least exploring environments"
    if not episodes:
        score = "before any episode ended"
    _say(f"{summary['status']} at {summary['agent_steps']:,} steps, {score}: {summary['run_dir']}")


def pbt(args: list[str]) -> None:
    """`pronk pbt AGENT ENV [flags]`."""
    from pronk.run.command import plan_of

    with contextlib.ExitStack() as stack:
        parsed = plan_of("pbt", PBTArguments, args, stack)
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
    _say(
        f"{summary['status']} at {summary['agent_steps']:,} steps in all, {score}:"
        f" {summary['run_dir']}"
    )


def evaluate(args: list[str]) -> None:
    """`pronk eval RUN`."""
    parsed = parse(EvalArguments, "eval", args, description="Play episodes and report the score.")
    from pronk.run import opponents
    from pronk.run.policy import load
    from pronk.run.setup import configure_jax
    from pronk.storage.files import without_nan

    configure_jax()
    with others_to_stderr(parsed.json):
        policy = load(parsed.run, agent=parsed.agent, simulations=parsed.simulations)
        env_args = parse_assignments(parsed.env_arg, "`--env-arg`")
        env_args, opponent = opponents.complete(
            policy, parsed.env, env_args, parsed.opponent, sample=parsed.sample
        )
        result = policy.evaluate(
            episodes=parsed.episodes,
            sample=parsed.sample,
            seed=parsed.seed,
            env=parsed.env,
            env_args=env_args,
            max_steps=parsed.max_steps,
            log=lambda text: print(f"pronk: {printable(text)}", file=sys.stderr),
        )
    if parsed.json:
        against = {"opponent": opponent} if opponent else {}
        shown = {"steps": policy.steps, **against, **result.as_json()}
        print(json.dumps(without_nan(shown), indent=2))
        return
    name = f"{policy.plan.agent} on {parsed.env or policy.plan.env} after {policy.steps:,} steps"
    name += f" against {opponent}" if opponent else ""
    for line in result.lines(name, policy.words(sample=parsed.sample)):
        _say(line)


def play(args: list[str]) -> None:
    """`pronk play RUN`."""
    parsed = parse(PlayArguments, "play", args, description="Play a board game against an agent.")
    from pronk.run.play import play as play_game
    from pronk.run.policy import load
    from pronk.run.setup import configure_jax

    if parsed.first and parsed.second:
        raise UserError("`--first` and `--second` are given; give the one that you want to be.")
    configure_jax()
    policy = load(parsed.run, agent=parsed.agent, simulations=parsed.simulations)
    play_game(policy, begins=not parsed.second, sample=parsed.sample, seed=parsed.seed, say=_say)


def record(args: list[str]) -> None:
    """`pronk record RUN`."""
    parsed = parse(RecordArguments, "record", args, description="Film episodes.")
    from pronk.run.policy import load
    from pronk.run.record import record as film
    from pronk.run.setup import configure_jax

    beside = parsed.run.parent if os.path.isfile(parsed.run) else parsed.run
    output = parsed.output or beside / "film.mp4"
    path = Path(here(), output)  # before an environment can change the current directory
    configure_jax()
    returns = film(
        load(parsed.run, agent=parsed.agent),
        path,
        episodes=parsed.episodes,
        max_steps=parsed.max_steps,
        seed=parsed.seed,
        sample=parsed.sample,
        task=parsed.task,
    )
    _say(f"{output}: returns {', '.join(f'{r:g}' for r in returns) or 'none, no episode ended'}")


def plot(args: list[str]) -> None:
    """`pronk plot RUN [RUN ...]`."""
    parsed = parse(PlotArguments, "plot", args, description="Draw learning curves.")
    if not parsed.runs:
        raise UserError("expected `pronk plot RUN [RUN ...]`, got no run.")
    populations = [run for run in parsed.runs if holds(run, "pbt.json")]
    if populations:
        if len(parsed.runs) > 1:
            raise UserError(
                f"'{populations[0]}' holds a population, which has a picture of its own; give it"
                f" alone, without {'the others' if len(parsed.runs) > 2 else 'the other'}."
            )
        for flag in ("x", "y", "smooth", "csv"):
            value, usual = getattr(parsed, flag), getattr(PlotArguments(()), flag)
            if value != usual:
                raise UserError(
                    f"`--{flag}` is {value}, and '{populations[0]}' holds a population, whose plot"
                    " has no such setting; leave it out, or give some of its members."
                )
        from pronk.run.plot_population import draw as draw_population

        _say(str(draw_population(parsed.runs[0], parsed.output, title=parsed.title)))
        return
    from pronk.run.plot import plot as draw

    drawn = draw(
        parsed.runs,
        parsed.output,
        x=parsed.x,
        y=parsed.y,
        smooth=parsed.smooth,
        title=parsed.title,
        csv=parsed.csv,
        log=lambda text: print(f"pronk: {printable(text)}", file=sys.stderr),
    )
    _say(str(drawn))


def report(args: list[str]) -> None:
    """`pronk report RUNS ...`."""
    parsed = parse(ReportArguments, "report", args, description="Compare many runs.")
    if not parsed.runs:
        raise UserError(
            "expected `pronk report RUNS ...`, got nothing; give directories of runs, or long CSVs."
        )
    from pronk import report as reports
    from pronk.storage.files import write_atomically

    table = [Path(parsed.normalise)] if os.path.isfile(parsed.normalise) else []
    outputs = {"--csv": parsed.csv, "--md": parsed.md, "--png": parsed.png}
    reports.check_outputs([*parsed.runs, *table], outputs)
    made = reports.make(
        reports.read(parsed.runs),
        by=[name.strip() for name in parsed.by.split(",")],
        metric=parsed.metric,
        last=parsed.last,
        at=parsed.at,
        normalise=parsed.normalise,
        repeats=parsed.bootstrap,
        seed=parsed.seed,
        compare=parsed.compare,
    )
    for line in reports.text(made).splitlines():
        _say(line)
    for flag, path, write in (
        ("--csv", parsed.csv, reports.as_csv),
        ("--md", parsed.md, reports.markdown),
    ):
        if path is not None:
            write_atomically(path, write(made).encode(errors="backslashreplace"), flag=flag)
            _say(f"written: {path}")
    if parsed.png is not None:
        from pronk.report.plots import draw as draw_report

        for path in draw_report(made, parsed.png):
            _say(f"written: {path}")
    if parsed.strict and made.problems:
        sys.exit(1)


def export(args: list[str]) -> None:
    """`pronk export RUN FILE`."""
    text = "Write the newest policy of a run to one file."
    parsed = parse(ExportArguments, "export", args, description=text)
    if parsed.output.suffix != ".safetensors":
        raise UserError(
            f"the output file is '{parsed.output}'; expected a name ending .safetensors."
        )
    from pronk.run.policy import export as write

    steps = write(parsed.run, parsed.output, simulations=parsed.simulations)
    _say(f"{parsed.output}: the policy after {steps:,} steps")


def inspect(args: list[str]) -> None:
    """`pronk inspect RUN`."""
    parsed = parse(
        InspectArguments, "inspect", args, description="Configuration and state of a run."
    )
    from pronk.run.inspect import inspect as look

    with others_to_stderr(parsed.json):  # it may import the agent's module
        found = look(parsed.run)
    if parsed.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            _say(f"{name}:")
            for key, inner in value.items():
                _say(f"  {key:22} {inner}")
        else:
            shown = f"{value:,}" if isinstance(value, int) else value
            _say(f"{name:24} {shown}")


def list_known(args: list[str]) -> None:
    """`pronk list`."""
    parsed = parse(ListArguments, "list", args, description="Agents and environments.")
    from pronk import envs

    match = parsed.match
    with others_to_stderr(parsed.json):
        found = [name for name in envs.names() if match.lower() in name.lower()]
        known = [match] if match and not found and is_agent(match) else list(AGENTS)
        agents = {name: agent_module(name).description() for name in known}
    if match and not found and match not in agents:
        hint = nearest(match, envs.names()) or "."
        raise UserError(
            f"`{match}` is neither a part of an environment's name nor an agent's module{hint} Give"
            " one of these, or nothing to list all."
        )
    if parsed.json:
        print(json.dumps({"agents": agents, "environments": found}, indent=2))
        return
    for name, description in agents.items():
        _say(f"{name}:")
        for what, which in description.items():
            _say(f"  {what:14} {which}")
    families: dict[str, list[str]] = {}
    for name in found:
        family = name.split("/")[0] if "/" in name else "Gymnasium"
        families.setdefault(family, []).append(name)
    for family, members in families.items():
        print()
        _say(f"{family} ({len(members)}):")
        for line in textwrap.wrap(", ".join(members), 96, break_on_hyphens=False):
            _say(f"  {line}")


def _choose(command: str, kind: str, known: Mapping[str, Any], args: list[str]) -> Any:
    """The name and settings of `pronk COMMAND NAME [flags]`; None where usage was asked for."""
    name, *rest = args or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: pronk {command} NAME [flags]\n")
        for each, settings in known.items():
            print(f"  {each:16} {settings.__doc__}")
        print(f"\n`pronk {command} NAME --help` says more.")
        return None
    if name not in known:
        raise _unknown(kind, name, known)
    return name, parse(known[name], f"{command} {name}", rest)


def benchmark(args: list[str]) -> None:
    """`pronk bench NAME`."""
    from pronk.experiments.bench.settings import BENCHMARKS, check

    chosen = _choose("bench", "benchmark", BENCHMARKS, args)
    if chosen is None:
        return
    name, settings = chosen
    check(settings)
    from pronk.experiments import bench
    from pronk.storage.files import cannot_write, check_file_name, write_json_atomically

    file = None if settings.json in (None, "-") else Path(settings.json)
    if file is not None:
        check_file_name(file, "--json")
        try:
            file.touch()  # before measuring for minutes what then can't be written
        except OSError as error:
            raise cannot_write(file, error, "--json") from None
    with others_to_stderr(settings.json == "-"):
        result = bench.run(name, settings)
    if file is not None:
        write_json_atomically(file, result)
    shown = json.dumps(result, indent=2) if settings.json == "-" else bench.table(result)
    for line in shown.splitlines():
        _say(line)


def reproduce(args: list[str]) -> None:
    """`pronk reproduce NAME`."""
    from pronk.experiments.reproduce.settings import EXPERIMENTS

    chosen = _choose("reproduce", "experiment", EXPERIMENTS, args)
    if chosen is None:
        return
    name, settings = chosen
    for field in ("seeds", "steps", "episodes", "population"):
        if getattr(settings, field, 1) < 1:
            raise UserError(f"`--{field}` is {getattr(settings, field)}; expected at least 1.")
    if not 0 < getattr(settings, "scale", 1.0) < math.inf:
        raise UserError(f"`--scale` is {settings.scale}; expected a finite number above zero.")
    from pronk.experiments import reproduce as experiments

    for line in experiments.run(name, settings).splitlines():
        _say(line)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "pbt": pbt,
    "eval": evaluate,
    "play": play,
    "record": record,
    "plot": plot,
    "report": report,
    "export": export,
    "inspect": inspect,
    "list": list_known,
    "bench": benchmark,
    "reproduce": reproduce,
}


if __name__ == "__main__":
    main()
