"""Runs that can be trusted: exact resumption, bad environments, damaged checkpoints, learning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import jax
import numpy as np
import pytest
import safetensors.numpy

import pronk
from pronk.errors import UserError
from pronk.run.actors import ActorFactory
from pronk.run.inspect import inspect
from pronk.run.resolve import resolve
from pronk.run.setup import build, initial_state
from pronk.runtime import tuning
from pronk.runtime.learner import Learner
from pronk.storage.checkpoint import Checkpointer

TINY: dict[str, Any] = {
    "envs_per_actor": 4,
    "batch_size": 4,
    "unroll": 5,
    "hidden_sizes": (8,),
    "quiet": True,
}


def train(env: Any, run_dir: Path, steps: int, **settings: Any) -> dict[str, Any]:
    return pronk.train("impala", env, run_dir=run_dir, steps=steps, **{**TINY, **settings})


def digest(run_dir: Path) -> str:
    return inspect(run_dir)["learner_sha256"]


R2D2: dict[str, Any] = {
    "sequence_length": 6, "overlap": 3, "burn_in": 2, "recurrent_units": 4, "head_units": 8,
    "replay_minimum": 20, "replay_capacity": 400,
}  # fmt: skip
NGU: dict[str, Any] = {
    **R2D2,
    "mixtures": 3,
    "memory_size": 20,
    "neighbours": 3,
    "embedding_size": 4,
    "intrinsic_steps": 2,
}
TRANSITIONS: dict[str, Any] = {
    "unroll": 1,
    "replay_minimum": 50,
    "replay_capacity": 400,
    "updates_per_step": 0.5,
}
AGENT57 = {**NGU, "bandit_window": 4}
OF_AGENTS = {
    "r2d2": R2D2,
    "ngu": NGU,
    "agent57": AGENT57,
    "ddpg": TRANSITIONS,
    "sac": TRANSITIONS,
}  # with a replay
FUSED = {"runtime": "fused"}
FUSED_R2D2 = {**FUSED, "priority_exponent": 0.0, "overlap": 0}
LOCAL = {"runtime": "local"}
GRU, LSTM = ({"recurrent_core": core, "recurrent_units": 8} for core in ("gru", "lstm"))
LASER = {"replay_fraction": 0.5, "trust_region": 0.5, "replay_capacity": 200, "policy_lag": 80}
POPART = {"value_normalisation": "popart", "popart_beta": 0.1}
# Both change in the middle of the run.
SCHEDULES = {"learning_rate": "cosine:1e-2:1e-4", "discount": "piecewise:0.9@0,0.5@400,0.7@900"}
SUITE = "pronk/Catch-v0?reward_scale=100,pronk/MemoryCue-v0?delay=2,pronk/CartPole-v1"
FITTED = {"value_minibatch_size": 10, "value_passes": 2}
WEIGHTED = {"value_minibatch_size": 10, "fit_iterations": 5}
EVOLVED = {"population_size": 4, "elite_fraction": 0.5}
ATARI = {"envs_per_actor": 2, "batch_size": 2, "torso": "shallow", "replay_capacity": 300}
PLANS: dict[str, Any] = {
    "preset": "small",
    "batch_size": 8,
    "model_units": 8,
    "simulations": 3,
    "replay_minimum": 20,
    "replay_capacity": 400,
    "samples_per_insert": 0.5,
}
OF_AGENTS["muzero"] = PLANS
FUSED_MUZERO = {**FUSED, "preset": "board", "starts": 16, "unroll": 16, "samples_per_insert": 2.0}
# Agent, environment, settings, steps. Every agent, and what another agent or runtime does
# differently: frames, lives, suites, workers, cores, schedules. Add each new agent.
EXACT: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "pendulum": ("impala", "Pendulum-v1", {**GRU, "actors": 1}, 400),
    "mixed-workers": (
        "impala",
        "CartPole-v1",
        {**LSTM, **LASER, "envs_per_actor": 1, "env_workers": 1},
        1000,
    ),
    "schedules": ("impala", "CartPole-v1", {**SCHEDULES, "entropy_cost": "linear:0.1:0"}, 800),
    "suite-fused": ("impala", SUITE, {**FUSED, **POPART, **LSTM}, 600),
    "ppo": (
        "ppo",
        "Pendulum-v1",
        {**LSTM, "minibatch_size": 10, "passes": 2, "noise_correlation": 0.5},
        400,
    ),
    "trpo-fused": ("trpo", "pronk/CartPole-v1", {**FUSED, **FITTED}, 600),
    "cem-fused": ("cem", "pronk/CartPole-v1", {**FUSED, **EVOLVED, **GRU}, 1000),
    "r2d2-suite-workers": (
        "r2d2",
        "CartPole-v1,Acrobot-v1",
        {"env_workers": 1, "replay_eviction": "lowest-priority", "recurrent_core": "none"},
        600,
    ),
    "ngu": ("ngu", "CartPole-v1", {"env_workers": 1}, 300),
    "agent57-fused": (
        "agent57",
        "pronk/MemoryCue-v0",
        {**FUSED_R2D2, "samples_per_insert": 2.0},
        600,
    ),
    "muzero": ("muzero", "CartPole-v1", {"env_workers": 1, "reanalyze": 0.5}, 300),
    "sac": ("sac", "Pendulum-v1", {"actors": 2, "discount": "linear:0.9:0.99"}, 300),
    "ddpg-fused": ("ddpg", "pronk/CartPoleBalance-v0", {**FUSED, "batch_size": 8}, 400),
}
MORE: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "schedules-fused": ("impala", "pronk/Catch-v0", {**FUSED, **SCHEDULES}, 1000),
    # With a lag of more updates than there are before the pauses.
    "mixed-fused": ("impala", "pronk/Catch-v0", {**FUSED, **LASER, "envs_per_actor": 2}, 1000),
    "suite": ("impala", "pronk/Catch-v0,CartPole-v1", POPART, 1000),
    "impala-atari": ("impala", "ALE/Breakout-v5", {"envs_per_actor": 2, "batch_size": 2}, 600),
    "r2d2-fused": ("r2d2", "pronk/MemoryCue-v0", {**FUSED_R2D2, "samples_per_insert": 2.0}, 1500),
    "r2d2-atari": (
        "r2d2",
        "ALE/Breakout-v5",
        {**ATARI, "replay_compress": True, "env_args": {"life_loss": True}},
        400,
    ),
    "r2d2-life-loss": ("r2d2", "pronk/Orchard-v0", {**LOCAL, "env_args": {"life_loss": True}}, 900),
    "ngu-suite-fused": (
        "ngu",
        "pronk/Catch-v0,pronk/MemoryCue-v0?delay=2",
        {**FUSED_R2D2, "samples_per_insert": 2.0, "embedding": "random"},
        1500,
    ),
    "agent57": ("agent57", "CartPole-v1", {"env_workers": 1}, 900),
    "muzero-fused": ("muzero", "pronk/TicTacToe-v0", FUSED_MUZERO, 1000),
    "ppo-suite": ("ppo", SUITE, {**FUSED, "minibatch_size": 5, "objective": "adaptive-kl"}, 1000),
    "tnpg": ("tnpg", "CartPole-v1,Acrobot-v1", FITTED, 1000),
    "npg-gru": ("npg", "CartPole-v1", {**GRU, **FITTED}, 1000),
    "cma-es": ("cma_es", "CartPole-v1", {"population_size": 4, "covariance": "separable"}, 800),
    "reinforce": ("reinforce", "Pendulum-v1", {**FITTED, "baseline": "linear"}, 600),
    "rwr-gru": ("rwr", "Pendulum-v1", {**GRU, **WEIGHTED, "weighting": "exponential"}, 600),
    "reps-fused": ("reps", "pronk/CartPole-v1", {**FUSED, "fit_iterations": 5}, 1000),
    "sac-suite": ("sac", "Pendulum-v1?g=5,Pendulum-v1?g=10", {"envs_per_actor": 2}, 600),
}

OTHER_SEEDS = ("mixed-fused", "pendulum", "r2d2-suite-workers")  # give other runs


def everything_saved(run_dir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint but for where the replay happens to keep its contents."""
    loaded = Checkpointer(run_dir / "checkpoints").load()
    assert loaded is not None
    where = ("replay/segments/", "replay/next_segment", "replay/sources/")
    arrays: dict[str, np.ndarray] = {}
    for name in loaded.names:
        leaves, _ = jax.tree_util.tree_flatten_with_path(loaded.tree(name))
        arrays |= {"/".join([name, *(str(p.key) for p in path)]): x for path, x in leaves}
    return {k: v for k, v in arrays.items() if not k.startswith(where)}


