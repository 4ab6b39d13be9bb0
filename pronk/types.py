"""Everything that crosses a boundary: environment -> actor -> learner -> parameters, and back.

This module imports neither jax nor an environment, so that worker processes and `pronk --help`
start quickly. Leaves are NumPy arrays at process and environment boundaries and jax arrays inside
jitted code; both are called `Array` here.

Time and batch axes: `T` is the unroll length in agent steps, `B` the number of environments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import gymnasium as gym

Array: TypeAlias = Any  # numpy.ndarray or jax.Array
PyTree: TypeAlias = Any
Key: TypeAlias = Any  # a jax.random.key
Device: TypeAlias = Any  # a jax.Device


class TimeStep(NamedTuple):
    """What the environments say at one moment, `[B, ...]`.

    All environments follow Gymnasium's NEXT_STEP autoreset: the terminal observation is an
    ordinary element of the sequence; the step after it is a dummy whose action is ignored and
    which brings the next episode's first observation, with `first` set, reward 0 and no end flag.
    """

    observation: PyTree  # the environment's own dtypes; pixels stay uint8
    reward: Array  # float32 [B], raw, of the transition into this observation
    terminated: Array  # bool [B], this observation ends the episode; bootstrap from zero
    truncated: Array  # bool [B], this observation is the last one seen; bootstrap from its value
    first: Array  # bool [B], this observation begins an episode: reset the carry before acting
    task: Array  # int32 [B], which task of a suite; 0 for a single one
    action_mask: Array | None = None  # bool [B, actions], True where allowed


class Carry(NamedTuple):
    """What an actor remembers between steps of each environment slot, `[B, ...]`."""

    core: PyTree  # recurrent state and last action; reset by `act` at `first`, stored
    private: PyTree = ()  # the slot's own (an exploration rate, a bandit); survives `first`


class Trajectory(NamedTuple):
    """An unroll, time-major `[T + 1, B, ...]`.

    Row t holds what the environment said at t (`timestep`, whose reward and end flags belong to
    the transition *into* t) and what was decided at t (`action`, `extras`). Transition t -> t+1
    thus uses `action[t]`, `extras[t]`, `reward[t + 1]` and the end flags of t + 1, and has weight
    `1 - first[t + 1]`: zero for the dummy step between two episodes. Row T is executed next and
    appears again as row 0 of the following unroll.
    """

    timestep: TimeStep  # [T + 1, B, ...]
    action: Array  # [T + 1, B, ...], as executed by the environment
    extras: dict[str, Array]  # [T + 1, B, ...], for example the behaviour log-probability
    core: PyTree  # [B, ...], `Carry.core` as it was before row 0
    version: Array  # int32 [B], the learner's update count whose parameters acted this unroll


class Batch(NamedTuple):
    """What `Agent.learn` receives: a trajectory, and from replay what it knows of its columns."""

    trajectory: Trajectory
    probabilities: Array | None = None  # float32 [B], of having been drawn
    core: PyTree = ()  # [B, ...], `Carry.core` as it was before row `ReplaySpec.burn_in`
    replayed: Array | None = None  # bool [B], where some are drawn and others were just acted


class LearnerState(NamedTuple):
    """All that learning changes, as one pytree: saving it and restoring it loses nothing."""

    params: PyTree
    optimiser: PyTree
    hyper: dict[str, Array]  # numeric hyperparameters as float32 scalars: changed, not recompiled
    updates: Array  # int32 [], gradient steps applied
    steps: Array  # uint32 [], agent steps learnt from (dummies not counted)
    skipped: Array  # int32 [], updates left out because a gradient was not finite
    key: Key
    # Whatever else the agent keeps. Of a dict, `target` is a copy of earlier `params`, and
    # `statistics` are what `params` have been learnt in the units of.
    aux: PyTree = ()


class ReplaySpec(NamedTuple):
    """What an agent wants to learn from instead of, or beside, what its actors have just done.

    Sequences of `length` transitions, neighbours sharing `overlap` of them, behind up to `burn_in`
    rows that only bring the recurrent state up to date: `[burn_in + length + 1, B]` rows.

    With a `share` below 1, the rest of each batch is what the actors have just done, and there is
    an update whenever there is enough of that; `samples_per_insert` and `minimum` mean nothing.
    """

    capacity: int  # agent steps held
    burn_in: int
    length: int
    overlap: int
    minimum: int  # sequences held before the first update
    samples_per_insert: float  # draws of a sequence for each that is inserted
    priority_exponent: float  # 0 draws uniformly
    eviction: str = "fifo"  # or "lowest-priority"
    compress: bool = False  # frames
    saved: bool = True  # with the run; otherwise a resumed one fills its memory anew
    share: float = 1.0  # of each batch's columns
    across: bool = False  # sequences go on across episodes, as unrolls do


class Agent(NamedTuple):
    """A bundle of pure functions. The runtimes know nothing else of an algorithm.

    `evaluate=True` in `initial_carry` switches exploration off for the slots it makes. Agents that
    learn from replay say so by `replay`: their `act` gives `Carry.core` as `extras["core"]`, and
    the feedback of `learn`, its second result, is the sequences' new priorities, float32 `[B]`.
    `gradients` and `apply` are the halves of a one-step `learn`; agents without them leave None.
    What `gradients` returns are sums over transitions: those of the parts of a batch add up to the
    whole batch's, and `apply` takes them.
    """

    init: Callable[[Key], LearnerState]
    behaviour: Callable[[LearnerState], PyTree]
    initial_carry: Callable[
        [Key, Array, int, bool], Carry
    ]  # (key, env_ids [B], num_envs, evaluate)
    act: Callable[[PyTree, Carry, TimeStep, Key], tuple[Array, Carry, dict[str, Array]]]
    learn: Callable[[LearnerState, Batch], tuple[LearnerState, PyTree, dict[str, Array]]]
    gradients: Callable[[LearnerState, Batch], tuple[PyTree, PyTree]] | None = None
    apply: (
        Callable[[LearnerState, PyTree, PyTree], tuple[LearnerState, PyTree, dict[str, Array]]]
        | None
    ) = None
    replay: ReplaySpec | None = None


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

    @property
    def num_tasks(self) -> int:
        """1 where it is no suite."""
        return max(1, len(self.tasks))


class Episode(NamedTuple):
    """A finished game as a person would count it: raw rewards, lost lives not counted as ends."""

    episode_return: float
    length: int  # agent steps
    env_id: int
    task: int = 0  # of a suite


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
        """What went otherwise than asked for since the last call, a line each."""
        ...

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        ...
