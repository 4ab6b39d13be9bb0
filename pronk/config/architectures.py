"""How a plan is carried out: the architectures, and the numbers that follow from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pronk.config.pbt import PBTConfig
from pronk.config.registry import agent_module
from pronk.config.run import DEFAULT_ACTORS, DEFAULT_ENVS, RunConfig
from pronk.config.spec import Plan
from pronk.types import Agent, Fresh, Mixed, Replayed, Sequences


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


def is_fused(plan: Plan, source: Fresh | Replayed | Mixed, *, jax_env: bool) -> bool:
    """Whether the fused runtime carries out the plan; `auto` means it where it can do the same as
    the local one with the agent's own architecture."""
    run = plan.run
    if run.runtime != "auto":
        return run.runtime == "fused"
    alone = run.ray is None and run.learners == 1
    usual = run.architecture == agent_module(plan.agent).run_config().architecture
    return jax_env and alone and usual and not isinstance(source, Replayed)


def drawn_columns(source: Fresh | Replayed | Mixed, batch_size: int) -> int:
    """How many of a batch's trajectories are drawn beside those just acted; 0 where none are mixed,
    and rounded where the fraction is refused."""
    return round(source.fraction * batch_size) if isinstance(source, Mixed) else 0


def actors_and_envs(plan: Plan, source: Fresh | Replayed | Mixed) -> tuple[int | None, int | None]:
    """The local runtime's number of actors, and of environments of each; None where it is to be
    measured, or depends on the room in a cluster."""
    run, batch_size = plan.run, plan.agent_config.batch_size
    architecture = ARCHITECTURES[run.architecture]
    if run.ray is not None:
        return run.actors, run.envs_per_actor or DEFAULT_ENVS
    if architecture.single:
        return 1, batch_size - drawn_columns(source, batch_size)
    rounds = architecture.synchronous or architecture.gradients or run.policy_lag
    if not (rounds or run.deterministic or architecture.central or run.learners > 1):
        return run.actors, run.envs_per_actor
    return run.actors or DEFAULT_ACTORS, envs_per_actor(plan, source)


def known_actors(run: RunConfig) -> int:
    """Actors of the local runtime, where they are not measured."""
    return run.actors or (1 if ARCHITECTURES[run.architecture].single else DEFAULT_ACTORS)


