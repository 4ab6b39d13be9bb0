"""How stale recurrent states from replay are: figure 1 of R2D2 (Kapturowski et al. 2019), small.

An agent is trained with each of four strategies: sequences begin with zeros or with the stored
state, with or without burn-in. Every few hundred updates, sequences are sampled from the actors'
recent episodes, and the action values q̂ that the strategy's state gives are compared with q, those
of the newest network unrolled from the start of the episode, as when acting:

    ΔQ = ‖q̂ − q‖₂ / max |q|, the maximum over the sequence's rows and actions

at the first and at the last row that is learnt from. After training the agents are evaluated with
their recurrent state reset every so many steps.

The task is CartPole without velocities, on which a memory is needed and episodes are long.
"""

from __future__ import annotations

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
from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import Interval, Row, interval, select
from pronk.experiments.reproduce.settings import Staleness
from pronk.replay import Limiter, Replay
from pronk.run.actors import ActorFactory
from pronk.run.resolve import resolve
from pronk.run.setup import build, configure_jax, core_spec, initial_state, row_spec
from pronk.runtime.actor import Actor, Player
from pronk.runtime.learner import Learner
from pronk.types import Agent, Array, PyTree, Replayed, Sequences, Trajectory

ENV, ENV_ARGS = "pronk/CartPole-v1", {"hide_velocities": True}
BURN_IN, LENGTH = 10, 20
STRATEGIES = {
    "zero state": {"stored_state": False, "burn_in": 0},
    "zero state + burn-in": {"stored_state": False, "burn_in": BURN_IN},
    "stored state": {"stored_state": True, "burn_in": 0},
    "stored + burn-in": {"stored_state": True, "burn_in": BURN_IN},
}
ENVS = 8
EPISODES = 200  # recent ones, from which the measured sequences are sampled
MEASURED = 64  # sequences per measurement
EVERY = 300  # updates between measurements
FORGET = (1, 2, 4, 8, 16, 32, 64, 500)  # steps between resets; no episode is longer than 500


def run(settings: Staleness, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=2, steps=settings.steps // 3)
    measured, memory = [], []
    columns = ("steps", "first", "last", "return")
    for seed in range(settings.seeds):
        for strategy in STRATEGIES:
            name = f"{strategy.replace(' ', '-')}-{seed}-{settings.steps}"
            identity = dataclasses.asdict(_plan(strategy, seed, settings.steps).agent_config)
            work = partial(_train, strategy, seed, settings.steps)
            result = common.cached(output, name, identity, work)
            measured += [[strategy, seed, *(row[k] for k in columns)] for row in result["rows"]]
            memory += [[strategy, seed, *pair] for pair in result["remembered"].items()]
    path = results / "r2d2-staleness.csv"
    common.write_csv(path, ["strategy", "seed", *columns], measured)
    header = ["strategy", "seed", "forgets_every", "return"]
    common.write_csv(results / "r2d2-memory.csv", header, memory)
    rows = common.read_csv(path)
    lines = ["strategy               ΔQ first (mean, 95 % interval)   ΔQ last"]
    for strategy in STRATEGIES:
        first, last = (_late_mean(rows, strategy, k) for k in ("first", "last"))
        lines.append(f"{strategy:22} {first!s:32} {last}")
    return "\n".join([*lines, str(draw(results))])


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
    """One run, actor and learner taking turns, with its measurements."""
    plan = _plan(strategy, seed, steps)
    spec, agent = build(plan, plan.env)
    assert isinstance(agent.source, Replayed)
    config = plan.agent_config
    learner = Learner(agent, initial_state(plan, agent), batch_size=config.batch_size)
    actor = _recording_actor(plan, agent)
    replay = Replay(agent.source.sequences, row_spec(agent, spec), core_spec(agent))
    limiter = Limiter(
        replay,
        samples_per_insert=config.samples_per_insert,
        minimum=config.replay_minimum,
        batch_size=config.batch_size,
    )
    jit_forward = jax.jit(r2d2.build(config, spec).forward)
    rng = np.random.default_rng([seed, 1])
    recent = _RecentEpisodes()
    rows: list[dict[str, float]] = []
    returns: list[float] = []
    while replay.transitions < steps:
        if limiter.may_sample():
            batch, keys = replay.sample(config.batch_size, rng)
            learnt = learner.update(learner.prepare([batch]))
            replay.revise(keys, learnt.feedback)
            if learner.updates % EVERY == 0:
                first, last = _delta_q(jit_forward, learner.state.params, recent, config, rng)
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
            recent.add(unroll.trajectory)
    learner.publish()
    remembered = {str(k): _evaluate(plan, agent, learner.behaviour(), k) for k in FORGET}
    return {"strategy": strategy, "seed": seed, "rows": rows, "remembered": remembered}


def _recording_actor(plan: Plan, agent: Agent) -> Actor:
    """An actor that records the recurrent state of every row, not only where sequences start."""
    assert isinstance(agent.source, Replayed)
    every_row = agent.source._replace(sequences=Sequences(capacity=1, length=1))
    return ActorFactory(plan, plan.env, 0, 1, ENVS, 0)(agent._replace(source=every_row))


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
    core: PyTree  # the actor's recurrent state, leaves [n, ...]


class _RecentEpisodes:
    """The last complete episodes, with the actors' recurrent states."""

    def __init__(self) -> None:
        self.episodes: list[_Episode] = []
        self._running: list[list[_Episode]] = [[] for _ in range(ENVS)]

    def add(self, trajectory: Trajectory) -> None:
        """Add an unroll; its last row is the first of the next."""
        first = trajectory.timestep.first
        rows = (trajectory.timestep, trajectory.action, _core_of_rows(trajectory))
        for b in range(ENVS):
            bounds = [0, *(np.flatnonzero(first[1:-1, b]) + 1), len(first) - 1]
            for begin, end in itertools.pairwise(bounds):
                if first[begin, b] and self._running[b]:
                    parts, self._running[b] = self._running[b], []
                    self.episodes.append(jax.tree.map(lambda *x: np.concatenate(x), *parts))
                piece = jax.tree.map(lambda x, b=b, i=begin, j=end: x[i:j, b], rows)
                self._running[b].append(_Episode(*piece))
        self.episodes = self.episodes[-EPISODES:]


def _delta_q(
    forward: Any, params: PyTree, recent: _RecentEpisodes, config: Any, rng: np.random.Generator
) -> tuple[float, float]:
    """Mean ΔQ at the first and last row of sampled sequences; NaN while episodes are too short."""
    long = [e for e in recent.episodes if len(e.action) > BURN_IN + LENGTH]
    if not long:
        return float("nan"), float("nan")
    longest = 512
    sampled = [long[i] for i in rng.integers(len(long), size=MEASURED)]
    # The same sequences for every strategy: all leave room for a burn-in.
    starts = [int(rng.integers(BURN_IN, len(e.action) - LENGTH)) for e in sampled]

    def padded(x: Array) -> Array:
        return np.pad(x, [(0, longest - len(x)), *[(0, 0)] * (x.ndim - 1)])

    episodes = [jax.tree.map(padded, e) for e in sampled]
    timestep, action, core = jax.tree.map(lambda *x: np.stack(x, axis=1), *episodes)
    taken = np.asarray(jax.nn.one_hot(action, 2))
    last_action = np.concatenate([np.zeros_like(taken[:1]), taken[:-1]])
    columns = np.arange(MEASURED)
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x[0]), core.state)
    true, _ = forward(params, timestep, last_action, zeros)
    # The strategy's rows, from the one at which its state begins.
    begin = np.array(starts) - config.burn_in
    window = begin + np.arange(config.burn_in + LENGTH)[:, None]
    rows = jax.tree.map(lambda x: x[window, columns], (timestep, last_action))
    stored = jax.tree.map(lambda x: x[begin, columns], core.state)
    state = stored if config.stored_state else zeros
    estimate, _ = forward(params, *rows, state)
    estimate, true = np.asarray(estimate)[config.burn_in :], np.asarray(true)
    expected = true[window[config.burn_in :], columns]
    delta = np.linalg.norm(estimate - expected, axis=-1) / np.abs(expected).max(axis=(0, 2))
    return float(delta[0].mean()), float(delta[-1].mean())


