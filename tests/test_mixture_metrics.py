"""What a person sees of mixtures and of the intrinsic reward: metrics, the display, the plot of a
run, and the strip below the frames of a film."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_agent57
import test_ngu
from rich.console import Console
from test_plot import pixels

from pronk import cli, envs
from pronk.agents import mixture_q, ngu_config
from pronk.agents.mixture_q import by_mixture
from pronk.config.run import RunConfig
from pronk.config.spec import Plan
from pronk.maths import bandit
from pronk.run import plot_mixtures, policy
from pronk.run import record as film
from pronk.run.evaluate import Evaluation
from pronk.run.monitor import Monitor, best_mixture
from pronk.run.novelty_strip import NoveltyStrip
from pronk.run.plot import COLOURS, plot
from pronk.types import Batch, Carry

AGENTS = {"ngu": test_ngu, "agent57": test_agent57}


def batch_of_ages(module: Any, agent: Any, version: list[int]) -> Batch:
    batch = module.random_batch(agent)
    return batch._replace(trajectory=batch.trajectory._replace(version=np.array(version, np.int32)))


@pytest.mark.parametrize("name", AGENTS)
def test_shares_are_of_the_transitions_of_the_newest_sequences(name: str) -> None:
    """A quarter of them, rounded down, but at least one, and all that are as old; each sequence as
    if all were equally likely."""
    module = AGENTS[name]
    agent, state, *_, learn = module.make()
    for version, recent in (
        ([3, 9, 1, 2, 0], [1]),
        ([3, 9, 9, 2, 0], [1, 2]),
        ([7, 7, 7, 7, 7], [0, 1, 2, 3, 4]),
    ):
        batch = batch_of_ages(module, agent, version)
        trajectory, expected = batch.trajectory, np.zeros(module.N)
        for b in recent:
            for t in range(module.BURN_IN, len(trajectory.action) - 1):
                if not trajectory.timestep.first[t + 1, b]:
                    weight = 1 / float(batch.probabilities[b])  # type: ignore[index]
                    expected[trajectory.extras["mixture"][t, b]] += weight
        metrics = learn(state, batch).metrics
        found = [metrics[f"mixture/share/{j}"] for j in range(module.N)]
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)
    dummies = trajectory._replace(
        timestep=trajectory.timestep._replace(first=np.ones_like(trajectory.timestep.first))
    )
    found = jax.jit(agent.shares)(batch._replace(trajectory=dummies))
    np.testing.assert_array_equal(found, 0)


def test_returns_are_the_means_that_evaluations_choose_from() -> None:
    """Of a mixture whose episodes have not been seen to end: −infinity, which is null in files."""
    agent, state, *_, learn = test_agent57.make()
    batch = test_agent57.random_batch(agent)
    after, metrics, _ = learn(state, batch)
    found = [metrics[f"mixture/return/{j}"] for j in range(test_agent57.N)]
    np.testing.assert_array_equal(found, bandit.means(after.extra["tally"]))
    assert np.isfinite(found).all()
    never = batch.trajectory.timestep._replace(
        terminated=np.zeros_like(batch.trajectory.timestep.first),
        truncated=np.zeros_like(batch.trajectory.timestep.first),
    )
    metrics = learn(state, batch._replace(trajectory=batch.trajectory._replace(timestep=never)))[1]
    assert [metrics[f"mixture/return/{j}"] for j in range(3)] == [-math.inf] * 3


def test_there_are_metrics_of_at_most_32_mixtures() -> None:
    assert list(by_mixture("share", np.arange(32.0))) == [f"mixture/share/{j}" for j in range(32)]
    assert by_mixture("share", np.arange(33.0)) == {}


@pytest.mark.parametrize("name", AGENTS)
def test_metrics_change_nothing_that_is_learnt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for shown in (True, False):
        if not shown:
            monkeypatch.setattr(mixture_q, "by_mixture", lambda *_: {})
        agent, state, *_, learn = AGENTS[name].make()
        if not shown:
            learn = jax.jit(lambda *args, agent=agent: agent.learn(*args))  # traced anew
        metrics: dict[str, Any] = {}
        for seed in range(3):
            state, metrics, _ = learn(state, AGENTS[name].random_batch(agent, seed))
        assert ("mixture/share/0" in metrics) == shown
        states.append(state)
    assert not AGENTS[name].differs(*(jax.tree.map(jax.random.key_data, s.key) for s in states))
    assert not AGENTS[name].differs(*(s._replace(key=()) for s in states))


def logged(run_dir: Path, *records: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """What a run's `metrics.jsonl` has, and its panel after the last record."""
    console = Console(file=io.StringIO(), width=100)
    with Monitor(run_dir, total_steps=100, frames_per_step=1, title="x", console=console) as m:
        for record in records:
            m.log(record)
        console.print(m._panel())
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], console.file.getvalue()  # type: ignore[attr-defined]


