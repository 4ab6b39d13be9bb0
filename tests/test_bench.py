"""The benchmarks: their output and that its numbers are consistent. Speed is not tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pronk import cli
from pronk.experiments import bench
from pronk.experiments.bench import fused, timing
from pronk.experiments.bench.timing import forward_flops, random_batch
from pronk.run.resolve import resolve
from pronk.run.setup import build, initial_state


def run(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    cli.main(["bench", *map(str, args), "--json", "-"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.extended
def test_learner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MATRIX", 512)  # a product of a tenth of a second, or less
    result = run(capsys, "learner", "--unroll", 2, "--batch-size", 2, "--seconds", 0.1)
    per_second = 4 / (result["milliseconds_per_update"] / 1e3)
    assert result["steps_per_second"] == pytest.approx(per_second)
    share = result["gigaflops"] / result["matrix_product_gigaflops"]
    assert result["share_of_matrix_product"] == pytest.approx(share)
    assert 0 < share < 1


@pytest.mark.extended
def test_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--envs-per-actor", 4, "--batch-size", 4, "--unroll", 5, "--seconds", 0.6]
    result = run(capsys, "throughput", "--env", "CartPole-v1", *flags)
    parts = [result[f"{part}_steps_per_second_per_core"] for part in ("env", "act", "learn")]
    limit = result["cores"] / sum(1 / part for part in parts)
    assert result["limit_steps_per_second"] == pytest.approx(limit)
    assert result["end_to_end_steps_per_second"] > 0
    assert result["in_turn_steps_per_second_per_core"] > 0
    assert {"bound_by", "policy_lag", "learner_waits_share", "actor_waits_share"} <= result.keys()


@pytest.mark.parametrize("flags", [[], ["--compress"]])
def test_replay(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    size = ["--observations", 3000, "--num-envs", 4, "--batch-size", 4, "--seconds", 0.1]
    result = run(capsys, "replay", *size, *flags)
    for name in ("inserts_per_second", "samples_per_second", "updates_per_second"):
        assert result[name] > 0
    assert result["sequences"] > 50
    assert result["compressed"] == bool(flags)
    assert result["bytes_per_observation"] < 40_000  # stacks would be more than 28,224


@pytest.mark.extended
def test_fused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"pronk/Breakout-v0", "suite/scales-v0, PopArt"} < set(fused.CASES)
    two, popart = "pronk/Catch-v0,pronk/DeepSea-v0", {"value_normalisation": "popart"}
    small = {
        "pronk/Catch-v0": ("pronk/Catch-v0", {"hidden_sizes": (8,)}),
        "two, PopArt": (two, {"hidden_sizes": (8,), **popart}),
    }
    monkeypatch.setattr(fused, "CASES", small)
    path = tmp_path / "fused.json"
    flags = ["--num-envs", "4", "--unroll", "5", "--seconds", "0.05"]
    cli.main(["bench", "fused", *flags, "--json", str(path)])
    shown = capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [row["env"] for row in rows] == list(fused.CASES)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["steps_per_second"] / row["without_update"])
        assert row["env"] in shown
    with pytest.raises(SystemExit):
        cli.main(["bench", "fused", "--num-envs", "1"])
    assert "1 of the 2 tasks" in capsys.readouterr().err


@pytest.mark.extended
def test_intrinsic(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--env", "pronk/DeepSea-v0", "--memory-sizes", 20, "--num-envs", 2, "--seconds", 0.1]
    result = run(capsys, "intrinsic", *flags)
    rows = result["rows"]
    assert [(row["agent"], row["memory"]) for row in rows] == [("r2d2", 0), ("ngu", 0), ("ngu", 20)]
    for row in rows:
        step = result["env_milliseconds"] + row["acting_ms"]
        assert row["step_ms"] == pytest.approx(step)
        assert row["steps_per_second"] == pytest.approx(2e3 / step)
        assert row["intrinsic_share"] == pytest.approx(1 - rows[0]["step_ms"] / step)
    parts = {"embedding_ms", "neighbours_ms", "lifelong_ms"}
    assert [parts & row.keys() for row in rows] == [set(), {"lifelong_ms"}, parts]
    ratio = result["agent57_update_milliseconds"] / result["ngu_update_milliseconds"]
    assert result["agent57_update_of_ngu"] == pytest.approx(ratio)


@pytest.mark.extended
def test_search(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--batch-sizes", 3, "--simulations", 2, 4, "--units", 4]
    rows = run(capsys, "search", *sizes, "--seconds", 0.05)["rows"]
    cases = [(row["algorithm"], row["batch"], row["simulations"]) for row in rows]
    assert cases == [(name, 3, n) for name in ("puct", "gumbel") for n in (2, 4)]
    for row in rows:
        ratio = row["simulations_per_second"] / row["of_mctx"]
        assert row["ratio"] == pytest.approx(ratio)


@pytest.mark.extended
def test_architectures(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("async", "sync-step")
    flags = ["--tasks", "even", "--architectures", *names, "--num-envs", 2, "--unroll", 2]
    rows = run(capsys, "architectures", *flags, "--seconds", 0.1)["rows"]
    assert [row["architecture"] for row in rows] == list(names)
    assert [(row["actors"], row["envs_per_actor"]) for row in rows] == [(2, 1), (1, 2)]
    # Each of two environments sleeps 10 ms per step.
    assert all(0 < row["steps_per_second"] < 220 for row in rows)


def test_floating_point_operations_are_those_of_the_network() -> None:
    """Figure 3, left: two convolutions, a dense layer and the heads, by hand."""
    plan = resolve("impala", "ALE/Breakout-v5")
    spec, agent = build(plan, plan.env)
    by_hand = 2 * (400 * 256 * 16 + 81 * 256 * 32 + 2592 * 256 + 256 * 5)
    counted = forward_flops(agent, spec, initial_state(plan, agent))
    assert by_hand <= counted <= 1.1 * by_hand


def test_a_random_batch_is_the_agents_own() -> None:
    plan = resolve(
        "impala", "CartPole-v1", recurrent_core="lstm", recurrent_units=4, hidden_sizes=(8,)
    )
    spec, agent = build(plan, plan.env)
    state = initial_state(plan, agent)
    gradients = jax.jit(agent.halves.gradients)  # type: ignore[arg-type]
    _, aux = gradients(state, random_batch(agent, spec, state, 5, 3))
    np.testing.assert_allclose(aux["importance_ratio"] / aux["steps"], 1.0, atol=1e-5)


def test_tables() -> None:
    shown = bench.table({"a_b": 1234.5, "c": "d", "rows": [{"x": "one", "y": 0.12345}]})
    assert shown.splitlines() == ["a b  1,234", "c    d", "x        y", "one  0.123"]
    uneven = bench.table({"rows": [{"x": "a", "only": 1, "z": 2}, {"x": "b", "z": 3}]})
    assert uneven.splitlines() == ["x  only  z", "a     1  2", "b        3"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lerner"], "did you mean 'learner'"),
        (
            ["learner", "--batch-size", "0"],
            "`--batch-size` is 0; expected a finite number above zero",
        ),
        (["search", "--batch-sizes", "1", "0"], "`--batch-sizes` is 0; expected a finite number"),
        (["search", "--simulations", "-1"], "`--simulations` is -1; expected a finite number"),
        (["search", "--simulations"], "`--simulations` is given without a value"),
        (["architectures", "--architectures", "asinc"], "did you mean 'async'"),
        (["architectures", "--tasks", "ALE/Pnog-v5"], "did you mean 'ALE/Pong-v5'"),
        (["throughput", "--env", "ALE/Pnog-v5"], "did you mean 'ALE/Pong-v5'"),
        (["intrinsic", "--preset", "smal"], "did you mean 'small'"),
        (["intrinsic", "--memory-sizes", "5"], "`--neighbours` is 10; expected at most"),
        (
            ["fused", "--seconds", "0.01", "--num-envs", "2", "--json", "/nowhere/x"],
            "/nowhere/x",
        ),
    ],
)
def test_bad_input(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *args])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
