"""`pronk inspect`: what a run's directory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from pronk.config.spec import Plan, run_of
from pronk.run.policy import newest
from pronk.storage.array_file import digest


def inspect(run_dir: Path) -> dict[str, Any]:
    """Configuration and counters of a run, and a SHA-256 of its learner's state.

    Raises UserError where there is no run or no valid checkpoint.
    """
    run_dir = run_of(run_dir)
    plan = Plan.load(run_dir)
    loaded = newest(run_dir)
    learner = loaded.tree("learner")
    assert isinstance(learner, dict)
    return {
        "run": str(run_dir),
        "checkpoint": str(loaded.path),
        "warnings": loaded.warnings,
        "agent_steps": loaded.steps,
        "updates": int(learner["updates"]),
        "skipped_updates": int(learner["skipped"]),
        "episodes": loaded.meta["episodes"],
        "wall_seconds": round(loaded.meta["wall_seconds"], 1),
        "parameters": int(sum(x.size for x in jax.tree.leaves(learner["params"]))),
        # The present values, which differ from `config` in a member of a population.
        "hyper": {name: float(value) for name, value in sorted(learner["hyper"].items())},
        "learner_sha256": digest(learner),
        "config": plan.as_json(),
    }
