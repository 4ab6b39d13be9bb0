"""How a run is run: what is not the agent's business. Imports neither jax nor an environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Where actors and environments are neither given nor measured, and where measuring begins: two
# actors, so that one infers while the other steps; 16 environments, with which inference is cheap.
DEFAULT_ACTORS, DEFAULT_ENVS = 2, 16


@dataclass(frozen=True)
class RunConfig:
    """How long, where and with what machinery to train."""

    steps: int = 10_000_000
    """Agent steps to train for; schedules end there."""
    seed: int = 0
    """Of everything random."""
    run_dir: Path | None = None
    """Where the run lives; the same command again resumes it. [runs/AGENT-ENV-SEED]"""
    stop_after: int | None = None
    """Pause, saved, after this many agent steps in all; the horizon stays `--steps`."""
    stop_after_episodes: int | None = None
    """Pause, saved, after this many episodes in all."""
    runtime: Literal["auto", "local", "fused"] = "auto"
    """local: actors and a learner. fused: environment, acting and update in one jitted scan (only
    environments written in JAX). auto: fused where possible."""
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
    inference_minimum: int = 1
    """Dynamic batching: requests that are waited for, one per actor."""
    inference_maximum: int | None = None
    """Dynamic batching: requests answered together at most. [all actors]"""
    inference_timeout: float = 0.01
    """Dynamic batching: seconds after which a request is answered without waiting for others."""
    deterministic: bool = False
    """The same seed gives the same bits, and a resumed run equals an uninterrupted one."""
    actors: int | None = None
    """Actors of the local runtime, each stepping `--envs-per-actor` environments. [measured; 2 if
    deterministic, or for another architecture than async; on a Ray cluster as many
    as it has places for]"""
    envs_per_actor: int | None = None
    """Environments per actor (fused: in all). [measured; 16 where actors are not; fused and
    async-gradients: the batch size; sync: the batch size / actors]"""
    ray: str | None = None
    """Actors are on the machines of a Ray cluster: auto, the one that this machine belongs to;
    local, one of its own, for this run; or HOST:PORT of its head. [on this machine, without Ray]"""
    actor_cpus: float = 1.0
    """CPUs that each actor on Ray reserves."""
    actor_gpus: float = 0.0
    """GPUs that each actor on Ray reserves and acts on; 0.25: four share one."""
    actor_resource: str | None = None
    """Custom resource that a machine must have for actors to be there, as in
    ray start --resources '{"actors": 1}'. [any machine]"""
    actor_cores: int | None = None
    """Cores that the threads of actors share. One is best where many actors wait for their
    environments: what threads hand to one another then stays where it is. [all]"""
    actor_device: str | None = None
    """Where the network acts: cpu, gpu, gpu:1 … [where JAX computes by default]"""
    learner_device: str | None = None
    """Where the network learns; several, as in gpu:0,gpu:1, share each batch. [where JAX computes
    by default]"""
    learners: int = 1
    """Processes that learn together, each with `--actors` of its own and an equal part of
    `--batch-size`: start this command in each, with its `--learner-rank`."""
    learner_rank: int = 0
    """Which of the `--learners` this process is, from 0 on; the first one saves the run."""
    coordinator: str | None = None
    """HOST:PORT on the first learner's machine, where the `--learners` meet."""
    env_workers: int | None = None
    """Processes per actor, and of a suite per task, that step its environments; 0: none. [measured:
    for slow environments]"""
    max_env_faults: int = 10
    """Environment failures survived, by restarting the environment, before the run stops; of a
    suite, of each task's."""
    max_restarts: int = 10
    """Actors that died, crashed or hung and were made again, before the run stops; not counted:
    those whose machine left the Ray cluster. With --deterministic, and in a2c architectures:
    none."""
    hang_after: float = 300.0
    """Seconds without a step after which an actor is taken for hung, given up and made again. For
    `--env-workers`, half of that without an answer."""
    checkpoint_every: float = 120.0
    """Seconds between checkpoints."""
    keep_checkpoints: int = 3
    """Checkpoints kept."""
    log_every: float = 5.0
    """Seconds between records of metrics."""
    eval_every: int | None = None
    """Agent steps between evaluations. [none]"""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    policy_lag: int = 0
    """Actors act with parameters that are so many updates old, to see what that does. Where they
    wait for the learner, or act in the same program: exactly."""
    init_from: Path | None = None
    """Start from the parameters of this run, or of what `pronk export` wrote (fine-tuning)."""
    quiet: bool = False
    """Print messages only."""


# Changing these does not change what is learnt, so a run may be resumed with other values.
FREE = (
    *(
        "run_dir",
        "stop_after",
        "stop_after_episodes",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "quiet",
    ),
    *("eval_every", "eval_episodes", "env_workers", "max_env_faults"),
    *("max_restarts", "hang_after"),
    *("actor_cores", "actor_device", "learner_device"),
    *("learners", "learner_rank", "coordinator"),
    *("ray", "actor_cpus", "actor_gpus", "actor_resource"),
)
