"""What MuZero's model should predict, against slow loops over episodes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from pronk.maths import unrolled
from pronk.types import TimeStep

ROWS, BATCH, ACTIONS = 60, 6, 3
value_targets = jax.jit(unrolled.value_targets, static_argnames="steps")


def rows(seed: int) -> tuple[TimeStep, np.ndarray, np.ndarray]:
    """Rows of short episodes that end in all ways: terminated, truncated, both, without a flag;
    and values and actions."""
    rng = np.random.default_rng(seed)
    first = np.zeros((ROWS, BATCH), bool)
    terminated, truncated = first.copy(), first.copy()
    for b in range(BATCH):
        t = 0
        first[0, b] = True
        while True:
            t += int(rng.integers(1, 9))
            if t >= ROWS:
                break
            how = rng.integers(4)
            terminated[t, b], truncated[t, b] = how in (0, 1), how in (1, 2)
            if t + 1 < ROWS:
                first[t + 1, b] = True
            t += 1
    reward = rng.normal(size=first.shape).astype(np.float32) * ~first
    timestep = TimeStep(np.zeros((ROWS, BATCH)), reward, terminated, truncated, first, first * 0)
    value = rng.normal(size=first.shape).astype(np.float32)
    return timestep, value, rng.integers(0, ACTIONS, first.shape)


def slow_value(timestep: TimeStep, value: Any, t: int, b: int, discount: float, n: int) -> float:
    if timestep.terminated[t, b]:
        return 0.0
    total, factor = 0.0, 1.0
    for i in range(t, t + n):
        if timestep.first[i + 1, b]:  # row i was the episode's last
            return total + factor * value[i, b]
        total += factor * timestep.reward[i + 1, b]
        factor *= discount
        if timestep.terminated[i + 1, b]:
            return total
        if timestep.truncated[i + 1, b]:
            return total + factor * value[i + 1, b]
    return total + factor * value[t + n, b]


@pytest.mark.parametrize("discount", [0.9, -1.0])
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_value_targets_are_those_of_a_loop(discount: float, steps: int):
    timestep, value, _ = rows(steps)
    got = np.asarray(value_targets(timestep, value, discount, steps=steps))
    assert got.shape == (ROWS - steps, BATCH)
    for t, b in np.ndindex(*got.shape):
        expected = slow_value(timestep, value, t, b, discount, steps)
        assert got[t, b] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_side_that_loses_has_the_value_minus_one():
    # Three moves; the first side wins with its second one.
    shape = (5, 1)
    flag = np.zeros(shape, bool)
    first, terminated = flag.copy(), flag.copy()
    first[0] = first[4] = terminated[3] = True
    reward = np.zeros(shape, np.float32)
    reward[3] = 1
    timestep = TimeStep(flag, reward, terminated, flag, first, flag * 0)
    padded = [np.concatenate([x, np.repeat(x[-1:], 5, 0)]) for x in timestep[:5]]
    long = TimeStep(*padded, task=np.zeros((10, 1)))
    z = np.asarray(value_targets(long, np.full((10, 1), 7.0, np.float32), -1.0, steps=5))
    np.testing.assert_array_equal(z[:4, 0], [1, -1, 1, 0])


def unrolls(seed: int, steps: int, starts: int):
    timestep, value, action = rows(seed)
    rng = np.random.default_rng(seed)
    policy = rng.dirichlet(np.ones(ACTIONS), (ROWS, BATCH))
    other = np.full((steps + 1, starts, BATCH), ACTIONS)  # no action of any row
    found = jax.jit(unrolled.unroll, static_argnames=("steps", "starts"))(
        timestep=timestep,
        action=action,
        policy=policy,
        value=value,
        random_action=other,
        steps=steps,
        starts=starts,
    )
    return timestep, value, action, policy, jax.tree.map(np.asarray, found)


def test_unrolls_stay_in_their_episode():
    steps, starts = 5, 50
    timestep, value, action, policy, found = unrolls(3, steps, starts)
    kinds = set()
    for s, b in np.ndindex(starts, BATCH):
        assert found.start[s, b] == (not timestep.first[s + 1, b])
        if not found.start[s, b]:
            continue
        end = s  # the last row of the episode
        while end + 1 < ROWS and not timestep.first[end + 1, b]:
            end += 1
        for k in range(steps + 1):
            t, here = s + k, (k, s, b)
            if t <= end:
                kinds.add("within")
                assert found.weight[here] == 1
                assert found.policy_weight[here] == (not timestep.terminated[t, b])
                assert found.value[here] == value[t, b]
                np.testing.assert_allclose(found.policy[here], policy[t, b], rtol=1e-6)
                if k:
                    assert found.reward[here] == timestep.reward[t, b]
                    assert found.action[here] == action[t - 1, b]
            else:
                absorbing = timestep.terminated[end, b]
                kinds.add("absorbing" if absorbing else "cut")
                assert found.weight[here] == absorbing
                assert found.policy_weight[here] == 0
                assert found.reward[here] == found.value[here] == 0
                assert found.action[here] == ACTIONS
    assert kinds == {"within", "absorbing", "cut"}
