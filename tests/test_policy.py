"""A policy checks what it is given as training does: `Policy.act`, without training anything."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from pronk.errors import UserError
from pronk.run.policy import Policy
from pronk.run.resolve import resolve
from pronk.run.setup import build, initial_state

VECTOR = spaces.Box(-1, 1, (2,), np.float32)


class Still(gym.Env):
    """Nothing happens; `mask`: where it says that only action 1 is allowed."""

    def __init__(self, observation: gym.Space, action: gym.Space, mask: str = "") -> None:
        self.observation_space, self.action_space, self.mask = observation, action, mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(0)
        info = {"action_mask": [0, 1, 0]} if self.mask == "info" else {}
        return self.observation_space.sample(), info

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return *self.reset()[:1], 0.0, False, False, {}


def policy(observation: gym.Space, action: gym.Space, mask: str = "", **settings: Any) -> Policy:
    def env() -> gym.Env:
        return Still(observation, action, mask)

    plan = resolve("impala", env, hidden_sizes=(8,), run_dir=Path("run"), **settings)
    spec, agent = build(plan, env)
    return Policy(plan, env, spec, agent, agent.behaviour(initial_state(plan, agent)), 0)


def test_the_order_of_an_observations_keys_does_not_matter() -> None:
    made = policy(spaces.Dict({"a": VECTOR, "b": VECTOR}), spaces.Box(-1, 1, (1,)))
    observation = {"a": np.array([0.9, -0.9]), "b": np.array([-0.3, 0.2])}
    swapped = {"a": observation["b"], "b": observation["a"]}

    def act(observation: Any) -> float:
        action, _ = made.act(observation, made.initial_carry(seed=0))
        return float(action[0])

    expected = act(observation)
    assert act(swapped) != expected
    assert act(OrderedDict(reversed(observation.items()))) == expected
    assert act({**observation, "debug": None}) == expected
    assert act({name: x.tolist() for name, x in observation.items()}) == expected


def test_what_training_would_refuse_a_policy_refuses() -> None:
    made = policy(VECTOR, spaces.Discrete(3))
    carry = made.initial_carry()
    good = np.zeros(2, np.float32)
    for observation, message in (
        (np.zeros((5, 2)), r"shape \(5, 2\), expected \(2,\).*one observation at a time"),
        (np.zeros(3), r"shape \(3,\)"),
        ({"a": good}, "shape"),
        (np.array([np.nan, 0]), "not finite"),
        (np.array([1e39, 0]), "beyond the range of float32"),
    ):
        with pytest.raises(UserError, match=message):
            made.act(observation, carry)
    with pytest.raises(UserError, match="reward is nan"):
        made.act(good, carry, reward=float("nan"))
    with pytest.raises(UserError, match="the action mask is"):
        made.act(good, carry, action_mask=[1, 0])
    action, _ = made.act([0, 0.0], carry)
    assert spaces.Discrete(3).contains(action)


def test_numbers_outside_their_bounds_are_said_once() -> None:
    made = policy(VECTOR, spaces.Discrete(3))
    with pytest.warns(UserWarning, match="observation has the value 7, outside the bounds"):
        made.act(np.array([0, 7]), made.initial_carry())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.act(np.array([0, 7]), made.initial_carry())


def test_masks_are_asked_for_and_obeyed() -> None:
    made = policy(VECTOR, spaces.Discrete(3), mask="info")
    carry = made.initial_carry(sample=True)
    observation = np.zeros(2, np.float32)
    with pytest.raises(UserError, match="has action masks, and `action_mask` is missing"):
        made.act(observation, carry)
    for allowed in range(3):
        action, carry = made.act(observation, carry, action_mask=np.arange(3) == allowed)
        assert action == allowed


def test_a_mask_in_the_observation_is_obeyed() -> None:
    space = spaces.Dict({"observation": VECTOR, "action_mask": spaces.MultiBinary(5)})
    made = policy(space, spaces.MultiDiscrete([2, 3], start=[0, 1]))
    carry = made.initial_carry(sample=True)
    for mask, expected in (([1, 0, 0, 0, 1], [0, 3]), ([0, 1, 0, 1, 0], [1, 2])):
        observation = {"observation": np.zeros(2), "action_mask": np.array(mask)}
        action, carry = made.act(observation, carry)
        assert action.tolist() == expected


@pytest.mark.parametrize("bound", [0.1, float(np.finfo(np.float32).max)])
def test_actions_are_those_of_the_environment(bound: float) -> None:
    space = spaces.Box(-bound, bound, (2,), np.float64)
    made = policy(VECTOR, space)
    carry = made.initial_carry(sample=True)
    actions = []
    for _ in range(20):
        action, carry = made.act(np.zeros(2), carry)
        assert space.contains(action)
        actions.append(action)
    assert len(np.unique(actions)) > 10


def test_environments_arguments_are_those_that_a_run_can_save(tmp_path: Path) -> None:
    def env(**_: Any) -> gym.Env:
        return Still(VECTOR, spaces.Discrete(2))

    good = {"a": (1, 2.5), "b": {"c": [None, True, "x"]}}
    args = {**good, "n": np.int64(3), "f": np.float32(0.5)}
    plan = resolve("impala", env, env_args=args, run_dir=Path("run"))
    assert plan.env_args == {**good, "n": 3, "f": 0.5}
    assert type(plan.env_args["n"]) is int
    for value, message in (
        (object(), "has x=<object object.*a run cannot save.*inside the environment's function"),
        (np.arange(3), "a ndarray, which a run cannot save.*give a list"),
        ([1, {2: 3}], r"has x\[1\]=\{2: 3\}, a dict"),
        (tmp_path, "give a string"),
        (print, "which a run cannot save"),
    ):
        with pytest.raises(UserError, match=message):
            resolve("impala", env, env_args={"x": value}, run_dir=Path("run"))
