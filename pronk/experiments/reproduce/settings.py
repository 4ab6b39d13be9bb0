"""What the experiments can be told. Imports neither jax nor an environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Staleness:
    """R2D2's recurrent states in replay: how wrong they are, and what memory is good for."""

    seeds: int = 5
    """Runs of each training strategy."""
    steps: int = 60_000
    """Agent steps per run."""
    output: Path = Path("runs") / "r2d2-staleness"
    """Where the runs' figures are kept; interrupted, the same command goes on."""
    results: Path = Path("runs") / "r2d2-staleness"
    """Where the table (CSV) and the picture (PNG) are written."""
    quick: bool = False
    """Two seeds and a third of the steps: some minutes."""


@dataclass(frozen=True)
class Ablations:
    """R2D2 without one of its parts each, and with a lost life as an end."""

    seeds: int = 3
    """Runs of each variant."""
    steps: int = 200_000
    """Agent steps per run."""
    output: Path = Path("runs") / "r2d2-ablations"
    """Where the runs are kept; interrupted, the same command goes on."""
    results: Path = Path("runs") / "r2d2-ablations"
    """Where the tables (CSV) and the picture (PNG) are written."""
    quick: bool = False
    """One seed and a third of the steps: some minutes."""


@dataclass(frozen=True)
class TDLambda:
    """TD(λ), on-line and off-line, on the random walk: its error against λ and step size."""

    seeds: int = 100
    """Runs of 10 episodes that each figure is a mean of."""
    results: Path = Path("runs") / "td-lambda"
    """Where the table (CSV) and the picture (PNG) are written."""
    quick: bool = False
    """A fifth of the runs."""


@dataclass(frozen=True)
class VTraceAnalysis:
    """V-trace's operator on random MDPs: its fixed points, how fast it gets there, what c̄ costs."""

    seeds: int = 20
    """Random MDPs."""
    results: Path = Path("runs") / "vtrace-analysis"
    """Where the tables (CSV) and the picture (PNG) are written."""
    quick: bool = False
    """A fifth of the MDPs."""


@dataclass(frozen=True)
class VTraceAblation:
    """V-trace, 1-step, ε-correction and no correction on five tasks, with and without replay."""

    seeds: int = 5
    """Runs of what is best of the grid, whose learning rate and entropy cost two others chose."""
    scale: float = 1.0
    """How much of each task's agent steps is trained for."""
    tasks: tuple[str, ...] = ()
    """Some of them only. [all]"""
    output: Path = Path("runs") / "vtrace-ablation"
    """Where the runs' figures are kept; interrupted, the same command goes on."""
    results: Path = Path("runs") / "vtrace-ablation"
    """Where the tables (CSV) and the picture (PNG) are written."""
    quick: bool = False
    """The three smallest tasks, three seeds, half of the steps: some minutes."""


@dataclass(frozen=True)
class PolicyLag:
    """Return against how many updates old the actors' parameters are, for each correction."""

    seeds: int = 5
    """Runs of each correction at each lag."""
    scale: float = 1.0
    """How much of each task's agent steps is trained for."""
    tasks: tuple[str, ...] = ()
    """Some of them only. [all]"""
    output: Path = Path("runs") / "policy-lag"
    """Where the runs' figures are kept; interrupted, the same command goes on."""
    results: Path = Path("runs") / "policy-lag"
    """Where the table (CSV) and the picture (PNG) are written."""
    quick: bool = False
    """The smallest task, three seeds, half of the steps: some minutes."""


@dataclass(frozen=True)
class PopArt:
    """PopArt, ART, clipped and unclipped IMPALA on a suite of reward scales from 0.01 to 10,000."""

    seeds: int = 5
    """Runs of each agent with its best learning rate, which two others chose."""
    scale: float = 1.0
    """How much of the agent steps is trained for."""
    debias: bool = True
    """Whether statistics forget at once what they began with (an agent's `--popart-debias`)."""
    output: Path = Path("runs") / "popart"
    """Where the runs' figures are kept; interrupted, the same command goes on."""
    results: Path = Path("runs") / "popart"
    """Where the tables (CSV) and the pictures (PNG) are written."""
    quick: bool = False
    """Two seeds, a seventh of the steps: some minutes, and too short to learn the harder tasks."""


@dataclass(frozen=True)
class PopArtAtari:
    """PopArt, unclipped and clipped IMPALA on four Atari games at once, with raw rewards."""

    steps: int = 2_200_000
    """Agent steps of each agent, of all games together: 25 minutes each on two cores."""
    seed: int = 0
    """Of the runs."""
    episodes: int = 20
    """Games of each kind that are played in the end, with sampled actions."""
    output: Path = Path("runs") / "popart-atari"
    """Where the runs are kept; interrupted, the same command goes on."""
    results: Path = Path("runs") / "popart-atari"
    """Where the tables (CSV) and the picture (PNG) are written."""
    quick: bool = False
    """A twenty-fifth of the steps: some minutes, in which nothing is learnt yet."""


@dataclass(frozen=True)
class PBT:
    """A population that adapts its hyperparameters against as many fixed random draws of them."""

    seeds: int = 10
    """Populations of each kind on each task."""
    population: int = 24
    """Members of each."""
    scale: float = 1.0
    """How much of each task's agent steps is trained for."""
    tasks: tuple[str, ...] = ()
    """Some of them only. [all]"""
    output: Path = Path("runs") / "pbt"
    """Where the populations are kept; interrupted, the same command goes on."""
    results: Path = Path("runs") / "pbt"
    """Where the table (CSV) and the pictures (PNG) are written."""
    quick: bool = False
    """One seed, twelve members: some minutes."""


EXPERIMENTS = {
    "pbt": PBT,
    "policy-lag": PolicyLag,
    "popart": PopArt,
    "popart-atari": PopArtAtari,
    "r2d2-ablations": Ablations,
    "r2d2-staleness": Staleness,
    "td-lambda": TDLambda,
    "vtrace-ablation": VTraceAblation,
    "vtrace-analysis": VTraceAnalysis,
}
