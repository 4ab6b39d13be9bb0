"""Puts a plan's parts together: agent, environments, actors and runtime."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pronk import agents, envs
from pronk.errors import UserError
from pronk.plan import Plan
from pronk.runtime.a3c import A3CRuntime
from pronk.runtime.actor import Actor, Player
from pronk.runtime.base import Runtime
from pronk.runtime.fused import FusedRuntime
from pronk.runtime.inference import Batching, CentralPlayer, InferenceServer
from pronk.runtime.learner import Learner
from pronk.runtime.local import LocalRuntime, SynchronousRuntime
from pronk.runtime.process import ActorProcess
from pronk.types import Agent, EnvSpec, LearnerState

# Keys folded into the run's seed, one per purpose, so that no two share random numbers.
INIT_KEY, ACTOR_KEY, EVALUATION_KEY = range(3)

# Environments of an actor, unless the user says otherwise.
ENVS_PER_ACTOR = 16


class Architecture(NamedTuple):
    """How actors and learner work together; the rows of IMPALA's throughput table (table 1)."""

    synchronous: bool = False  # actors wait for the update
    central: bool = False  # one inference for all actors, batched dynamically
    single: bool = False  # one actor steps all environments together
    gradients: bool = False  # actors send gradients instead of trajectories


ARCHITECTURES = {
    "impala": Architecture(),
    "impala-dynamic-batch": Architecture(central=True),
    "a2c-sync-step": Architecture(synchronous=True, single=True),
    "a2c-sync-trajectory": Architecture(synchronous=True),
    "a2c-dynamic-batch": Architecture(synchronous=True, central=True),
    "a3c": Architecture(gradients=True),
}


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, unless the user has said where or that they don't want it."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pronk" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def key_for(seed: int, purpose: int) -> Any:
    """The random key for one purpose of a run."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def derived_seed(seed: int, *purpose: int) -> int:
    """A seed of environments for one purpose of a run."""
    return int(np.random.SeedSequence([seed, *purpose]).generate_state(1)[0] >> 1)


def build(plan: Plan, env: Any) -> tuple[EnvSpec, Agent]:
    """The environment's spec and the agent for it."""
    spec = envs.spec_of(env, plan.env_args)
    return spec, agents.make(plan.agent, plan.agent_config, spec, horizon=plan.run.steps)


def initial_state(plan: Plan, agent: Agent) -> LearnerState:
    """The learner's state before the first update."""
    return jax.jit(agent.init)(key_for(plan.run.seed, INIT_KEY))


