"""The architectures of IMPALA's throughput table, and what goes together with each."""

from __future__ import annotations

from typing import NamedTuple

from pronk.config.run import DEFAULT_ACTORS, DEFAULT_ENVS, RunConfig
from pronk.errors import UserError
from pronk.types import Fresh, Mixed, Replayed


class Architecture(NamedTuple):
    """How actors and learner work together; the rows of IMPALA's throughput table (table 1)."""

    synchronous: bool = False  # actors wait for the update
    central: bool = False  # one inference for all actors, batched dynamically
    single: bool = False  # one actor steps all environments together
    gradients: bool = False  # actors send gradients instead of trajectories


ARCHITECTURES = {
    "async": Architecture(),
    "async-batched": Architecture(central=True),
    "sync-step": Architecture(synchronous=True, single=True),
    "sync-unroll": Architecture(synchronous=True),
    "sync-batched": Architecture(synchronous=True, central=True),
    "async-gradients": Architecture(gradients=True),
}


def check_together(config: RunConfig, batch_size: int) -> None:
    """Raise UserError for settings that do not go together."""
    architecture = ARCHITECTURES[config.architecture]
    name = f"`--architecture` {config.architecture}"
    if config.ray is not None:
        _check_ray(config)
    if config.learners > 1:
        _check_learners(config, batch_size)
    if config.actor_cores is not None and config.deterministic:
        raise UserError(
            f"`--actor-cores` {config.actor_cores} is for threads of actors, and `--deterministic`"
            " has none: leave one of the two out."
        )
    if config.deterministic and (architecture.central or architecture.gradients):
        raise UserError(
            f"{name} answers whoever comes first, so that no two runs are alike; leave"
            " `--deterministic` out, or use --architecture sync-unroll."
        )


def _check_learners(config: RunConfig, batch_size: int) -> None:
    """Raise UserError for what several learners can't do together."""
    name = f"`--learners` is {config.learners}"
    if config.coordinator is None or config.learner_rank >= config.learners:
        raise UserError(
            f"{name}, `--learner-rank` {config.learner_rank} and `--coordinator`"
            f" {config.coordinator}; expected a rank from 0 to {config.learners - 1}, and the"
            " HOST:PORT where they meet."
        )
    for flag, given in (
        ("--deterministic", config.deterministic),
        ("--architecture", config.architecture != "async"),
        ("--learner-device", config.learner_device is not None),
        ("--actor-device", config.actor_device is not None),
        ("--runtime", config.runtime == "fused"),
    ):
        if given:
            raise UserError(
                f"{name} with `{flag}`: several processes learn asynchronously (async), each on"
                " all devices that it sees; leave one of the two out."
            )
    if batch_size % config.learners:
        raise UserError(
            f"{name}, and `--batch-size` {batch_size}; expected one that can be divided among them."
        )


def _check_ray(config: RunConfig) -> None:
    """Raise UserError for what can't be done on a Ray cluster."""
    for flag, given, why in (
        ("--deterministic", config.deterministic, "actors on a cluster can't take turns"),
        ("--architecture", config.architecture != "async", "Ray's actors are asynchronous"),
        ("--env-workers", bool(config.env_workers), "its actors step their environments"),
        ("--actor-cores", config.actor_cores is not None, "it is for threads of actors"),
        ("--actor-device", config.actor_device is not None, "say --actor-gpus instead"),
    ):
        if given:
            raise UserError(
                f"`--ray` is '{config.ray}' with `{flag}`, and {why}: leave one of the two out."
            )


def fixed_numbers(
    config: RunConfig, batch_size: int, source: Fresh | Replayed | Mixed, fresh: int
) -> tuple[int | None, int | None]:
    """Actors and environments of each, None where they are to be measured, or the cluster's room.

    source: what the agent learns from. fresh: trajectories of a batch that are not replayed. Raises
    UserError for what does not go together.
    """
    architecture = ARCHITECTURES[config.architecture]
    name = f"`--architecture` {config.architecture}"
    only_replay, replay = isinstance(source, Replayed), not isinstance(source, Fresh)
    size = f"`--batch-size` {batch_size}"
    if fresh < batch_size:
        size = f"{fresh}, which is {size} without what is replayed"
    if (only_replay and architecture.synchronous) or (replay and architecture.gradients):
        raise UserError(
            f"{name} learns from what actors have just done, and this agent from replay; use"
            " --architecture async or async-batched."
        )
    if config.learners > 1 and replay:
        raise UserError(
            f"`--learners` is {config.learners}, and this agent learns from replay; expected one"
            " that learns from what its actors have just done."
        )
    if config.ray is not None:
        return config.actors, config.envs_per_actor or DEFAULT_ENVS
    num_actors = config.actors or DEFAULT_ACTORS
    if architecture.gradients:
        num_envs = config.envs_per_actor or batch_size
        if num_envs != batch_size:
            raise UserError(
                f"{name} makes one gradient of each actor's unroll: `--envs-per-actor` {num_envs}"
                f" must equal {size}."
            )
        return num_actors, num_envs
    if architecture.synchronous or config.policy_lag:
        why = f"{name} learns once from what all actors did"
        if config.policy_lag:
            lag = f"`--policy-lag` is {config.policy_lag}"
            why = f"{lag}, which is exact where a round makes one update"
        num_envs = config.envs_per_actor or max(fresh // num_actors, 1)
        if num_actors * num_envs != fresh:
            raise UserError(
                f"{why}: `--actors` {num_actors} × `--envs-per-actor` {num_envs} must equal {size}."
            )
        return (1, fresh) if architecture.single else (num_actors, num_envs)
    if not (config.deterministic or architecture.central or config.learners > 1):
        return config.actors, config.envs_per_actor
    num_envs = config.envs_per_actor or DEFAULT_ENVS
    if config.deterministic and not only_replay and (num_actors * num_envs) % fresh:
        raise UserError(
            f"--deterministic learns from whole rounds: --actors {num_actors} × --envs"
            f" {num_envs} must be a multiple of {size}."
        )
    return num_actors, num_envs
