"""What the tree search costs: simulations per second with MuZero's vector model, beside mctx's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from pronk.agents import planner
from pronk.agents.muzero_config import Config
from pronk.agents.planner import Planner
from pronk.experiments.bench.settings import Search as Settings
from pronk.experiments.bench.timing import median_seconds
from pronk.maths.search import Root
from pronk.run.setup import configure_jax
from pronk.types import Array, EnvSpec, Key, PyTree

OBSERVATION = 18  # numbers


def measure(settings: Settings) -> dict[str, Any]:
    """Simulations per second of our search and, where mctx is installed, of its own."""
    configure_jax()
    has_mctx = importlib.util.find_spec("mctx") is not None
    rows = []
    for algorithm in settings.algorithms:
        for batch in settings.batch_sizes:
            for simulations in settings.simulations:
                row = {"algorithm": algorithm, "batch": batch, "simulations": simulations}
                made = _planner(settings, algorithm, simulations)
                ours = _rate(settings, made, batch, _ours(made))
                row["simulations_per_second"] = ours
                if has_mctx:
                    theirs = _rate(settings, made, batch, _mctx(made))
                    row |= {"of_mctx": theirs, "ratio": ours / theirs}
                rows.append(row)
    return {
        "device": jax.devices()[0].device_kind,
        "max_depth": settings.max_depth,
        "actions": settings.actions,
        "units": settings.units,
        "mctx": "measured" if has_mctx else "not installed: pip install mctx",
        "rows": rows,
    }


def _planner(settings: Settings, algorithm: str, simulations: int) -> Planner:
    config = Config(
        search=algorithm,  # type: ignore[arg-type]
        simulations=simulations,
        max_depth=settings.max_depth,
        hidden_sizes=(settings.units,),
        model_units=settings.units,
        planes=0,
        support_limit=1.0,
        support_bins=21,
    )
    space = gym.spaces.Box(-1, 1, (OBSERVATION,), np.float32)
    spec = EnvSpec("search", space, gym.spaces.Discrete(settings.actions))
    return Planner(*planner.parts(config, spec))


def _rate(
    settings: Settings, made: Planner, batch: int, search: Callable[[PyTree, Root, Key], Array]
) -> float:
    """Simulations per second; search: returns actions."""
    key = jax.random.key(0)
    observation = jax.random.normal(key, (batch, OBSERVATION))
    params = made.model.init(key, observation[:1], jnp.zeros(1, jnp.int32))
    compiled = jax.jit(lambda params, key: search(params, made.root(params, observation), key))
    seconds = median_seconds(lambda: jax.block_until_ready(compiled(params, key)), settings.seconds)
    return batch * made.settings.simulations / seconds


def _ours(made: Planner) -> Callable[[PyTree, Root, Key], Array]:
    def search(params: PyTree, root: Root, key: Key) -> Array:
        explores = jnp.ones(root.value.shape, bool)
        return made.search(params, root, None, key, explores).action

    return search


def _mctx(made: Planner) -> Callable[[PyTree, Root, Key], Array]:
    import mctx

    # Dataclasses of chex, whose parameters type checkers do not see.
    output: Any = mctx.RecurrentFnOutput
    root_output: Any = mctx.RootFnOutput

    def recurrent(params: PyTree, key: Key, action: Array, state: PyTree) -> tuple[Any, PyTree]:
        del key
        after, reward = made.step(params, state, action)
        logits, value = made.predict(params, after)
        reward, value = made.support.decode(reward), made.support.decode(value)
        discount = jnp.full_like(reward, made.discount)
        return output(reward=reward, discount=discount, prior_logits=logits, value=value), after

    def search(params: PyTree, root: Root, key: Key) -> Array:
        start = root_output(prior_logits=root.logits, value=root.value, embedding=root.state)
        sizes = made.settings.simulations, None, made.settings.depth
        if made.settings.algorithm == "gumbel":
            return mctx.gumbel_muzero_policy(params, key, start, recurrent, *sizes).action
        return mctx.muzero_policy(params, key, start, recurrent, *sizes).action

    return search