@dataclass(frozen=True)
class ActorFactory:
    """Makes one of a run's actors, in this process or, since it can be pickled, in another."""

    plan: Plan
    env: Any
    index: int
    actors: int
    num_envs: int
    life: int  # agent steps at which this life of the run began

    def __call__(self, agent: Agent | None = None, server: InferenceServer | None = None) -> Actor:
        """The actor with its own environments, seeds and random key.

        agent: if it is made already, so that it is compiled once. server: decides for the actor.
        """
        config, agent_config = self.plan.run, self.plan.agent_config
        first = self.index * self.num_envs
        key = jax.random.fold_in(key_for(config.seed, ACTOR_KEY), self.life)
        if config.actor_kind == "process":
            use_compilation_cache()
        if agent is None:
            _, agent = build(self.plan, self.env)
        env = envs.make(
            self.env,
            self.num_envs,
            seed=derived_seed(config.seed, ACTOR_KEY, self.life),
            first_env_id=first,
            env_args=self.plan.env_args,
            # An actor's process steps its environments itself.
            workers=0 if config.actor_kind == "process" else config.env_workers,
            threads=max(1, (os.cpu_count() or 1) // self.actors),
            replayable=config.deterministic,
            fault_log=self.plan.run_dir / "env_faults.log",
            max_faults=config.max_env_faults,
        )
        key = jax.random.fold_in(key, self.index)
        env_ids = np.arange(first, first + self.num_envs, dtype=np.int32)
        num_envs = self.actors * self.num_envs
        if server is None:
            player = Player(agent, key, env_ids, num_envs)
        else:
            player = CentralPlayer(server, agent, key, env_ids, num_envs)
        return Actor(player, env, unroll=agent_config.unroll)


def make_runtime(
    plan: Plan,
    env: Any,
    agent: Agent,
    state: LearnerState,
    *,
    life: int,
    tell: Callable[[str], None],
    stack: contextlib.ExitStack,
) -> Runtime:
    """What the plan asks for, ready to update; `tell` hears how it is made up.

    life: agent steps at which this life of the run began. stack: what must be closed after the
    runtime. Raises UserError for settings that do not go together.
    """
    config, batch_size = plan.run, plan.agent_config.batch_size
    if _is_fused(plan, env):
        jax_env = envs.jax_env_of(env, plan.env_args)
        assert jax_env is not None
        return FusedRuntime(
            agent,
            jax_env,
            state,
            key_for(config.seed, ACTOR_KEY),
            unroll=plan.agent_config.unroll,
            num_envs=config.envs or batch_size,
            max_steps=config.steps,
        )
    architecture = ARCHITECTURES[config.architecture]
    num_actors, num_envs = _numbers(plan, architecture)
    # A resumed life that starts new episodes must not replay those of the first.
    life = 0 if config.deterministic else life
    factories = [ActorFactory(plan, env, i, num_actors, num_envs, life) for i in range(num_actors)]
    learner = Learner(agent, state)
    server = None
    if architecture.central:
        maximum = min(config.inference_maximum or num_actors, num_actors)
        batching = Batching(
            min(config.inference_minimum, maximum), maximum, config.inference_timeout
        )
        key = jax.random.fold_in(key_for(config.seed, ACTOR_KEY), life)
        key = jax.random.fold_in(key, num_actors)  # actor i has i
        server = InferenceServer(agent, key, lambda: learner.latest[1], batching)
        stack.callback(server.close)
    actors: list[Any] = []
    with contextlib.ExitStack() as unfinished:
        for factory in factories:
            if config.actor_kind == "process":
                actors.append(ActorProcess(factory, f"actor {factory.index}"))
            else:
                actors.append(factory(agent, server))
            unfinished.callback(actors[-1].close)
        how = getattr(actors[0], "placement", "in processes of their own")
        plural = "s" if num_actors > 1 else ""
        tell(f"{config.architecture}: {num_actors} actor{plural} × {num_envs} environments, {how}")
        runtime: Runtime
        if architecture.gradients:
            runtime = A3CRuntime(agent, state, actors)
        elif architecture.synchronous or config.deterministic:
            runtime = SynchronousRuntime(
                learner, actors, batch_size=batch_size, in_turns=config.deterministic
            )
        else:
            runtime = LocalRuntime(learner, actors, batch_size=batch_size)
        unfinished.pop_all()  # the runtime's to close
    return runtime


def _is_fused(plan: Plan, env: Any) -> bool:
    """Whether the fused runtime is meant; raises UserError where it is asked for and can't be."""
    config = plan.run
    has_jax = envs.jax_env_of(env, plan.env_args) is not None
    if config.runtime == "auto":
        return has_jax and config.architecture == "impala"
    if config.runtime == "local":
        return False
    if not has_jax:
        raise UserError(
            f"the fused runtime needs an environment written in JAX, and '{plan.env}' is not; use"
            " --runtime local."
        )
    if config.architecture != "impala":
        raise UserError(
            f"`--architecture` {config.architecture} is one of the local runtime's; leave"
            " `--runtime fused` out."
        )
    return True


def _numbers(plan: Plan, architecture: Architecture) -> tuple[int, int]:
    """Actors and environments of each; raises UserError for settings that do not go together."""
    config, batch_size = plan.run, plan.agent_config.batch_size
    name = f"`--architecture` {config.architecture}"
    if config.actor_kind == "process":
        if config.deterministic:
            raise UserError(
                "`--deterministic` has its actors take turns in one process; leave `--actor-kind"
                " process` out (`--env-workers` may still step the environments in processes)."
            )
        if config.architecture != "impala":
            raise UserError(
                f"{name} has its actors in one process; leave `--actor-kind process` out"
                " (`--env-workers` may still step the environments in processes)."
            )
        if config.env_workers:
            raise UserError(
                f"`--env-workers` is {config.env_workers} with `--actor-kind process`; actors in"
                " processes of their own step their environments themselves: leave one of the two"
                " out."
            )
    if config.deterministic and (architecture.central or architecture.gradients):
        raise UserError(
            f"{name} answers whoever comes first, so that no two runs are alike; leave"
            " `--deterministic` out, or use --architecture a2c-sync-trajectory."
        )
    if architecture.gradients:
        num_envs = config.envs or batch_size
        if num_envs != batch_size:
            raise UserError(
                f"{name} makes one gradient of each actor's unroll: `--envs` {num_envs} must equal"
                f" `--batch-size` {batch_size}."
            )
        return config.actors, num_envs
    if architecture.synchronous:
        num_envs = config.envs or max(batch_size // config.actors, 1)
        if config.actors * num_envs != batch_size:
            raise UserError(
                f"{name} learns once from what all actors did: `--actors` {config.actors} ×"
                f" `--envs` {num_envs} must equal `--batch-size` {batch_size}."
            )
        return (1, batch_size) if architecture.single else (config.actors, num_envs)
    num_envs = config.envs or ENVS_PER_ACTOR
    if config.deterministic and (config.actors * num_envs) % batch_size:
        raise UserError(
            f"--deterministic learns from whole rounds: --actors {config.actors} × --envs"
            f" {num_envs} must be a multiple of --batch-size {batch_size}."
        )
    return config.actors, num_envs
