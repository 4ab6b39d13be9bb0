"""`pronk inspect`: what a run's directory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from pronk.config.json_files import read_object
from pronk.config.spec import Plan, run_of
from pronk.run.policy import newest
from pronk.storage.array_file import UnreadableFile, digest
from pronk.storage.checkpoint import Loaded


def inspect(run_dir: Path) -> dict[str, Any]:
    """Configuration and counters of a run, and a SHA-256 of its learner's state.

    Raises UserError where there is no run or no valid checkpoint.
    """
    run_dir = run_of(run_dir)
    Plan.load(run_dir)  # refuses another format
    loaded = newest(run_dir)
    return {
        "run": str(run_dir),
        "checkpoint": str(loaded.path),
        "warnings": loaded.warnings,
        **_counters(loaded),
        "config": read_object(run_dir / "config.json"),
    }


def _counters(loaded: Loaded) -> dict[str, Any]:
    """What a checkpoint holds; raises UnreadableFile for one that is not of a run."""
    try:
        learner: Any = loaded.tree("learner")
        return {
            "agent_steps": loaded.steps,
            "updates": int(learner["updates"]),
            "skipped_updates": int(learner["skipped"]),
            "episodes": int(loaded.meta["episodes"]),
            "wall_seconds": round(float(loaded.meta["wall_seconds"]), 1),
            "parameters": int(sum(x.size for x in jax.tree.leaves(learner["params"]))),
            # The present values, which differ from `config` in a member of a population.
            "hyper": {name: float(value) for name, value in sorted(learner["hyper"].items())},
            "learner_sha256": digest(learner),
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UnreadableFile(
            loaded.path, f"is not the checkpoint of a run: {error!r}; put back a copy of it."
        ) from None
