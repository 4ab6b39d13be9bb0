"""How stale recurrent states from replay are: figure 1 of R2D2 (Kapturowski et al. 2019), small.

An agent is trained by each of four strategies: sequences begin with zeros or with the stored state,
and with or without burn-in. Now and then, sequences are drawn from what its actors did of late, and
the action values q̂ that the strategy's state gives are compared with q, those of the newest network
unrolled from the episode's beginning, as it would be when acting:

    ΔQ = ‖q̂ − q‖₂ / max |q| over the sequence's rows and actions

at the first and at the last row that is learnt from. Then the agents play, and forget all they
remember every so many steps.

The task is CartPole without velocities, on which a memory is needed and episodes are long.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.agents import r2d2
from pronk.config.spec import Plan
from pronk.experiments.reproduce.common import Interval, interval, once
from pronk.experiments.reproduce.settings import Staleness
from pronk.replay import Limiter, Replay
from pronk.run.actors import ActorFactory
from pronk.run.resolve import resolve
from pronk.run.setup import build, configure_jax, core_spec, initial_state, row_spec
from pronk.runtime.actor import Player
from pronk.runtime.learner import Learner
from pronk.types import Array, PyTree, Replayed, Sequences, Trajectory

ENV, ENV_ARGS = "pronk/CartPole-v1", {"hide_velocities": True}
BURN_IN, LENGTH = 10, 20
STRATEGIES = {
    "zero state": {"stored_state": False, "burn_in": 0},
    "zero state + burn-in": {"stored_state": False, "burn_in": BURN_IN},
    "stored state": {"stored_state": True, "burn_in": 0},
    "stored + burn-in": {"stored_state": True, "burn_in": BURN_IN},
}
ENVS = 8
EPISODES = 200  # of late, from which sequences are drawn to be measured
MEASURED = 64  # sequences at a time
EVERY = 300  # updates between measurements
FORGET = (1, 2, 4, 8, 16, 32, 64, 500)  # steps; 500 is never


def run(settings: Staleness) -> str:
    """Train what is missing, then write the table and the picture."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=2, steps=settings.steps // 3)
    settings.results.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(settings.seeds):
        for strategy in STRATEGIES:
            name = f"{strategy.replace(' ', '-')}-{seed}-{settings.steps}"
            what = dataclasses.asdict(_plan(strategy, seed, settings.steps).agent_config)
            work = partial(_train, strategy, seed, settings.steps)
            found.append(once(settings.output, name, what, work))
    return _write(found, settings.results)


def _plan(strategy: str, seed: int, steps: int) -> Plan:
    return resolve(
        "r2d2",
        ENV,
        env_args=ENV_ARGS,
        runtime="local",
        steps=steps,
        seed=seed,
        actors=1,
        envs_per_actor=ENVS,
        sequence_length=LENGTH,
        overlap=LENGTH // 2,
        samples_per_insert=8.0,
        replay_capacity=100_000,
        learning_rate=1e-3,
        **STRATEGIES[strategy],
    )


def _train(strategy: str, seed: int, steps: int) -> dict[str, Any]:
    """One run, measured as it goes: actor and learner in turns."""
    plan = _plan(strategy, seed, steps)
    spec, agent = build(plan, plan.env)
    assert isinstance(agent.source, Replayed)
    config = plan.agent_config
    learner = Learner(agent, initial_state(plan, agent), batch_size=config.batch_size)
    # The recurrent state of every row is wanted here, not only where sequences start.
    every_row = agent.source._replace(sequences=Sequences(capacity=1, length=1))
    actor = ActorFactory(plan, plan.env, 0, 1, ENVS, 0)(agent._replace(source=every_row))
    replay = Replay(agent.source.sequences, row_spec(agent, spec), core_spec(agent))
    limiter = Limiter(
        replay,
        samples_per_insert=config.samples_per_insert,
        minimum=config.replay_minimum,
        batch_size=config.batch_size,
    )
    jit_forward = jax.jit(r2d2.build(config, spec).forward)
    rng = np.random.default_rng([seed, 1])
    late = _Late()
    rows: list[dict[str, float]] = []
    returns: list[float] = []
    while replay.transitions < steps:
        if limiter.may_sample():
            batch, keys = replay.sample(config.batch_size, rng)
            learnt = learner.update(learner.prepare([batch]))
            replay.update(keys, np.asarray(learnt.feedback.priorities))
            if learner.updates % EVERY == 0:
                first, last = _delta_q(jit_forward, learner.state.params, late, config, rng)
                rows.append(
                    {
                        "steps": replay.transitions,
                        "first": first,
                        "last": last,
                        "return": float(np.mean(returns[-20:])) if returns else 0.0,
                    }
                )
        else:
            learner.publish()
            version, behaviour = learner.latest
            unroll = actor.unroll(behaviour, version)
            returns += [episode.episode_return for episode in unroll.episodes]
            replay.add(0, unroll.trajectory)
            late.add(unroll.trajectory)
    learner.publish()
    remembered = {str(k): _forgetful(plan, agent, learner.behaviour(), k) for k in FORGET}
    return {"strategy": strategy, "seed": seed, "rows": rows, "remembered": remembered}