@pytest.mark.parametrize(
    "name", [*EXACT, *(pytest.param(name, marks=pytest.mark.extended) for name in MORE)]
)
def test_a_paused_run_equals_the_uninterrupted_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Its environments, actors and replay are saved in the middle of episodes."""
    agent, env, settings, steps = (EXACT | MORE)[name]
    tiny = TINY | OF_AGENTS.get(agent, {})
    settings = {**tiny, "hidden_sizes": (16,), "deterministic": True, "seed": 3, **settings}

    def train(run_dir: Path, **changes: Any) -> dict[str, Any]:
        return pronk.train(agent, env, run_dir=run_dir, steps=steps, **{**settings, **changes})

    whole = train(tmp_path / "whole")
    for part in (steps // 3, 2 * steps // 3):
        paused = train(tmp_path / "parts", stop_after=part)
        assert paused["status"] == "paused"
        assert part <= paused["agent_steps"] < steps
    rest = train(tmp_path / "parts")
    expected, found = (everything_saved(tmp_path / d) for d in ("whole", "parts"))
    remembers = (agent in OF_AGENTS or "mixed" in name) and "fused" not in name
    assert any(k.startswith("replay/") for k in found) == remembers
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    timing = {"wall_seconds", "steps_per_second", "run_dir", "bound_by"}
    assert {k: v for k, v in whole.items() if k not in timing} == {
        k: v for k, v in rest.items() if k not in timing
    }
    if name in OTHER_SEEDS:
        other = train(tmp_path / "other", seed=4)
        assert other["status"] == "finished"
        assert digest(tmp_path / "other") != digest(tmp_path / "whole")


def test_a_finished_run_is_not_continued(tmp_path: Path) -> None:
    first = train("pronk/Catch-v0", tmp_path, 200)
    before = digest(tmp_path)
    again = train("pronk/Catch-v0", tmp_path, 200)
    assert again["status"] == "finished"
    assert again["agent_steps"] == first["agent_steps"]
    assert digest(tmp_path) == before


def test_a_run_that_has_lost_its_checkpoints_keeps_its_curves(tmp_path: Path) -> None:
    train("pronk/Catch-v0", tmp_path, 200)
    curve = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="curves of a run of 200 steps, and no checkpoint"):
        train("pronk/Catch-v0", tmp_path, 200)
    assert (tmp_path / "metrics.jsonl").read_bytes() == curve


def test_a_run_that_stopped_before_its_first_update_begins_again(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"agent_steps": 0, "updates": 0}')
    assert train("pronk/Catch-v0", tmp_path, 200)["updates"] > 0


@pytest.mark.parametrize("agent", ["sac", "r2d2"])
def test_a_run_that_would_end_before_learning_is_refused(agent: str, tmp_path: Path) -> None:
    env = {"sac": "Pendulum-v1", "r2d2": "pronk/Catch-v0"}[agent]
    with pytest.raises(UserError, match=r"`--steps` is 500, and nothing is learnt before .* 500 "):
        pronk.train(agent, env, run_dir=tmp_path, steps=500, replay_minimum=500)
    assert not any(tmp_path.iterdir())


@pytest.mark.extended
def test_a_run_that_ended_before_its_first_update_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of an environment is not a sequence: that there are few shows only in the end."""
    few = {"recurrent_core": "none", "burn_in": 0, "replay_minimum": 30}
    settings = {**TINY, **R2D2, **FUSED_R2D2, **few}
    summary = pronk.train("r2d2", "pronk/Catch-v0", run_dir=tmp_path, steps=31, **settings)
    assert (summary["status"], summary["updates"]) == ("finished", 0)
    shown = " ".join(capsys.readouterr().out.split())
    assert "nothing was learnt and there is no checkpoint; expected more `--steps`, or" in shown


