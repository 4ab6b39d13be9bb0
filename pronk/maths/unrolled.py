"""What a model unrolled from rows of a trajectory should predict: rewards, values, policies.

Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model"
(arXiv:1911.08265), eq. 1 and appendix G. Rows are those of `Trajectory`: the reward of row t is
that of the transition into it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from pronk.maths.shapes import assert_same_shape
from pronk.types import Array, TimeStep


def value_targets(
    timestep: TimeStep, bootstrap: Array, discount: Array | float, *, steps: int
) -> Array:
    """n-step returns z_t `[T + 1 − n, B]` for rows `[T + 1, B]`, n = `steps`:

        z_t = u_{t+1} + d u_{t+2} + … + d^{n−1} u_{t+n} + d^n ν_{t+n}

    discount: d = γ, or −γ where two sides move in turn: rewards and values are those of the side
    that moves. bootstrap: ν_t, the values of the rows, as a search or a network has them. An
    episode that is terminated within the n steps adds nothing after its end; one that is truncated,
    or ends without a flag, is bootstrapped from the value of its last row. A terminated row itself
    has the value 0.
    """
    assert_same_shape(reward=timestep.reward, bootstrap=bootstrap)
    rows = timestep.reward.shape[0] - steps

    def at(x: Array, i: int) -> Array:
        return x[i : i + rows]

    first = timestep.first.astype(jnp.float32)
    goes_on = 1.0 - jnp.logical_or(timestep.terminated, timestep.truncated).astype(jnp.float32)
    truncated = (timestep.truncated & ~timestep.terminated).astype(jnp.float32)
    total = jnp.zeros_like(at(bootstrap, 0))
    weight = 1.0 - at(timestep.terminated, 0).astype(jnp.float32)  # d^(i−1), 0 after the end
    for i in range(1, steps + 1):
        # A row that begins an episode: the one before it was the last, and had no flag.
        total += weight * at(first, i) * at(bootstrap, i - 1)
        weight = weight * (1.0 - at(first, i))
        total += weight * at(timestep.reward, i)
        weight = weight * discount
        total += weight * at(truncated, i) * at(bootstrap, i)
        weight = weight * at(goes_on, i)
    return total + weight * at(bootstrap, steps)


class Unrolled(NamedTuple):
    """The model's inputs and targets for unrolls of K steps from S rows each of B columns, with a
    leading axis of K + 1 steps: `[K + 1, S, B, ...]`. Rewards and actions belong to the step that
    leads there; those of step 0 mean nothing."""

    action: Array  # int32, taken before; any after the episode's end
    reward: Array  # u
    value: Array  # z
    policy: Array  # [K + 1, S, B, A], π
    # 1 where rewards and values are learnt: in the episode, and after its end where it was
    # terminated: that state is absorbing, with reward 0 and value 0.
    weight: Array
    policy_weight: Array  # 1 where the policy is learnt: where there was a decision
    start: Array  # [S, B], 1 where an unroll begins: a decision that the environment executed


def unroll(
    timestep: TimeStep,
    action: Array,
    policy: Array,
    value: Array,
    random_action: Array,
    *,
    steps: int,
    starts: int,
) -> Unrolled:
    """Targets for unrolls of K = `steps` from each of the first S = `starts` rows.

    timestep, action, policy: rows, at least `[S + K, B, ...]`; value: z of rows `[S + K, B]`;
    random_action: int32 `[K + 1, S, B]`, what is fed after an episode's end (appendix G).
    """

    def window(x: Array) -> Array:
        return jnp.stack([x[k : k + starts] for k in range(steps + 1)])

    first, terminated = window(timestep.first), window(timestep.terminated)
    truncated = window(timestep.truncated)
    alive, absorbing = [jnp.ones(first.shape[1:], bool)], [jnp.zeros(first.shape[1:], bool)]
    for k in range(1, steps + 1):
        ended = alive[-1] & terminated[k - 1]
        absorbing.append(absorbing[-1] | ended)
        alive.append(alive[-1] & ~(first[k] | terminated[k - 1] | truncated[k - 1]))
    is_alive, is_absorbing = jnp.stack(alive), jnp.stack(absorbing)
    weight = (is_alive | is_absorbing).astype(jnp.float32)
    before = jnp.concatenate([window(action)[:1], window(action)[:-1]])
    return Unrolled(
        jnp.where(is_alive, before, random_action),
        jnp.where(is_alive, window(timestep.reward), 0.0),
        jnp.where(is_alive, window(value), 0.0),
        window(policy),
        weight,
        (is_alive & ~terminated).astype(jnp.float32),
        1.0 - timestep.first[1 : starts + 1].astype(jnp.float32),
    )
