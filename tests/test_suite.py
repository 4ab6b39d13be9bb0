"""Suites: parsing tasks, common spaces, the assignment of slots, and what is reported."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import pronk
from pronk import cli, envs, pbt
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.envs import jax_suite, suite
from pronk.envs.common_spaces import common_spaces
from pronk.envs.jax_env import JaxVectorEnv
from pronk.envs.suite import Task, assignment, tasks_of
from pronk.errors import UserError
from pronk.maths import scores
from pronk.pbt.decide import Score
from pronk.run import train as training
from pronk.run.evaluate import Tally
from pronk.run.resolve import resolve
from pronk.runtime.actor import Player
from pronk.storage.journal import read_journal
from pronk.types import EnvSpec, Episode

CLASSIC = "CartPole-v1,Acrobot-v1,MountainCar-v0"
MIXED = "pronk/Catch-v0?reward_scale=100,pronk/Breakout-v0,pronk/MemoryCue-v0?delay=3&cues=2"


def test_a_single_environment_is_not_a_suite():
    assert tasks_of("CartPole-v1") is None
    assert tasks_of(lambda: gym.make("CartPole-v1")) is None


def test_tasks_and_their_arguments():
    first, second = tasks_of("pronk/Catch-v0?rows=7&delay=2&weight=3,ALE/Pong-v5?life_loss=false")
    assert first.env == "pronk/Catch-v0"
    assert first.env_args == {"rows": 7, "delay": 2}
    assert (first.weight, first.reward_scale, first.reference) == (3, 1, None)
    assert second.env_args == {"life_loss": False}
    assert second.reference == scores.ATARI["Pong"]
    (alone,) = tasks_of("pronk/Catch-v0?reward_scale=0.5")
    assert alone.reward_scale == 0.5


def test_atari_games_share_the_full_action_space():
    tasks = tasks_of("ALE/Pong-v5,ALE/Breakout-v5")
    assert all(task.args({}) == {"full_action_space": True} for task in tasks)
    given = {"full_action_space": False}
    assert all(task.args(given) == given for task in tasks)
    spec = envs.spec_of("ALE/Pong-v5,ALE/Breakout-v5")
    assert spec.action_space == spaces.Discrete(18)
    assert not spec.has_action_mask
    assert spec.references == (scores.ATARI["Pong"], scores.ATARI["Breakout"])


@pytest.mark.parametrize("name", suite.SUITES)
def test_tasks_of_suites_exist(name):
    known = envs.names()
    for task in suite.SUITES[name]:
        assert task.env in known
    assert name in known


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPole-v1,suite/scales-v0", "which is a suite"),
        ("suite/scales-v0?reward_scale=2", "which is a suite"),
        ("suite/scales-v1", "did you mean 'suite/scales-v0'"),
        ("CartPole-v1,,Acrobot-v1", "a task without an environment"),
        ("CartPole-v1,CartPole-v1", "2 times"),
        ("pronk/Catch-v0?delay", "is 'delay'; expected NAME=VALUE, as in delay=20"),
        ("pronk/Catch-v0?weight=0", "expected a number above 0"),
        ("pronk/Catch-v0?reward_scale=1e20", "expected a number above 0 and below 1e.15"),
        ("pronk/Catch-v0?reward_scale=true", "expected a number above 0"),
        ("pronk/Catch-v0?dela=1,pronk/Breakout-v0", "does not accept"),
        ("CartPole-v1,Acrobt-v1", "did you mean 'Acrobot-v1'"),
        ("CartPole-v1,Pendulum-v1", "have no common space"),
        ("ALE/Pong-v5,pronk/Breakout-v0", "for different numbers of frames"),
    ],
)
def test_wrong_suites_are_refused(env, message):
    with pytest.raises(UserError, match=message):
        envs.spec_of(env)


# The assignment of slots.


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=7), st.integers(1, 40), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_slots_are_in_proportion_to_weights(weights, num, first):
    """Those of an actor are a part of those of the whole run."""
    whole = assignment(weights, first + num)
    np.testing.assert_array_equal(assignment(weights, num, first), whole[first:])
    share = np.array(weights) / sum(weights) * len(whole)
    assert (np.abs(np.bincount(whole, minlength=len(weights)) - share) < len(weights)).all()


def test_tasks_of_equal_weight_alternate():
    assert assignment([1, 1, 1], 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert np.bincount(assignment([2, 1, 1], 8)).tolist() == [4, 2, 2]


def test_a_task_without_slots_is_an_error(tmp_path):
    for runtime in ("fused", "local"):
        with pytest.raises(UserError, match=r"1 of the 3 tasks .* would get none"):
            pronk.train(
                "impala",
                MIXED,
                runtime=runtime,
                batch_size=2,
                envs_per_actor=2 if runtime == "fused" else 1,
                actors=None if runtime == "fused" else 2,
                run_dir=tmp_path,
                steps=100,
            )


def test_each_learner_needs_slots_of_every_task():
    """Of two slots with weights 3 and 1, some pairs have both tasks and some one."""
    env, passed = "CartPole-v1?weight=3,Acrobot-v1", []
    for first in range(8):
        whole = set(assignment([3, 1], 2, first).tolist()) == {0, 1}
        passed.append(whole)
        with contextlib.nullcontext() if whole else pytest.raises(UserError, match="1 of the 2"):
            suite.check_slots(env, 2, first)
    assert 0 < sum(passed) < 8


# Common spaces.


TWO = spaces.Discrete(2)


def spec(observation: gym.Space, action: gym.Space = TWO, **more: Any) -> EnvSpec:
    return EnvSpec("test", observation, action, **more)


IMAGE = spaces.Box(0, 255, (6, 7, 2), np.uint8)


@pytest.mark.parametrize("xp", [np, jnp])
def test_observations_are_padded_and_flattened(xp):
    """In NumPy and in JAX."""
    small, large = spaces.Box(0, 255, (5, 8, 1), np.uint8), IMAGE
    discrete, several = spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 3])
    vector, memory = spaces.Box(-1, 1, (2, 2)), spaces.Box(0, 255, (4,), np.uint8)
    all_of = [small, large, discrete, several, vector, memory]
    shared = common_spaces([spec(s) for s in all_of])
    assert shared.kinds == ("image", "image", "vector", "vector", "vector", "vector")
    assert shared.observation_space["image"] == spaces.Box(0, 255, (6, 8, 2), np.uint8)
    assert shared.observation_space["vector"].shape == (5,)

    def of(k, value):
        found = shared.observation(k, all_of[k], xp.asarray(value), xp)
        for name, part in shared.observation_space.items():
            assert found[name].dtype == part.dtype
            assert found[name].shape == (len(value), *part.shape)
        return jax.tree.map(np.asarray, found)

    image = np.arange(2 * 40, dtype=np.uint8).reshape(2, 5, 8, 1)
    found = of(0, image)
    np.testing.assert_array_equal(found["image"][:, :5, :8, :1], image)
    assert found["image"].sum() == image.sum()
    assert not found["vector"].any()
    np.testing.assert_array_equal(
        of(2, np.array([5, 7]))["vector"], [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    )
    np.testing.assert_array_equal(of(3, np.array([[1, 2]]))["vector"], [[0, 1, 0, 0, 1]])
    box = np.array([[[1, 2], [3, 4]]], np.float32)
    np.testing.assert_array_equal(of(4, box)["vector"], [[1, 2, 3, 4, 0]])
    assert not of(4, box)["image"].any()
    memory_of = of(5, np.array([[0, 51, 102, 255]], np.uint8))["vector"]
    np.testing.assert_allclose(memory_of, [[0, 0.2, 0.4, 1, 0]], rtol=1e-6)


def test_equal_spaces_are_unchanged():
    nested = spaces.Dict({"a": spaces.Discrete(2)})
    shared = common_spaces([spec(nested), spec(nested)])
    assert shared.observation_space == nested
    assert not shared.has_action_mask


def test_spaces_without_a_common_one_are_refused():
    first = spaces.Box(0, 255, (4, 9, 9), np.uint8)
    with pytest.raises(UserError, match="channels at different ends"):
        common_spaces([spec(IMAGE), spec(first)])
    with pytest.raises(UserError, match="no common space"):
        common_spaces([spec(IMAGE), spec(spaces.Dict({"a": IMAGE}))])


def test_actions_are_masked():
    masked = spec(IMAGE, spaces.Discrete(3, start=1), has_action_mask=True)
    shared = common_spaces([masked, spec(IMAGE, spaces.Discrete(5))])
    assert shared.action_space == spaces.Discrete(5)
    mask = np.array([[True, False, True]])
    found = shared.action_mask(masked.action_space, mask, 1, np)
    assert found.tolist() == [[True, False, True, False, False]]
    assert shared.action_mask(spaces.Discrete(5), None, 2, np).all()


# Environments.


def random_actions(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.choice(np.flatnonzero(row)) for row in mask], np.int32)


@pytest.mark.parametrize("env", [CLASSIC, MIXED])
def test_each_slot_steps_its_task(env):
    """As environments of that task alone do with the same actions."""
    n, tasks, rng = 7, tasks_of(env), np.random.default_rng(0)
    whole = envs.make(env, n, seed=3, first_env_id=2)
    given_to = assignment([1, 1, 1], n, 2)
    row, episodes, theirs_ended = whole.reset(), [], []
    np.testing.assert_array_equal(row.task, given_to)
    parts = {}
    for k in range(3):
        seed = int(np.random.SeedSequence([3, k]).generate_state(1)[0] >> 1)
        before = int((assignment([1, 1, 1], 2) == k).sum())
        parts[k] = envs.make(
            tasks[k].env, int((given_to == k).sum()), seed=seed, first_env_id=before,
            env_args=tasks[k].env_args,
        )  # fmt: skip
        parts[k].reset()
    n_of = [part.spec.action_space.n for part in parts.values()]
    for _ in range(60):
        for i in range(n):
            assert row.action_mask is None or row.action_mask[i].sum() == n_of[given_to[i]]
        mask = np.ones((n, 3), bool) if row.action_mask is None else row.action_mask
        action = random_actions(mask, rng)
        row = whole.step(action)
        episodes += whole.episodes()
        for k, part in parts.items():
            theirs, scale = part.step(action[given_to == k]), tasks[k].reward_scale
            before = int((assignment([1, 1, 1], 2) == k).sum())
            for e in part.episodes():
                slot = 2 + np.flatnonzero(given_to == k)[e.env_id - before]
                theirs_ended.append((e.episode_return * scale, e.length, slot, k))
            np.testing.assert_allclose(row.reward[given_to == k], theirs.reward * scale)
            np.testing.assert_array_equal(row.first[given_to == k], theirs.first)
            np.testing.assert_array_equal(row.terminated[given_to == k], theirs.terminated)
            for i, seen in zip(np.flatnonzero(given_to == k), theirs.observation, strict=True):
                ours = [np.ravel(x[i]) for x in jax.tree.leaves(row.observation)]
                total = sum(float(np.sum(x, dtype=np.float64)) for x in ours)
                assert total == pytest.approx(float(np.sum(seen, dtype=np.float64)), abs=1e-4)
    assert sorted(episode[:4] for episode in episodes) == sorted(theirs_ended)
    # Mountain cars and acrobats take longer than this to end.
    assert {e.task for e in episodes} == ({0} if env == CLASSIC else {0, 1, 2})
    whole.close()


def test_fused_slots_step_their_tasks():
    """As each task alone does with the same key; returns are of scaled rewards."""
    made = envs.jax_env_of(MIXED)
    start, advance, task = jax_suite.stepper(made, 5)
    assert task.tolist() == [0, 0, 1, 1, 2]
    key, rng = jax.random.key(4), np.random.default_rng(0)
    state, row = jax.jit(start)(key)
    advance = jax.jit(advance)
    slots = {k: np.flatnonzero(task == k) for k in range(3)}
    own = [envs.jax_env_of(t.env, t.env_args) for t in tasks_of(MIXED)]
    from pronk.envs.jax_env import advance as advance_one
    from pronk.envs.jax_env import start as start_one

    alone = {k: start_one(own[k], key, slots[k])[0] for k in range(3)}
    step_one = {k: jax.jit(lambda s, a, k=k: advance_one(own[k], s, a)) for k in range(3)}
    ended = False
    for _ in range(40):
        action = random_actions(np.asarray(row.action_mask), rng)
        state, row, end = advance(state, action)
        np.testing.assert_array_equal(row.task, task)
        for k, scale in ((0, 100.0), (1, 1.0), (2, 1.0)):
            alone[k], theirs = step_one[k](alone[k], action[slots[k]])
            np.testing.assert_allclose(row.reward[slots[k]], theirs.reward * scale)
            np.testing.assert_array_equal(row.terminated[slots[k]], theirs.terminated)
            np.testing.assert_array_equal(end.done[slots[k]], alone[k].done)
            np.testing.assert_allclose(
                end.episode_return[slots[k]], alone[k].episode_return * scale, rtol=1e-5
            )
            vectors = row.observation["vector" if k != 1 else "image"][slots[k]]
            seen = np.asarray(theirs.observation, np.float64)
            np.testing.assert_allclose(np.sum(vectors), seen.sum(), rtol=1e-6)
        ended |= bool(end.done.any())
    assert ended


def test_a_suite_of_jax_environments_is_a_jax_environment():
    assert isinstance(envs.make("pronk/Catch-v0", 1), JaxVectorEnv)
    assert envs.jax_env_of(MIXED) is not None
    assert envs.jax_env_of("pronk/Catch-v0,CartPole-v1") is None


def test_a_restored_suite_continues_exactly():
    env = envs.make(CLASSIC, 4, seed=1, replayable=True)
    other = envs.make(CLASSIC, 4, seed=1, replayable=True)
    rng = np.random.default_rng(1)
    row = env.reset()
    other.reset()
    for _ in range(30):
        row = env.step(random_actions(row.action_mask, rng))
    env.episodes()
    other.restore(env.state())
    for _ in range(30):
        action = random_actions(row.action_mask, rng)
        row, theirs = env.step(action), other.step(action)
        jax.tree.map(np.testing.assert_array_equal, row, theirs)
    with pytest.raises(UserError, match=r"the saved state has task_0, .*, expected task_0 of"):
        envs.make(CLASSIC, 1, replayable=True).restore(env.state())


# Training, evaluating, reporting.


def test_aggregates():
    """Mean, median and mean capped at 1."""
    found = scores.aggregates([0.5, 3.0, 1.0, -0.5])
    assert found == {"mean": 1.0, "median": 0.75, "mean_capped": 0.5}


def tally(total: list[float], count: list[int]) -> Tally:
    """Games of a task that all had the same return."""
    squares = [t**2 / n if n else 0.0 for t, n in zip(total, count, strict=True)]
    return Tally(total, squares, count)


def test_the_score_of_a_suite():
    """Capped where references are known; None while a task has no episode."""
    known = spec(IMAGE, tasks=("a", "b"), references=((0.0, 2.0), (-1.0, 1.0)))
    assert Score.of(known, tally([8.0, -1.0], [2, 2])) == ((1.0 + 0.25) / 2, 0.0)
    assert Score.of(known, tally([8.0, 0.0], [8, 0])) is None
    assert Score.of(known, tally([8.0, -1.0], [8, 1])) == (0.25, np.inf)
    assert Score.of(known, tally([0.0, 0.0], [0, 0])) is None
    unknown = spec(IMAGE, tasks=("a", "b"), references=((0.0, 2.0), None))
    assert Score.of(unknown, tally([8.0, -1.0], [2, 2])) == ((4.0 - 0.5) / 2, 0.0)
    assert Score.of(spec(IMAGE), tally([9.0], [3])) == (3.0, 0.0)
    # Returns 0 and 2 in the first task: an error of 1, and of half as much in units of 2.
    found = Score.of(known, Tally([2.0, 0.0], [4.0, 0.0], [2, 2]))
    assert found == pytest.approx(((0.5 + 0.5) / 2, 0.5 / 2))


def test_tallies_add_up():
    games = Tally.from_json({}, 2)
    games.add(Episode(3.0, 10, 0, task=1))
    games.add(Episode(-1.0, 10, 0, task=1))
    assert games.as_json() == {"total": [0.0, 2.0], "squares": [0.0, 10.0], "count": [0, 2]}
    assert Tally.from_json(games.as_json(), 2) == games
    assert games.plus(games).count == [0, 4]
    assert games.plus(games, -1) == Tally.from_json({}, 2)


REFERENCED = (
    Task("catch", "pronk/Catch-v0", reward_scale=10.0, reference=(-0.6, 1.0)),
    Task("cue", "pronk/MemoryCue-v0", {"delay": 2}, reference=(0.25, 1.0)),
)


@pytest.mark.parametrize("runtime", [pytest.param("fused", marks=pytest.mark.extended), "local"])
def test_each_task_is_reported(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(suite.SUITES, "suite/test", REFERENCED)
    monkeypatch.chdir(tmp_path)
    found = pronk.train(
        "impala",
        "suite/test",
        steps=3000,
        runtime=runtime,
        envs_per_actor=4,
        batch_size=4,
        actors=None if runtime == "fused" else 1,
        hidden_sizes=(8,),
        eval_every=1500,
        eval_episodes=4,
        log_every=0.01,
        run_dir=tmp_path / "run",
    )
    catch, cue = found["return/catch"], found["return/cue"]
    assert -10 <= catch <= 10
    assert 0 <= cue <= 1
    assert found["mean_return"] == pytest.approx((catch + cue) / 2)
    normalised = [(catch + 6) / 16, (cue - 0.25) / 0.75]
    assert found["score/mean"] == pytest.approx(np.mean(normalised))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    evaluated = [r for r in records if "eval/score/mean" in r]
    assert evaluated
    assert {"eval/return/catch", "eval/return/cue"} <= evaluated[0].keys()
    capsys.readouterr()
    cli.main(["eval", "run", "--episodes", "3"])
    shown = capsys.readouterr().out
    assert "catch" in shown
    assert "normalised scores: mean" in shown
    cli.main(["eval", "run", "--episodes", "3", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["tasks"]["catch"]["episodes"] == 3
    # Each task's games are its own: Catch pays ±10, the cue 0 or 1.
    extremes = {n: (t["minimum"], t["maximum"]) for n, t in told["tasks"].items()}
    assert {abs(x) for x in extremes["catch"]} == {10}
    assert set(extremes["cue"]) <= {0, 1}
    again = pronk.train(
        "impala",
        "suite/test",
        steps=3000,
        run_dir=tmp_path / "run",
        envs_per_actor=4,
        runtime=runtime,
        batch_size=4,
        hidden_sizes=(8,),
        actors=None if runtime == "fused" else 1,
    )
    assert again["return/catch"] == catch
    cli.main(["record", "run", "--task", "catch", "--max-steps", "12"])
    assert (tmp_path / "run" / "film.mp4").stat().st_size > 0
    for args, message in (
        ([], "`task` is not given"),
        (["--task", "catc"], "did you mean 'catch'"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["record", "run", *args])
        assert message in capsys.readouterr().err


class OnFire(gym.Env):
    """Raises at its second step."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, heat: int = 0) -> None:
        self.t, self.heat = 0, heat

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.t == 2 and self.heat:
            raise ValueError("the simulator is on fire")
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_a_fault_names_its_task() -> None:
    gym.register("OnFire-v0", entry_point=OnFire)
    try:
        env = envs.make("OnFire-v0,OnFire-v0?heat=1", 4, workers=0)
        env.reset()
        for _ in range(2):
            env.step(np.zeros(4, int))
        lines = env.warnings()
        env.close()
    finally:
        del gym.registry["OnFire-v0"]
    assert lines
    assert all(line.startswith("task 'OnFire-v0?heat=1': ") for line in lines)
    assert "the simulator is on fire" in lines[0]


