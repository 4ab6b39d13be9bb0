"""How far an update moves the policy: the mean KL(π_old ‖ π) of each update of five agents.

TRPO and TNPG keep it within δ; NPG, REINFORCE and PPO do not bound it (Duan et al. 2016, figure
3b). The KL is the metric `kl`: exact, measured after the update on all data of the batch.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pronk import envs
from pronk.config.spec import Plan
from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import Row, select, unique
from pronk.experiments.reproduce.duan import AGENTS
from pronk.experiments.reproduce.matrix import JAX_TASKS
from pronk.experiments.reproduce.settings import KL
from pronk.run.build import fused_shape
from pronk.run.resolve import resolve
from pronk.run.setup import ACTOR_KEY, INIT_KEY, build, configure_jax, key_for
from pronk.runtime import fused
from pronk.types import Array

SHOWN = ("trpo", "tnpg", "npg", "reinforce", "ppo")
TASKS = ("CartPoleSwingUp", "DoublePendulum")
DELTA = 0.01
# TRPO and TNPG recompute the old policy's output for the batch when they test a step; the metric
# takes the output that was stored when acting. The two KLs differ by rounding.
ROUNDING = 1e-6
# Both have δ, and never leave the region: here TNPG rejects the steps that would.
WITHIN: dict[str, dict[str, Any]] = {
    "trpo": {"max_kl": DELTA},
    "tnpg": {"max_kl": DELTA, "reject": True},
}
CHUNK = 10  # updates per call of the compiled program


def plan_for(agent: str, task: str, seed: int, steps: int) -> Plan:
    """A run's plan: the agent's settings in `duan`, and δ."""
    variant = AGENTS[agent]
    settings = {**variant.settings, **WITHIN.get(agent, {})}
    return resolve(
        variant.agent, JAX_TASKS[task], runtime="fused", steps=steps, seed=seed, **settings
    )


def run(settings: KL, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the table and the figure."""
    configure_jax()
    tasks = common.choose_tasks(settings.tasks, JAX_TASKS)
    if not settings.tasks:
        tasks = list(TASKS)
    agents = common.choose("agents", settings.agents, SHOWN)
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=1, steps=max(1, settings.steps // 4))
    rows = []
    for task in tasks:
        for seed in range(settings.seeds):
            for agent in agents:
                plan = plan_for(agent, task, seed, settings.steps)
                identity = {"plan": common.plan_identity(plan), "seed": seed}
                name = f"{agent}-{task}-{seed}"
                found = common.cached(output, name, identity, partial(train, plan))
                columns = zip(*found.values(), strict=True)
                rows += [[task, agent, seed, i, *point] for i, point in enumerate(columns)]
    header = ["task", "agent", "seed", "update", "kl", "accepted", "search_trials", "mean_return"]
    common.write_csv(results / "kl.csv", header, rows)
    return "\n\n".join([*tables(results), str(draw(results))])


def train(plan: Plan) -> dict[str, Any]:
    """Of each update: KL, whether the step was taken, steps tried, and the mean return of the
    episodes that ended in its batch."""
    _, agent = build(plan, plan.env)
    env = envs.jax_env_of(plan.env, plan.env_args)
    assert env is not None
    shape = fused_shape(plan, agent)
    init, update = fused.build(agent, env, **shape)
    learner = jax.jit(agent.init)(key_for(plan.run.seed, INIT_KEY))
    state = jax.jit(init)(learner, key_for(plan.run.seed, ACTOR_KEY))
    many = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: update(s), state, length=CHUNK), donate_argnums=0
    )
    updates = max(1, plan.run.steps // (shape["unroll"] * shape["num_envs"]))
    parts: dict[str, list[float]] = {k: [] for k in ("kl", "accepted", "search_trials", "return")}
    while len(parts["kl"]) < updates:
        state, outcome = many(state)
        metrics = jax.device_get(outcome.metrics)
        ones = np.ones(CHUNK)
        parts["kl"] += metrics["kl"].tolist()
        parts["accepted"] += metrics.get("accepted", ones).tolist()
        parts["search_trials"] += metrics.get("search_trials", ones).tolist()
        ended, returns = np.asarray(outcome.ended), np.asarray(outcome.episode_return)
        parts["return"] += [
            float(r[e].mean()) if e.any() else float("nan")
            for r, e in zip(returns, ended, strict=True)
        ]
    return {name: values[:updates] for name, values in parts.items()}


def _kl(rows: list[Row], task: str, agent: str) -> Array:
    """The KLs of the updates whose step was taken."""
    own = {"task": task, "agent": agent}
    return np.array(select(rows, "kl", **own, accepted=1.0))


def tables(results: Path) -> list[str]:
    """A table per task, from the one in `results`."""
    rows = common.read_csv(results / "kl.csv")
    return [_table(rows, task) for task in unique(rows, "task")]


def _table(rows: list[Row], task: str) -> str:
    lines = []
    for agent in unique(rows, "agent"):
        kl = _kl(rows, task, agent)
        own = {"task": task, "agent": agent}
        accepted = np.array(select(rows, "accepted", **own))
        trials = np.array(select(rows, "search_trials", **own, accepted=1.0))
        within = median = high = ratio = largest = "–"
        if len(kl):
            middle, top = np.median(kl), np.percentile(kl, 99)
            within = f"{np.mean(kl <= DELTA + ROUNDING):.1%}"
            median, high, largest = f"{middle:.3g}", f"{top:.3g}", f"{kl.max():.4g}"
            ratio = f"{top / middle:.1f}"
        searched = f"{np.mean(trials > 1):.1%}" if len(trials) else "–"
        rejected = f"{1 - accepted.mean():.1%}"
        counted = str(len(accepted))
        lines.append([agent, counted, within, median, high, ratio, largest, searched, rejected])
    header = [task, "updates", f"KL ≤ {DELTA:g}", "median", "99th percentile", "their ratio"]
    return common.markdown([*header, "largest", "backtracked", "rejected"], lines)


def draw(results: Path) -> Path:
    """Draw each update's KL, and the returns, from the table in `results`."""
    rows = common.read_csv(results / "kl.csv")
    tasks = unique(rows, "task")
    figure, axes = common.panels(2, len(tasks), 5.0, 3.2, sharex="col")
    for column, task in zip(axes.T, tasks, strict=True):
        for i, agent in enumerate(unique(rows, "agent")):
            own = {"task": task, "agent": agent}
            style = {"color": common.COLOURS[i]}
            taken = [row for row in rows if own.items() <= row.items() and row["accepted"] == 1]
            # A KL of 0, up to rounding, is drawn at the bottom of the logarithmic axis.
            kl = [max(row["kl"], 1e-7) for row in taken]
            updates = [row["update"] for row in taken]
            column[0].plot(updates, kl, ".", markersize=3, alpha=0.6, **style)
            curves = [
                select(rows, "mean_return", **own, seed=seed) for seed in unique(rows, "seed")
            ]
            x = range(len(curves[0]))
            common.draw_band(column[1], x, common.band(curves), i, agent, linewidth=1.5, **style)
        column[0].axhline(DELTA, color="black", linewidth=0.8, linestyle="--")
        column[0].set_yscale("log")
        column[0].set_title(task)
        column[1].set_xlabel("updates")
    axes[0, 0].set_ylabel("mean KL of an update (dashed: δ)")
    axes[1, 0].set_ylabel("mean return of a batch")
    seeds = len(unique(rows, "seed"))
    note = "top: every update that was taken; below: the batches' returns,"
    note += f"\n{common.band_note(seeds, seeds)}"
    return common.save(figure, results / "kl.png", note, columns=5)
