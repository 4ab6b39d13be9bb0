"""Running statistics that an on-policy agent keeps in `LearnerState.extra`.

Of observations: they are part of the behaviour, so that acting, evaluation and exported files
standardise alike. They change after an update, not within it: a batch is learnt from with those
that it was acted with. Of rewards and of value targets: only learning needs them.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from pronk.errors import UserError
from pronk.maths import running
from pronk.maths.running import Running
from pronk.maths.spaces import as_vector, is_image, leaf_spaces
from pronk.types import Array, EnvSpec, PyTree

Statistics = dict[str, Any]  # `observation`: of each leaf that is standardised; `reward`; `value`


def init(config: Any, space: gym.Space) -> Statistics:
    """Before any data: nothing is changed by them, but observations are clipped."""
    statistics: Statistics = {}
    if config.observation_normalisation:
        statistics["observation"] = [
            running.init(leaf.shape or ()) if _is_standardised(leaf) else ()
            for leaf in leaf_spaces(space)
        ]
    if config.reward_normalisation:
        statistics["reward"] = running.init()
    if config.value_normalisation == "running":
        statistics["value"] = running.init()
    return statistics


def _is_standardised(leaf: gym.Space) -> bool:
    return isinstance(leaf, gym.spaces.Box) and not is_image(leaf)


def standardise(statistics: Statistics, observation: PyTree, clip: float) -> PyTree:
    """Observations `[..., *shape]` as the network sees them."""
    if "observation" not in statistics:
        return observation
    leaves, tree = jax.tree.flatten(observation)
    return tree.unflatten(
        [
            running.normalize(seen, x.astype(jnp.float32), clip=clip)
            if isinstance(seen, Running)
            else x
            for seen, x in zip(statistics["observation"], leaves, strict=True)
        ]
    )


def vectors(space: gym.Space, observation: PyTree) -> Array:
    """Observations `[T, B, ...]` as numbers `[T, B, D]`, those of all leaves side by side."""
    flat = []
    for leaf, x in zip(leaf_spaces(space), jax.tree.leaves(observation), strict=True):
        rows = as_vector(leaf, x.reshape(-1, *x.shape[2:]), jnp)
        flat.append(rows.reshape(*x.shape[:2], -1))
    return jnp.concatenate(flat, axis=-1)


def refuse_images(spec: EnvSpec) -> None:
    """Raise UserError where observations are images, which `vectors` would make far too many
    numbers of."""
    if any(map(is_image, leaf_spaces(spec.observation_space))):
        raise UserError(
            f"the observations of '{spec.name}' are images, and the value function is linear in the"
            " observation; expected vectors: use `--baseline network`, if the agent has it, or"
            " another agent, such as ppo."
        )


def observe(statistics: Statistics, observation: PyTree) -> Statistics:
    """Merge the observations of a batch's rows, `[..., *shape]`."""
    if "observation" not in statistics:
        return statistics
    merged = [
        running.update(seen, x.astype(jnp.float32)) if isinstance(seen, Running) else seen
        for seen, x in zip(statistics["observation"], jax.tree.leaves(observation), strict=True)
    ]
    return statistics | {"observation": merged}


def merge(statistics: Statistics, name: str, x: Array, weight: Array) -> Statistics:
    """Merge the elements `[...]` of weight 1 into the statistics of this name, if they are kept."""
    if name not in statistics:
        return statistics
    return statistics | {name: running.update(statistics[name], x, weight)}


def reward_deviation(statistics: Statistics) -> Array:
    """What rewards are divided by, float32 []; 1 where they are not."""
    if "reward" not in statistics:
        return jnp.float32(1.0)
    return jnp.sqrt(statistics["reward"].variance + 1e-8)


def value_units(statistics: Statistics) -> tuple[Array, Array]:
    """Mean and deviation of value targets; (0, 1) where values are not normalised."""
    if "value" not in statistics:
        return jnp.float32(0.0), jnp.float32(1.0)
    seen = statistics["value"]
    return seen.mean, jnp.maximum(seen.deviation, np.float32(1e-4))
