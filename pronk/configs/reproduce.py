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


EXPERIMENTS = {"r2d2-ablations": Ablations, "r2d2-staleness": Staleness}
