"""What agents learn from an environment that fails: the steps before the fault, no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

import pronk
from pronk import envs
from pronk.maths import returns
from pronk.runtime.learner import Learner
from pronk.types import Batch, TimeStep

LENGTH = 5


class Broken(gym.Env):
    """Counts its steps, each of which has reward 1, up to `LENGTH`. In every second episode of all
    instances the reward of step `at` is NaN."""

    observation_space = spaces.Box(0, LENGTH, (1,), np.float32)
    episodes = 0  # begun

    def __init__(self, at: int = 3, continuous: bool = False) -> None:
        self.action_space = spaces.Box(-1, 1, (1,)) if continuous else spaces.Discrete(2)
        self.at = at

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        type(self).episodes += 1
        self.breaks = type(self).episodes % 2 == 0
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        reward = np.nan if self.breaks and self.count == self.at else 1.0
        return np.full(1, self.count, np.float32), reward, self.count == LENGTH, False, {}


def played(at: int, steps: int) -> TimeStep:
    """`[steps + 1]` rows, which begin with an episode that fails at step `at`."""
    env = envs.make(lambda: Broken(at), 1, workers=0, max_faults=100)
    Broken.episodes = 1
    rows = [env.reset()]
    rows = [jax.tree.map(np.copy, rows[0])]
    rows += [jax.tree.map(np.copy, env.step([0])) for _ in range(steps)]
    return jax.tree.map(lambda *x: np.concatenate(x), *rows)


def targets(method: str, values: np.ndarray, rows: TimeStep, ratio: np.ndarray) -> np.ndarray:
    """The targets of all transitions, whatever their weight."""
    reward, discount, continuation, _ = returns.transitions(rows, 0.9)
    if method == "vtrace":
        return returns.vtrace(values, reward, discount, continuation, ratio).targets
    if method == "gae":
        return returns.gae(values, reward, discount, continuation, 0.95)
    if method == "retrace":
        q = values[:-1] + 0.5
        return returns.off_policy(q, values, reward, discount, continuation, ratio)
    return returns.n_step(values, reward, discount, continuation, n=3)


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("method", ["vtrace", "gae", "retrace", "n-step"])
def test_targets_are_those_of_the_steps_before_the_fault(method: str, at: int) -> None:
    """Neither the fault nor what follows it reaches them; its own step has no weight."""
    steps = at + LENGTH + 1
    rows = played(at, steps)
    weight = returns.transitions(rows, 0.9).weight
    assert weight.tolist() == [1] * (at - 1) + [0] + [1] * LENGTH + [0]
    rng = np.random.default_rng(0)
    values, ratio = rng.normal(size=steps + 1), np.exp(rng.normal(size=steps))
    found = targets(method, values, rows, ratio)
    # Rows and transitions of both episodes; the first has none if its first step fails.
    episodes = [(slice(at), slice(at - 1)), (slice(at, -1), slice(at, -1))]
    for of, inner in episodes[at == 1 :]:
        part = jax.tree.map(lambda x, of=of: x[of], rows)
        alone = targets(method, values[of], part, ratio[inner])
        np.testing.assert_allclose(found[inner], alone, rtol=1e-5)


SMALL: dict[str, Any] = {
    "hidden_sizes": (8,), "unroll": 7, "batch_size": 2,
    "actors": 1, "envs_per_actor": 2, "env_workers": 0, "max_env_faults": 1000,
}  # fmt: skip
AGENTS: dict[str, dict[str, Any]] = {
    "ppo": {"minibatch_size": 14, "passes": 1},
    "r2d2": {
        "sequence_length": 4, "overlap": 2, "burn_in": 2, "recurrent_units": 8, "head_units": 8,
        "replay_minimum": 10, "replay_capacity": 2000, "samples_per_insert": 4.0,
    },
    "sac": {
        "unroll": 1, "replay_minimum": 50, "replay_capacity": 2000, "updates_per_step": 0.5,
        "env_args": {"continuous": True},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "agent", ["ppo", *(pytest.param(x, marks=pytest.mark.extended) for x in ("r2d2", "sac"))]
)
def test_nothing_is_learnt_from_a_reward_of_nan(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every transition with weight in a batch is a step that the environment really made."""
    batches: list[Batch] = []
    prepare = Learner.prepare

    def recorded(self: Learner, parts: list[Batch]) -> Any:
        batches.extend(jax.tree.map(np.copy, parts))
        return prepare(self, parts)

    monkeypatch.setattr(Learner, "prepare", recorded)
    Broken.episodes = 0
    settings = SMALL | AGENTS[agent]
    summary = pronk.train(agent, Broken, steps=400, run_dir=tmp_path, quiet=True, **settings)
    cut = 0
    assert len(batches) > 10
    for batch in batches:
        rows = batch.trajectory.timestep
        count, weight = rows.observation[..., 0], returns.transitions(rows, 0.9).weight > 0
        assert (rows.reward[1:][weight] == 1).all()
        assert (count[1:][weight] == count[:-1][weight] + 1).all()
        assert not rows.truncated.any()
        assert rows.terminated[count == LENGTH].any() or not (count == LENGTH).any()
        cut += (rows.first[1:] & (count[:-1] == 2)).sum()
    # Episodes that failed. SAC's sequences are single transitions, without what follows.
    assert cut > 10 or agent == "sac"
    assert summary["mean_return"] == LENGTH  # of the episodes that were played to their end
    faults = (tmp_path / "env_faults.log").read_text()
    assert faults.count("the reward is nan") > 10
