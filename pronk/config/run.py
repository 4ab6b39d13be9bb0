"""Settings of a run that are not the agent's. Imports neither jax nor an environment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pronk.config.fields import number

# Where the numbers of actors and of environments are neither given nor measured, and where
# measuring begins: two actors, so that one infers while the other steps; 16 environments, with
# which inference is cheap.
DEFAULT_ACTORS, DEFAULT_ENVS = 2, 16
# Agent steps of an episode of an evaluation: half an hour of an Atari game, of which each frame is
# a step. Longer than the time limits of Gymnasium's and ALE's environments.
EVAL_MAX_STEPS = 108_000


@dataclass(frozen=True)
class RunConfig:
    """How long, where and with what machinery to train."""

    steps: int = number(10_000_000, above=0, limit=10**12)
    """Agent steps to train for; schedules end there."""
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    """Random seed."""
    run_dir: Path | None = None
    """Directory of the run; the same command resumes it. [runs/AGENT-ENV-SEED]"""
    stop_after: int | None = number(None, above=0, limit=10**12)
    """Pause, saved, after this many agent steps in all; schedules still end at `--steps`."""
    stop_after_episodes: int | None = number(None, above=0, limit=10**12)
    """Pause, saved, after this many episodes in all."""
    runtime: Literal["auto", "local", "fused"] = "auto"
    """local: actors and a learner. fused: environment, acting and update in one jitted scan, for
    environments written in JAX. auto: fused where possible."""
    architecture: Literal[
        "async",
        "async-batched",
        "sync-step",
        "sync-unroll",
        "sync-batched",
        "async-gradients",
    ] = "async"
    """How actors and learner work together in the local runtime. async: actors never wait for the
    learner (IMPALA). sync-unroll: all actors wait for the update after every unroll (batched A2C);
    sync-step: the same with one actor that steps all environments together. async-batched,
    sync-batched: one batched inference acts for all actors (dynamic batching). async-gradients:
    actors send gradients (A3C)."""
    inference_minimum: int = number(1, above=0)
    """Dynamic batching: number of requests to wait for, one per actor."""
    inference_maximum: int | None = number(None, above=0)
    """Dynamic batching: largest number of requests answered together. [all actors]"""
    inference_timeout: float = number(0.01, above=0, limit=math.inf)
    """Dynamic batching: seconds after which a request is answered without waiting for others."""
    deterministic: bool = False
    """The same seed gives the same bits, and a resumed run equals an uninterrupted one."""
    actors: int | None = number(None, above=0)
    """Actors of the local runtime, each stepping `--envs-per-actor` environments. [measured; 2 if
    deterministic, or for another architecture than async; on a Ray cluster as many as fit]"""
    envs_per_actor: int | None = number(None, above=0)
    """Environments per actor; in the fused runtime: in all. [measured; 16 where actors are not;
    fused and async-gradients: the batch size; sync: the batch size / actors]"""
    ray: str | None = None
    """Run actors on the machines of a Ray cluster: auto, the one this machine belongs to; local,
    one of its own, for this run; or HOST:PORT of its head. [threads of this process]"""
    actor_cpus: float = number(1.0, above=0)
    """CPUs that each actor on Ray reserves."""
    actor_gpus: float = number(0.0, at_least=0)
    """GPUs that each actor on Ray reserves and acts on; 0.25: four actors share one."""
    actor_resource: str | None = None
    """Custom resource that a machine must have to run actors, as in
    ray start --resources '{"actors": 1}'. [any machine]"""
    actor_cores: int | None = number(None, above=0)
    """CPU cores that the actors' threads share. One is best where many actors wait for their
    environments: data handed between threads stays in one cache. [all]"""
    actor_device: str | None = None
    """Device on which the network acts: cpu, gpu, gpu:1 … [JAX's default]"""
    learner_device: str | None = None
    """Device on which the network learns; several, as in gpu:0,gpu:1, share each batch. [JAX's
    default]"""
    learners: int = number(1, above=0)
    """Processes that learn together, each with `--actors` of its own and an equal part of
    `--batch-size`: start this command in each, with its `--learner-rank`."""
    learner_rank: int = number(0, at_least=0)
    """Rank of this process among the `--learners`, from 0; the first one saves the run."""
    coordinator: str | None = None
    """HOST:PORT on the first learner's machine, where the `--learners` meet."""
    env_workers: int | None = number(None, at_least=0)
    """Processes per actor, and of a suite per task, that step its environments; 0: none. [measured:
    for slow environments]"""
    max_env_faults: int = number(10, at_least=0, limit=10**12)
    """Environment failures, each survived by restarting the environment, before the run stops; of
    a suite, for each task."""
    max_restarts: int = number(10, at_least=0, limit=10**12)
    """Restarts of actors that died, crashed or hung before the run stops; actors whose machine left
    the Ray cluster are not counted. Synchronous and deterministic actors are not restarted."""
    hang_after: float = number(300.0, above=0, limit=math.inf)
    """Seconds without a step after which an actor counts as hung and is restarted. For
    `--env-workers`, half of that without an answer."""
    checkpoint_every: float = number(120.0, above=0, limit=math.inf)
    """Seconds between checkpoints."""
    keep_checkpoints: int = number(3, above=0, limit=10**12)
    """Checkpoints kept."""
    log_every: float = number(5.0, above=0, limit=math.inf)
    """Seconds between records of metrics; each hundredth of `--steps` is recorded, too."""
    eval_every: int | None = number(None, above=0, limit=10**12)
    """Agent steps between evaluations. [none]"""
    eval_episodes: int = number(10, above=0)
    """Episodes per evaluation."""
    eval_max_steps: int = number(EVAL_MAX_STEPS, above=0)
    """Agent steps after which an episode of an evaluation is cut off and counts with its return so
    far; a message says so."""
    policy_lag: int = number(0, at_least=0)
    """Act with parameters that are this many updates old, to study policy lag; exact where actors
    wait for the learner, or act in the same program."""
    init_from: Path | None = None
    """Start from the parameters of this run, or of a file written by `pronk export`."""
    quiet: bool = False
    """Print messages only."""


# Changing these does not change what is learnt, so a run may be resumed with other values.
FREE = (
    *("run_dir", "stop_after", "stop_after_episodes", "quiet"),
    *("checkpoint_every", "keep_checkpoints", "log_every"),
    *("eval_every", "eval_episodes", "eval_max_steps", "env_workers", "max_env_faults"),
    *("max_restarts", "hang_after"),
    *("actor_cores", "actor_device", "learner_device"),
    *("learners", "learner_rank", "coordinator"),
    *("ray", "actor_cpus", "actor_gpus", "actor_resource"),
)
