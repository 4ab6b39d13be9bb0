"""Whatever dies, hangs or lies: nothing committed is lost, and the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pronk.errors import UserError
from pronk.experiments.bench import faults, soak
from pronk.experiments.bench.fragile import strike
from pronk.experiments.bench.harm import stopped, training

pytestmark = pytest.mark.faults

# The machines of a cluster are killed in test_ray.py.
ROWS = {
    "environment": 4, "actor": 4, "ray": 4, "learner": 3, "inference": 1, "sigterm": 1,
    "environments": 4, "disk": 1, "checkpoint": 3,
}  # fmt: skip


def test_every_scenario_is_run_here_or_with_the_cluster() -> None:
    assert {*ROWS, "node"} == {*faults.SCENARIOS}


@pytest.mark.parametrize("name", ROWS)
def test_nothing_committed_is_lost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # How soon is for `pronk bench faults`, on a machine that does nothing else.
    monkeypatch.setattr(faults, "RECOVERY", 0.0)
    monkeypatch.setattr(faults, "AVERAGED", 2)
    rows = faults.measure(faults.Faults(only=name))["rows"]
    assert len(rows) == ROWS[name]
    for row in rows:
        if "can't be mounted" in row.get("phase", ""):
            pytest.skip(row["phase"])
        assert row["lost_steps"] == 0, row
        assert not row.get("counters_go_back"), row
        assert "NOT" not in row.get("phase", ""), row
        # A save takes a while itself, and a busy machine longer.
        assert row.get("repeated_seconds", 0) < faults.CHECKPOINT_EVERY + 3, row


def test_an_unknown_scenario_is_told() -> None:
    with pytest.raises(UserError, match="`--only` has 'actors'; known are environment, actor"):
        faults.measure(faults.Faults(only="actors"))


def test_a_soak_leaves_nothing_and_grows_nowhere() -> None:
    found = soak.measure(soak.Soak(seconds=9.0, every=2.5))
    assert found["faults"] >= 3
    assert found["orphans"] == found["blocks_left"] == 0
    assert not found["counters_go_back"]
    assert found["lines_in_actor_faults_log"] + found["lines_in_env_faults_log"] > 0
    flat = {row["what"]: row["flat"] for row in found["rows"]}
    assert flat.pop("memory_mib") in (True, False)  # too short a run to tell
    assert all(flat.values()), found


def samples(steps: int, directory: Path, *flags: str) -> Iterator[dict[str, float]]:
    """Of a run whose environment leaks in the run's own process, for so many agent steps."""
    args = ("impala", faults.ENV, "--env-arg", f"directory={directory}", "--env-workers", "0",
            "--actors", "1", "--envs-per-actor", "2", "--unroll", "10", "--batch-size", "2",
            "--hidden-sizes", "8", "--torso", "mlp", *flags)  # fmt: skip
    with training(directory / "run", *args) as (process, run):
        run.goes_on(3)
        strike(directory, "leak")
        start = run.records()[-1]["steps"]
        while run.records()[-1]["steps"] < start + steps:
            yield soak.sample(process.pid)
            run.goes_on(1)
        stopped(process, run)


def test_a_leak_made_on_purpose_is_found(tmp_path: Path) -> None:
    """By the check that the soak makes."""
    found = soak.growth(list(samples(3000, tmp_path)))
    assert not found["descriptors"]["flat"], found
    assert not found["memory_mib"]["flat"], found
    assert found["threads"]["flat"]
    assert found["processes"]["flat"]


def test_noise_is_no_growth() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        {
            "memory_mib": rng.normal(300, 5), "descriptors": rng.integers(30, 36),
            "threads": 20, "processes": rng.integers(2, 4), "blocks": rng.integers(8, 11),
        }
        for _ in range(200)
    ]  # fmt: skip
    assert all(x["flat"] for x in soak.growth(noisy).values())
    rising = [{**s, "memory_mib": s["memory_mib"] + i * 0.3} for i, s in enumerate(noisy)]
    assert not soak.growth(rising)["memory_mib"]["flat"]
