"""Pixel control: how much cells change, and its loss, by hand."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from gymnasium import spaces

from pronk import agents
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.nn import networks
from pronk.types import Batch, EnvSpec, TimeStep, Trajectory

LAST = spaces.Box(0, 255, (9, 7, 2), np.uint8)
FIRST = spaces.Box(0, 255, (2, 9, 7), np.uint8)
LENGTH, WIDTH, ACTIONS, SIZE = 5, 3, 3, 3
KEY = jax.random.key(0)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        256, size=(LENGTH + 1, WIDTH, 9, 7, 2), dtype=np.uint8
    )


def changes(x: np.ndarray) -> np.ndarray:
    """One cell after the other."""
    found = np.zeros((LENGTH, WIDTH, 3, 2))
    for t, b, i, j in np.ndindex(*found.shape):
        at = (slice(i * SIZE, (i + 1) * SIZE), slice(j * SIZE, (j + 1) * SIZE))
        found[t, b, i, j] = np.mean(np.abs(x[t + 1, b][at] / 255.0 - x[t, b][at] / 255.0))
    return found


def test_pixel_change_of_each_cell():
    def change(space: spaces.Space, observation: Any) -> Any:
        return jax.jit(lambda x: networks.pixel_change(space, x, SIZE))(observation)

    x = pixels()
    np.testing.assert_allclose(change(LAST, x), changes(x), atol=1e-6)
    moved = np.moveaxis(x, -1, 2)
    np.testing.assert_allclose(change(FIRST, moved), changes(x), atol=1e-6)
    nested = spaces.Dict({"a": spaces.Discrete(2), "b": LAST})
    seen = {"a": np.zeros((LENGTH + 1, WIDTH), int), "b": x}
    np.testing.assert_allclose(change(nested, seen), changes(x), atol=1e-6)


def test_number_of_cells():
    assert networks.pixel_cells(LAST, 3) == (3, 2)
    assert networks.pixel_cells(FIRST, 4) == (2, 1)
    assert networks.pixel_cells(LAST, 8) is None
    assert networks.pixel_cells(spaces.Box(-1, 1, (4,)), 1) is None


def test_the_loss_is_that_of_its_formula():
    """n-step Q in every cell, bootstrapped from the greedy value of the last row or of a truncated
    episode's last one, 0 beyond a termination; dummies have no weight. In NumPy."""
    config = Config(
        unroll=LENGTH, batch_size=WIDTH, hidden_sizes=(8,), torso="minatar", pixel_control_cost=0.5,
        pixel_control_cell=SIZE, learning_rate=1e-12,
    )  # fmt: skip
    spec = EnvSpec("test", LAST, spaces.Discrete(ACTIONS), has_action_mask=True)
    agent = agents.make("impala", config, spec, horizon=1000)
    state = jax.jit(agent.init)(KEY)
    rng = np.random.default_rng(1)
    state = state._replace(
        params=jax.tree.map(
            lambda x: np.asarray(x) + np.float32(0.1 * rng.normal(size=x.shape)), state.params
        )
    )
    first, terminated, truncated = np.zeros((3, LENGTH + 1, WIDTH), bool)
    terminated[2, 0], first[3, 0] = True, True
    truncated[3, 1], first[4, 1] = True, True
    first[3, 2] = True  # that no end announced
    mask = rng.uniform(size=(LENGTH + 1, WIDTH, ACTIONS)) < 0.6
    action = rng.integers(ACTIONS, size=(LENGTH + 1, WIDTH))
    np.put_along_axis(mask, action[..., None], True, -1)
    rows = TimeStep(
        pixels(), np.zeros((LENGTH + 1, WIDTH), np.float32), terminated, truncated, first,
        np.zeros((LENGTH + 1, WIDTH), np.int32), mask,
    )  # fmt: skip
    core = agent.initial_carry(KEY, np.arange(WIDTH), WIDTH, False).core
    extras = {"log_prob": np.full((LENGTH + 1, WIDTH), -1.0, np.float32)}
    batch = Batch(Trajectory(rows, action, extras, core, np.zeros(WIDTH, np.int32)))
    _, metrics, _ = jax.jit(agent.learn)(state, batch)

    network = networks.ActorCritic(
        space=LAST, num_params=ACTIONS, torso="minatar", hidden_sizes=(8,), activation="relu",
        pixel_control=networks.PixelControl((3, 2), ACTIONS),
    )  # fmt: skip
    zeros = np.zeros((LENGTH + 1, WIDTH))
    output = jax.jit(functools.partial(network.apply, pixel=True))(
        state.params, rows.observation, zeros, zeros[..., None], first, ()
    )
    q = np.asarray(output.pixel_values, np.float64)
    assert q.shape == (LENGTH + 1, WIDTH, 3, 2, ACTIONS)
    greedy = np.where(mask[:, :, None, None], q, -np.inf).max(-1)
    change, total, count = changes(pixels()), 0.0, 0
    for b in range(WIDTH):
        following = greedy[LENGTH, b]
        for t in reversed(range(LENGTH)):
            if first[t + 1, b]:  # a dummy: what comes before it knows nothing of what follows
                following = greedy[t, b]
                continue
            if terminated[t + 1, b]:
                following = np.zeros_like(following)
            elif truncated[t + 1, b]:
                following = greedy[t + 1, b]
            following = change[t, b] + 0.9 * following
            total += np.sum(0.5 * (following - q[t, b, ..., action[t, b]]) ** 2)
            count += 1
    np.testing.assert_allclose(metrics["loss/pixel_control"], total / count, rtol=1e-4)


def test_the_cost_scales_the_gradient_of_the_head():
    """Without a cost there is no head."""
    spec = EnvSpec("test", LAST, spaces.Discrete(ACTIONS))
    config = Config(
        unroll=4, batch_size=2, hidden_sizes=(8,), torso="minatar", pixel_control_cell=SIZE
    )
    assert "pixel_control" not in str(
        jax.eval_shape(agents.make("impala", config, spec, horizon=1).init, KEY).params
    )
    config = dataclasses.replace(config, pixel_control_cost=0.5)
    agent = agents.make("impala", config, spec, horizon=1)
    state = jax.jit(agent.init)(KEY)
    assert {"pixel_control_cost", "pixel_control_discount"} <= state.hyper.keys()
    from pronk.experiments.bench.timing import random_batch

    batch = random_batch(agent, spec, state, 4, 2)
    gradients, heads = jax.jit(agent.halves.gradients), []
    for cost in (0.5, 1.5):
        hyper = state.hyper | {"pixel_control_cost": np.float32(cost)}
        grads, _ = gradients(state._replace(hyper=hyper), batch)
        heads.append(grads["params"]["pixel_control"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(3 * np.asarray(a), b, rtol=1e-4, atol=1e-6), *heads
    )


@pytest.mark.parametrize(
    "spec",
    [
        EnvSpec("test", spaces.Box(-1, 1, (4,)), spaces.Discrete(2)),
        EnvSpec("test", LAST, spaces.Box(-1, 1, (2,))),
        EnvSpec("test", spaces.Box(0, 255, (5, 5, 1), np.uint8), spaces.Discrete(2)),
    ],
)
def test_environments_without_pixels_or_discrete_actions_are_refused(spec):
    config = Config(pixel_control_cost=0.1, pixel_control_cell=8)
    with pytest.raises(UserError, match="--pixel-control-cost"):
        agents.make("impala", config, spec, horizon=1)
