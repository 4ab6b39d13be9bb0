"""The experiments' settings. Imports neither jax nor an environment, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What all experiments have."""

    results: Path | None = None
    """Folder for the tables (CSV) and figures (PNG). [runs/NAME]"""
    quick: bool = False
    """A smaller experiment."""


@dataclass(frozen=True, kw_only=True)
class Training(Experiment):
    """What experiments that train have."""

    output: Path | None = None
    """Folder for the runs; the same command resumes an interrupted experiment. [runs/NAME]"""


@dataclass(frozen=True, kw_only=True)
class Tasks(Training):
    """What experiments on several tasks have."""

    scale: float = 1.0
    """Train for this share of each task's agent steps."""
    tasks: tuple[str, ...] = ()
    """Run only these tasks. [all]"""


@dataclass(frozen=True, kw_only=True)
class Staleness(Training):
    """R2D2's recurrent states in replay: how wrong they are, and what the memory is good for."""

    seeds: int = 5
    """Runs of each training strategy."""
    steps: int = 60_000
    """Agent steps per run."""
    quick: bool = False
    """Two seeds and a third of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class Ablations(Training):
    """R2D2 with one part removed at a time, and with a lost life as the end of an episode."""

    seeds: int = 3
    """Runs of each variant."""
    steps: int = 200_000
    """Agent steps per run."""
    quick: bool = False
    """One seed and a third of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class TDLambda(Experiment):
    """TD(λ), online and offline, on the random walk: its error against λ and step size."""

    seeds: int = 100
    """Runs of 10 episodes to average over."""
    quick: bool = False
    """A fifth of the runs."""


@dataclass(frozen=True, kw_only=True)
class NaturalGradient(Experiment):
    """The natural gradient's invariance, and the greedy policy as its limit, on random MDPs."""

    seeds: int = 20
    """Random MDPs."""
    quick: bool = False
    """A fifth of the MDPs."""


@dataclass(frozen=True, kw_only=True)
class VTraceAnalysis(Experiment):
    """V-trace's operator on random MDPs: its fixed points, its speed, and what c̄ costs."""

    seeds: int = 20
    """Random MDPs."""
    quick: bool = False
    """A fifth of the MDPs."""


