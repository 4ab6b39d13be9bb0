"""On-policy agents on Gymnasium's MuJoCo tasks after a million steps, beside published results.

Two scores, both of which are in use: the mean return of 100 episodes of the final policy, which
does not explore, and that of the last 100 episodes of training.
"""

from __future__ import annotations

from pathlib import Path

from pronk.experiments.reproduce import common, matrix
from pronk.experiments.reproduce.matrix import Variant
from pronk.experiments.reproduce.settings import MuJoCo
from pronk.report import published
from pronk.run.setup import configure_jax

TASKS = ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "InvertedDoublePendulum", "Reacher")
# Batches of 2,048 steps, of eight environments: one inference for all of them.
_PAPER = {"preset": "paper", "unroll": 256, "batch_size": 8}
AGENTS = {
    "ppo": Variant("ppo", _PAPER),
    "ppo-study": Variant("ppo", {**_PAPER, "preset": "study"}),
    **{name: Variant(name, _PAPER) for name in ("trpo", "tnpg", "reinforce")},
}
QUICK = ("HalfCheetah", "InvertedDoublePendulum")
EPISODES = 100  # of the final evaluation
SCORES = {
    "evaluation": "100 episodes of the final policy",
    "last_100": "the last 100 episodes of training",
}


def name_of(version: str) -> str:
    """The name of the tables and the figure: results of different versions are never mixed."""
    return f"mujoco-{version}"


def run(settings: MuJoCo, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    known = {name: f"{name}-{settings.env_version}" for name in TASKS}
    settings, tasks = matrix.choose(settings, known, QUICK, seeds=1, share=40)
    agents = common.choose("agents", settings.agents, AGENTS)
    done = matrix.train(
        output,
        tasks,
        {name: AGENTS[name] for name in agents},
        seeds=settings.seeds,
        steps=settings.steps,
        eval_every=settings.steps,
        eval_episodes=EPISODES,
    )
    name = name_of(settings.env_version)
    head = f"pronk reproduce mujoco --env-version {settings.env_version}, {settings.steps:,} steps"
    matrix.write(done, results, name, head)
    version = settings.env_version
    return "\n\n".join([*tables(results, version), draw(results, version)])


def tables(results: Path, version: str) -> list[str]:
    """A table of agents by tasks for each score, and one of published results."""
    rows = common.read_csv(results / f"{name_of(version)}-scores.csv")
    tasks = common.unique(rows, "task")
    found = []
    for score, words in SCORES.items():
        scores = matrix.scores_of(rows, score)
        lines = [
            [name, *(matrix.spread(own[task]) if task in own else "–" for task in tasks)]
            for name, own in scores.items()
        ]
        found.append(common.markdown([f"{version}, {words}", *tasks], lines))
    agents = {AGENTS[name].agent for name in common.unique(rows, "variant")}
    if "tnpg" in agents:
        agents.add("npg")  # NPG differs from TNPG by the length of the step only
    lines = [
        [
            f"{source.agent}, {source.name} ({source.version}; {source.metric})",
            *(f"{source.results[t].mean:g}" if t in source.results else "–" for t in tasks),
        ]
        for source in published.MUJOCO
        if source.agent in agents
    ]
    return [*found, common.markdown(["published", *tasks], lines)]


def draw(results: Path, version: str = "v4") -> str:
    """Draw the learning curves from the table in `results`."""
    return matrix.draw_curves(results, name_of(version))