def _core_of_rows(trajectory: Trajectory) -> PyTree:
    """The recurrent state before each row, `[T + 1, B, ...]`; zeros where an episode begins."""
    assert trajectory.starts is not None
    row, slot, core = trajectory.starts

    def spread(x: Array) -> Array:
        dense = np.zeros((*trajectory.timestep.first.shape, *x.shape[1:]), x.dtype)
        dense[row, slot] = x
        return dense

    return jax.tree.map(spread, core)


class _Episode(NamedTuple):
    timestep: PyTree  # leaves [n, ...]
    action: Array  # [n]
    core: PyTree  # as the actor had it, leaves [n, ...]


class _Late:
    """The last whole episodes, with the recurrent states that the actors had."""

    def __init__(self) -> None:
        self.episodes: list[_Episode] = []
        self._running: list[list[_Episode]] = [[] for _ in range(ENVS)]

    def add(self, trajectory: Trajectory) -> None:
        """Row T comes again."""
        first = trajectory.timestep.first
        everything = (trajectory.timestep, trajectory.action, _core_of_rows(trajectory))
        for b in range(ENVS):
            bounds = [0, *(np.flatnonzero(first[1:-1, b]) + 1), len(first) - 1]
            for begin, end in itertools.pairwise(bounds):
                if first[begin, b] and self._running[b]:
                    parts, self._running[b] = self._running[b], []
                    self.episodes.append(jax.tree.map(lambda *x: np.concatenate(x), *parts))
                piece = jax.tree.map(lambda x, b=b, i=begin, j=end: x[i:j, b], everything)
                self._running[b].append(_Episode(*piece))
        self.episodes = self.episodes[-EPISODES:]


def _delta_q(
    forward: Any, params: PyTree, late: _Late, config: Any, rng: np.random.Generator
) -> tuple[float, float]:
    """Mean ΔQ at the first and the last row of drawn sequences; NaN where episodes are short."""
    long = [e for e in late.episodes if len(e.action) > BURN_IN + LENGTH]
    if not long:
        return float("nan"), float("nan")
    longest = 512
    drawn = [long[i] for i in rng.integers(len(long), size=MEASURED)]
    # Every strategy has the same sequences to cope with: all have room for a burn-in.
    starts = [int(rng.integers(BURN_IN, len(e.action) - LENGTH)) for e in drawn]

    def padded(x: Array) -> Array:
        return np.pad(x, [(0, longest - len(x)), *[(0, 0)] * (x.ndim - 1)])

    episodes = [jax.tree.map(padded, e) for e in drawn]
    timestep, action, core = jax.tree.map(lambda *x: np.stack(x, axis=1), *episodes)
    taken = np.asarray(jax.nn.one_hot(action, 2))
    last_action = np.concatenate([np.zeros_like(taken[:1]), taken[:-1]])
    columns = np.arange(MEASURED)
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x[0]), core.state)
    true, _ = forward(params, timestep, last_action, zeros)
    # The strategy's rows, from where its state comes in.
    begin = np.array(starts) - config.burn_in
    window = begin + np.arange(config.burn_in + LENGTH)[:, None]
    seen = jax.tree.map(lambda x: x[window, columns], (timestep, last_action))
    stored = jax.tree.map(lambda x: x[begin, columns], core.state)
    state = stored if config.stored_state else zeros
    found, _ = forward(params, *seen, state)
    found, true = np.asarray(found)[config.burn_in :], np.asarray(true)
    expected = true[window[config.burn_in :], columns]
    delta = np.linalg.norm(found - expected, axis=-1) / np.abs(expected).max(axis=(0, 2))
    return float(delta[0].mean()), float(delta[-1].mean())