def test_a_policy_acts_in_the_environment_of_one_task(tmp_path: Path) -> None:
    """With its own observations, rewards and actions, as in the suite, which pads them."""
    env = "Acrobot-v1,CartPole-v1?reward_scale=50"
    pronk.train(
        "impala",
        env,
        steps=400,
        run_dir=tmp_path,
        envs_per_actor=2,
        batch_size=2,
        unroll=5,
        hidden_sizes=(8,),
        recurrent_core="lstm",
        recurrent_units=8,
        actors=1,
        quiet=True,
    )
    policy = pronk.load(tmp_path)
    policy.behaviour = jax.tree.map(lambda x: 5 * x, policy.behaviour)  # what is seen decides
    for k, (task, size) in enumerate((("Acrobot-v1", 6), ("CartPole-v1?reward_scale=50", 4))):
        vector = envs.make(env, 1, task=k, seed=3, workers=0)
        player = Player(policy.agent, jax.random.key(0), np.zeros(1, np.int32), 1)
        carry = player.carry, player._key, player.count
        timestep, taken = vector.reset(), []
        assert timestep.observation.shape == (1, 6)
        for _ in range(30):
            own = timestep.observation[0, :size].copy()
            reward = float(timestep.reward[0]) / (1, 50)[k]
            action, carry = policy.act(own, carry, reward=reward, task=task)
            row = player.act(policy.behaviour, timestep)
            assert action == row.action[0] < (3, 2)[k]
            jax.tree.map(np.testing.assert_array_equal, carry[0].core, player.carry.core)
            taken.append(int(action))
            timestep = vector.step(row.action)
            if timestep.first[0]:
                break
        assert len(set(taken)) > 1
        vector.close()
    with pytest.raises(UserError, match=r"`task` is not given; expected one of 'Acrobot-v1,.*'"):
        policy.act(np.zeros(6, np.float32), policy.initial_carry())


