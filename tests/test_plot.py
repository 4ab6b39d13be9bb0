"""Plots and CSV of runs; the look of the plots was judged by eye."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest

from pronk.errors import UserError
from pronk.run import plot as module
from pronk.run.plot import plot


def make_run(
    path: Path,
    *,
    agent: str = "impala",
    env: str = "ALE/Pong-v5",
    seed: int = 0,
    points: int = 50,
    last: int = 10_000_000,
    entropy: float = 0.01,
    **run: Any,
) -> Path:
    path.mkdir(parents=True)
    config = {
        "agent": agent,
        "env": env,
        "run": {"steps": last, "seed": seed, "run_dir": str(path), **run},
        "agent_config": {"entropy_cost": entropy, "torso": {"kind": "deep"}},
        "env_args": {},
    }
    (path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng([seed, len(agent)])
    steps = np.linspace(0, last, points + 1)[1:].astype(int)
    returns = -21 + 42 / (1 + np.exp(4 - 9 * steps / 10_000_000)) + rng.normal(0, 1.5, points)
    with open(path / "metrics.jsonl", "w") as file:
        for i, (s, r) in enumerate(zip(steps.tolist(), returns.tolist(), strict=True)):
            value = None if i == 0 else r  # no episode has ended yet
            line = {"steps": s, "wall_seconds": s / 2000, "mean_return": value, "bound_by": "x"}
            file.write(json.dumps(line) + "\n")
    return path


def groups(*paths: Path) -> dict[str, int]:
    runs = [module._read(path, "steps", "mean_return") for path in paths]
    return {label: len(members) for label, members in module._by_settings(runs)}


def pixels(path: Path, colour: str) -> int:
    """How many pixels of a picture have nearly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    image = imageio.imread(path)[..., :3].astype(int)
    return int((np.abs(image - wanted).sum(-1) < 10).sum())


def assert_picture(path: Path) -> None:
    height, width = imageio.imread(path).shape[:2]
    assert height > 500
    assert width > 800
    assert pixels(path, module.COLOURS[0]) > 500
    assert pixels(path, "#FFFFFF") > height * width / 2


def test_seeds_become_one_curve(tmp_path: Path) -> None:
    seeds = [make_run(tmp_path / f"s{i}", seed=i, quiet=bool(i)) for i in range(3)]
    assert groups(*seeds) == {"impala ALE/Pong-v5": 3}
    output = plot(seeds, tmp_path / "pictures" / "curve.png", title="Pong", smooth=3)
    assert output == tmp_path / "pictures" / "curve.png"
    assert_picture(output)


def test_one_run_and_other_formats(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert_picture(plot([run], tmp_path / "a.png", x="wall_seconds"))
    assert plot([run], tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    assert plot([run], tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_labels_say_what_differs_and_no_more(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", entropy=0.001)
    c = make_run(tmp_path / "c", entropy=0.001, seed=1)
    d = make_run(tmp_path / "d", agent="r2d2", entropy=3)
    assert groups(a, b, c, d) == {
        "impala ALE/Pong-v5 entropy_cost=0.01": 1,
        "impala ALE/Pong-v5 entropy_cost=0.001": 2,
        "r2d2 ALE/Pong-v5": 1,
    }


def test_many_runs_remain_distinguishable(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), entropy=i / 100, seed=i, points=20) for i in range(10)]
    plot(runs, tmp_path / "a.png")
    assert all(pixels(tmp_path / "a.png", colour) > 100 for colour in module.COLOURS)
    svg = plot(runs, tmp_path / "a.svg").read_text()
    assert svg.count("stroke-dasharray") > 0  # the eighth has the first one's colour


def test_seeds_are_averaged_where_all_of_them_are() -> None:
    x, y = np.arange(5.0), np.zeros(5)
    grid, values = module.on_common_grid([(x, y), (x[1:3], y[1:3] + 1)])
    assert (grid[0], grid[-1]) == (1, 2)
    np.testing.assert_allclose(values.mean(0), 0.5)
    grid, values = module.on_common_grid([(x, y), (x + 10, y)])
    assert values.shape == (2, 0)


def test_seeds_without_common_range_are_still_drawn(tmp_path: Path) -> None:
    early = make_run(tmp_path / "a", seed=0, last=1000)
    config = json.loads((early / "config.json").read_text())
    config["run"]["steps"] = 10_000_000
    (early / "config.json").write_text(json.dumps(config))
    late = make_run(tmp_path / "b", seed=1)
    assert set(groups(early, late).values()) == {2}
    assert plot([early, late], tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("largest", "seconds", "unit"),
    [
        (1_500, False, ("", 1)),
        (50_000, False, ("thousands", 1e3)),
        (1_999_999, False, ("thousands", 1e3)),
        (2e9, False, ("billions", 1e9)),
        (100, True, ("seconds", 1)),
        (3600, True, ("minutes", 60)),
        (86_400, True, ("hours", 3600)),
    ],
)
def test_units_of_axes(largest: float, seconds: bool, unit: tuple[str, float]) -> None:
    assert module._unit(largest, seconds) == unit


def test_labels_of_axes_are_phrases() -> None:
    assert module._label("mean_return") == "mean return of the last 100 episodes"
    assert module._label("loss/value") == "value loss"
    assert module._label("return/Pong") == "mean return of the last 100 episodes of Pong"
    assert module._label("kl_divergence") == "kl divergence"


def test_smoothing() -> None:
    values = np.array([1.0, 3.0, 5.0, 100.0])
    np.testing.assert_allclose(module._smoothed(values, 1), values)
    np.testing.assert_allclose(module._smoothed(values, 2), [1, 2, 4, 52.5])
    np.testing.assert_allclose(module._smoothed(values, 99), [1, 2, 3, 27.25])


def test_csv_has_the_points_as_recorded(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{i}", seed=i, points=4) for i in range(2)]
    plot(runs, tmp_path / "a.png", smooth=3, csv=tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "seed", "steps", "wall_seconds", "mean_return"]
    assert [row["seed"] for row in rows] == ["0"] * 3 + ["1"] * 3  # the first has no return yet
    records = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    assert float(rows[-1]["mean_return"]) == records[-1]["mean_return"]
    assert rows[-1]["steps"] == "10000000"
    assert rows[-1]["run"] == str(runs[1])


def test_a_run_being_written_can_be_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", points=2)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"steps": 3')
    assert plot([run], tmp_path / "a.png").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", points=3)
    output = tmp_path / "a.png"
    with pytest.raises(UserError, match="no run directories"):
        plot([], output)
    with pytest.raises(UserError, match=r"not the directory of a run.*config\.json"):
        plot([tmp_path / "absent"], output)
    with pytest.raises(UserError, match="no metric `mean_retrun`; did you mean 'mean_return'"):
        plot([run], output, y="mean_retrun")
    with pytest.raises(UserError, match="no metric `time`"):
        plot([run], output, x="time")
    with pytest.raises(UserError, match="`smooth` is 0"):
        plot([run], output, smooth=0)
    with pytest.raises(UserError, match=r"a\.doc. is no picture"):
        plot([run], tmp_path / "a.doc")
    with pytest.raises(UserError, match="no values of `mean_return`"):
        plot([make_run(tmp_path / "young", points=1)], output)
    with pytest.raises(UserError, match="move away the file"):
        plot([run], run / "config.json" / "a.png")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no records yet"):
        plot([run], output)
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        plot([run], output)
    assert not output.exists()
