"""Published results of algorithms for continuous control, with their sources."""

from __future__ import annotations

from typing import NamedTuple


class Result(NamedTuple):
    """A mean over seeds, with the standard deviation where it was published."""

    mean: float
    deviation: float | None = None


def _row(random: float, *others: tuple[float, float]) -> dict[str, Result]:
    names = ("reinforce", "tnpg", "rwr", "reps", "trpo", "cem", "cma-es", "ddpg")
    found = {name: Result(*pair) for name, pair in zip(names, others, strict=True)}
    return {"random": Result(random)} | found


# Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control", table 1, the
# basic tasks: mean undiscounted return of all episodes of training, over five seeds.
DUAN: dict[str, dict[str, Result]] = {
    "pronk/CartPoleBalance": _row(
        77.1, (4693.7, 14.0), (3986.4, 748.9), (4861.5, 12.3), (565.6, 137.6),
        (4869.8, 37.6), (4815.4, 4.8), (2440.4, 568.3), (4634.4, 87.8),
    ),
    "pronk/CartPoleSwingUp": _row(
        -153.4, (13.4, 18.0), (209.7, 55.5), (84.7, 13.8), (-113.3, 4.6),
        (247.2, 76.1), (38.2, 25.7), (-40.1, 5.7), (40.0, 244.6),
    ),
    "pronk/MountainCar": _row(
        -415.4, (-67.1, 1.0), (-66.5, 4.5), (-79.4, 1.1), (-275.6, 166.3),
        (-61.7, 0.9), (-66.0, 2.4), (-85.0, 7.7), (-288.4, 170.3),
    ),
    "pronk/Acrobot": _row(
        -1904.5, (-508.1, 91.0), (-395.8, 121.2), (-352.7, 35.9), (-1001.5, 10.8),
        (-326.0, 24.4), (-436.8, 14.7), (-785.6, 13.1), (-223.6, 5.8),
    ),
    "pronk/DoublePendulum": _row(
        149.7, (4116.5, 65.2), (4455.4, 37.6), (3614.8, 368.1), (446.7, 114.8),
        (4412.4, 50.4), (2566.2, 178.9), (1576.1, 51.3), (2863.4, 154.0),
    ),
}  # fmt: skip


# Schulman et al. 2017, "Proximal Policy Optimization Algorithms", table 1: mean over seven MuJoCo
# tasks and three seeds of the return of the last 100 episodes, 0 for random play and 1 for the best
# result of each task, after a million steps.
PPO_SURROGATES: dict[str, float] = {
    "no clipping": -0.39,
    "clip 0.1": 0.76,
    "clip 0.2": 0.82,
    "clip 0.3": 0.70,
    "adaptive KL 0.003": 0.68,
    "adaptive KL 0.01": 0.74,
    "adaptive KL 0.03": 0.71,
    "fixed KL 0.3": 0.62,
    "fixed KL 1": 0.71,
    "fixed KL 3": 0.72,
    "fixed KL 10": 0.69,
}


class Source(NamedTuple):
    """Results of one agent by one program, in Gym's or Gymnasium's MuJoCo tasks."""

    agent: str
    name: str
    metric: str  # what was measured, after a million steps unless it says otherwise
    version: str  # of the tasks
    results: dict[str, Result]


_TASKS = ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "InvertedDoublePendulum", "Reacher")


def _source(agent: str, name: str, metric: str, version: str, *results: float | None) -> Source:
    pairs = zip(_TASKS, results, strict=True)
    return Source(agent, name, metric, version, {t: Result(x) for t, x in pairs if x is not None})


_TIANSHOU = "largest evaluation while training, 10 seeds"
# Means only. Baselines: openai/baselines, benchmarks_mujoco1M.htm. CleanRL: vwxyzjn/cleanrl,
# docs/rl-algorithms/ppo.md. Tianshou: thu-ml/tianshou, examples/mujoco/README.md. SB3 Contrib:
# Stable-Baselines-Team/stable-baselines3-contrib, docs/modules/trpo.rst;
# its discounts: DLR-RM/rl-baselines3-zoo, hyperparams/trpo.yml.
MUJOCO: tuple[Source, ...] = (
    _source("ppo", "Baselines ppo2", "training, 6 seeds", "v2",
            1669, 2316, 3425, 111, 7103, -6.7),
    _source("ppo", "CleanRL", "last 100 episodes of training, 3 seeds", "v4",
            1442.6, 2382.9, 2288.0, None, None, None),
    _source("ppo", "Tianshou", _TIANSHOU, "v3 (v2: last two)",
            5783.9, 2609.3, 3588.5, 66.7, 9231.3, -4.1),
    _source("trpo", "Baselines trpo_mpi", "training, 6 seeds", "v2",
            1290, 1913, 2343, 95.0, 6732, -4.8),
    _source("trpo", "SB3 Contrib", "evaluation, 3 seeds; discount 0.9999 in Swimmer", "v3",
            1803, 3372, 4502, 359, None, None),
    _source("trpo", "Tianshou", _TIANSHOU, "v3 (v2: last two)",
            4471.2, 2046.0, 3826.7, 40.9, 8435.2, -5.1),
    _source("npg", "Tianshou", _TIANSHOU, "v3 (v2: last two)",
            3485.2, 1915.2, 2503.2, 31.5, 9243.2, -4.5),
    _source("reinforce", "Tianshou", f"{_TIANSHOU}, 3 million steps", "v3 (v2: last two)",
            884, 396, 412, 35.3, 1060, -10.5),
)  # fmt: skip
