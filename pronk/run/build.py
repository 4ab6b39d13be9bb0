"""Puts a plan's parts together: agent, environments, actors, source and loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax

from pronk import envs
from pronk.config import architectures, compatibility
from pronk.config.architectures import ARCHITECTURES, actors_and_envs, drawn_columns, fused_shape
from pronk.config.run import DEFAULT_ACTORS, RunConfig
from pronk.config.spec import Plan
from pronk.envs.episodes import derived_seed
from pronk.envs.suite import check_slots
from pronk.errors import UserError, counted
from pronk.replay import Replay, SegmentLog
from pronk.run.actors import Crew
from pronk.run.devices import choose_devices
from pronk.run.setup import ACTOR_KEY, REPLAY_KEY, core_spec, key_for, row_spec
from pronk.runtime import tuning
from pronk.runtime.a3c import A3CLoop
from pronk.runtime.api import Devices, Runtime
from pronk.runtime.asynchronous import AsynchronousLoop
from pronk.runtime.fused import FusedLoop
from pronk.runtime.inference import Batching, InferenceServer
from pronk.runtime.learner import Learner
from pronk.runtime.places.supervise import Restarts
from pronk.runtime.replay_source import Memory, MixedSource, ReplaySource
from pronk.runtime.rounds import RoundsLoop
from pronk.runtime.source import Queue, Source
from pronk.types import Agent, Fresh, LearnerState, Mixed

SLOW_START = 2.0  # if making the environments takes more seconds, the log says so


def make_runtime(
    plan: Plan,
    env: Any,
    agent: Agent,
    state: LearnerState,
    *,
    start_step: int,
    log: Callable[[str], None],
    stack: contextlib.ExitStack,
    note: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Runtime:
    """The plan's runtime, ready to update; `log` receives messages on how it is made up, and `note`
    its kind and the numbers of actors and environments.

    start_step: agent steps at which this segment of the run began. stack: what must be closed after
    the runtime. Raises UserError for settings that do not go together (`compatibility.check`).
    """
    compatibility.check(plan, agent, jax_env=_has_jax(plan, env))
    devices = choose_devices(plan)
    if is_fused(plan, env, agent):
        note({"runtime": "fused", "envs": fused_shape(plan, agent)["num_envs"]})
        return _fused_runtime(plan, env, agent, state, devices)
    return _Local(plan, env, agent, devices, start_step, log, stack, note).build(state)


class _Local:
    """Builds the local runtime: a loop around actors, a source and a learner."""

    def __init__(
        self,
        plan: Plan,
        env: Any,
        agent: Agent,
        devices: Devices,
        start_step: int,
        log: Callable[[str], None],
        stack: contextlib.ExitStack,
        note: Callable[[dict[str, Any]], None],
    ):
        self.plan, self.env, self.agent, self.devices = plan, env, agent, devices
        self.log, self.note, self.stack, self.config = log, note, stack, plan.run
        self.architecture = ARCHITECTURES[plan.run.architecture]
        # A resumed run that starts new episodes must not repeat those of its beginning.
        self.salt = 0 if plan.run.deterministic else start_step
        batch_size = plan.agent_config.batch_size
        self.replayed = drawn_columns(agent.source, batch_size)
        self.fresh = batch_size - self.replayed  # columns of a batch

    def build(self, state: LearnerState) -> Runtime:
        """The loop that the architecture names."""
        config, batch_size = self.config, self.plan.agent_config.batch_size
        learner = None
        if not self.architecture.gradients:
            learner = Learner(
                self.agent,
                state,
                self.devices,
                batch_size=math.gcd(batch_size, self.replayed),  # parts are mixed as the whole
                policy_lag=config.policy_lag,
            )
        actors = self._actors(learner)
        with contextlib.ExitStack() as unfinished:
            for actor in actors:
                unfinished.callback(actor.close)
            options: dict[str, Any] = {"actor_cores": config.actor_cores}
            if learner is None:
                loop: Runtime = A3CLoop(self.agent, state, actors, self.devices, **options)
            elif config.deterministic or self.architecture.synchronous:
                source = self._source(unfinished, bounded=False)
                options["in_turns"] = config.deterministic
                loop = RoundsLoop(learner, actors, source, **options)
            else:
                source = self._source(unfinished, bounded=True)
                loop = AsynchronousLoop(learner, actors, source, **options)
            unfinished.pop_all()  # the loop's to close
        return loop

    def _source(self, unfinished: contextlib.ExitStack, *, bounded: bool) -> Source:
        """What the agent learns from."""
        config, source = self.config, self.agent.source
        if isinstance(source, Fresh):
            return Queue(self.fresh // config.learners, bounded=bounded)
        spec = envs.spec_of(self.env, self.plan.env_args)
        replay = Replay(source.sequences, row_spec(self.agent, spec), core_spec(self.agent))
        segments = None
        if source.sequences.checkpoint:
            directory = self.plan.directory / "replay"
            segments = SegmentLog(replay, directory, config.keep_checkpoints)
            unfinished.callback(segments.close)
        memory = Memory(replay, segments, derived_seed(config.seed, REPLAY_KEY, self.salt))
        if isinstance(source, Mixed):
            return MixedSource(source, memory, self.fresh, bounded=bounded)
        return ReplaySource(source, memory, self.plan.agent_config.batch_size)

    def _actors(self, learner: Learner | None) -> list[Any]:
        """As many actors as the settings say, as the cluster has room for, or as act fastest."""
        config = self.config
        num_actors, num_envs = actors_and_envs(self.plan, self.agent.source)
        cluster = None
        if config.ray is not None:
            cluster = _connect(config, num_actors or DEFAULT_ACTORS)
            self.stack.callback(cluster.close)
            for warning in cluster.warnings():
                self.log(warning)
            room = DEFAULT_ACTORS if config.ray == "local" else cluster.room() // config.learners
            num_actors = num_actors or max(1, room)
        fault_log = self.plan.directory / "actor_faults.log"
        restarts = Restarts(config.max_restarts, fault_log, config.hang_after)
        crew = Crew(self.plan, self.env, self.agent, self.salt, restarts, cluster)
        seconds = envs.construction_seconds(self.env, self.plan.env_args)
        if num_actors is None or num_envs is None:
            assert learner is not None
            picked = tuning.pick(
                crew.make,
                learner.behaviour(),
                batch_size=self.fresh,
                actors=num_actors,
                envs=num_envs,
                actor_cores=config.actor_cores,
                construction=seconds,
            )
            num_actors, num_envs = picked.actors, picked.envs
            self.log(picked.why)
        server = None
        if self.architecture.central:
            assert learner is not None
            server = self._inference_server(learner, num_actors)
            restarts.fatal = server.failed
        # Each of several learners counts the episodes of its own actors.
        check_slots(self.env, num_actors * num_envs, config.learner_rank * num_actors * num_envs)
        if num_actors * num_envs * seconds > SLOW_START:
            made = counted(num_actors * num_envs, "environment")
            self.log(f"making {made}, about {seconds:.2g} s for each")
        actors = crew.make(num_actors, num_envs, server)
        numbers = {"actors": num_actors, "envs_per_actor": num_envs}
        self.note({"runtime": "local", **numbers, "placement": actors[0].placement})
        self.log(
            f"{config.architecture}: {counted(num_actors, 'actor')} ×"
            f" {counted(num_envs, 'environment')}, {actors[0].placement}"
        )
        return actors

    def _inference_server(self, learner: Learner, num_actors: int) -> InferenceServer:
        """One inference for all actors."""
        config = self.config
        maximum = min(config.inference_maximum or num_actors, num_actors)
        minimum = min(config.inference_minimum, maximum)
        batching = Batching(minimum, maximum, config.inference_timeout)
        key = jax.random.fold_in(key_for(config.seed, ACTOR_KEY), self.salt)
        key = jax.random.fold_in(key, num_actors)  # actor i has i
        server = InferenceServer(self.agent, key, learner.behaviour, batching, config.actor_cores)
        self.stack.callback(server.close)
        return server


def _fused_runtime(
    plan: Plan, env: Any, agent: Agent, state: LearnerState, devices: Devices
) -> Runtime:
    """All of it in one jitted scan."""
    config = plan.run
    jax_env = envs.jax_env_of(env, plan.env_args)
    assert jax_env is not None
    shape = fused_shape(plan, agent)
    check_slots(env, shape["num_envs"])
    return FusedLoop(
        agent,
        jax_env,
        jax.device_put(state, devices.learner),
        key_for(config.seed, ACTOR_KEY),
        max_steps=config.steps,
        **shape,
    )


def _connect(config: RunConfig, actors: int) -> Any:
    """The Ray cluster that the settings name; raises UserError where Ray is not installed."""
    try:
        from pronk.runtime.places.ray import Cluster, Needs  # an extra; half a second
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            f"`--ray` is '{config.ray}', and Ray is not installed: pip install 'pronk[ray]'."
        ) from None
    assert config.ray is not None
    needs = Needs(config.actor_cpus, config.actor_gpus, config.actor_resource)
    return Cluster(config.ray, needs, actors)


def is_fused(plan: Plan, env: Any, agent: Agent) -> bool:
    """Whether the fused runtime carries out the plan."""
    return architectures.is_fused(plan, agent.source, jax_env=_has_jax(plan, env))


def _has_jax(plan: Plan, env: Any) -> bool:
    return envs.jax_env_of(env, plan.env_args) is not None
