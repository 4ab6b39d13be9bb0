"""A run's actors: their environments, seeds and random keys, and where they are."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from pronk import envs
from pronk.config.architectures import ARCHITECTURES
from pronk.config.spec import Plan
from pronk.envs.episodes import derived_seed
from pronk.run.guard import check_signals
from pronk.run.setup import ACTOR_KEY, build, configure_jax, key_for, unroll_spec
from pronk.runtime.actor import Actor, Player
from pronk.runtime.inference import CentralPlayer, InferenceServer
from pronk.runtime.places.supervise import Restarts, Supervised
from pronk.types import Agent, Fresh, Replayed


@dataclass(frozen=True)
class ActorFactory:
    """Makes one of a run's actors, in this process or, since it can be pickled, in another.

    salt: of the actor's random numbers: the agent steps at which this segment of the run began, or
    a random number if the actor is restarted.
    """

    plan: Plan
    env: Any
    index: int
    actors: int
    num_envs: int
    salt: int

    def __call__(self, agent: Agent | None = None, server: InferenceServer | None = None) -> Actor:
        """The actor with its own environments, seeds and random key.

        agent: given if it exists already, so that it is compiled once. server: acts for the actor.
        """
        with envs.looked_at_once():
            return self._make(agent, server)

    def _make(self, agent: Agent | None, server: InferenceServer | None) -> Actor:
        config, agent_config = self.plan.run, self.plan.agent_config
        first = self.index * self.num_envs
        key = jax.random.fold_in(key_for(config.seed, ACTOR_KEY), self.salt)
        # On another machine the directory may be elsewhere.
        directory = self.plan.directory if config.ray is None else self.plan.run_dir
        fault_log = directory / "env_faults.log"
        threads = max(1, (os.cpu_count() or 1) * config.learners // self.actors)
        if config.ray is not None:
            threads = max(1, int(config.actor_cpus))
            fault_log.parent.mkdir(parents=True, exist_ok=True)  # it may be another machine
            configure_jax()
        if agent is None:
            _, agent = build(self.plan, self.env)
        env = envs.make(
            self.env,
            self.num_envs,
            seed=derived_seed(config.seed, ACTOR_KEY, self.salt),
            first_env_id=first,
            env_args=self.plan.env_args,
            # On Ray an actor's process steps its environments itself.
            workers=0 if config.ray is not None else config.env_workers,
            threads=threads,
            replayable=config.deterministic,
            fault_log=fault_log,
            max_faults=config.max_env_faults,
            hang_after=config.hang_after / 2,  # before the actor counts as hung
        )
        key = jax.random.fold_in(key, self.index)
        env_ids = np.arange(first, first + self.num_envs, dtype=np.int32)
        num_envs = self.actors * self.num_envs
        if server is None:
            player = Player(agent, key, env_ids, num_envs)
        else:
            player = CentralPlayer(server, agent, key, env_ids, num_envs)
        source = agent.source
        on_policy = isinstance(source, Fresh) and source.on_policy
        sequences = source.sequences if isinstance(source, Replayed) else None
        explores = None if agent.explores is None else agent.explores(env_ids, num_envs)
        return Actor(
            player,
            env,
            unroll=agent_config.unroll,
            on_policy=on_policy,
            sequences=sequences,
            explores=explores,
        )


class Crew(NamedTuple):
    """Makes a run's actors where the plan wants them: in this process, or on Ray."""

    plan: Plan
    env: Any
    agent: Agent
    salt: int
    restarts: Restarts
    cluster: Any  # of Ray, if any

    def make(
        self, num_actors: int, num_envs: int, server: InferenceServer | None = None
    ) -> list[Any]:
        """`num_actors` actors of `num_envs` environments each; `server` acts for them."""
        config = self.plan.run
        like = None
        if config.ray is not None:
            spec = envs.spec_of(self.env, self.plan.env_args)
            like = unroll_spec(self.plan, self.agent, spec, num_envs)
        actors: list[Any] = []
        with contextlib.ExitStack() as unfinished:
            for i in range(num_actors):
                index = config.learner_rank * num_actors + i
                total = config.learners * num_actors
                factory = ActorFactory(self.plan, self.env, index, total, num_envs, self.salt)
                name = f"actor {i}"

                # Bound now: the loop goes on.
                def make(salt: int, factory: ActorFactory = factory, name: str = name) -> Any:
                    return self._place(dataclasses.replace(factory, salt=salt), name, server)

                check_signals()
                actor = make(self.salt)
                unfinished.callback(actor.close)
                # A run that saves its actors' states can't continue without exactly these.
                exact = config.deterministic or ARCHITECTURES[config.architecture].synchronous
                supervised = Supervised(make, name, self.restarts, actor, like)
                actors.append(actor if exact else supervised)
            unfinished.pop_all()  # the caller's to close
        return actors

    def _place(self, factory: ActorFactory, name: str, server: InferenceServer | None) -> Any:
        if self.cluster is not None:
            return self.cluster.actor(factory, name)
        return factory(self.agent, server)