def _forgetful(plan: Plan, agent: Any, behaviour: PyTree, every: int) -> float:
    """The mean return of greedy games in which the memory is lost every so many steps."""
    actor = ActorFactory(plan, plan.env, 1, 2, 2 * ENVS, 0)(agent)  # games of its own
    env = actor.env
    ids = np.arange(env.num_envs, dtype=np.int32)
    player = Player(agent, jax.random.key(0), ids, env.num_envs, evaluate=True)
    timestep = env.reset()
    returns = np.full(env.num_envs, np.nan)
    t = 0
    while np.isnan(returns).any():
        if t % every == 0:
            state = jax.tree.map(jnp.zeros_like, player.carry.core.state)
            player.carry = player.carry._replace(core=player.carry.core._replace(state=state))
        timestep = env.step(player.act(behaviour, timestep).action)
        t += 1
        for episode in env.episodes():
            slot = episode.env_id % env.num_envs
            if np.isnan(returns[slot]):
                returns[slot] = episode.episode_return
    env.close()
    return float(returns.mean())


def _write(found: list[dict[str, Any]], results: Path) -> str:
    """The CSVs, the picture, and the table as text."""
    with (results / "r2d2-staleness.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["strategy", "seed", "steps", "first", "last", "return"])
        for run in found:
            for row in run["rows"]:
                values = [row[k] for k in ("steps", "first", "last", "return")]
                writer.writerow([run["strategy"], run["seed"], *values])
    with (results / "r2d2-memory.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["strategy", "seed", "forgets_every", "return"])
        for run in found:
            for every, value in run["remembered"].items():
                writer.writerow([run["strategy"], run["seed"], every, value])
    _draw(found, results / "r2d2-staleness.png")
    lines = ["strategy               ΔQ first (mean, 95 % interval)   ΔQ last"]
    for strategy in STRATEGIES:
        first, last = (_over_seeds(found, strategy, k) for k in ("first", "last"))
        lines.append(f"{strategy:22} {first!s:32} {last}")
    return "\n".join([*lines, str(results / "r2d2-staleness.png")])


def _over_seeds(found: list[dict[str, Any]], strategy: str, key: str) -> Interval:
    """Over seeds, of the mean over the second half of training."""
    values = []
    for run in found:
        if run["strategy"] == strategy:
            late = run["rows"][len(run["rows"]) // 2 :]
            known = [row[key] for row in late if not np.isnan(row[key])]
            values.append(np.mean(known) if known else np.nan)
    return interval(values)


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    colours = {name: f"C{i}" for i, name in enumerate(STRATEGIES)}
    for offset, key in ((-0.2, "first"), (0.2, "last")):
        for i, strategy in enumerate(STRATEGIES):
            value = _over_seeds(found, strategy, key)
            error = [[value.mean - value.low], [value.high - value.mean]]
            axes[0].bar(i + offset, value.mean, 0.38, color=colours[strategy], yerr=error,
                        alpha=1.0 if key == "first" else 0.5, capsize=3)  # fmt: skip
    axes[0].set_xticks(range(len(STRATEGIES)), [s.replace(" ", "\n", 1) for s in STRATEGIES])
    axes[0].set_ylabel("ΔQ (dark: first row, light: last)")
    for strategy in STRATEGIES:
        runs = [run for run in found if run["strategy"] == strategy]
        count = min(len(run["rows"]) for run in runs)
        steps = [row["steps"] for row in runs[0]["rows"][:count]]
        curves = np.array([[row["return"] for row in run["rows"][:count]] for run in runs])
        axes[1].plot(steps, curves.mean(0), color=colours[strategy], label=strategy)
        axes[1].fill_between(
            steps, curves.min(0), curves.max(0), color=colours[strategy], alpha=0.15
        )
        kept = np.array([[run["remembered"][str(k)] for k in FORGET] for run in runs])
        axes[2].errorbar(FORGET, kept.mean(0), kept.std(0), color=colours[strategy], capsize=2)
    axes[1].set_xlabel("agent steps")
    axes[1].set_ylabel("return, exploring (band: all seeds)")
    axes[1].legend(fontsize=8)
    axes[2].set_xscale("log")
    axes[2].set_xlabel("steps after which the memory is lost")
    axes[2].set_ylabel("greedy return (± deviation)")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
