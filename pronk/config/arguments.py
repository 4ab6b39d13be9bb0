"""The arguments of each command, and how they are parsed.

Imports neither jax nor an environment.
"""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro
from tyro import constructors
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from pronk.config import fields
from pronk.config.fields import number
from pronk.config.pbt import PBTConfig
from pronk.config.run import EVAL_MAX_STEPS, RunConfig

AgentConfig = TypeVar("AgentConfig")


@dataclasses.dataclass(frozen=True)
class TrainArguments(Generic[AgentConfig]):
    """Arguments of `pronk train AGENT`."""

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
    """Arguments of `pronk pbt AGENT`."""

    pbt: OmitArgPrefixes[PBTConfig] = dataclasses.field(default_factory=PBTConfig)


@dataclasses.dataclass(frozen=True)
class EvalArguments:
    """Arguments of `pronk eval`."""

    run: Positional[Path]
    """A run's directory, or a file written by `pronk export`."""
    episodes: int = number(30, at_least=1, limit=10**12)
    """Episodes to play."""
    max_steps: int = number(EVAL_MAX_STEPS, at_least=1)
    """Agent steps after which an episode is cut off and counts with its return so far."""
    sample: bool = False
    """Draw actions from the policy instead of taking the likeliest."""
    seed: int = number(1_000_000, at_least=0, at_most=2**63 - 1)
    """Random seed; not one that training used."""
    env: str | None = None
    """Environment to play instead of the run's own."""
    env_arg: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the environment instead of the run's own."""
    opponent: str | None = None
    """Opponent in a board game: random, perfect, or another run's directory or exported policy,
    which chooses its actions as RUN does. [the run's own, else perfect or, on a large board,
    random]"""
    simulations: int | None = number(None, at_least=0, limit=10_000)
    """Simulations of the search for each action, of an agent that plans; 0 acts by its network
    alone. [the run's own]"""
    agent: str | None = None
    """Module of the agent, for a file exported from an agent outside pronk; it is imported."""
    json: bool = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True)
class PlayArguments:
    """Arguments of `pronk play`."""

    run: Positional[Path]
    """A run's directory, or a file written by `pronk export`."""
    first: bool = False
    """You begin, which is the default."""
    second: bool = False
    """The agent begins."""
    sample: bool = False
    """Draw actions from the policy instead of taking the likeliest."""
    seed: int = number(1_000_000, at_least=0, at_most=2**63 - 1)
    """Random seed."""
    simulations: int | None = number(None, at_least=0, limit=10_000)
    """Simulations of the search for each action, of an agent that plans; 0 acts by its network
    alone. [the run's own]"""
    agent: str | None = None
    """Module of the agent, for a file exported from an agent outside pronk; it is imported."""


@dataclasses.dataclass(frozen=True)
class RecordArguments:
    """Arguments of `pronk record`."""

    run: Positional[Path]
    """A run's directory, or a file written by `pronk export`."""
    output: Path | None = None
    """File of the film, .mp4 or .gif. [RUN/film.mp4, or film.mp4 beside the file] If the agent
    computes an intrinsic reward, a strip below the frames shows it."""
    episodes: int = number(1, at_least=1, limit=10**12)
    """Episodes to film."""
    max_steps: int = number(10_000, at_least=1, limit=10**12)
    """Agent steps at most."""
    sample: bool = False
    """Draw actions from the policy instead of taking the likeliest."""
    seed: int = number(1_000_000, at_least=0, at_most=2**63 - 1)
    """Random seed."""
    task: str | None = None
    """Task of a suite."""
    agent: str | None = None
    """Module of the agent, for a file exported from an agent outside pronk; it is imported."""


@dataclasses.dataclass(frozen=True)
class PlotArguments:
    """Arguments of `pronk plot`."""

    runs: Positional[tuple[Path, ...]]
    """Directories of runs; those that differ in their seed only become one curve. Or the directory
    of one population: scores, copies, and hyperparameters over time. The mean return of one run of
    ngu or agent57 has a second panel: which mixtures acted."""
    output: Path = Path("plot.png")
    """File of the picture."""
    x: str = "steps"
    """Metric of the x axis: steps, frames, wall_seconds, updates."""
    y: str = "mean_return"
    """Metric of the y axis: any name in metrics.jsonl."""
    smooth: int = number(1, at_least=1, limit=10**12)
    """Records to average over."""
    title: str | None = None
    """Title above the picture."""
    csv: Path | None = None
    """Also write the curves to this file."""