@dataclass(frozen=True, kw_only=True)
class VTraceAblation(Tasks):
    """V-trace, 1-step, ε-correction and no correction on five tasks, with and without replay."""

    seeds: int = 5
    """Runs with the best learning rate and entropy cost, which two other seeds chose."""
    quick: bool = False
    """The three smallest tasks, three seeds, half of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class PolicyLag(Tasks):
    """Return against the age of the actors' parameters in updates, for each correction."""

    seeds: int = 5
    """Runs of each correction at each lag."""
    quick: bool = False
    """The smallest task, three seeds, half of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class PopArt(Training):
    """PopArt, ART, clipped and unclipped IMPALA on a suite of reward scales from 0.01 to 10,000."""

    seeds: int = 5
    """Runs of each agent with its best learning rate, which two other seeds chose."""
    scale: float = 1.0
    """Train for this share of the agent steps."""
    debias: bool = True
    """Correct the statistics for their initial values (an agent's `--popart-debias`)."""
    quick: bool = False
    """Two seeds, a seventh of the steps: some minutes, too short to learn the harder tasks."""


@dataclass(frozen=True, kw_only=True)
class PopArtAtari(Training):
    """PopArt, unclipped and clipped IMPALA on four Atari games at once, with raw rewards."""

    steps: int = 2_200_000
    """Agent steps per agent, of all games together: 25 minutes each on two cores."""
    seed: int = 0
    """Random seed of the runs."""
    episodes: int = 20
    """Episodes per game to evaluate after training, with sampled actions."""
    quick: bool = False
    """A twenty-fifth of the steps: some minutes, in which nothing is learnt yet."""


@dataclass(frozen=True, kw_only=True)
class PBT(Tasks):
    """A population that adapts its hyperparameters against as many fixed random draws of them."""

    seeds: int = 10
    """Populations of each kind on each task."""
    population: int = 24
    """Members of each population."""
    quick: bool = False
    """One seed, twelve members: some minutes."""


@dataclass(frozen=True, kw_only=True)
class Matrix(Training):
    """What experiments with a run for each task, variant and seed have."""

    seeds: int = 5
    """Runs of each variant on each task."""
    steps: int = 1_000_000
    """Agent steps per run."""
    tasks: tuple[str, ...] = ()
    """Run only these tasks. [all]"""


@dataclass(frozen=True, kw_only=True)
class Agents(Matrix):
    """What experiments that compare agents have."""

    agents: tuple[str, ...] = ()
    """Run only these agents. [all]"""


@dataclass(frozen=True, kw_only=True)
class KL(Agents):
    """How far each update moves the policy: the KL of TRPO, TNPG, NPG, REINFORCE and PPO."""

    seeds: int = 3
    """Runs of each agent on each task."""
    tasks: tuple[str, ...] = ()
    """Run only these tasks, of those of `duan`. [CartPoleSwingUp and DoublePendulum]"""
    quick: bool = False
    """One seed and a quarter of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class Duan(Agents):
    """The basic tasks of Duan et al. 2016: returns over training, ranks beside the published."""

    steps: int = 5_000_000
    """Agent steps per run: a fifth of the paper's, as its batches are."""
    quick: bool = False
    """Two tasks, two seeds, a twenty-fifth of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class MuJoCo(Agents):
    """PPO, TRPO, TNPG and REINFORCE on Gymnasium's MuJoCo tasks, beside published results."""

    env_version: Literal["v4", "v5"] = "v4"
    """Version of the tasks. Rewards of v5 differ; its results have files of their own."""
    quick: bool = False
    """Two tasks, one seed, a fortieth of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class Tasksets(Matrix):
    """What experiments on the tasks in JAX or on MuJoCo's have."""

    mujoco: bool = False
    """Gymnasium's MuJoCo tasks instead of those in JAX."""
    env_version: Literal["v4", "v5"] = "v4"
    """Version of the MuJoCo tasks."""


@dataclass(frozen=True, kw_only=True)
class PPOClip(Tasksets):
    """PPO's surrogates: no clipping, clipping, adaptive and fixed KL penalties."""

    seeds: int = 3
    """Runs of each surrogate on each task."""
    quick: bool = False
    """Two tasks, one seed, a tenth of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class Study(Tasksets):
    """PPO with the recommendations of a large study, and without each of them in turn."""

    steps: int = 500_000
    """Agent steps per run."""
    quick: bool = False
    """One task, two seeds, a tenth of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class NGUMaze(Training):
    """The share of Random Disco Maze that NGU visits without rewards, beside random features."""

    size: int = 11
    """Rows and columns of the maze, odd. The paper's has 21."""
    seeds: int = 3
    """Runs of each variant."""
    steps: int = 1_000_000
    """Agent steps per run."""
    quick: bool = False
    """One seed, a twentieth of the steps: some minutes, too short to learn much."""


@dataclass(frozen=True, kw_only=True)
class NGUAblations(Matrix):
    """NGU with 1, 8 and 32 mixtures, without each kind of novelty, without rewards, beside R2D2."""

    seeds: int = 3
    """Runs of each variant on each task."""
    steps: int = 200_000
    """Agent steps per run."""
    quick: bool = False
    """One task, one seed, a quarter of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class Agent57(Agents):
    """R2D2 and NGU, and Agent57's parts added one by one: dense, sparse and distant rewards."""

    seeds: int = 3
    """Runs of each agent on each task."""
    steps: int = 200_000
    """Agent steps per run."""
    quick: bool = False
    """One task, one seed, a quarter of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class RandomCoin(Training):
    """One network for both rewards (NGU) or two (Agent57), with growing intrinsic rewards."""

    size: int = 5
    """Rows and columns of the room. The paper's has 15."""
    seeds: int = 3
    """Runs of each network with each scale."""
    steps: int = 400_000
    """Agent steps per run."""
    quick: bool = False
    """One seed, a quarter of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class MuZeroBoards(Training):
    """MuZero on tic-tac-toe and a small Connect Four: every line of play, and perfect play."""

    seeds: int = 3
    """Runs on each board."""
    tasks: tuple[str, ...] = ()
    """Run only these boards. [all]"""
    quick: bool = False
    """Tic-tac-toe, one seed, a tenth of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class Boards(Matrix):
    """What experiments with MuZero on one small board have."""

    seeds: int = 3
    """Runs of each variant."""
    steps: int = 2_000_000
    """Agent steps per run."""
    tasks: tuple[str, ...] = ()
    """The boards, of TicTacToe and ConnectFour. [ConnectFour; TicTacToe with `--quick`]"""
    quick: bool = False
    """Tic-tac-toe, one seed, a hundredth of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class ThinkingTime(Boards):
    """MuZero's Elo against the number of simulations with which it plays, from 0 to 256."""


@dataclass(frozen=True, kw_only=True)
class Simulations(Boards):
    """MuZero trained with 2 to 32 simulations per move, evaluated with 32."""

    quick: bool = False
    """Tic-tac-toe with 2, 8 and 32, one seed, a hundredth of the steps: some minutes."""


@dataclass(frozen=True, kw_only=True)
class ModelFree(Training):
    """MuZero on Breakout in 10 × 10, beside Q-learning with the same network, and IMPALA."""

    seeds: int = 3
    """Runs of each agent."""
    steps: int = 500_000
    """Agent steps per run."""
    agents: tuple[str, ...] = ()
    """Run only these agents. [all]"""
    quick: bool = False
    """One seed, a fiftieth of the steps: some minutes, too short to learn much."""


@dataclass(frozen=True, kw_only=True)
class Reanalyze(Matrix):
    """MuZero with few draws of each position, with many, and with new searches for the many."""

    seeds: int = 3
    """Runs of each variant on each task."""
    steps: int = 100_000
    """Agent steps per run."""
    quick: bool = False
    """One task, one seed, a tenth of the steps: some minutes."""


EXPERIMENTS: dict[str, type[Experiment]] = {
    "agent57": Agent57,
    "duan": Duan,
    "kl": KL,
    "mujoco": MuJoCo,
    "muzero-boards": MuZeroBoards,
    "muzero-model-free": ModelFree,
    "muzero-simulations": Simulations,
    "muzero-thinking-time": ThinkingTime,
    "ngu-ablations": NGUAblations,
    "ngu-maze": NGUMaze,
    "pbt": PBT,
    "policy-lag": PolicyLag,
    "popart": PopArt,
    "popart-atari": PopArtAtari,
    "ppo-clip": PPOClip,
    "r2d2-ablations": Ablations,
    "r2d2-staleness": Staleness,
    "random-coin": RandomCoin,
    "reanalyze": Reanalyze,
    "study": Study,
    "td-lambda": TDLambda,
    "natural-gradient": NaturalGradient,
    "vtrace-ablation": VTraceAblation,
    "vtrace-analysis": VTraceAnalysis,
}