@pytest.mark.parametrize(
    "execution", ["vmapped", pytest.param("processes", marks=pytest.mark.extended)]
)
def test_the_score_of_a_population_is_over_all_tasks(execution, tmp_path: Path):
    """The first task has rewards so large that their mean would hide the second."""
    env = "pronk/Catch-v0?reward_scale=1000&rows=4,pronk/MemoryCue-v0?delay=2"
    plan = resolve(
        "impala",
        env,
        run_dir=tmp_path,
        steps=600,
        envs_per_actor=4,
        batch_size=4,
        unroll=5,
        hidden_sizes=(8,),
        quiet=True,
        value_normalisation="popart",
        popart_beta=0.1,
    )
    settings = PBTConfig(population=2, ready_steps=600, execution=execution, parallel_members=2)
    pbt.run(plan, settings)
    events = read_journal(tmp_path / "journal.jsonl")
    scores = [event["score"] for event in events if event["event"] != "start"]
    assert len(scores) >= 2
    # The best member is a run, which can be trained on.
    best = json.loads((tmp_path / "summary.json").read_text())["best_run"]
    saved = json.loads((tmp_path / best / "config.json").read_text())["run"]["steps"]
    assert training.run(Plan.load(tmp_path / best))["agent_steps"] >= saved
    # The mean of a mean return within ±1000 and of one within 0 and 1; Catch's games are shorter.
    assert all(-500 <= score <= 501 and 2 * score % 1 != 0 for score in scores)


@pytest.mark.slow
@pytest.mark.extended
def test_one_agent_learns_two_tasks(tmp_path: Path):
    """Catch, and a cue to remember for a short while: both well above chance."""
    found = pronk.train(
        "impala",
        "pronk/Catch-v0,pronk/MemoryCue-v0?delay=1&cues=2",
        steps=300_000,
        run_dir=tmp_path,
        recurrent_core="lstm",
        recurrent_units=32,
        hidden_sizes=(64,),
        reward_scale=1.0,
        quiet=True,
    )
    assert found["return/pronk/Catch-v0"] > 0.8
    assert found["return/pronk/MemoryCue-v0?delay=1&cues=2"] > 0.9
