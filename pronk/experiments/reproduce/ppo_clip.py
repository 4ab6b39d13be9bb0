"""PPO's surrogates compared, as in table 1 of Schulman et al. 2017.

The tasks are the five in JAX, or with `--mujoco` the paper's seven MuJoCo tasks. The score
of a run is the mean return of its last 100 episodes, in units where random play is 0 and the best
surrogate's mean on the task is 1; tasks are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pronk import report
from pronk.experiments.reproduce import common, matrix
from pronk.experiments.reproduce.matrix import JAX_TASKS, Scores, Variant
from pronk.experiments.reproduce.settings import PPOClip, Tasksets
from pronk.report import published, statistics
from pronk.run.setup import configure_jax

# Batches of 2,048 steps as in the paper, of eight environments.
_PAPER = {"preset": "paper", "unroll": 256, "batch_size": 8}
VARIANTS = {
    "no clipping": {"objective": "none"},
    "clip 0.1": {"clip": 0.1},
    "clip 0.2": {"clip": 0.2},
    "clip 0.3": {"clip": 0.3},
    "adaptive KL 0.01": {"objective": "adaptive-kl", "target_kl": 0.01},
    "fixed KL 0.3": {"objective": "fixed-kl", "kl_cost": 0.3},
    "fixed KL 1": {"objective": "fixed-kl", "kl_cost": 1.0},
    "fixed KL 3": {"objective": "fixed-kl", "kl_cost": 3.0},
}
MUJOCO_TASKS = (
    *("HalfCheetah", "Hopper", "InvertedDoublePendulum", "InvertedPendulum"),
    *("Reacher", "Swimmer", "Walker2d"),
)
QUICK = {False: ("CartPoleSwingUp", "DoublePendulum"), True: ("HalfCheetah", "Reacher")}


def known_tasks(settings: Tasksets) -> dict[str, str]:
    """The names and environments of the tasks that `--mujoco` chooses."""
    if not settings.mujoco:
        return JAX_TASKS
    return {name: f"{name}-{settings.env_version}" for name in MUJOCO_TASKS}


def name_of(settings: Tasksets, name: str) -> str:
    """The name of the tables and the figure, which differs for MuJoCo."""
    return f"{name}-mujoco-{settings.env_version}" if settings.mujoco else name


def run(settings: PPOClip, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    known, quick = known_tasks(settings), QUICK[settings.mujoco]
    settings, tasks = matrix.choose(settings, known, quick, seeds=1, share=10)
    done = matrix.train(
        output,
        tasks,
        {name: Variant("ppo", {**_PAPER, **changed}) for name, changed in VARIANTS.items()},
        seeds=settings.seeds,
        steps=settings.steps,
    )
    name = name_of(settings, "ppo-clip")
    matrix.write(done, results, name, f"pronk reproduce ppo-clip, {settings.steps:,} agent steps")
    matrix.play_randomly(output, results, name, tasks)
    return "\n\n".join([table(results, name), draw(results, name)])


def table(results: Path, name: str = "ppo-clip") -> str:
    """Surrogates by tasks, from the tables in `results`: raw means, and the normalised mean."""
    scores = matrix.scores_of(common.read_csv(results / f"{name}-scores.csv"), "last_100")
    rows = common.read_csv(results / f"{name}-random.csv")
    random = {row["task"]: row["mean_return"] for row in rows}
    tasks, left_out = matrix.above_random(scores, matrix.complete(scores), random)
    average = normalised(scores, random, tasks) if tasks else {}
    lines = []
    for variant, own in scores.items():
        cells = [matrix.spread(own[task]) if task in own else "–" for task in random]
        shown = _short(average[variant]) if tasks else "–"
        lines.append([variant, shown, f"{published.PPO_SURROGATES[variant]:.2f}", *cells])
    found = common.markdown(["", "normalised", "published (MuJoCo)", *random], lines)
    return f"{found}\n\n{left_out}" if left_out else found


def normalised(
    scores: Scores, random: Mapping[str, float], tasks: list[str]
) -> dict[str, common.Interval]:
    """The mean over tasks of each variant's normalised scores, with a 95 % interval over seeds.

    tasks: those of `matrix.above_random`.
    """
    best = matrix.means(scores, tasks).max(1)
    pairs = {task: (random[task], float(one)) for task, one in zip(tasks, best, strict=True)}
    found = {}
    for variant, own in scores.items():
        group = statistics.normalised({task: own[task] for task in tasks}, pairs)
        low, high = report.interval(statistics.mean, group, repeats=10_000)
        found[variant] = common.Interval(float(statistics.mean(group)), float(low), float(high))
    return found


def _short(value: common.Interval) -> str:
    mean = f"{value.mean:.2f}"
    return f"{mean} [{value.low:.2f}, {value.high:.2f}]" if math.isfinite(value.low) else mean


def draw(results: Path, name: str = "ppo-clip") -> str:
    """Draw the learning curves from the table in `results`."""
    return matrix.draw_curves(results, name)
