"""R2D2 by its formulas, and as it is run: replay, its limiter, and what is saved of it."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from gymnasium import spaces

import pronk
from pronk import agents, envs
from pronk.agents.exploration import Ladder
from pronk.agents.r2d2_config import Config
from pronk.errors import UserError
from pronk.replay import Replay, SegmentLog
from pronk.run.inspect import inspect
from pronk.run.setup import core_spec, row_spec
from pronk.runtime import ring
from pronk.storage.checkpoint import Checkpointer
from pronk.types import (
    Batch,
    EnvSpec,
    LearnerState,
    Learnt,
    Replayed,
    Sequences,
    TimeStep,
    Trajectory,
)

STATES, ACTIONS, BURN_IN, LENGTH, BATCH = 4, 3, 3, 7, 5
SPEC = EnvSpec("test", spaces.Discrete(STATES), spaces.Discrete(ACTIONS))
# A table: action values are a linear function of which state it is.
TABLE = Config(
    recurrent_core="none",
    hidden_sizes=(),
    head_units=0,
    burn_in=BURN_IN,
    sequence_length=LENGTH,
    overlap=3,
    n_steps=3,
    target_every=2,
    batch_size=BATCH,
)
KEY = jax.random.key(0)
RECURRENT = {"recurrent_core": "lstm", "recurrent_units": 6, "hidden_sizes": (5,)}
FIELDS = {f.name for f in dataclasses.fields(Config)}


@functools.cache
def make(**settings: Any):
    """The agent, a state whose networks are far from their initial values, and `learn`, jitted."""
    agent = agents.make("r2d2", dataclasses.replace(TABLE, **settings), SPEC, horizon=1)
    network = {k: v for k, v in settings.items() if k in RECURRENT}
    return agent, spread_state(**network), jax.jit(agent.learn)


@functools.cache
def spread_state(**network: Any) -> LearnerState:
    """The same for all agents with this network: settings of learning do not change it."""
    agent = agents.make("r2d2", dataclasses.replace(TABLE, **network), SPEC, horizon=1)
    state = jax.jit(agent.init)(KEY)
    rng = np.random.default_rng(0)

    def spread(x: Any) -> Any:
        return np.asarray(x) + np.float32(rng.normal(size=x.shape))

    params = jax.tree.map(spread, state.params)
    return state._replace(params=params, extra=jax.tree.map(spread, state.extra))


def random_batch(agent: Any, seed: int = 0, burn_in: int = BURN_IN) -> Batch:
    """A batch with boundaries of every kind."""
    rng = np.random.default_rng(seed)
    shape = (burn_in + LENGTH + 1, BATCH)
    first, terminated, truncated = (rng.uniform(size=shape) < 0.15 for _ in range(3))
    timestep = TimeStep(
        rng.integers(0, STATES, shape),
        (5 * rng.normal(size=shape) * ~first).astype(np.float32),
        terminated,
        truncated,
        first,
        np.zeros(shape, np.int32),
    )
    core = agent.initial_carry(KEY, np.arange(BATCH), BATCH, False).core
    core = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), core)
    trajectory = Trajectory(
        timestep,
        rng.integers(0, ACTIONS, shape).astype(np.int32),
        {"probability": rng.uniform(0.1, 1.0, shape).astype(np.float32)},
        core,
        np.zeros(BATCH, np.int32),
    )
    return Batch(trajectory, rng.uniform(0.01, 0.2, BATCH).astype(np.float32))


def priorities(learnt: Learnt) -> np.ndarray:
    assert learnt.feedback.priorities is not None
    return np.asarray(learnt.feedback.priorities)


def table(params: Any, timestep: TimeStep) -> np.ndarray:
    """Action values `[T, B, A]`, float64: V + A − mean A."""
    p = jax.tree.map(np.float64, params["params"])
    seen = np.eye(STATES)[timestep.observation]
    value, advantage = (seen @ p[k]["kernel"] + p[k]["bias"] for k in ("value", "advantage"))
    return value + advantage - advantage.mean(axis=-1, keepdims=True)


def h(x: np.ndarray, epsilon: float = 1e-3) -> np.ndarray:
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + epsilon * x


def inverse(y: np.ndarray, epsilon: float = 1e-3) -> np.ndarray:
    root = np.sqrt(1 + 4 * epsilon * (np.abs(y) + 1 + epsilon)) - 1
    return np.sign(y) * ((root / (2 * epsilon)) ** 2 - 1)


@pytest.mark.parametrize("returns", ["n-step", "retrace"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_update_is_the_papers(returns, reduction):
    """Targets h(n-step double Q of h⁻¹), priorities η max + (1 − η) mean, importance weights."""
    agent, state, learn = make(returns=returns, loss_reduction=reduction)
    batch = random_batch(agent)
    after, metrics, (priority, _) = learn(state, batch)
    timestep, action, extras = jax.tree.map(lambda x: x[BURN_IN:], batch.trajectory[:3])
    online, target = table(state.params, timestep), table(state.extra["target"], timestep)
    weight = 1.0 - timestep.first[1:]
    ended = timestep.terminated[1:] | timestep.truncated[1:]
    reward = np.float64(timestep.reward[1:]) * weight
    discount, continuation = 0.997 * (1.0 - timestep.terminated[1:]), (1.0 - ended) * weight
    # A row before one that is `first` is an episode's last, whether a flag says so or not.
    continuation[:-1] *= weight[1:]
    best = online.argmax(-1)
    steps, columns = np.indices(best.shape)
    bootstrap = inverse(target[steps, columns, best])
    taken = online[steps, columns, action]
    error = np.zeros(weight.shape)
    for b in range(BATCH):
        common = (reward[:, b], discount[:, b], continuation[:, b])
        if returns == "n-step":
            goal = reference.n_rewards(bootstrap[:, b], *common, 3)
        else:
            trace = 0.95 * np.minimum(1, (action == best)[:, b] / extras["probability"][:, b])
            q = inverse(target[steps, columns, action][:, b])
            goal = reference.off_policy(q[:-1], bootstrap[:, b], *common, trace[:-1])
        error[:, b] = (h(goal) - taken[:-1, b]) * weight[:, b]
    count = weight.sum(0)
    size = np.abs(error)
    np.testing.assert_allclose(priority, 0.9 * size.max(0) + 0.1 * size.sum(0) / count, rtol=1e-4)
    correction = np.float64(batch.probabilities) ** -0.6
    correction /= correction.max()
    scale = correction / (count if reduction == "mean" else 1) / BATCH
    np.testing.assert_allclose(metrics["loss/value"], (scale * 0.5 * error**2).sum(), rtol=1e-4)
    # The gradient flows through the value of the action taken, and nowhere else.
    seen = np.eye(STATES)[timestep.observation[:-1]]
    d = -scale * error
    value = np.einsum("tbs,tb->s", seen, d)
    one = np.eye(ACTIONS)[action[:-1]] - 1 / ACTIONS
    advantage = np.einsum("tbs,tba,tb->sa", seen, one, d)
    bias = np.einsum("tba,tb->a", one, d)
    norm = np.sqrt(sum((x**2).sum() for x in (value, d.sum(), advantage, bias)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    assert after.steps == weight.sum()


def test_the_target_network_is_copied_periodically():
    agent, state, learn = make()
    for i in range(1, 5):
        before = state
        state = learn(state, random_batch(agent, seed=i)).state
        source = state.params if i % 2 == 0 else before.extra["target"]
        for a, b in zip(
            jax.tree.leaves(state.extra["target"]), jax.tree.leaves(source), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_the_burn_in_warms_up_the_state_and_learns_nothing(core):
    """It equals learning from the rest with the state that the burn-in ends with."""
    settings = RECURRENT | {"recurrent_core": core}
    agent, state, learn = make(**settings)
    state = state._replace(extra={"target": state.params})  # both networks burn in on their own
    batch = random_batch(agent)
    _, metrics, (priority, _) = learn(state, batch)
    carry = agent.initial_carry(KEY, np.arange(BATCH), BATCH, True)._replace(
        core=batch.trajectory.core
    )
    act = jax.jit(agent.act)
    for t in range(BURN_IN):
        row = jax.tree.map(lambda x, t=t: x[t], batch.trajectory.timestep)
        _, carry, _ = act(state.params, carry, row, KEY)
        taken = np.eye(ACTIONS, dtype=np.float32)[batch.trajectory.action[t]]
        carry = carry._replace(core=carry.core._replace(last_action=taken))
    rest = jax.tree.map(lambda x: x[BURN_IN:], batch.trajectory[:3])
    trajectory = Trajectory(*rest, carry.core, batch.trajectory.version)
    _, _, learn_rest = make(**settings, burn_in=0)
    _, rest_metrics, (expected, _) = learn_rest(state, batch._replace(trajectory=trajectory))
    np.testing.assert_allclose(priority, expected, rtol=1e-4)
    for name in ("gradient_norm", "loss/value", "steps"):
        np.testing.assert_allclose(metrics[name], rest_metrics[name], rtol=1e-4)


def test_the_stored_state_is_used_unless_switched_off():
    agent, state, learn = make(**RECURRENT)
    batch = random_batch(agent)
    first = np.zeros_like(batch.trajectory.timestep.first)
    timestep = batch.trajectory.timestep._replace(first=first)
    batch = batch._replace(trajectory=batch.trajectory._replace(timestep=timestep))
    core = batch.trajectory.core
    moved = core._replace(state=jax.tree.map(lambda x: x + 1, core.state))
    other = batch._replace(trajectory=batch.trajectory._replace(core=moved))
    assert not np.allclose(priorities(learn(state, batch)), priorities(learn(state, other)))
    _, _, zero = make(**RECURRENT, stored_state=False)
    one, two = zero(state, batch), zero(state, other)
    np.testing.assert_array_equal(priorities(one), priorities(two))


def test_rewards_can_be_clipped():
    agent, state, learn = make(reward_clip=1.0, rescaling="none")
    batch = random_batch(agent)
    reward = np.clip(batch.trajectory.timestep.reward, -1, 1)
    timestep = batch.trajectory.timestep._replace(reward=reward)
    clipped = batch._replace(trajectory=batch.trajectory._replace(timestep=timestep))
    expected = priorities(learn(state, clipped))
    np.testing.assert_allclose(priorities(learn(state, batch)), expected, rtol=1e-6)
    _, _, raw = make(rescaling="none")
    assert not np.allclose(priorities(raw(state, batch)), expected)


def test_some_environments_hardly_explore():
    """At most 1 % of their actions are random; of few environments it is the last one."""
    ladder = Ladder(0.4, 7.0)
    rates = np.asarray(ladder.rates(np.arange(100), 100))
    np.testing.assert_array_equal(ladder.explores(np.arange(100), 100), rates > 0.01)
    np.testing.assert_array_equal(ladder.explores(np.arange(50, 70), 100), rates[50:70] > 0.01)
    np.testing.assert_array_equal(Ladder(0.4, 0.0).explores(np.arange(2), 2), [False, False])
    np.testing.assert_array_equal(Ladder(0.4, 1.0).explores(np.arange(3), 3), [True, True, False])


def test_each_actor_has_its_own_epsilon():
    """ε^(1 + 7 i / (N − 1)), and the odds of what was done go with it."""
    agent, state, _ = make()
    n = 8
    carry = agent.initial_carry(KEY, np.arange(n), n, False)
    epsilon = 0.4 ** (1 + 7 * np.arange(n) / (n - 1))
    np.testing.assert_allclose(carry.private["epsilon"], epsilon, rtol=1e-5)
    zeros = np.zeros(n)
    row = TimeStep(zeros.astype(np.int64), zeros.astype(np.float32), *[zeros > 0] * 3,
                   zeros.astype(np.int32))  # fmt: skip
    best = table(state.params, row)[0].argmax()
    act = jax.jit(jax.vmap(lambda key: agent.act(state.params, carry, row, key)[::2]))
    action, extras = act(jax.random.split(KEY, 4000))
    others = (np.asarray(action) != best).mean(0)
    np.testing.assert_allclose(others, epsilon * (ACTIONS - 1) / ACTIONS, atol=0.03)
    expected = np.where(np.asarray(action) == best, 1 - epsilon, 0) + epsilon / ACTIONS
    np.testing.assert_allclose(extras["probability"], expected, rtol=1e-4)


FUSED = {
    "runtime": "fused",
    "actors": None,
    "envs_per_actor": 8,
    "batch_size": 8,
    "samples_per_insert": 2.0,
    "replay_capacity": 300,
    "overlap": 0,
    "priority_exponent": 0.0,
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": "Pendulum-v1"}, "r2d2 has a value for each action"),
        (
            {"env": "ALE/Breakout-v5", "torso": "nature", "env_args": {"img_height": 30}},
            "images are 30 × 84 pixels, and the network's torso is nature, which expects at least",
        ),
        ({"overlap": 10, "sequence_length": 10}, "`--overlap` is 10; expected from 0 to less than"),
        ({"architecture": "async-gradients"}, "needs an agent whose update is one gradient step"),
        (
            {"samples_per_insert": 0.0},
            "`--samples-per-insert` is 0.0; expected a number above zero",
        ),
        ({"replay_capacity": 30, "replay_minimum": 1}, "`--replay-capacity` is 30"),
        ({"replay_minimum": 100_000}, "`--replay-minimum`"),
        ({**FUSED, "env": "pronk/Catch-v0", "samples_per_insert": 1.5}, "be a whole number"),
        ({**FUSED, "env": "pronk/Catch-v0", "burn_in": 9}, "`--burn-in` 9 must not be larger"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    settings = {"env": "CartPole-v1"} | settings
    with pytest.raises(UserError, match=message):
        pronk.train("r2d2", run_dir=tmp_path, steps=500, **{**TINY, **settings})


# As it is run.

TINY: dict[str, Any] = {
    "actors": 2,
    "envs_per_actor": 3,
    "batch_size": 4,
    "unroll": 5,
    "sequence_length": 6,
    "overlap": 3,
    "burn_in": 2,
    "hidden_sizes": (8,),
    "head_units": 8,
    "recurrent_units": 4,
    "replay_minimum": 20,
    "replay_capacity": 400,
    "quiet": True,
}


def train(run_dir: Path, steps: int, env: str = "CartPole-v1", **settings: Any) -> dict[str, Any]:
    return pronk.train("r2d2", env, run_dir=run_dir, steps=steps, **{**TINY, **settings})


def check_returns(run_dir: Path) -> None:
    """Returns of environments that hardly explore are kept, and reported, beside those of all."""
    meta = Checkpointer(run_dir / "checkpoints").load().meta
    (greedy,), (recent,) = meta["greedy_returns"], meta["recent_returns"]
    assert greedy
    assert greedy != recent
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["mean_return_least_exploring"] == pytest.approx(np.mean(greedy))
    assert summary["mean_return"] == pytest.approx(np.mean(recent))


def counts(run_dir: Path) -> dict[str, int]:
    loaded = Checkpointer(run_dir / "checkpoints").load()
    assert loaded is not None
    tree = loaded.tree("replay")
    names = ("next", "inserted", "sampled", "stale", "transitions")
    counted = dict(zip(names, tree["counts"].tolist(), strict=True))
    return counted | {"size": len(tree["slots"]), "updates": int(loaded.tree("learner")["updates"])}


@pytest.mark.parametrize("ratio", [0.5, 4.0])
def test_the_ratio_is_kept(tmp_path, ratio):
    train(tmp_path, 4000, samples_per_insert=ratio, batch_size=8)
    counted = counts(tmp_path)
    asked = ratio * (counted["inserted"] - 20)
    assert counted["sampled"] == pytest.approx(asked, rel=0.05)


def test_a_resumed_run_goes_on_with_its_replay(tmp_path):
    train(tmp_path, 3000, stop_after=1500, checkpoint_every=0.05, samples_per_insert=4.0)
    before = counts(tmp_path)
    assert before["size"] >= 20
    train(tmp_path, 3000, stop_after=1600, samples_per_insert=4.0)
    after = counts(tmp_path)
    # It learns at once: nothing has to be filled again, and no sequence is lost.
    new = after["inserted"] - before["inserted"]
    assert after["updates"] > before["updates"] + new / 4
    assert after["size"] >= before["size"] - new
    named = Checkpointer(tmp_path / "checkpoints").load().tree("replay")["segments"]
    files = {p.stem for p in (tmp_path / "replay").iterdir()}
    assert set(named) <= files
    check_returns(tmp_path)


def test_the_fused_runtime_keeps_the_ratio(tmp_path):
    # So large that the count is of all sequences.
    train(tmp_path, 2000, "pronk/Catch-v0", **{**FUSED, "replay_capacity": 5000})
    loaded = Checkpointer(tmp_path / "checkpoints").load()
    inserted = int(loaded.tree("fused")["replay"]["count"])
    # From the third unroll on, which has the 20th sequence, two updates for each.
    assert int(loaded.tree("learner")["updates"]) == 2 * (inserted // 8 - 2)
    check_returns(tmp_path)


RING = Sequences(capacity=40, burn_in=2, length=4)
WIDTH = 3


insert = jax.jit(ring.insert, static_argnums=1)
draw = jax.jit(ring.draw, static_argnums=2)


def filled_ring(unrolls: int) -> ring.Ring:
    """A ring with sequences of rows that are named 10 · row + column, with the recurrent state
    name + 0.5."""

    def rows(begin: int, end: int) -> Any:
        name = (np.arange(begin, end)[:, None] * 10.0 + np.arange(WIDTH)).astype(np.float32)
        no = np.zeros(name.shape, bool)
        timestep = TimeStep(name, name, no, no, name < 10, no)
        return timestep, name, {"probability": name, "target": np.stack([name, name], -1)}

    def core(row: int) -> Any:
        return {"h": rows(row, row + 1)[1][0][:, None] + np.float32(0.5)}

    replay = ring.make(RING, jax.tree.map(lambda x: x[0], rows(0, 1)), core(0))
    for t in range(0, 4 * unrolls, 4):
        version = np.full(WIDTH, t, np.int32)
        trajectory = Trajectory(*rows(t, t + 5), core(t), version)
        replay = insert(replay, RING, trajectory, core(t + ring.next_start(RING)))
    return jax.tree.map(np.asarray, replay)


def test_the_ring_has_each_sequence_with_its_burn_in_and_state():
    replay = filled_ring(5)
    assert replay.count == 15
    batch, at = draw(replay, KEY, 200)
    name = np.asarray(batch.trajectory.action)
    assert name.shape == (7, 200)
    begin, column = name[2] // 10, name[2] % 10
    assert set(begin) == {4, 8, 12, 16} | ({0} if replay.version.shape[0] >= 15 else set())
    expected = np.maximum(begin + np.arange(-2, 5)[:, None], 0) * 10 + column
    np.testing.assert_array_equal(name, expected)
    np.testing.assert_array_equal(np.asarray(batch.trajectory.core["h"])[:, 0], name[0] + 0.5)
    np.testing.assert_array_equal(batch.trajectory.version, begin)
    assert at.dtype == jnp.int32
    np.testing.assert_array_equal(replay.rows[1][at].T, name)


def test_a_ring_counts_no_further_than_twice_its_capacity():
    """The count, which says where the next sequences go, must not overflow; the newest stay."""
    replay = filled_ring(40)
    capacity = replay.version.shape[0]
    assert capacity <= replay.count < 2 * capacity
    newest = np.sort(np.repeat(np.arange(0, 160, 4), WIDTH))[-capacity:]
    np.testing.assert_array_equal(np.sort(replay.version), newest)


def test_the_ring_can_be_revised():
    """The last of several columns that are one sequence counts; nothing else changes."""
    replay = filled_ring(3)
    batch, at = draw(replay, KEY, 20)
    at = np.asarray(at)
    assert len(set(at)) < 20
    target = np.random.default_rng(0).normal(size=(7, 20, 2)).astype(np.float32)
    revised = jax.jit(ring.revise)(replay, at, {"target": target})
    expected = np.array(replay.rows[2]["target"])
    for b in range(20):
        expected[at[b]] = target[:, b]
    np.testing.assert_array_equal(revised.rows[2]["target"], expected)
    again, _ = draw(revised, KEY, 20)
    same = batch._replace(trajectory=batch.trajectory._replace(extras={}))
    rest = again._replace(trajectory=again.trajectory._replace(extras={}))
    jax.tree.map(np.testing.assert_array_equal, rest, same)
    found = np.asarray(again.trajectory.extras["target"])
    np.testing.assert_array_equal(found[:, 19], target[:, 19])
    probability = again.trajectory.extras["probability"]
    np.testing.assert_array_equal(probability, batch.trajectory.extras["probability"])


def test_segments_that_are_not_needed_are_deleted(tmp_path):
    train(tmp_path, 6000, checkpoint_every=0.02, keep_checkpoints=2, samples_per_insert=0.2)
    files = len(list((tmp_path / "replay").iterdir()))
    tree = Checkpointer(tmp_path / "checkpoints").load().tree("replay")
    assert int(tree["next_segment"]) > 24
    assert len(tree["segments"]) <= files < int(tree["next_segment"])


@pytest.mark.extended
def test_kill_9_at_any_time(tmp_path):
    """Again and again, in the middle of saves: what a checkpoint names is there and whole."""
    flags = ["--checkpoint-every", "0.01", "--steps", "1000000"]
    for name, value in TINY.items():
        flags.append(f"--{name.replace('_', '-')}")
        flags += [str(8) if name == "hidden_sizes" else str(value)] if name != "quiet" else []
    command = [sys.executable, "-m", "pronk", "train", "r2d2", "CartPole-v1", "--run-dir",
               str(tmp_path), *flags]  # fmt: skip
    before = {"inserted": 0, "updates": 0}
    rng = np.random.default_rng(0)
    for _ in range(3):
        saved = set(tmp_path.glob("checkpoints/[0-9]*"))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while len(set(tmp_path.glob("checkpoints/[0-9]*")) - saved) < 2:
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        output = process.communicate()[0].decode()
        assert "starts empty" not in output
        loaded = Checkpointer(tmp_path / "checkpoints").load()
        tree = loaded.tree("replay")
        agent = agents.make("r2d2", Config(**{k: v for k, v in TINY.items() if k in FIELDS}),
                            envs.spec_of("CartPole-v1"), horizon=1)  # fmt: skip
        assert isinstance(agent.source, Replayed)
        row = row_spec(agent, envs.spec_of("CartPole-v1"))
        replay = Replay(agent.source.sequences, row, core_spec(agent))
        log = SegmentLog(replay, tmp_path / "replay", 3)
        log.restore(tree, episodes=False)
        log.close()
        assert len(replay) == len(tree["slots"]) >= 20
        batch, keys = replay.sample(64, np.random.default_rng(0))
        assert set(keys) <= set(tree["keys"])
        assert np.isfinite(batch.trajectory.timestep.observation).all()
        priority = replay._contents.items.tree.priorities()[tree["slots"]]
        np.testing.assert_array_equal(priority, tree["priorities"])
        now = counts(tmp_path)
        assert now["inserted"] > before["inserted"]
        assert now["updates"] > before["updates"]
        assert now["sampled"] >= 4 * now["updates"]
        before = now


def test_a_damaged_replay_starts_empty(tmp_path, capsys):
    train(tmp_path / "whole", 3000, stop_after=600)
    for damage in ("flipped", "cut", "missing"):
        run_dir = tmp_path / damage
        shutil.copytree(tmp_path / "whole", run_dir)
        updates = counts(run_dir)["updates"]
        segment = sorted((run_dir / "replay").iterdir())[-1]
        data = bytearray(segment.read_bytes())
        if damage == "missing":
            segment.unlink()
        else:
            data[len(data) // 2] ^= 1
            segment.write_bytes(data if damage == "flipped" else data[:-5])
        capsys.readouterr()
        train(run_dir, 3000, stop_after=1000)
        output = " ".join("".join(capsys.readouterr()).split())
        assert "the replay starts empty" in output, damage
        assert counts(run_dir)["updates"] > updates, damage


def test_a_replay_that_is_not_saved_starts_empty(tmp_path):
    train(tmp_path, 2400, stop_after=1200, replay_saved=False)
    assert not (tmp_path / "replay").exists()
    train(tmp_path, 2400, replay_saved=False)
    assert inspect(tmp_path)["learner_sha256"]


def test_central_inference_acts_too(tmp_path):
    summary = train(tmp_path, 1500, architecture="async-batched")
    assert summary["agent_steps"] >= 1500
    counted = counts(tmp_path)
    assert counted["updates"] > 5
    assert counted["inserted"] > 100


@pytest.mark.extended
def test_the_parameters_stay_finite_arrays(tmp_path):
    train(tmp_path, 1500, returns="retrace", rescaling="log", recurrent_core="gru")
    learner = Checkpointer(tmp_path / "checkpoints").load().tree("learner")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learner["params"]))
    assert jnp.asarray(learner["updates"]) > 10