def _evaluate(plan: Plan, agent: Any, behaviour: PyTree, every: int) -> float:
    """The greedy mean return with the recurrent state reset every so many steps."""
    actor = ActorFactory(plan, plan.env, 1, 2, 2 * ENVS, 0)(agent)  # other seeds than in training
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


def _late_mean(rows: list[Row], strategy: str, key: str) -> Interval:
    """Over seeds, of the mean over the second half of training."""
    values = []
    for seed in common.unique(rows, "seed"):
        own = select(rows, key, strategy=strategy, seed=seed)
        late = np.array(own[len(own) // 2 :])
        known = late[~np.isnan(late)]
        values.append(known.mean() if len(known) else np.nan)
    return interval(values)


def draw(results: Path) -> Path:
    """Draw the figure from the tables in `results`."""
    rows = common.read_csv(results / "r2d2-staleness.csv")
    memory = common.read_csv(results / "r2d2-memory.csv")
    figure, ((left, middle, right),) = common.panels(1, 3, 4.6, 3.9)
    resets = common.unique(memory, "forgets_every")
    for i, strategy in enumerate(STRATEGIES):
        colour = common.COLOURS[i]
        for shift, key, face in ((-0.12, "first", colour), (0.12, "last", "white")):
            value = _late_mean(rows, strategy, key)
            style = {"color": colour, "marker": "o", "markerfacecolor": face}
            common.draw_points(left, [i + shift], [value], **style)
        runs = [
            [select(rows, k, strategy=strategy, seed=seed) for k in ("steps", "return")]
            for seed in common.unique(rows, "seed")
        ]
        count = min(len(steps) for steps, _ in runs)
        steps = np.array(runs[0][0][:count]) / 1000
        bands = common.band([returns[:count] for _, returns in runs])
        common.draw_band(middle, steps, bands, i, strategy, marker=".", linewidth=1.6)
        kept = [select(memory, "return", strategy=strategy, forgets_every=k) for k in resets]
        bands = zip(*map(interval, kept), strict=True)
        common.draw_band(right, resets, bands, i, strategy, marker=".", linewidth=1.6)
    left.set_xticks(
        range(len(STRATEGIES)), ["zero\nstate", "zero state\n+ burn-in", "stored\nstate",
                                 "stored\n+ burn-in"], fontsize=9
    )  # fmt: skip
    left.set_ylim(bottom=0)
    left.set_ylabel("relative error ΔQ of the action values\n(filled: first row, hollow: last row)")
    middle.set_xlabel("agent steps (thousands)")
    middle.set_ylabel("mean return of the last 20 episodes,\nwith exploration")
    right.set_xscale("log")
    right.minorticks_off()
    right.set_xticks(resets, [*(f"{k:g}" for k in resets[:-1]), "never"])
    right.set_xlabel("steps between resets of the recurrent state")
    right.set_ylabel("mean return of the final greedy policy")
    note = "mean over seeds; bands and bars: 95 % bootstrap interval of the mean"
    return common.save(figure, results / "r2d2-staleness.png", note)
