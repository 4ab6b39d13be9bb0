"""What passes between environments and agents: observations, masks, rewards and actions."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

from pronk.errors import Diverged, UserError
from pronk.maths.keys import key_of
from pronk.maths.spaces import (
    Observations,
    agent_space,
    as_mask,
    as_reward,
    check_actions,
    choices,
    env_action,
    has_mask,
    leaf_spaces,
    mask_size,
    one_hots,
    random_actions,
)

INF = float("inf")
MAX = float(np.finfo(np.float32).max)
PAIR = spaces.Box(-1, 1, (2,), np.float32)
NESTED = spaces.Dict({"b": PAIR, "a": spaces.Tuple([spaces.Discrete(3, start=1), PAIR])})
GOOD: dict[str, Any] = {"a": (2, np.zeros(2)), "b": np.ones(2)}


# --- observations


def test_the_order_of_keys_does_not_matter_and_other_keys_are_left_out() -> None:
    read = Observations(NESTED)
    expected = [leaf.tolist() for leaf in read.leaves(GOOD)]
    assert expected == [2, [0, 0], [1, 1]]
    others = [
        OrderedDict(reversed(GOOD.items())),
        {**GOOD, "debug": "text"},
        {"b": [1.0, 1], "a": [np.int32(2), (0, 0)]},
    ]
    for other in others:
        assert [leaf.tolist() for leaf in read.leaves(other)] == expected


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (PAIR, np.zeros((5, 2)), r"^observation has shape \(5, 2\), expected \(2,\)"),
        (PAIR, np.zeros(3), r"shape \(3,\)"),
        (PAIR, [[1.0], [1.0, 2.0]], "is not an array"),
        (PAIR, [None, 1], "dtype object"),
        (PAIR, ["a", "b"], "dtype <U1"),
        (PAIR, np.zeros(2, complex), "dtype complex128"),
        (PAIR, None, r"shape \(\)"),
        (PAIR, [np.nan, 0], "not finite"),
        (PAIR, np.array([np.nan, 0], np.float32), "not finite"),
        (PAIR, np.array([INF, np.nan]), "not finite"),
        (PAIR, np.array([0, -INF]), "not finite"),
        (PAIR, np.array([0, -1e39]), r"the value -1e\+39, which is beyond the range of float32"),
        (spaces.Box(-1, 1, (1,), np.float16), [1e5], "beyond the range of float16"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 256]), "does not fit uint8"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 0.5]), "does not fit uint8"),
        (spaces.Discrete(3, start=1), 0, "is 0, which is not an element of Discrete"),
        (spaces.Discrete(3, start=1), 4, "not an element"),
        (spaces.Discrete(3), 1.5, "does not fit"),
        (spaces.Discrete(3), np.nan, "does not fit"),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 3]), "not an element"),
        (spaces.MultiDiscrete([2, 3], start=[0, 4]), np.array([1, 3]), "not an element"),
        (spaces.MultiBinary(2), np.array([1, 2], np.int8), "not an element"),
        (NESTED, PAIR.sample(), r"observation is a ndarray, expected a dict of \['a', 'b'\]"),
        (
            NESTED,
            {"a": GOOD["a"]},
            r"observation is a dict of \['a'\], expected a dict of \['a', 'b'\]",
        ),
        (NESTED, {**GOOD, "a": (2,)}, r"observation\['a'\] is a tuple of 1, expected a tuple of 2"),
        (NESTED, {**GOOD, "a": 2}, r"observation\['a'\] is a int, expected a tuple of 2"),
        (NESTED, {**GOOD, "a": (2, np.zeros(1))}, r"^observation\['a'\]\[1\] has shape"),
    ],
)
def test_what_is_no_observation_is_named(space: gym.Space, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Observations(space).leaves(value)


@pytest.mark.parametrize(
    "value", [[0, 1], (0.0, 1.0), np.array([0, 1]), np.array([False, True]), np.array([0.0, 1.0])]
)
def test_numbers_of_other_dtypes_are_converted(value: Any) -> None:
    for space in (PAIR, spaces.Box(0, 255, (2,), np.uint8), spaces.MultiBinary(2)):
        (leaf,) = Observations(space).leaves(value)
        assert leaf.dtype == space.dtype
        assert leaf.tolist() == [0, 1]


def test_numbers_outside_their_bounds_are_found() -> None:
    space = spaces.Dict({"x": PAIR, "z": spaces.Box(0, 1, (2,), np.uint8)})
    read = Observations(space)
    inside = [np.zeros((3, 2), np.float32), np.full((3, 2), 9, np.uint8)]  # bytes are scaled anyway
    assert read.outside(inside) == ""
    inside[0][1, 1] = 6
    assert read.outside(inside).startswith("observation['x'] has the value 6, outside the bounds")


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_numbers_of_64_bits_reach_jax_as_float32(dtype: Any) -> None:
    """JAX would cut the integers to 32 bits: 2^33 would be 0."""
    space = agent_space(spaces.Dict({"clock": spaces.Box(0, 2**40, (2,), dtype)}))
    (leaf,) = leaf_spaces(space)
    assert leaf == spaces.Box(0, 2**40, (2,), np.float32)
    (clock,) = Observations(space).leaves({"clock": np.array([2**33, 1], dtype)})
    assert jax.numpy.asarray(clock).tolist() == [2.0**33, 1.0]


def test_spaces_that_agents_cannot_have() -> None:
    assert agent_space(spaces.Box(-1e300, 1, (2,), np.float64)).low.tolist() == [-INF, -INF]  # type: ignore[attr-defined]
    assert agent_space(NESTED) == NESTED
    for space in (
        spaces.Discrete(3, start=2**31 - 2),
        spaces.Tuple([spaces.MultiDiscrete([2], start=[-(2**31) - 1])]),
    ):
        with pytest.raises(UserError, match="has elements from"):
            agent_space(space)
    with pytest.raises(UserError, match=r"several types \(1, 'a'\)"):
        agent_space(spaces.Dict([(1, PAIR), ("a", PAIR)]))  # type: ignore[arg-type]


@pytest.mark.parametrize("xp", [np, jax.numpy])
def test_one_hots_are_one_computation(xp: Any) -> None:
    counts = (3, 2, 1)
    x = xp.asarray([[2, 0, 0], [0, 1, 5]])
    found = one_hots(x, counts, xp)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 1, 0]]


# --- masks


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (spaces.Discrete(3, start=5), np.array([1, 0, 1], np.int8)),
        (spaces.Discrete(3), [True, False, True]),
        (spaces.Discrete(3), np.array([1.0, 0.0, 1.0])),
        (spaces.MultiDiscrete([1, 2]), [1, 0, 1]),
        (spaces.MultiDiscrete([1, 2]), (np.array([1]), np.array([0, 1]))),
    ],
)
def test_masks(space: gym.Space, given: Any) -> None:
    mask = as_mask(space, given)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (spaces.Discrete(3), [1, 0]),
        (spaces.Discrete(3), [0, 0, 0]),
        (spaces.Discrete(3), [1, 0.5, 0]),
        (spaces.Discrete(3), [np.nan, 1, 1]),
        (spaces.Discrete(3), ["a", "b", "c"]),
        (spaces.Discrete(3), 1),
        (spaces.Discrete(3), [[1, 0, 1]] * 2),
        (spaces.MultiDiscrete([2, 2]), [1, 1, 0, 0]),
        (spaces.MultiBinary(2), [1, 1]),
    ],
)
def test_what_is_no_mask_is_named(space: gym.Space, given: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"the action mask is .*, expected {mask_size(space)} bool"
    ):
        as_mask(space, given)


def test_a_mask_among_the_observations() -> None:
    def seen(leaf: gym.Space) -> gym.Space:
        return spaces.Dict({"observation": PAIR, "action_mask": leaf})

    assert has_mask(seen(spaces.MultiBinary(4)), spaces.Discrete(4), "x")
    assert has_mask(seen(spaces.Box(0, 1, (4,), np.int8)), spaces.MultiDiscrete([1, 3]), "x")
    assert not has_mask(NESTED, spaces.Discrete(4), "x")
    assert not has_mask(PAIR, spaces.Discrete(4), "x")
    for actions in (spaces.Discrete(5), PAIR):
        with pytest.raises(UserError, match="observations of `env` 'x' have an 'action_mask'"):
            has_mask(seen(spaces.MultiBinary(4)), actions, "x")


# --- rewards


@pytest.mark.parametrize(
    "value", [1, 1.0, True, np.float64(1), np.float32(1), np.int8(1), np.array(1)]
)
def test_rewards(value: Any) -> None:
    assert as_reward(value) == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e39, r"reward is 1e\+39, which is beyond the range of float32 \(±3.4e\+38\)"),
        (-10**400, "expected a finite number"),
        (INF, "reward is inf, expected a finite number"),
        (float("nan"), "reward is nan, expected a finite number"),
        (None, "reward is None, expected"),
        ("1.0", "reward is '1.0', expected"),
        (np.ones(1), r"reward is array\(\[1.\]\), expected"),
        (1j, "reward is 1j, expected"),
    ],
)  # fmt: skip
def test_what_is_no_reward_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_reward(value)


# --- actions


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-0.1, 0.1, (2,), np.float64),  # float32(0.1) is above 0.1
        spaces.Box(0.1, 0.3, (2,), np.float16),
        spaces.Box(np.array([-1, 0.7]), np.array([0.7, INF]), dtype=np.float64),
        spaces.Box(np.array([2, 3], np.float32), np.array([2, 4], np.float32)),
    ],
)
def test_actions_are_inside_their_box(space: spaces.Box) -> None:
    low, high = np.clip(space.low, -9, 9), np.clip(space.high, -9, 9)
    for action in (low, high, low - 1, high + 1):
        made = env_action(space, action.astype(np.float32))
        assert made.dtype == space.dtype
        assert space.contains(made)
    assert env_action(space, made) is not made  # the environment may keep it


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Discrete(3, start=-1), np.int32(2), 1),
        (spaces.Discrete(3, start=2**40), np.int32(2), 2**40 + 2),
        (spaces.MultiDiscrete([2, 3], start=[1, -5]), np.array([1, 2], np.int32), [2, -3]),
        (spaces.MultiBinary(2), np.array([1, 0], np.int32), [1, 0]),
    ],
)
def test_actions_begin_where_their_space_does(space: gym.Space, action: Any, expected: Any) -> None:
    made = env_action(space, action)
    assert space.contains(made)
    assert np.asarray(made).tolist() == expected


def test_actions_that_are_none_are_refused() -> None:
    with pytest.raises(Diverged, match="not finite"):
        check_actions(PAIR, np.array([[0, np.nan]]))
    for space, wrong in (
        (spaces.Discrete(3, start=1), [3]),
        (spaces.Discrete(3), [-1]),
        (spaces.MultiDiscrete([2, 3]), [[0, 2], [2, 0]]),
        (spaces.MultiBinary(2), [[0, 2]]),
    ):
        with pytest.raises(UserError, match="the agent's actions are"):
            check_actions(space, np.array(wrong))
        check_actions(space, np.zeros_like(wrong))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([2, 3], start=[1, -5]),
        spaces.MultiBinary(2),
        spaces.Box(np.array([-1, 0, -MAX], np.float32), np.array([1, INF, MAX], np.float32)),
    ],
)
def test_random_actions_are_allowed_ones(space: gym.Space) -> None:
    rng = np.random.default_rng(0)
    mask = None
    if mask_size(space):
        mask = np.tile(np.concatenate([np.arange(n) == n - 1 for n in choices(space)]), (20, 1))
    actions = random_actions(space, 20, rng, mask)
    assert actions.shape == (20, *(space.shape or ()))
    check_actions(space, actions)
    assert all(space.contains(env_action(space, action)) for action in actions)
    if mask is not None:
        last = np.array(choices(space)).reshape(space.shape or ()) - 1
        assert (actions == last).all()
    assert len(np.unique(random_actions(space, 20, rng).reshape(20, -1), axis=0)) > 1


# --- seeds


def test_every_bit_of_a_seed_counts() -> None:
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**33, 2**63 - 1]
    keys = {tuple(jax.random.key_data(key_of(seed)).tolist()) for seed in seeds}
    assert len(keys) == len(seeds)
    assert key_of(7) == jax.random.key(7)  # those of small seeds are JAX's


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e18, 1e30, 3e38])
def test_numbers_of_every_size_that_float32_can_hold_pass(dtype: type, size: float):
    given = np.array([size, -size], dtype)
    (leaf,) = Observations(PAIR).leaves(given)
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, given.astype(np.float32))


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (0,)), spaces.Dict({}), spaces.Dict({"a": spaces.Box(0, 1, (2, 0))})],
)
def test_a_space_without_numbers_is_refused(space: spaces.Space):
    with pytest.raises(UserError, match="has no numbers; expected at least one"):
        agent_space(space)
