"""What the benchmarks can be told. Imports neither jax nor an environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Network = Literal["shallow", "deep"]


@dataclass(frozen=True)
class Learner:
    """The learner's update: milliseconds, and how much of the machine's arithmetic it uses."""

    network: Network = "shallow"
    """Of the IMPALA paper's figure 3."""
    unroll: int = 20
    """Agent steps per trajectory."""
    batch: int = 32
    """Trajectories per update."""
    seconds: float = 20.0
    """To measure for, after compiling."""
    json: str | None = None
    """Write JSON here; - for standard output."""


@dataclass(frozen=True)
class Throughput:
    """Environment, inference and learner alone on one core each, and all of it on all cores."""

    env: str = "ALE/Breakout-v5"
    """Environment to step."""
    network: Network = "shallow"
    """Of the IMPALA paper's figure 3; environments without pixels get the MLP."""
    actors: int = 2
    """Actors end to end, each with `--envs` environments."""
    envs: int = 16
    """Environments per actor; also stepped, and acted for, together in the parts alone."""
    unroll: int = 20
    """Agent steps per trajectory."""
    batch: int = 8
    """Trajectories per update."""
    seconds: float = 30.0
    """To measure end to end, after compiling; each part alone gets a third of it."""
    json: str | None = None
    """Write JSON here; - for standard output."""


@dataclass(frozen=True)
class Fused:
    """The fused runtime: steps/s, against the same scan without the update."""

    envs: int = 256
    """Environments."""
    unroll: int = 20
    """Agent steps per update."""
    seconds: float = 10.0
    """To measure for, after compiling, each."""
    json: str | None = None
    """Write JSON here; - for standard output."""


@dataclass(frozen=True)
class Population:
    """A population in one program, against its members as single fused runs one after another."""

    env: str = "pronk/Catch-v0"
    """Environment, one of pronk's own in JAX."""
    members: int = 24
    """Of the population, and single runs."""
    steps: int = 200_000
    """Rows of each member: agent steps, and dummies between episodes."""
    envs: int = 16
    """Environments of each member."""
    unroll: int = 20
    """Agent steps per update."""
    compiled_each: bool = True
    """Measure also single runs that each compile their program, as 24 commands would."""
    vmapped: bool = False
    """Measure vmapping also on a CPU, where it is not what a population does."""
    json: str | None = None
    """Write JSON here; - for standard output."""


@dataclass(frozen=True)
class Architectures:
    """IMPALA's throughput table: six architectures, on environments that wait and on Atari."""

    tasks: tuple[str, ...] = ("even", "uneven", "ALE/Breakout-v5")
    """even: every step waits 10 ms, ± 5 %. uneven: 10 ms ± 50 %, and resets of 0.5 to 3 s. Others
    are environments' ids."""
    architectures: tuple[str, ...] = ()
    """Some of them only. [all]"""
    envs: int = 48
    """Environments that wait."""
    atari_envs: int = 32
    """Environments of other tasks."""
    actor_cores: int = 1
    """Cores that the actors' threads share, on environments that wait."""
    network: Network = "shallow"
    """Of the IMPALA paper's figure 3."""
    unroll: int = 20
    """Agent steps per trajectory."""
    seconds: float = 30.0
    """To measure each row for, after a third of it to warm up."""
    json: str | None = None
    """Write JSON here; - for standard output."""


@dataclass(frozen=True)
class Replay:
    """The replay of stacked frames: insertions, draws and priorities per second, and its size."""

    observations: int = 100_000
    """84 × 84 × 4 observations that it is filled with; a million take 8 GB."""
    envs: int = 32
    """Environments whose trajectories are inserted together."""
    unroll: int = 20
    """Agent steps per trajectory."""
    batch: int = 64
    """Sequences per draw, each of 40 rows of burn-in and 80 transitions, overlapping by 40."""
    compress: bool = False
    """Pack the frames."""
    seconds: float = 5.0
    """To measure draws, and then priorities."""
    json: str | None = None
    """Write JSON here; - for standard output."""


@dataclass(frozen=True)
class Faults:
    """What is lost, and how soon a run recovers, when a part of it dies, hangs or lies."""

    only: str | None = None
    """Scenarios, by commas: environment, actor, ray, node, learner, inference, sigterm,
    environments, disk, checkpoint. [all]"""
    json: str | None = None
    """Write JSON here; - for standard output."""


@dataclass(frozen=True)
class Soak:
    """A run with a fault every few seconds: do memory, descriptors, threads or processes grow?"""

    seconds: float = 1800.0
    """To train for."""
    every: float = 10.0
    """Seconds between faults."""
    json: str | None = None
    """Write JSON here; - for standard output."""


BENCHMARKS = {
    "learner": Learner,
    "throughput": Throughput,
    "fused": Fused,
    "population": Population,
    "architectures": Architectures,
    "replay": Replay,
    "faults": Faults,
    "soak": Soak,
}
