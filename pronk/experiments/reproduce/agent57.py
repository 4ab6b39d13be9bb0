"""From R2D2 and NGU to Agent57, on tasks of which each asks for something else.

Badia et al. 2020, "Agent57" (arXiv:2003.13350), figures 4, 7 and 8: dense rewards, two kinds of
sparse ones, and a reward that is far away. The score of a run is the share of episodes in which its
policy succeeds; in Patience, the share of those that wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pronk import report
from pronk.agents.agent57_config import Config
from pronk.config.registry import agent_module
from pronk.experiments.reproduce import common, exploration, matrix
from pronk.experiments.reproduce.common import select, unique
from pronk.experiments.reproduce.exploration import Task, with_novelty
from pronk.experiments.reproduce.matrix import Done, Scores, Variant
from pronk.experiments.reproduce.settings import Agent57
from pronk.maths import intrinsic
from pronk.report.runs import EVALUATION
from pronk.run.monitor import best_mixture
from pronk.run.setup import configure_jax
from pronk.storage.files import read_lines
from pronk.types import Array

NAME = "agent57"
PATIENCE = Task(
    *("pronk/Patience-v0", {}, 1.0, 2.0, 0.01, 100),
    # The later reward reaches the first step by bootstrapping: each copy of the target network
    # brings it closer by a sequence at most.
    further={"target_every": 20},
)
TASKS = exploration.TASKS | {"Patience": PATIENCE}
QUICK = ("Catch",)
MIXTURES = 8
COMPLETE = "Agent57"  # the variant whose arms are drawn


def variants(task: Task) -> dict[str, Variant]:
    """What is trained on a task: Agent57's parts are added one by one."""
    single: dict[str, object] = {"discount": 0.99, "bandit_epsilon": 1.0, "sequence_length": 20}
    return {
        "R2D2": Variant("r2d2"),
        "R2D2 (bandit)": Variant(
            "agent57", {"preset": "r2d2-bandit", "mixtures": MIXTURES, "sequence_length": 20}
        ),
        "NGU": with_novelty(task, "ngu", mixtures=MIXTURES),
        "NGU, separate networks": with_novelty(task, "agent57", mixtures=MIXTURES, **single),
        "NGU, separate networks, bandit": with_novelty(
            task, "agent57", mixtures=MIXTURES, sequence_length=20
        ),
        COMPLETE: with_novelty(task, "agent57", mixtures=MIXTURES),
    }


