"""Reference scores, for human-normalised results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# Random and human play per Atari game: Schrittwieser et al. 2020 ("Mastering Atari, Go, Chess and
# Shogi by Planning with a Learned Model"), table S1; 57 games.
ATARI: dict[str, tuple[float, float]] = {
    "Alien": (227.75, 7127.8),
    "Amidar": (5.77, 1719.53),
    "Assault": (222.39, 742.0),
    "Asterix": (210.0, 8503.33),
    "Asteroids": (719.1, 47388.67),
    "Atlantis": (12850.0, 29028.13),
    "BankHeist": (14.2, 753.13),
    "BattleZone": (2360.0, 37187.5),
    "BeamRider": (363.88, 16926.53),
    "Berzerk": (123.65, 2630.42),
    "Bowling": (23.11, 160.73),
    "Boxing": (0.05, 12.06),
    "Breakout": (1.72, 30.47),
    "Centipede": (2090.87, 12017.04),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.41),
    "Defender": (2874.5, 18688.89),
    "DemonAttack": (152.07, 1971.0),
    "DoubleDunk": (-18.55, -16.4),
    "Enduro": (0.0, 860.53),
    "FishingDerby": (-91.71, -38.8),
    "Freeway": (0.01, 29.6),
    "Frostbite": (65.2, 4334.67),
    "Gopher": (257.6, 2412.5),
    "Gravitar": (173.0, 3351.43),
    "Hero": (1026.97, 30826.38),
    "IceHockey": (-11.15, 0.88),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.05, 2665.53),
    "KungFuMaster": (258.5, 22736.25),
    "MontezumaRevenge": (0.0, 4753.33),
    "MsPacman": (307.3, 6951.6),
    "NameThisGame": (2292.35, 8049.0),
    "Phoenix": (761.4, 7242.6),
    "Pitfall": (-229.44, 6463.69),
    "Pong": (-20.71, 14.59),
    "PrivateEye": (24.94, 69571.27),
    "Qbert": (163.88, 13455.0),
    "Riverraid": (1338.5, 17118.0),
    "RoadRunner": (11.5, 7845.0),
    "Robotank": (2.16, 11.94),
    "Seaquest": (68.4, 42054.71),
    "Skiing": (-17098.09, -4336.93),
    "Solaris": (1236.3, 12326.67),
    "SpaceInvaders": (148.03, 1668.67),
    "StarGunner": (664.0, 10250.0),
    "Surround": (-9.99, 6.53),
    "Tennis": (-23.84, -8.27),
    "TimePilot": (3568.0, 5229.1),
    "Tutankham": (11.43, 167.59),
    "UpNDown": (533.4, 11693.23),
    "Venture": (0.0, 1187.5),
    "VideoPinball": (0.0, 17667.9),
    "WizardOfWor": (563.5, 4756.52),
    "YarsRevenge": (3092.91, 54576.93),
    "Zaxxon": (32.5, 9173.3),
}

# The same play with one decimal, as in Badia et al. 2020 ("Agent57"): its tables of scores follow
# from these, and in games with close references, such as Double Dunk, not from `ATARI`.
AGENT57: dict[str, tuple[float, float]] = {
    name: (round(random, 1), round(human, 1)) for name, (random, human) in ATARI.items()
} | {
    "Alien": (227.8, 7127.7),
    "FishingDerby": (-91.7, -38.7),
    "TimePilot": (3568.0, 5229.2),
}
# Those of DQN Zoo (Quan and Ostrovski 2020), which has another random player in Video Pinball.
DQN_ZOO: dict[str, tuple[float, float]] = {
    **AGENT57,
    "KungFuMaster": (258.5, 22736.3),
    "VideoPinball": (16256.9, 17667.9),
}


def game(env_name: str) -> str | None:
    """The key of `ALE/Game-v5` in `ATARI`, or None."""
    name, _, version = env_name.removeprefix("ALE/").rpartition("-v")
    known = env_name.startswith("ALE/") and name in ATARI
    return name if known and version.isdecimal() else None  # not "5?reward_scale=2", a task's id


def normalize(score: float, reference: tuple[float, float]) -> float:
    """(score − random) / (one − random), `reference` being (random, one)."""
    random, one = reference
    return (score - random) / (one - random)


def human_normalized(env_name: str, score: float) -> float | None:
    """(score − random) / (human − random) for `ALE/Game-v5`; None for other environments."""
    name = game(env_name)
    return None if name is None else normalize(score, ATARI[name])


def aggregates(values: Sequence[float]) -> dict[str, float]:
    """Mean, median and capped mean of one normalised score per task.

    Capping each score at 1 keeps superhuman scores in some tasks from hiding failures in others
    (Espeholt et al. 2018, section 5.3). `pronk.report` has these and more statistics of several
    runs per task; its capped mean is clipped at 0, too.
    """
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "mean_capped": statistics.fmean(min(v, 1.0) for v in values),
    }
