"""Exploration without rewards: the cells of Random Disco Maze that NGU visits.

Badia et al. 2020, "Never Give Up", section 4.1 and figure 2 (arXiv:2002.06038). The score of a run
is the share of a maze's free cells that the final policy visits in an episode, without exploring at
random; it is the return that the environment reports. Two walkers without a network are beside the
agents: one goes depth first, one moves at random but never into a wall.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import report
from pronk.envs import disco_maze
from pronk.experiments.reproduce import common, matrix
from pronk.experiments.reproduce.common import Interval
from pronk.experiments.reproduce.matrix import Variant
from pronk.experiments.reproduce.settings import NGUMaze
from pronk.report import statistics
from pronk.report.runs import EVALUATION
from pronk.run.setup import configure_jax
from pronk.types import Array, Key

ENV = "pronk/RandomDiscoMaze-v0"
LEARNED, RANDOM, RND, NOTHING = "learned embedding", "random projection", "RND alone", "no bonus"
VARIANTS: dict[str, dict[str, Any]] = {
    LEARNED: {},
    RANDOM: {"embedding": "random"},
    RND: {"episodic": False},
    NOTHING: {"intrinsic_scale": 0.0},
}
COMMON: dict[str, Any] = {"preset": "maze", "runtime": "fused", "envs_per_actor": 32}
DEPTH_FIRST, AVOIDING = "depth first", "random, avoids walls"
WALKS = 200  # mazes of each walker
EVALUATIONS, EPISODES = 20, 32
REPEATS = 10_000  # of the bootstrap


def steps_of(size: int) -> int:
    """The time limit of an episode: 2.5 steps for each free cell, 500 in a maze of 21 × 21."""
    return 5 * (size // 2) ** 2


def run(settings: NGUMaze, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    size = settings.size
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=1, steps=max(1, settings.steps // 20))
    name, task = f"ngu-maze-{size}", f"{size} x {size}"
    args = {"size": size, "max_steps": steps_of(size)}
    identity = {**args, "walks": WALKS}
    walkers = common.cached(output, f"walkers-{size}", identity, lambda: walk(**args))
    rows = [[walker, *found.values()] for walker, found in walkers.items()]
    common.write_csv(results / f"{name}-walkers.csv", ["walker", "share", "steps"], rows)
    done = matrix.train(
        output,
        {task: ENV},
        {variant: Variant("ngu", changed) for variant, changed in VARIANTS.items()},
        seeds=settings.seeds,
        steps=settings.steps,
        env_args={task: args},
        eval_every=max(1, settings.steps // EVALUATIONS),
        eval_episodes=EPISODES,
        **COMMON,
    )
    matrix.write(done, results, name, f"pronk reproduce ngu-maze, {settings.steps:,} agent steps")
    return "\n\n".join([*tables(results, size), draw(results, size)])


# The walkers


def walk(size: int, max_steps: int, walks: int = WALKS) -> dict[str, dict[str, float]]:
    """Mean visited share of each walker in `walks` mazes, and the mean number of steps taken.

    The one that goes depth first stops when it has visited all. Raises UserError for a `size` that
    no maze has.
    """
    keys = jax.random.split(jax.random.key(0), walks)
    env = disco_maze.make(size, max_steps)
    states = jax.jit(jax.vmap(lambda key: env.reset(key)[0]))(keys)
    ways = [disco_maze.depth_first(free)[:max_steps] for free in np.asarray(states.free)]
    actions = np.full((walks, max_steps), _STOP, np.int32)
    for row, way in zip(actions, ways, strict=True):
        row[: len(way)] = way

    def step(state: disco_maze.State, chosen: tuple[Array, Key]) -> tuple[disco_maze.State, None]:
        action, key = chosen
        logits = jnp.where(disco_maze.free_moves(state), 0.0, -jnp.inf)
        drawn = jax.random.categorical(key, logits)
        after, *_ = env.step(state, jnp.where(action == _DRAW, drawn, action), key)
        stopped = action == _STOP
        return jax.tree.map(lambda a, b: jnp.where(stopped, a, b), state, after), None

    def share(state: disco_maze.State, actions: Array, key: Key) -> Array:
        keys = jax.random.split(key, max_steps)
        return disco_maze.visited_share(jax.lax.scan(step, state, (actions, keys))[0])

    shares = jax.jit(jax.vmap(share))
    random = np.full_like(actions, _DRAW)
    return {
        DEPTH_FIRST: _mean(shares(states, actions, keys), [len(way) for way in ways]),
        AVOIDING: _mean(shares(states, random, keys), [max_steps]),
    }


_DRAW, _STOP = 4, 5  # instead of an action: draw one; stay, and count no more


def _mean(share: Any, steps: Any) -> dict[str, float]:
    return {"share": float(np.mean(share)), "steps": float(np.mean(steps))}


# Tables and figure


def tables(results: Path, size: int) -> list[str]:
    """The table of the variants beside the walkers, and the ratios of the learned embedding's share
    to the others', from the tables in `results`."""
    scores = _scores(results, size)
    walkers = _walkers(results, size)
    lines = []
    for variant, shares in scores.items():
        beside = [_interval(shares / walkers[name]).short() for name in (DEPTH_FIRST, AVOIDING)]
        lines.append([variant, _interval(shares).short(), str(len(shares)), *beside])
    for walker, share in walkers.items():
        beside = [f"{share / walkers[name]:.3g}" for name in (DEPTH_FIRST, AVOIDING)]
        lines.append([f"walker: {walker}", f"{share:.3g}", "–", *beside])
    header = ["", f"visited share, {size} × {size}", "seeds", "of depth first", "of random walk"]
    found = [common.markdown(header, lines)]
    ratios = [
        [f"{LEARNED} / {other}", ratio(scores[LEARNED], scores[other]).short()]
        for other in scores
        if other != LEARNED and LEARNED in scores
    ]
    return [*found, common.markdown(["", "ratio of visited shares"], ratios)] if ratios else found


def _scores(results: Path, size: int) -> dict[str, Array]:
    """The shares of each variant's runs, as of the last evaluation."""
    rows = common.read_csv(results / f"ngu-maze-{size}-scores.csv")
    scores = matrix.scores_of(rows, "evaluation")
    return {variant: np.concatenate(list(own.values())) for variant, own in scores.items()}


def _walkers(results: Path, size: int) -> dict[str, float]:
    rows = common.read_csv(results / f"ngu-maze-{size}-walkers.csv")
    return {row["walker"]: row["share"] for row in rows}


def _interval(values: Array) -> Interval:
    return common.interval(list(values))


def ratio(above: Array, below: Array) -> Interval:
    """The ratio of two means over seeds, with a 95 % bootstrap interval; both are resampled. Of one
    run each, the interval is the ratio itself."""

    def of(x: Any, y: Any) -> Any:
        return statistics.mean(x) / statistics.mean(y)

    groups = {"": np.asarray(above)}, {"": np.asarray(below)}
    value = float(of(*groups))
    low, high = report.interval(of, *groups, repeats=REPEATS)
    return Interval(value, *((low, high) if math.isfinite(low) else (value, value)))


def draw(results: Path, size: int) -> str:
    """Draw the visited share over training from the table in `results`."""
    return matrix.draw_curves(
        results,
        f"ngu-maze-{size}",
        metric=EVALUATION,
        label="visited share, without random actions",
        levels=_walkers(results, size),
    )