@dataclasses.dataclass(frozen=True)
class ReportArguments:
    """Arguments of `pronk report`."""

    runs: Positional[tuple[Path, ...]]
    """Directories of runs, or of many runs, and long CSVs (docs/report.md)."""
    by: str = "agent"
    """Settings whose values name the groups that are compared, with commas: agent, or any name in
    config.json, as in agent,learning_rate."""
    metric: Literal["auto", "evaluation", "training", "auc"] = "auto"
    """Whose returns count: of evaluations, of training, or auc, of all episodes of a run (the area
    under its curve). auto: of evaluations where a run has some, else of training."""
    last: int | None = number(None, at_least=1, limit=10**12)
    """Episodes that a run's score averages. [the last evaluation; 100 of training]"""
    at: int | None = number(None, at_least=1, limit=10**15)
    """Agent steps at which scores count. [the end of each run]"""
    normalise: str = "none"
    """References that make tasks comparable: none, human, random-best, muzero-s1, agent57, dqn-zoo,
    duan2016, scales, or a file, FILE.csv, with the columns task, random, reference."""
    bootstrap: int = number(50_000, at_least=100, limit=10**7)
    """Repeats of the bootstrap."""
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    """Random seed of the bootstrap."""
    compare: tuple[str, str] | None = None
    """Two groups, A B: differences, Welch's t-test, probability of improvement."""
    csv: Path | None = None
    """Also write the scores to this file, which `pronk report` can read."""
    md: Path | None = None
    """Also write the report to this file, as Markdown."""
    png: Path | None = None
    """Also draw curves, profiles and aggregates, into this directory."""
    strict: bool = False
    """Exit with status 1 if there is any warning."""


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """Arguments of `pronk export`."""

    run: Positional[Path]
    """A run's directory."""
    output: Positional[Path]
    """File to write, .safetensors."""
    simulations: int | None = number(None, at_least=0, limit=10_000)
    """Simulations of the search for each action, of an agent that plans; 0 acts by its network
    alone. [the run's own]"""


@dataclasses.dataclass(frozen=True)
class InspectArguments:
    """Arguments of `pronk inspect`."""

    run: Positional[Path]
    """A run's directory."""
    json: bool = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True)
class ListArguments:
    """Arguments of `pronk list`."""

    match: Positional[str] = ""
    """Show only environments whose id contains this; or an agent's module, my_package.my_agent."""
    json: bool = False
    """Print JSON."""


def _integer(info: constructors.PrimitiveTypeInfo) -> constructors.PrimitiveConstructorSpec | None:
    """Integers as people write them: 300000, 300_000, 3e5."""
    if info.type is not int:
        return None
    return constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: fields.integer(texts[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _float(info: constructors.PrimitiveTypeInfo) -> constructors.PrimitiveConstructorSpec | None:
    """Numbers, and schedules of numbers, which `fields.check` refuses where there can be none."""
    if info.type is not float:
        return None
    return constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda texts: fields.float_or_schedule(texts[0]),
        is_instance=lambda value: (
            isinstance(value, int | float | str) and not isinstance(value, bool)
        ),
        str_from_instance=lambda value: [str(value)],
    )


def _settings(
    info: constructors.StructTypeInfo, marks: Mapping[type, str]
) -> constructors.StructConstructorSpec | None:
    """Settings whose fields have rules: `--help` shows their sources."""
    kind: Any = info.type
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return None
    default = info.default if isinstance(info.default, kind) else None
    if default is None or all(rule == fields.Rule() for rule in fields.rules(kind).values()):
        return None
    texts = fields.descriptions(kind, default, marks.get(kind, ""))
    hints = typing.get_type_hints(kind, include_extras=True)
    return constructors.StructConstructorSpec(
        kind,
        tuple(
            constructors.StructFieldSpec(name, hints[name], getattr(default, name), texts[name])
            for name in fields.rules(kind)
        ),
    )


def parse(
    kind: Any, command: str, args: list[str], marks: Mapping[type, str] | None = None, **kwargs: Any
) -> Any:
    """The arguments of a command; raises UserError for those out of their ranges.

    marks: by the type of settings, the source that `--help` shows for values other than the
    fields' defaults.
    """
    registry = constructors.ConstructorRegistry()
    registry.primitive_rule(_integer)
    registry.primitive_rule(_float)
    registry.struct_rule(lambda info: _settings(info, marks or {}))
    with warnings.catch_warnings():
        # A schedule, such as `linear:3e-4:0`, is the default of some numbers.
        warnings.filterwarnings("ignore", "The field .* is annotated with type", UserWarning)
        parsed = tyro.cli(kind, prog=f"pronk {command}", args=args, registry=registry, **kwargs)
    fields.check(parsed)
    return parsed
