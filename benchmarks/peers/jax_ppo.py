"""PPO on CartPole as one jitted program and nothing else, as PureJaxRL has it; see on_policy.py.

A measure of what a runtime, an agent's interface, metrics and the counting of episodes cost: this
script has none of them. Its environment is pronk's; every step computes a reset, and takes it where
an episode ended. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pronk.envs import cartpole

ENVS, STEPS, MINIBATCHES, PASSES = 4, 128, 4, 4
DISCOUNT, LAMBDA, CLIP, VALUE_COST, ENTROPY_COST = 0.99, 0.95, 0.2, 0.5, 0.01
UPDATES_PER_CALL = 64
ENV = cartpole.make()


class Network(nn.Module):
    """Logits and value, from separate networks."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def mlp(out: int, scale: float) -> jax.Array:
            y = x
            for _ in range(2):
                y = nn.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(y))
            return nn.Dense(out, kernel_init=nn.initializers.orthogonal(scale))(y)

        return mlp(2, 0.01), mlp(1, 1.0)[..., 0]


class Row(NamedTuple):
    """What one step leaves to learn from."""

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


NETWORK = Network()
OPTIMISER = optax.chain(
    optax.clip_by_global_norm(0.5),
    optax.adam(optax.linear_schedule(2.5e-4, 0.0, 10**7), eps=1e-5),
)


def log_prob_of(logits: jax.Array, action: jax.Array) -> jax.Array:
    """Log-probability of the action."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def loss(params: Any, row: Row, advantage: jax.Array, target: jax.Array) -> jax.Array:
    """Clipped surrogate, clipped value loss and entropy bonus."""
    logits, value = NETWORK.apply(params, row.observation)
    ratio = jnp.exp(log_prob_of(logits, row.action) - row.log_prob)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    clipped = row.value + jnp.clip(value - row.value, -CLIP, CLIP)
    error = 0.5 * jnp.maximum((value - target) ** 2, (clipped - target) ** 2)
    log_probs = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return jnp.mean(policy + VALUE_COST * error - ENTROPY_COST * entropy)


def update(state: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Play ENVS × STEPS transitions and learn from them in PASSES passes. Returns also the sum of
    rewards and the number of episodes that ended."""

    def step(carry: Any, _: None) -> tuple[Any, Row]:
        params, slots, observation, key = carry
        key, act_key, reset_key, step_key = jax.random.split(key, 4)
        logits, value = NETWORK.apply(params, observation)
        action = jax.random.categorical(act_key, logits)
        keys = jax.random.split(step_key, ENVS)
        slots, after, reward, terminated, truncated = jax.vmap(ENV.step)(slots, action, keys)
        done = terminated | truncated
        new, first = jax.vmap(ENV.reset)(jax.random.split(reset_key, ENVS))
        slots, after = jax.tree.map(
            lambda a, b: jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b),
            (new, first),
            (slots, after),
        )
        row = Row(observation, action, log_prob_of(logits, action), value, reward, done)
        return (params, slots, after, key), row

    params, opt_state, slots, observation, key = state
    (_, slots, observation, key), rows = jax.lax.scan(
        step, (params, slots, observation, key), length=STEPS
    )
    last = NETWORK.apply(params, observation)[1]

    def backward(carry: Any, row: Row) -> tuple[Any, jax.Array]:
        advantage, following = carry
        more = 1.0 - row.done
        delta = row.reward + DISCOUNT * following * more - row.value
        advantage = delta + DISCOUNT * LAMBDA * more * advantage
        return (advantage, row.value), advantage

    _, advantage = jax.lax.scan(backward, (jnp.zeros(ENVS), last), rows, reverse=True)
    whole = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), (rows, advantage, advantage + rows.value)
    )

    def one_pass(carry: Any, key: jax.Array) -> tuple[Any, None]:
        order = jax.random.permutation(key, ENVS * STEPS)
        drawn = jax.tree.map(lambda x: x[order].reshape(MINIBATCHES, -1, *x.shape[1:]), whole)

        def one(carry: Any, minibatch: Any) -> tuple[Any, None]:
            params, opt_state = carry
            grads = jax.grad(loss)(params, *minibatch)
            updates, opt_state = OPTIMISER.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(one, carry, drawn)

    key, *pass_keys = jax.random.split(key, PASSES + 1)
    (params, opt_state), _ = jax.lax.scan(one_pass, (params, opt_state), jnp.stack(pass_keys))
    return (params, opt_state, slots, observation, key), (rows.reward.sum(), rows.done.sum())


def main() -> None:
    """Compile, train for some seconds, and print the speed."""
    parser = argparse.ArgumentParser(description="PPO on CartPole as one jitted program.")
    parser.add_argument("--case", choices=["ppo-cartpole-jax"], default="ppo-cartpole-jax")
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    key, reset_key, params_key = jax.random.split(jax.random.key(0), 3)
    slots, observation = jax.vmap(ENV.reset)(jax.random.split(reset_key, ENVS))
    params = NETWORK.init(params_key, observation)
    # What is donated must not share memory: an observation is the state itself here.
    state = jax.tree.map(jnp.copy, (params, OPTIMISER.init(params), slots, observation, key))
    program = jax.jit(
        lambda state: jax.lax.scan(update, state, length=UPDATES_PER_CALL), donate_argnums=0
    )
    state, _ = jax.block_until_ready(program(state))
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        state, (rewards, ends) = jax.block_until_ready(program(state))
        calls += 1
    rate = calls * UPDATES_PER_CALL * ENVS * STEPS / (time.perf_counter() - start)
    row = {"system": "PPO in one jitted script", "version": f"jax {jax.__version__}"}
    row |= {"setting": f"{ENVS} environments", "steps_per_second": rate}
    print(json.dumps(row | {"last_mean_return": float(rewards.sum() / ends.sum())}))


if __name__ == "__main__":
    main()
