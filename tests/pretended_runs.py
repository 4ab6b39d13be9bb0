"""Runs that are pretended, so that an experiment takes no time: what a run leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from pronk.config.spec import Plan
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.files import write_json_atomically

RECORDS = 10


def write(
    plan: Plan, level: float, further: Callable[[int], dict[str, Any]] = lambda i: {}
) -> dict[str, Any]:
    """Write RECORDS records of training, and as many evaluations, whose scores rise to `level` in
    equal parts; returns the summary. further: of record i, from 1 on."""
    directory, steps = plan.directory, plan.run.steps
    directory.mkdir(parents=True)
    write_json_atomically(directory / "config.json", plan.as_json())
    with (directory / "metrics.jsonl").open("w") as file:
        for i in range(1, RECORDS + 1):
            at = {"steps": steps * i // RECORDS}
            record = {**at, "episodes": 5 * i, "wall_seconds": float(i), **further(i)}
            file.write(json.dumps({**record, "mean_return": 0.01}) + "\n")
            found = {"eval/mean_return": level * i / RECORDS, "eval/episodes": 50}
            file.write(json.dumps({**at, **found}) + "\n")
    meta = {"tally": {"total": [0.5], "squares": [1.0], "count": [50]}}
    trees = {"learner": {"x": np.zeros(1)}}
    Checkpointer(directory / "checkpoints").save(steps, trees, meta, block=True)
    summary = {"status": "finished"}
    write_json_atomically(directory / "summary.json", summary)
    return summary