def test_another_configuration_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    train("pronk/Catch-v0", tmp_path, 200)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"discount: 0\.99 there, 0\.9 here"):
        train("pronk/Catch-v0", tmp_path, 200, discount=0.9)
    with pytest.raises(UserError, match=r"steps: 200 there, 300 here.*--init-from .* begins a new"):
        train("pronk/Catch-v0", tmp_path, 300)
    with pytest.raises(UserError, match="env: pronk/Catch-v0 there, pronk/CartPole-v1 here"):
        train("pronk/CartPole-v1", tmp_path, 200)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_asynchronous_runs_resume_with_new_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"runtime": "local"}
    train("pronk/Catch-v0", tmp_path, 1000, stop_after=400, **settings)
    capsys.readouterr()
    summary = train("pronk/Catch-v0", tmp_path, 1000, **settings)
    shown = capsys.readouterr().out
    assert "resumed at" in shown
    assert "new episodes start" in shown
    assert summary["status"] == "finished"
    assert summary["agent_steps"] >= 1000
    steps = [json.loads(line)["steps"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == sorted(steps)


def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stop in (200, 400):
        train("pronk/Catch-v0", tmp_path, 600, stop_after=stop)
    older, newer = sorted(p for p in (tmp_path / "checkpoints").iterdir() if p.stem.isdigit())
    data = bytearray(newer.read_bytes())
    data[len(data) // 2] ^= 1
    newer.write_bytes(data)
    capsys.readouterr()
    summary = train("pronk/Catch-v0", tmp_path, 600)
    shown = capsys.readouterr().out.replace("\n", "")
    assert newer.name in shown
    assert f"resumed at {int(older.stem):,} steps" in shown
    assert summary["status"] == "finished"


def test_init_from_starts_with_the_parameters_of_another_run(tmp_path: Path) -> None:
    train("pronk/Catch-v0", tmp_path / "a", 400)
    # A learning rate of nearly nothing leaves the parameters as they were given.
    settings = {"init_from": tmp_path / "a", "learning_rate": 1e-30, "seed": 9}
    train("pronk/Catch-v0", tmp_path / "b", 200, **settings)
    a, b = pronk.load(tmp_path / "a"), pronk.load(tmp_path / "b")
    flat = [np.concatenate([x.ravel() for x in _leaves(p.behaviour)]) for p in (a, b)]
    np.testing.assert_array_equal(*flat)
    with pytest.raises(UserError, match=r"cannot start this run: .* does not fit: at `behaviour/"):
        train("pronk/Catch-v0", tmp_path / "c", 200, init_from=tmp_path / "a", hidden_sizes=(9,))


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_training_evaluates_every_so_many_steps(tmp_path: Path) -> None:
    train("pronk/Catch-v0", tmp_path, 1200, eval_every=400, eval_episodes=4)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    found = [r for r in records if "eval/mean_return" in r]
    assert len(found) >= 2
    assert all(r["eval/episodes"] == 4 for r in found)
    assert all(-1 <= r["eval/mean_return"] <= 1 for r in found)


@pytest.mark.parametrize("settings", [{"runtime": "local"}, {"runtime": "fused"}])
def test_evaluation_does_not_disturb_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {"deterministic": True, **settings}
    train("pronk/Catch-v0", tmp_path / "a", 600, **settings)
    train("pronk/Catch-v0", tmp_path / "b", 600, **settings, eval_every=200, eval_episodes=3)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_actors_and_restarts_have_their_own_random_numbers(tmp_path: Path) -> None:
    plan = resolve("impala", "CartPole-v1", run_dir=tmp_path, **TINY)
    _, agent = build(plan, "CartPole-v1")
    behaviour = agent.behaviour(initial_state(plan, agent))
    seen, drawn = [], []
    for index, life in ((0, 0), (1, 0), (0, 1000), (1, 1000)):
        actor = ActorFactory(plan, "CartPole-v1", index, 2, 2, life)(agent)
        trajectory = actor.unroll(behaviour, 0).trajectory
        seen.extend(row.tobytes() for row in trajectory.timestep.observation[0])
        # The policy is nearly uniform still: what is drawn shows the random numbers.
        drawn.append(trajectory.action.tobytes())
        actor.close()
    assert len(set(seen)) == 8
    assert len(set(drawn)) == 4


def test_a_failed_update_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"runtime": "local", "actors": 1}
    train("pronk/Catch-v0", tmp_path, 600, stop_after=300, **settings)
    before = inspect(tmp_path)

    update = Learner.update

    def fail(learner: Learner, *args: Any, **kwargs: Any) -> Any:
        if learner.updates < before["updates"] + 2:
            return update(learner, *args, **kwargs)
        for x in jax.tree.leaves(learner.state):
            x.delete()  # as donating it does
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            train("pronk/Catch-v0", tmp_path, 600, **settings)
    after = inspect(tmp_path)
    assert (after["agent_steps"], digest(tmp_path)) == (
        before["agent_steps"],
        before["learner_sha256"],
    )
    assert train("pronk/Catch-v0", tmp_path, 600, **settings)["status"] == "finished"


class Troubled(gym.Env):
    """Ends after 10 steps; raises, or returns NaN, at step 4 of every third episode."""

    trouble = "raise"
    every = 3

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.t = self.episode = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        value = 0.1
        if self.t == 4 and self.episode % self.every == 0:
            if self.trouble == "raise":
                raise ValueError("the simulator is on fire")
            value = float("nan")
        return np.full(2, value, np.float32), 1.0, self.t == 10, False, {}


class TroubledNaN(Troubled):
    trouble = "nan"


class AlwaysTroubled(Troubled):
    every = 1


def test_an_environment_that_raises_is_restarted_and_logged(tmp_path: Path) -> None:
    # Each slot's environment is rebuilt after a fault, so its third episode comes every 24 steps.
    summary = train(Troubled, tmp_path, 400, actors=1, max_env_faults=100)
    assert summary["status"] == "finished"
    assert summary["episodes"] > 0
    log = (tmp_path / "env_faults.log").read_text()
    assert "the simulator is on fire" in log
    assert "Traceback" in log
    assert "step 4" in log


@pytest.mark.parametrize("env", [AlwaysTroubled, TroubledNaN])
def test_a_run_stops_saved_after_too_many_faults(env: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--max-env-faults") as caught:
        train(env, tmp_path, 10_000_000, actors=1, max_env_faults=6)
    assert "env_faults.log" in str(caught.value)
    assert "step 4" in str(caught.value)
    if env is TroubledNaN:
        assert "NaN" in str(caught.value) or "nan" in str(caught.value)
    assert inspect(tmp_path)["agent_steps"] > 0  # what was learnt is saved


def test_a_policy_acts_in_a_plain_loop(tmp_path: Path) -> None:
    train("CartPole-v1", tmp_path, 300, actors=1, recurrent_core="lstm", recurrent_units=8)
    policy = pronk.load(tmp_path)
    env = gym.make("CartPole-v1")

    def play(seed: int, sample: bool) -> list[int]:
        observation, _ = env.reset(seed=1)
        carry, reward, actions = policy.initial_carry(seed=seed, sample=sample), 0.0, []
        for _ in range(8):
            action, carry = policy.act(observation, carry, reward=reward)
            assert env.action_space.contains(action)
            observation, reward, *_ = env.step(action)
            actions.append(int(action))
        return actions

    assert play(0, sample=False) == play(1, sample=False)
    assert len({tuple(play(seed, sample=True)) for seed in range(6)}) > 1


class Huge(Troubled):
    every = 10**9

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return np.full_like(observation, 1e30), *rest


@pytest.mark.parametrize("log_every", [0.5, 1e-3])
def test_a_run_stops_if_gradients_are_never_finite(log_every: float, tmp_path: Path) -> None:
    """Also if no two records are twenty updates apart."""
    with pytest.raises(UserError, match=r"not finite.* batch is in .*diverged\.safetensors"):
        train(Huge, tmp_path, 2_000_000, actors=1, log_every=log_every, activation="relu")
    batch = safetensors.numpy.load_file(tmp_path / "diverged.safetensors")
    seen = [x for name, x in batch.items() if name.endswith("timestep/observation")]
    assert sum(x.shape[1] for x in seen) == TINY["batch_size"]
    assert all((x == np.float32(1e30)).any() for x in seen)
    loaded = pronk.load(tmp_path, env=Huge)
    assert all(np.isfinite(x).all() for x in _leaves(loaded.behaviour))


def test_environment_faults_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Troubled, tmp_path, 400, actors=1, max_env_faults=100)
    shown = " ".join(capsys.readouterr().out.split())
    assert "the simulator is on fire; restarted" in shown


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    process = start(tmp_path)
    try:
        with pytest.raises(UserError, match="another process is training"):
            train("pronk/Catch-v0", tmp_path, 200)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


class Shifted(gym.Env):
    """Its actions are 1 and 2."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2, start=1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return (
            np.zeros(2, np.float32),
            float(action),
            bool(self.np_random.random() < 0.2),
            False,
            {},
        )


def test_actions_of_a_policy_are_those_of_the_environment(tmp_path: Path) -> None:
    train(Shifted, tmp_path, 200, actors=1, max_env_faults=0)
    with pytest.raises(UserError, match="give it from Python: pronk"):
        pronk.load(tmp_path)
    policy = pronk.load(tmp_path, env=Shifted)
    seen = set()
    for _ in range(30):
        action, _ = policy.act(np.zeros(2, np.float32), policy.initial_carry(sample=True))
        seen.add(int(action))
    assert seen == {1, 2}


class Interrupting(Shifted):
    """Sends its own process a signal at its 50th step."""

    steps = 0

    def step(self, action: Any) -> Any:
        type(self).steps += 1
        if self.steps == 50:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(action)


def test_an_interrupt_is_raised_once_the_run_is_saved(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting, tmp_path, 10**9, actors=1)
    assert signal.getsignal(signal.SIGINT) is before
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert inspect(tmp_path)["agent_steps"] == summary["agent_steps"] > 0


class Owned(Shifted):
    """Belongs to the thread that made it, like SQLite's connections and OpenGL's contexts."""

    made: ClassVar[list[int]] = []
    wrong: ClassVar[list[str]] = []

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.made.append(self.thread)

    def _check(self, what: str) -> None:
        if threading.get_ident() != self.thread:
            self.wrong.append(what)

    def reset(self, **options: Any) -> Any:
        self._check("reset")
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self._check("step")
        return super().step(action)

    def close(self) -> None:
        self._check("close")


@pytest.mark.parametrize("architecture", ["async", "sync-unroll"])
def test_an_environment_is_made_stepped_and_closed_in_one_thread(
    architecture: str, tmp_path: Path
) -> None:
    Owned.made.clear()
    settings = {"architecture": architecture, "eval_every": 200, "eval_episodes": 2}
    train(Owned, tmp_path, 400, actors=2, envs_per_actor=2, **settings)
    assert not Owned.wrong
    assert len(set(Owned.made)) == 3


def test_few_environments_are_made_if_that_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "SLOW", 0.0)
    monkeypatch.setattr("pronk.run.build.SLOW_START", 0.0)
    Owned.made.clear()
    train(Owned, tmp_path, 200, envs_per_actor=None)
    assert len(Owned.made) <= 16 + 2  # one for the spaces, one for the speed
    shown = " ".join(capsys.readouterr().out.split())
    assert "making 16 environments, about" in shown


def test_a_policy_is_refused_by_another_observation_space(tmp_path: Path) -> None:
    train("pronk/Catch-v0", tmp_path, 200)
    with pytest.raises(UserError, match="observation space"):
        pronk.load(tmp_path).evaluate(episodes=1, env="CartPole-v1")


def test_an_evaluation_can_be_stopped(tmp_path: Path) -> None:
    from pronk import envs
    from pronk.run.evaluate import evaluate

    train("pronk/Catch-v0", tmp_path, 200)
    policy, calls = pronk.load(tmp_path), []
    result = evaluate(
        policy.agent,
        policy.behaviour,
        envs.make("pronk/Catch-v0", 2),
        episodes=10**9,
        key=jax.random.key(0),
        stop=lambda: calls.append(None) or len(calls) > 30,
    )
    assert result is None


def test_a_refused_command_leaves_its_directory_free(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use --runtime local"):
        train("CartPole-v1", tmp_path, 200, runtime="fused")
    assert train("CartPole-v1", tmp_path, 200, actors=1)["status"] == "finished"


WRONG = {
    "optimiser": ("sgd", "rmsprop, adam"),
    "runtime": ("fsed", "did you mean 'fused'?"),
    "steps": ("100", "expected int"),
    "learning_rate": (True, "expected float"),
    "hidden_sizes": (64, "expected"),
    "seed": (2**70, "expected a number from 0 to"),
    "entropy": (0.1, "did you mean 'entropy_cost'?"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_named(name: str, tmp_path: Path) -> None:
    value, expected = WRONG[name]
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        pronk.train("impala", "pronk/Catch-v0", run_dir=tmp_path, **{name: value})


COMMAND = [sys.executable, "-m", "pronk.cli", "train", "impala"]
FLAGS = ["--runtime", "local", "--steps", "100000000", "--envs-per-actor", "4", "--batch-size", "4"]


def start(run_dir: Path, *flags: str, env: str = "pronk/Catch-v0") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*COMMAND, env, *FLAGS, "--run-dir", str(run_dir), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("first update"):
            return process
    raise AssertionError("the run ended before its first update")


def newest(run_dir: Path) -> int:
    return max((int(p.stem) for p in (run_dir / "checkpoints").glob("0*")), default=0)


@pytest.mark.faults
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.extended)]
)
def test_signals_save_and_exit_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "interrupted at" in shown
    assert "Traceback" not in shown
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert inspect(tmp_path)["agent_steps"] == summary["agent_steps"] > 0


@pytest.mark.faults
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.extended)]
)
def test_a_signal_to_all_processes_saves_too(number: signal.Signals, tmp_path: Path) -> None:
    """As Ctrl-C in a terminal does, and SIGTERM from a cluster."""
    process = start(tmp_path, "--env-workers", "1", "--actors", "1", env="CartPole-v1")
    os.killpg(process.pid, number)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "interrupted at" in shown
    assert "Traceback" not in shown
    assert inspect(tmp_path)["agent_steps"] > 0


@pytest.mark.faults
def test_kill_9_while_saving_loses_nothing_committed(tmp_path: Path) -> None:
    committed = 0
    for pause in (0.1, 0.37):
        # Saving all the time, so that the kill comes in mid-save.
        process = start(tmp_path, "--checkpoint-every", "0.001")
        deadline = time.monotonic() + 60
        while newest(tmp_path) <= committed and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(pause)
        process.kill()
        process.wait()
        found = inspect(tmp_path)
        assert found["agent_steps"] > committed
        assert found["warnings"] == []
        committed = found["agent_steps"]
    process = start(tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert inspect(tmp_path)["agent_steps"] > committed


SMALL: dict[str, Any] = {"quiet": True, "log_every": 1000.0}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["fused", pytest.param("local", marks=pytest.mark.extended)])
def test_catch_is_learnt(runtime: str, tmp_path: Path) -> None:
    pronk.train(
        "impala", "pronk/Catch-v0", steps=300_000, run_dir=tmp_path, runtime=runtime, **SMALL
    )
    assert pronk.load(tmp_path).evaluate(episodes=200).mean_return >= 0.98


@pytest.mark.slow
@pytest.mark.extended
def test_a_memory_task_is_learnt_with_a_recurrent_core_only(tmp_path: Path) -> None:
    settings = {"env_args": {"delay": 5}, "steps": 300_000, **SMALL}
    scores = {}
    for core in ("lstm", "none"):
        pronk.train(
            "impala", "pronk/MemoryCue-v0", run_dir=tmp_path / core, recurrent_core=core, **settings
        )
        scores[core] = pronk.load(tmp_path / core).evaluate(episodes=400).mean_return
    assert scores["lstm"] >= 0.95
    assert scores["none"] <= 0.35  # chance is 0.25


@pytest.mark.extended
@pytest.mark.slow
def test_cartpole_is_learnt(tmp_path: Path) -> None:
    pronk.train("impala", "CartPole-v1", steps=250_000, run_dir=tmp_path, seed=1, **SMALL)
    assert pronk.load(tmp_path).evaluate(episodes=20).mean_return >= 400


@pytest.mark.slow
@pytest.mark.extended
def test_squashed_actions_between_unequal_bounds_are_learnt(tmp_path: Path) -> None:
    """The policy does not end at a bound. A random one scores about −163."""
    pronk.train("impala", "toy_box:ToyBox-v0", steps=100_000, run_dir=tmp_path, **SMALL)
    assert pronk.load(tmp_path).evaluate(episodes=50).mean_return >= -5
