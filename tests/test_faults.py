"""When a part of a run dies, hangs or returns NaN, nothing saved is lost and the run goes on.

By default one fault of each mechanism; `pytest -m faults` also runs those marked `extended`: every
fault of every scenario, and a soak.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronk.errors import UserError
from tests.chaos import faults, soak
from tests.chaos.fragile import strike
from tests.chaos.harm import stop, training

pytestmark = pytest.mark.faults

# Faults of each scenario. The machines of a cluster are killed in test_ray.py.
ROWS = {
    "environment": 4, "environments": 4, "learner": 3, "checkpoint": 3, "disk": 1, "sigterm": 1,
    "inference": 1, "ray": 4,
}  # fmt: skip
# Those of which the default run has the first fault.
DEFAULT = ("disk", "sigterm")


def test_every_scenario_runs_here_or_with_the_cluster() -> None:
    assert {*ROWS, "node"} == {*faults.SCENARIOS}


def check(monkeypatch: pytest.MonkeyPatch, rows: int, **settings: Any) -> None:
    """Run a scenario; the time to recover is measured by `python -m tests.chaos.faults`."""
    monkeypatch.setattr(faults, "RECOVERY", 0.0)
    monkeypatch.setattr(faults, "AVERAGED", 2)
    result = faults.measure(faults.Faults(**settings))["rows"]
    assert len(result) == rows
    for row in result:
        if "can't be mounted" in row.get("phase", ""):
            pytest.skip(row["phase"])
        assert row["lost_steps"] == 0, row
        assert row["counters_go_back"] is False, row
        assert "NOT" not in row.get("phase", ""), row
        if "kill −9: learner" in row["fault"]:
            # A save takes a while itself, and longer on a busy machine.
            assert row["repeated_seconds"] < faults.CHECKPOINT_EVERY + 3, row


@pytest.mark.parametrize("name", DEFAULT)
def test_the_first_fault_loses_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, 1, only=name, first=True)


@pytest.mark.extended
@pytest.mark.parametrize("name", [name for name in ROWS if name not in DEFAULT or ROWS[name] > 1])
def test_all_faults_lose_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, ROWS[name], only=name)


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(UserError, match="`--only` has 'actors'; known are environment, ray"):
        faults.measure(faults.Faults(only="actors"))


@pytest.mark.extended
def test_a_soak_leaves_nothing_and_grows_nowhere() -> None:
    result = soak.measure(soak.Soak(seconds=9.0, every=2.5))
    assert result["faults"] >= 3
    assert result["orphans"] == result["blocks_left"] == 0
    assert result["counters_go_back"] is False
    assert result["lines_in_actor_faults_log"] + result["lines_in_env_faults_log"] > 0
    rows = {row["what"]: row for row in result["rows"]}
    # Too short a run to call memory flat, but long enough to see a leak at every step.
    memory = rows.pop("memory_mib")
    assert 0 < memory["at_the_end"] < 1.5 * memory["after_warming_up"], memory
    assert all(row["flat"] for row in rows.values()), result


def samples(steps: int, directory: Path, *flags: str) -> Iterator[dict[str, float]]:
    """Samples of a run whose environment leaks in the run's own process."""
    args = (*faults.SMALL, *faults.THREADS, "--env-arg", f"directory={directory}", "--actors", "1")
    with training(directory / "run", *args, *flags) as (process, run):
        run.wait_for_records(3)
        strike(directory, "leak")
        start = run.records()[-1]["steps"]
        while run.records()[-1]["steps"] < start + steps:
            yield soak.sample(process.pid)
            run.wait_for_records(1)
        stop(process, run)


@pytest.mark.extended
def test_the_soak_finds_a_leak(tmp_path: Path) -> None:
    grown = soak.growth(list(samples(3000, tmp_path)))
    assert not grown["descriptors"]["flat"], grown
    assert not grown["memory_mib"]["flat"], grown
    assert grown["threads"]["flat"], grown
    assert grown["processes"]["flat"], grown


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