def test_the_display_has_the_best_mixture_and_no_more(tmp_path: Path) -> None:
    shares = {f"mixture/share/{j}": 1 / 32 for j in range(32)}
    returns = {f"mixture/return/{j}": -float(abs(j - 17)) for j in range(32)}
    unknown = dict.fromkeys(returns, -math.inf)
    _, panel = logged(tmp_path / "a", {"steps": 1, **shares, **unknown})
    assert "mixture" not in panel
    records, panel = logged(
        tmp_path / "b", {"steps": 2, **shares, **returns, "mixture/return/31": math.nan}
    )
    (line,) = [line for line in panel.splitlines() if "mixture" in line]
    assert line.split()[-4:-1] == ["best", "mixture", "17"]
    assert records[0]["mixture/return/31"] is None
    assert records[0]["mixture/return/17"] == 0
    assert best_mixture(records[0]) == 17
    assert best_mixture({"mixture/return/x": 3.0}) is None


@pytest.mark.parametrize(
    ("epsilon", "flags", "how"),
    [(0.01, [], "greedy but for ε = 0.01"), (0.0, [], "greedy"), (0.01, ["--sample"], "sampled")],
)
def test_a_score_says_how_the_policy_acted(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    epsilon: float,
    flags: list[str],
    how: str,
) -> None:
    plan = Plan("ngu", "pronk/Catch-v0", RunConfig(), ngu_config.Config(evaluation_epsilon=epsilon))
    result = Evaluation(2, 1.0, 0.5, 0.0, 2.0, 9.0, None)
    agent: Any = None  # it does not act here
    played = policy.Policy(plan, plan.env, envs.spec_of(plan.env), agent, (), 3)
    monkeypatch.setattr(policy.Policy, "evaluate", lambda *_, **__: result)
    monkeypatch.setattr(policy, "load", lambda *_, **__: played)
    cli.main(["eval", "run", *flags])
    assert f"of 2 episodes, {how}, 0 to 2, 9 steps long)" in capsys.readouterr().out