def envs_per_actor(plan: Plan, source: Fresh | Replayed | Mixed) -> int:
    """Environments of each of the local runtime's actors, where they are not measured."""
    run, batch_size = plan.run, plan.agent_config.batch_size
    architecture = ARCHITECTURES[run.architecture]
    if run.envs_per_actor is not None:
        return run.envs_per_actor
    if architecture.gradients:
        return batch_size
    if architecture.synchronous or run.policy_lag:
        fresh = batch_size - drawn_columns(source, batch_size)
        return max(fresh // known_actors(run), 1)
    return DEFAULT_ENVS


def fused_shape(plan: Plan, agent: Agent) -> dict[str, int]:
    """The arguments of `fused.build`: unroll, num_envs, draws, draw_size, policy_lag."""
    return _fused_shape(plan, agent.source)


def _fused_shape(plan: Plan, source: Fresh | Replayed | Mixed) -> dict[str, int]:
    batch_size, unroll = plan.agent_config.batch_size, plan.agent_config.unroll
    draws = drawn_columns(source, batch_size)
    num_envs = plan.run.envs_per_actor or batch_size
    if isinstance(source, Mixed):
        num_envs = batch_size - draws
    elif isinstance(source, Replayed):
        unroll, draws = source.sequences.length, round(due_draws(plan, source))
    return {
        "unroll": unroll,
        "num_envs": num_envs,
        "draws": draws,
        "draw_size": batch_size,
        "policy_lag": plan.run.policy_lag,
    }


def due_draws(plan: Plan, source: Replayed) -> float:
    """Batches that the fused runtime is to draw after each unroll, before rounding."""
    batch_size = plan.agent_config.batch_size
    return source.samples_per_insert * (plan.run.envs_per_actor or batch_size) / batch_size


@dataclass(frozen=True)
class Case:
    """A plan, its agent's source and what follows from both: what `compatibility` looks at."""

    plan: Plan
    source: Fresh | Replayed | Mixed
    halves: bool  # whether the agent's update is one gradient step
    jax_env: bool  # whether the environment is written in JAX
    population: PBTConfig | None = None
    execution: str = ""  # of the population: vmapped, processes or ray

    @property
    def run(self) -> RunConfig:
        """The run's settings."""
        return self.plan.run

    @property
    def config(self) -> Any:
        """The agent's settings."""
        return self.plan.agent_config

    @property
    def architecture(self) -> Architecture:
        """What `--architecture` names; the fused runtime has none."""
        return Architecture() if self.fused else ARCHITECTURES[self.run.architecture]

    @property
    def fused(self) -> bool:
        """Whether the runtime is fused."""
        return self.vmapped or is_fused(self.plan, self.source, jax_env=self.jax_env)

    @property
    def vmapped(self) -> bool:
        """Whether it is a population in one program."""
        return self.execution == "vmapped"

    @property
    def exact(self) -> bool:
        """Whether actors take turns with the learner."""
        return not self.fused and (self.architecture.synchronous or self.run.deterministic)

    @property
    def instead(self) -> str:
        """What to do where the fused runtime is not what is wanted."""
        return "use --execution processes" if self.vmapped else "use --runtime local"

    @property
    def several(self) -> bool:
        """Whether one learner learns on several devices."""
        return len(self.devices) > 1

    @property
    def devices(self) -> list[str]:
        """What `--learner-device` names."""
        return (self.run.learner_device or "").split(",")

    @property
    def sequences(self) -> Sequences:
        """What the replay holds, if there is one."""
        return Sequences(0, 0) if isinstance(self.source, Fresh) else self.source.sequences

    @property
    def replayed(self) -> bool:
        """Whether all of a batch is drawn from a replay."""
        return isinstance(self.source, Replayed)

    @property
    def mixed(self) -> bool:
        """Whether a part of a batch is drawn from a replay."""
        return isinstance(self.source, Mixed)

    @property
    def drawn(self) -> float:
        """Trajectories of a batch that a `Mixed` source draws, before rounding."""
        return self.source.fraction * self.config.batch_size if self.mixed else 0  # type: ignore

    @property
    def fresh(self) -> int:
        """Trajectories of a batch that are just acted."""
        return self.config.batch_size - drawn_columns(self.source, self.config.batch_size)

    @property
    def fresh_in_words(self) -> str:
        """`fresh` in an error message."""
        size = f"`--batch-size` {self.config.batch_size}"
        return f"{self.fresh}, which is {size} without what is replayed" if self.mixed else size

    @property
    def actors(self) -> int:
        """Actors of the local runtime where they must be known."""
        return known_actors(self.run)

    @property
    def envs(self) -> int:
        """Environments of each actor where they must be known."""
        return envs_per_actor(self.plan, self.source)

    @property
    def last_rank(self) -> int:
        """The rank of the last of several learners."""
        return self.run.learners - 1

    @property
    def due_draws(self) -> float:
        """Batches that the fused runtime is to draw after each unroll, before rounding."""
        return due_draws(self.plan, self.source) if isinstance(self.source, Replayed) else 0

    @property
    def draw_settings(self) -> str:
        """The settings, beside the environments, that `due_draws` follows from."""
        config = self.config
        if hasattr(config, "updates_per_step"):  # for each step, whatever the batch size
            return f"`--updates-per-step` {config.updates_per_step:g}"
        drawn = self.source.samples_per_insert  # type: ignore[union-attr]
        return f"`--samples-per-insert` {drawn:g} and `--batch-size` {config.batch_size}"

    @property
    def inserted_steps(self) -> int:
        """Agent steps that the fused runtime's replay takes up at a time."""
        return self.shape["num_envs"] * self.shape["unroll"]

    @property
    def shape(self) -> dict[str, int]:
        """What the fused runtime is built for."""
        return _fused_shape(self.plan, self.source)

    def given(self, name: str) -> bool:
        """Whether a setting of the run differs from the agent's default."""
        if name == "max_restarts" and self.execution in ("processes", "ray"):
            return False  # it limits the restarts of members, whatever their runtime
        return getattr(self.run, name) != getattr(agent_module(self.plan.agent).run_config(), name)