def run(settings: Agent57, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figures."""
    configure_jax()
    known = {name: task.env for name, task in TASKS.items()}
    settings, chosen = matrix.choose(settings, known, QUICK, seeds=1, share=4)
    names = common.choose("agents", settings.agents, variants(PATIENCE))
    tasks = {name: TASKS[name] for name in chosen}
    done = exploration.train(
        settings, output, tasks, lambda task: {name: variants(task)[name] for name in names}
    )
    matrix.write(done, results, NAME, f"pronk reproduce {NAME}, {settings.steps:,} agent steps")
    write_arms(done, output, results)
    found = exploration.rates(results, NAME, TASKS)
    figure = matrix.draw_curves(results, NAME, metric=EVALUATION, label="mean return (evaluation)")
    tables = [exploration.table(found, TASKS), worst(found), arms(results)]
    return "\n\n".join([*filter(None, tables), figure, draw_arms(results)])


def worst(found: Scores) -> str:
    """A table of each variant's scores over the tasks that all have: the means over seeds of the
    worst task's, of the two worst tasks', the 20th percentile's, and the number of tasks solved."""
    tasks = matrix.complete(found)
    if not tasks:
        return ""
    lines = []
    for variant, own in found.items():
        scores = {task: own[task] for task in tasks}
        means = np.sort([rates.mean() for rates in scores.values()])
        solved = sum(rates.mean() >= exploration.SOLVED for rates in scores.values())
        low = float(report.percentile(scores, 20))
        cells = [f"{means[0]:.2f}", f"{means[:2].mean():.2f}", f"{low:.2f}"]
        lines.append([variant, *cells, f"{means.mean():.2f}", f"{solved} of {len(tasks)}"])
    header = ["success rate", "worst task", "mean of the two worst", "20th percentile", "mean"]
    return common.markdown([*header, "tasks solved"], lines)


# The arms: which mixture an evaluation would act by.


def discounts(config: Config) -> Array:
    """γ_j of the mixtures, `[N]`."""
    ends = config.discount, config.middle_discount, config.exploratory_discount
    return np.asarray(intrinsic.long_discounts(config.mixtures, *ends))


def write_arms(done: Sequence[Done], output: Path, results: Path) -> None:
    """Write `agent57-arms.csv`: the best mixture over training of each run of Agent57, by the mean
    returns of all mixtures. The metric `best_mixture` is a mean over updates, and may be no arm."""
    ladder = discounts(agent_module("agent57").preset("small"))
    rows = []
    for one in done:
        if one.variant != COMPLETE:
            continue
        for _, record in read_lines(output / one.run.name / "metrics.jsonl"):
            if (arm := best_mixture(record)) is not None:
                gamma = f"{ladder[arm]:.6g}"
                rows.append([one.task, one.seed, record["steps"], arm, gamma])
    header = ["task", "seed", "steps", "best_mixture", "discount"]
    common.write_csv(results / f"{NAME}-arms.csv", header, rows)


PATIENT = 0.99827  # the discount above which waiting is better in Patience


def arms(results: Path) -> str:
    """A table of the last third of training: which arms were the best ones, and for how much of it
    one with a discount for which Patience's later reward is the better one."""
    rows = common.read_csv(results / f"{NAME}-arms.csv")
    lines = []
    for task in unique(rows, "task"):
        own = [row for row in rows if row["task"] == task]
        last = max(row["steps"] for row in own)
        late = [row for row in own if row["steps"] > last * 2 / 3]
        counts: Mapping[float, int] = {
            arm: len(select(late, "discount", best_mixture=arm))
            for arm in sorted(set(unique(late, "best_mixture")))
        }
        shown = ", ".join(f"{arm:.0f}: {n / len(late):.0%}" for arm, n in counts.items())
        patient = np.mean([row["discount"] > PATIENT for row in late])
        lines.append([task, shown, f"{patient:.0%}"])
    header = ["last third of training", "best mixture", f"with γ > {PATIENT}"]
    return common.markdown(header, lines) if lines else ""


def draw_arms(results: Path) -> str:
    """Draw the best mixture over training, a panel per task and a line per seed."""
    rows = common.read_csv(results / f"{NAME}-arms.csv")
    tasks, picture = unique(rows, "task"), results / f"{NAME}-arms.png"
    if not tasks:
        picture.unlink(missing_ok=True)
        return "There is no figure of the arms, because no run has recorded them."
    figure, axes = common.panels(1, len(tasks), 3.4, 3.0, sharey=True)
    ladder = discounts(agent_module("agent57").preset("small"))
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, seed in enumerate(unique(rows, "seed")):
            own = {"task": task, "seed": seed}
            steps = np.array(select(rows, "steps", **own)) / 1000
            style = {"color": common.COLOURS[i], "drawstyle": "steps-post"}
            axis.plot(steps, select(rows, "best_mixture", **own), label=f"seed {seed:.0f}", **style)
        axis.set_title(task)
        axis.set_xlabel("agent steps (thousands)")
    axes[0, 0].set_yticks(
        range(len(ladder)), [f"{j}: γ = {gamma:.5g}" for j, gamma in enumerate(ladder)]
    )
    axes[0, 0].set_ylabel("best mixture")
    note = "the mixture with the largest mean return of its episodes, by which evaluations act"
    return str(common.save(figure, picture, note))
