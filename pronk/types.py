"""Everything that crosses a boundary: environment -> actor -> learner -> parameters, and back.

This module imports neither jax nor an environment, so that worker processes and `pronk --help`
start quickly. Leaves are NumPy arrays at process and environment boundaries and jax arrays inside
jitted code; both are called `Array` here.

Time and batch axes: `T` is the unroll length in agent steps, `B` the number of environments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:  # half a second
    import gymnasium as gym

Array: TypeAlias = Any  # numpy.ndarray or jax.Array
PyTree: TypeAlias = Any
Key: TypeAlias = Any  # a jax.random.key
Device: TypeAlias = Any  # a jax.Device
Hyper: TypeAlias = "dict[str, Array]"  # `LearnerState.hyper`


class TimeStep(NamedTuple):
    """What the environments return at one time step, `[B, ...]`.

    All environments follow Gymnasium's NEXT_STEP autoreset: the terminal observation is an
    ordinary element of the sequence; the step after it is a dummy whose action is ignored and
    which returns the next episode's first observation, with `first` set, reward 0 and no end flag.
    A step in which an environment fails is such a dummy too: its episode ends without an end flag,
    with the row before.
    """

    observation: PyTree  # the environment's own dtypes; pixels stay uint8
    reward: Array  # float32 [B], raw, of the transition into this observation
    terminated: Array  # bool [B], this observation ends the episode; bootstrap from zero
    truncated: Array  # bool [B], this observation is the last one seen; bootstrap from its value
    first: Array  # bool [B], this observation begins an episode: reset the carry before acting
    task: Array  # int32 [B], which task of a suite; 0 for a single one
    action_mask: Array | None = None  # bool [B, actions], True where allowed


class Carry(NamedTuple):
    """What an actor keeps between the steps of each environment slot, `[B, ...]`."""

    core: PyTree  # recurrent state and last action; reset by `act` at `first`, stored
    # The slot's own: an exploration rate, a bandit, an episodic memory. It survives episodes and is
    # not stored. `act` receives it donated, so megabytes of it are updated in place.
    private: PyTree = ()


class Starts(NamedTuple):
    """Recurrent states at the N rows of an unroll where replayed sequences will start.

    Rows that begin an episode are not among them: `act` resets the state there.
    """

    row: Array  # int32 [N]
    slot: Array  # int32 [N], which environment
    core: PyTree  # [N, ...], `Carry.core` of that slot as it was before that row


class Trajectory(NamedTuple):
    """An unroll, time-major `[T + 1, B, ...]`.

    Row t holds what the environment returned at t (`timestep`, whose reward and end flags belong to
    the transition *into* t) and the decision at t (`action`, `extras`). Transition t -> t+1
    thus uses `action[t]`, `extras[t]`, `reward[t + 1]` and the end flags of t + 1, and has weight
    `1 - first[t + 1]`: zero for the dummy step between two episodes. Row T is executed next and
    appears again as row 0 of the following unroll.
    """

    timestep: TimeStep  # [T + 1, B, ...]
    action: Array  # [T + 1, B, ...], as executed by the environment
    extras: dict[str, Array]  # [T + 1, B, ...], for example the behaviour log-probability
    core: PyTree  # [B, ...], `Carry.core` as it was before row 0
    version: Array  # int32 [B], `LearnerState.updates` of the behaviour when the unroll began
    starts: Starts | None = None  # for a replay whose sequences start within unrolls


class Batch(NamedTuple):
    """What `Agent.learn` receives: a trajectory, and from a replay how its columns were drawn."""

    trajectory: Trajectory
    probabilities: Array | None = None  # float32 [B], of having been drawn
    replayed: Array | None = None  # bool [B], in mixed batches: False for fresh columns


class LearnerState(NamedTuple):
    """All that learning changes, as one pytree: saving it and restoring it loses nothing."""

    params: PyTree
    opt_state: PyTree
    hyper: dict[str, Array]  # numeric hyperparameters as float32 scalars: changed, not recompiled
    updates: Array  # int32 [], calls of `Agent.learn`, however many gradient steps each takes
    # uint32 [], real transitions learnt from; of a mixed batch, only the fresh ones count. pronk's
    # own agents use uint32 [2], low word first, for schedules of 2^31 transitions or more.
    steps: Array
    skipped: Array  # int32 [], calls of `learn` that changed nothing: a gradient was not finite
    key: Key
    extra: PyTree = ()  # whatever else the agent keeps, such as target networks and statistics


class Feedback(NamedTuple):
    """What `learn` tells the source of its batch."""

    priorities: Array | None = None  # float32 [B], the sequences' new priorities
    # `[T + 1, B, ...]`, new values of some of `Trajectory.extras`, such as reanalysed targets.
    extras: dict[str, Array] | None = None


class Learnt(NamedTuple):
    """The result of `learn`."""

    state: LearnerState
    metrics: dict[str, Array]  # scalars; `steps` and `gradient_norm` among them
    feedback: Feedback = Feedback()


class Sequences(NamedTuple):
    """What a replay holds: sequences of `length` transitions, of which neighbours share `overlap`,
    each behind up to `burn_in` rows that only warm up the recurrent state.

    A drawn batch has `[burn_in + length + 1, B]` rows.
    """

    capacity: int  # agent steps
    length: int
    burn_in: int = 0
    overlap: int = 0
    priority_exponent: float = 0.0  # 0 draws uniformly
    eviction: str = "fifo"  # or "lowest-priority"
    compress: bool = False  # frames
    checkpoint: bool = True  # saved with the run; otherwise a resumed run starts empty
    cross_episodes: bool = False  # sequences continue across episodes, as unrolls do
    tails: bool = False  # a shorter sequence for every start in an episode's last rows


class Fresh(NamedTuple):
    """Batches consist of the newest trajectories, each used once.

    on_policy: row T of an unroll is decided when the next unroll begins, by the behaviour that acts
    in it, so that one behaviour decides all of a batch's transitions. In row T, `action` and
    `extras` then repeat those of the row before, and mean nothing.
    """

    on_policy: bool = False


class Replayed(NamedTuple):
    """Batches are drawn from a replay."""

    sequences: Sequences
    min_size: int  # sequences held before the first update
    samples_per_insert: float  # draws of a sequence for each that is inserted


class Mixed(NamedTuple):
    """A fraction of each batch is drawn from a replay of unrolls, the rest has just been acted."""

    sequences: Sequences
    fraction: float  # of each batch's columns; between 0 and 1


class Halves(NamedTuple):
    """A `learn` that is one gradient step, as two functions.

    The results of `gradients` are sums over transitions: those of the parts of a batch add up to
    the whole batch's, and `apply` takes them.
    """

    gradients: Callable[[LearnerState, Batch], tuple[PyTree, PyTree]]  # (gradients, sums)
    apply: Callable[[LearnerState, PyTree, PyTree], Learnt]


class Alert(NamedTuple):
    """A warning that a run shows once, when a metric is above a number."""

    metric: str  # of `Learnt.metrics`, as the mean over the updates between two records
    above: float
    message: str  # a format of {value}: what is wrong, and what to do


class Agent(NamedTuple):
    """A bundle of pure functions. The runtimes know nothing else of an algorithm.

    `evaluate=True` in `initial_carry` switches exploration off for the slots it makes. If `act`
    returns `extras["priority"]`, float32 `[B]`, a replayed sequence's first priority is the one of
    its first row after the burn-in; otherwise it is the highest in the replay.
    """

    init: Callable[[Key], LearnerState]
    # All that acting needs: parameters, observation statistics, an update count. Snapshots,
    # evaluation, `pronk export`, `pronk.load` and `--init-from` carry exactly this tree.
    behaviour: Callable[[LearnerState], PyTree]
    # (key, env_ids [B], num_envs, evaluate) -> Carry
    initial_carry: Callable[[Key, Array, int, bool], Carry]
    act: Callable[[PyTree, Carry, TimeStep, Key], tuple[Array, Carry, dict[str, Array]]]
    learn: Callable[[LearnerState, Batch], Learnt]
    # (own, donor) -> LearnerState: PBT's copy. It takes what the donor has learnt, and keeps its
    # own counters and key.
    adopt: Callable[[LearnerState, LearnerState], LearnerState]
    # (own, behaviour) -> LearnerState: `--init-from`. It begins to learn from that behaviour.
    warm_start: Callable[[LearnerState, PyTree], LearnerState]
    halves: Halves | None = None
    # (env_ids [B], num_envs) -> bool [B]: the slots that explore so much that their returns say
    # little of what was learnt; None: no slot does.
    explores: Callable[[Array, int], Array] | None = None
    source: Fresh | Replayed | Mixed = Fresh()
    notes: tuple[str, ...] = ()  # what a run says of the agent at its start
    alerts: tuple[Alert, ...] = ()
    two_players: bool = False  # it learns from both sides where `EnvSpec.players` is 2


@dataclass(frozen=True)
class EnvSpec:
    """What an agent may know of its environment."""

    name: str
    observation_space: gym.Space
    action_space: gym.Space
    frames_per_step: int = 1  # action repeat
    has_action_mask: bool = False
    tasks: tuple[str, ...] = ()  # of a suite, in the order of `TimeStep.task`
    # For each of them the mean return of random play and of what counts as 1, where known.
    references: tuple[tuple[float, float] | None, ...] = ()
    # 2: the agent moves for both sides in turn; observations and rewards are those of the side that
    # moves. The reward of a transition belongs to the side that has moved, and the observation that
    # comes with it to the other one, which moves next.
    players: int = 1

    @property
    def num_tasks(self) -> int:
        """The number of tasks; 1 if the environment is not a suite."""
        return max(1, len(self.tasks))


class Episode(NamedTuple):
    """A finished game as a person would count it: raw rewards, lost lives not counted as ends."""

    episode_return: float
    length: int  # agent steps
    env_id: int
    task: int = 0  # of a suite
    explores: bool = False  # of a slot that `Agent.explores` names


class VectorEnv(Protocol):
    """`num_envs` environments stepped together, NumPy in and out.

    The arrays returned by `reset` and `step` are the caller's until the next call only.
    """

    spec: EnvSpec
    num_envs: int
    placement: str  # in words, where its environments are stepped

    def reset(self) -> TimeStep:
        """Begin new episodes everywhere; `first` is set throughout."""
        ...

    def step(self, action: Array) -> TimeStep:
        """Execute `action` `[B, ...]`; slots whose episode has ended begin the next one instead."""
        ...

    def episodes(self) -> list[Episode]:
        """The games finished since the last call."""
        ...

    def state(self) -> PyTree | None:
        """A NumPy pytree from which `restore` continues exactly, or None where that can't be."""
        ...

    def restore(self, state: PyTree) -> None:
        """Continue from `state()`; the next `step` is as if there had been no interruption."""
        ...

    def warnings(self) -> list[str]:
        """Messages about faults and deviations since the last call, one line each."""
        ...

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        ...
