"""The benchmarks' settings. Imports neither jax nor an environment, so that --help is quick."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.errors import UserError

Network = Literal["shallow", "deep"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What all benchmarks have."""

    json: str | None = None
    """Write JSON to this file; - for standard output."""


@dataclass(frozen=True, kw_only=True)
class Learner(Benchmark):
    """The learner's update: milliseconds, and the share of the machine's peak arithmetic."""

    network: Network = "shallow"
    """Network of the IMPALA paper's figure 3."""
    unroll: int = 20
    """Agent steps per trajectory."""
    batch_size: int = 32
    """Trajectories per update."""
    seconds: float = 20.0
    """How long to measure, after compilation."""


@dataclass(frozen=True, kw_only=True)
class Throughput(Benchmark):
    """Environment, inference and learner alone on one core each, and training on all cores."""

    env: str = "ALE/Breakout-v5"
    """Environment to step."""
    network: Network = "shallow"
    """Network of the IMPALA paper's figure 3; environments without pixels get the MLP."""
    actors: int = 2
    """Actors of the end-to-end measurement."""
    envs_per_actor: int = 16
    """Environments per actor; the parts alone step and act for one actor's environments."""
    unroll: int = 20
    """Agent steps per trajectory."""
    batch_size: int = 8
    """Trajectories per update."""
    seconds: float = 30.0
    """How long to measure end to end, after compilation; each part alone gets a third of it."""


@dataclass(frozen=True, kw_only=True)
class Fused(Benchmark):
    """The fused runtime: agent steps per second, with and without the update."""

    num_envs: int = 256
    """Environments."""
    unroll: int = 20
    """Agent steps per update."""
    seconds: float = 10.0
    """How long each measurement takes, after compilation."""


@dataclass(frozen=True, kw_only=True)
class Population(Benchmark):
    """A population in one program, against its members as single fused runs one after another."""

    env: str = "pronk/Catch-v0"
    """Environment, one of pronk's own in JAX."""
    members: int = 24
    """Members of the population, and single runs."""
    steps: int = 200_000
    """Rows per member: agent steps, and dummy steps between episodes."""
    num_envs: int = 16
    """Environments per member."""
    unroll: int = 20
    """Agent steps per update."""
    compiled_each: bool = True
    """Also measure single runs that each compile their program, as 24 commands would."""
    vmapped: bool = False
    """Also measure a vmapped population on a CPU, where a population runs member by member."""


@dataclass(frozen=True, kw_only=True)
class Architectures(Benchmark):
    """IMPALA's throughput table: six architectures, on environments that sleep and on Atari."""

    tasks: tuple[str, ...] = ("even", "uneven", "ALE/Breakout-v5")
    """even: every step sleeps 10 ms ± 5 %. uneven: 10 ms ± 50 %, and resets of 0.5 to 3 s. Any
    other name is an environment's id."""
    architectures: tuple[str, ...] = ()
    """Measure only these. [all]"""
    num_envs: int = 48
    """Environments in the tasks even and uneven."""
    num_atari_envs: int = 32
    """Environments in other tasks."""
    actor_cores: int = 1
    """Cores that the actors' threads share in the tasks even and uneven."""
    network: Network = "shallow"
    """Network of the IMPALA paper's figure 3."""
    unroll: int = 20
    """Agent steps per trajectory."""
    seconds: float = 30.0
    """How long to measure each row, after a third of it to warm up."""


@dataclass(frozen=True, kw_only=True)
class Replay(Benchmark):
    """The replay of stacked frames: insertions, samples and updates per second, and its size."""

    observations: int = 100_000
    """Observations (84 × 84 × 4) to fill it with; a million take 8 GB."""
    num_envs: int = 32
    """Environments whose trajectories are inserted together."""
    unroll: int = 20
    """Agent steps per trajectory."""
    batch_size: int = 64
    """Sequences per sample, each of 40 rows of burn-in and 80 transitions, overlapping by 40."""
    compress: bool = False
    """Compress the frames."""
    seconds: float = 5.0
    """How long to measure sampling, and then updating priorities."""


@dataclass(frozen=True, kw_only=True)
class Intrinsic(Benchmark):
    """Intrinsic rewards: what they cost an actor of NGU, by size of the memory, and the learner."""

    env: str = "ALE/Breakout-v5"
    """Environment to step."""
    preset: str = "auto"
    """NGU's preset, whose networks and sequences all agents get."""
    memory_sizes: tuple[int, ...] = (5000, 30_000)
    """Embeddings that each environment remembers."""
    num_envs: int = 16
    """Environments of the actor."""
    seconds: float = 5.0
    """How long each measurement takes, after compilation."""


@dataclass(frozen=True, kw_only=True)
class Search(Benchmark):
    """MuZero's search: simulations per second by batch size, beside those of mctx."""

    batch_sizes: tuple[int, ...] = (1, 16, 64, 256)
    """Searches side by side."""
    simulations: tuple[int, ...] = (8, 32, 50)
    """Simulations of each search."""
    algorithms: tuple[Literal["puct", "gumbel"], ...] = ("puct", "gumbel")
    """How the tree is searched."""
    max_depth: int = 8
    """Steps that a simulation goes from the root at most."""
    actions: int = 9
    """Actions."""
    units: int = 128
    """Units of the model's states and layers."""
    seconds: float = 1.0
    """How long each measurement takes, after compilation."""


BENCHMARKS: dict[str, type[Benchmark]] = {
    "learner": Learner,
    "throughput": Throughput,
    "fused": Fused,
    "population": Population,
    "architectures": Architectures,
    "replay": Replay,
    "intrinsic": Intrinsic,
    "search": Search,
}


def check(settings: Any) -> None:
    """Raise UserError for a number that is not finite and above zero, and for a list without
    anything where there are values by default."""
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), field.name.replace("_", "-")
        if value == () and field.default != ():
            raise UserError(f"`--{flag}` is given without a value; expected at least one.")
        for each in value if isinstance(value, tuple) else (value,):
            is_number = isinstance(each, int | float) and not isinstance(each, bool)
            if is_number and not 0 < each < math.inf:
                raise UserError(f"`--{flag}` is {each}; expected a finite number above zero.")