def make_run(path: Path, records: list[dict[str, Any]]) -> Path:
    path.mkdir()
    config = {"agent": "agent57", "env": "pronk/Catch-v0", "run": {"seed": 0}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    return path


def records(mixtures: int = 3, number: int = 20, **more: Any) -> list[dict[str, Any]]:
    """Of a run in which the last mixture acts at first, and mixture 0 late; none has returned
    anything in the first record. Evaluations are between them."""
    made: list[dict[str, Any]] = []
    for i in range(number):
        late = i / max(number - 1, 1)
        shares = [0.1] * mixtures
        shares[0] += late * (1 - 0.1 * mixtures)
        shares[-1] += (1 - late) * (1 - 0.1 * mixtures)
        record = {"steps": 100 * (i + 1), "wall_seconds": i / 7, "mean_return": late}
        record |= {f"mixture/share/{j}": share for j, share in enumerate(shares)}
        record |= {f"mixture/return/{j}": s if i else None for j, s in enumerate(shares)}
        made += [record | more, {"steps": 100 * (i + 1), "mean_return": late}]
    return made


def test_the_plot_reads_shares_and_the_best_mixture() -> None:
    found = plot_mixtures.read(records(), "steps")
    assert found is not None
    assert found.x.tolist() == [100.0 * (i + 1) for i in range(20)]
    assert found.shares.shape == (20, 3)
    np.testing.assert_allclose(found.shares[[0, -1]], [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    assert np.isnan(found.best[0])
    assert found.best[1:].tolist() == [2.0] * 9 + [0.0] * 10
    of_ngu = [{k: v for k, v in r.items() if "mixture/return" not in k} for r in records()]
    only_shares = plot_mixtures.read(of_ngu, "steps")
    assert only_shares is not None
    assert np.isnan(only_shares.best).all()
    assert plot_mixtures.read([{"steps": 1, "mean_return": 1.0}], "steps") is None
    assert plot_mixtures.read(records(mixtures=1), "steps") is None  # there is nothing to compare
    # Damaged records are left out.
    torn = [{"steps": 8, "mixture/share/0": "?"}, {"steps": 9, "mixture/share/0": 0.5}]
    damaged = plot_mixtures.read([*records(number=1), *torn], "steps")
    assert damaged is not None
    assert damaged.x.tolist() == [100.0]


@pytest.mark.parametrize("x", ["steps", "wall_seconds"])
def test_the_plot_of_a_run_has_a_panel_of_its_mixtures(tmp_path: Path, x: str) -> None:
    run = make_run(tmp_path / "run", records())
    picture = tmp_path / "a.png"
    plot([run], picture, x=x)
    height, width = imageio.imread(picture).shape[:2]
    assert height / width > 0.9
    assert pixels(picture, COLOURS[0]) > 500  # the mean return
    assert pixels(picture, COLOURS[1]) > 500  # the best mixture
    dark = (imageio.imread(picture)[..., :3].astype(int) - [8, 48, 107]).__abs__().sum(-1) < 60
    assert dark.sum() > 1000  # the largest share
    plain = make_run(tmp_path / "plain", [{k: r[k] for k in r if "/" not in k} for r in records()])
    assert_flat(plot([plain], picture))
    assert_flat(plot([run], picture, y="mixture/share/0"))
    other = make_run(tmp_path / "other", records())
    assert_flat(plot([run, other], picture))


def assert_flat(picture: Path) -> None:
    """It has the shape of a plot without the panel."""
    height, width = imageio.imread(picture).shape[:2]
    assert height / width < 0.7


@pytest.mark.parametrize(("mixtures", "number"), [(1, 3), (32, 40), (3, 1)])
def test_few_and_many_mixtures_and_a_single_record(
    tmp_path: Path, mixtures: int, number: int
) -> None:
    run = make_run(tmp_path / "run", records(mixtures, number))
    assert plot([run], tmp_path / "a.png", title="a", smooth=2).exists()


def extras_of(reward: float, **more: Any) -> dict[str, Any]:
    given = {"intrinsic_reward": np.array([reward], np.float32), "mixture": np.array([3], np.int32)}
    return given | {"alpha": np.array([1.25], np.float32)} | more


@pytest.mark.parametrize("width", [2, 20, 120, 160, 320])
def test_the_strip_is_below_the_frame(width: int) -> None:
    strip = NoveltyStrip(width)
    frame = np.full((40, width, 3), 77, np.uint8)
    shapes, whole = set(), frame
    for t in range(400):
        reward = [0.0, 2.0, 1.0, math.nan][t % 4]
        whole = strip.below(frame, extras_of(reward))
        assert whole.dtype == np.uint8
        np.testing.assert_array_equal(whole[:40], frame)
        shapes.add(whole.shape)
    ((height, *_),) = shapes  # of a film, all frames have one size
    assert height % 2 == 0
    graph = (whole[-24:] == [230, 159, 0]).all(-1).sum(0)
    expected = np.tile([0, 0, 22, 22, 11, 11, 0, 0], width // 8 + 1)[-width:]
    np.testing.assert_array_equal(graph, expected)


def test_the_numbers_of_the_step_are_written() -> None:
    """Other numbers make another picture of the text, and the same ones the same."""

    def text(**more: Any) -> bytes:
        frame = np.zeros((10, 240, 3), np.uint8)
        return NoveltyStrip(240).below(frame, extras_of(1.0, **more))[10:-24].tobytes()

    assert text() == text()
    texts = {
        text(),
        text(alpha=np.array([2.5], np.float32)),
        text(mixture=np.array([4], np.int32)),
        text(intrinsic_reward=np.array([0.5], np.float32)),
    }
    assert len(texts) == 4


@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"log_prob": np.array([1.0], np.float32)},
        {"mixture": np.array([1], np.int32), "alpha": np.array([1.0], np.float32)},
        {"intrinsic_reward": np.array([[1.0, 2.0]], np.float32)},
    ],
)
def test_without_an_intrinsic_reward_there_is_no_strip(extras: dict[str, Any]) -> None:
    frame = np.zeros((10, 240, 3), np.uint8)
    assert NoveltyStrip(240).below(frame, extras) is frame


class Counting:
    """An agent that counts its rows, and calls the number an intrinsic reward, or something
    else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def initial_carry(self, *_: Any) -> Carry:
        return Carry((), jnp.zeros(1))

    def act(self, behaviour: Any, carry: Carry, timestep: Any, key: Any) -> Any:
        extras = {self.name: jnp.where(timestep.first, 0.0, carry.private)}
        return jnp.zeros(1, jnp.int32), carry._replace(private=carry.private + 1), extras


def test_each_frame_has_the_reward_of_its_own_observation(tmp_path: Path) -> None:
    """The first one none, and the last one its own, too; films without rewards are as they were."""
    films = {}
    for name in ("intrinsic_reward", "other"):
        plan = SimpleNamespace(env_args={})
        agent = Counting(name)
        policy = SimpleNamespace(env="pronk/Catch-v0", plan=plan, agent=agent, behaviour=())
        path = tmp_path / f"{name}.gif"
        (returned,) = film.record(policy, path, seed=3)  # type: ignore[arg-type]
        assert abs(returned) == 1
        films[name] = list(imageio.imread(path))
    shown, plain = films["intrinsic_reward"], films["other"]
    assert plain[0].shape == (240, 120, 3)
    assert len(shown) == len(plain) == 10  # ten rows, nine steps
    for t, (frame, bare) in enumerate(zip(shown, plain, strict=True)):
        assert np.abs(frame[:240].astype(int) - bare).max() < 40  # GIF has few colours
        columns = (np.abs(frame[-24:].astype(int) - [230, 159, 0]).sum(-1) < 60).sum(0)
        assert (columns[-2:] == (22 if t else 0)).all()
        assert (columns > 0).sum() == 2 * t
