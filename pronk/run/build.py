"""Puts a plan's parts together: agent, environments, actors, source and loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax

from pronk import envs
from pronk.config.compatibility import ARCHITECTURES, check_together, fixed_numbers
from pronk.config.run import DEFAULT_ACTORS, RunConfig
from pronk.config.spec import Plan
from pronk.envs.episodes import derived_seed
from pronk.envs.suite import check_slots
from pronk.errors import UserError
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
from pronk.types import Agent, Fresh, LearnerState, Mixed, Replayed


def make_runtime(
    plan: Plan,
    env: Any,
    agent: Agent,
    state: LearnerState,
    *,
    start_step: int,
    log: Callable[[str], None],
    stack: contextlib.ExitStack,
) -> Runtime:
    """The plan's runtime, ready to update; `log` receives messages on how it is made up.

    start_step: agent steps at which this segment of the run began. stack: what must be closed after
    the runtime. Raises UserError for settings that do not go together.
    """
    devices = choose_devices(plan)
    if is_fused(plan, env, agent):
        return _fused_runtime(plan, env, agent, state, devices)
    return _Local(plan, env, agent, devices, start_step, log, stack).build(state)


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
    ):
        self.plan, self.env, self.agent, self.devices = plan, env, agent, devices
        self.log, self.stack, self.config = log, stack, plan.run
        self.architecture = ARCHITECTURES[plan.run.architecture]
        # A resumed run that starts new episodes must not repeat those of its beginning.
        self.salt = 0 if plan.run.deterministic else start_step
        batch_size, source = plan.agent_config.batch_size, agent.source
        check_together(plan.run, batch_size)
        self.replayed = drawn_columns(source, batch_size) if isinstance(source, Mixed) else 0
        self.fresh = batch_size - self.replayed  # columns of a batch
        if plan.run.policy_lag:
            self._check_lag()

    def _check_lag(self) -> None:
        config, architecture = self.config, self.architecture
        if not (config.deterministic or architecture.synchronous):
            raise UserError(_NO_LAG.format(config.policy_lag, "the actors wait for nobody"))
        if isinstance(self.agent.source, Replayed):
            raise UserError(_NO_LAG.format(config.policy_lag, "this agent learns from replay"))

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
                if isinstance(self.devices.learner, jax.sharding.NamedSharding):
                    raise UserError(_ONE_DEVICE)
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
            directory = self.plan.run_dir / "replay"
            segments = SegmentLog(replay, directory, config.keep_checkpoints)
            unfinished.callback(segments.close)
        memory = Memory(replay, segments, derived_seed(config.seed, REPLAY_KEY, self.salt))
        if isinstance(source, Mixed):
            return MixedSource(source, memory, self.fresh, bounded=bounded)
        return ReplaySource(source, memory, self.plan.agent_config.batch_size)

    def _actors(self, learner: Learner | None) -> list[Any]:
        """As many actors as the settings say, as the cluster has room for, or as act fastest."""
        config, batch_size = self.config, self.plan.agent_config.batch_size
        num_actors, num_envs = fixed_numbers(config, batch_size, self.agent.source, self.fresh)
        cluster = None
        if config.ray is not None:
            cluster = _connect(config, num_actors or DEFAULT_ACTORS)
            self.stack.callback(cluster.close)
            for warning in cluster.warnings():
                self.log(warning)
            room = DEFAULT_ACTORS if config.ray == "local" else cluster.room() // config.learners
            num_actors = num_actors or max(1, room)
        fault_log = self.plan.run_dir / "actor_faults.log"
        restarts = Restarts(config.max_restarts, fault_log, config.hang_after)
        crew = Crew(self.plan, self.env, self.agent, self.salt, restarts, cluster)
        if num_actors is None or num_envs is None:
            assert learner is not None
            picked = tuning.pick(
                crew.make,
                learner.behaviour(),
                batch_size=self.fresh,
                actors=num_actors,
                envs=num_envs,
                actor_cores=config.actor_cores,
            )
            num_actors, num_envs = picked.actors, picked.envs
            self.log(picked.why)
        server = None
        if self.architecture.central:
            assert learner is not None
            server = self._inference_server(learner, num_actors)
            restarts.hopeless = server.failed
        # Each of several learners counts the episodes of its own actors.
        check_slots(self.env, num_actors * num_envs, config.learner_rank * num_actors * num_envs)
        actors = crew.make(num_actors, num_envs, server)
        plural = "s" if num_actors > 1 else ""
        self.log(
            f"{config.architecture}: {num_actors} actor{plural} × {num_envs} environments,"
            f" {actors[0].placement}"
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


_ONE_DEVICE = (
    "`--architecture async-gradients` applies one actor's gradient at a time: give one"
    " `--learner-device`."
)
_NO_LAG = (
    "`--policy-lag` is {}, and {}: it is exact where actors wait for the learner, which makes one"
    " update of each batch of theirs; use --runtime fused, --deterministic or --architecture"
    " sync-unroll, and an agent that does so."
)


def _fused_runtime(
    plan: Plan, env: Any, agent: Agent, state: LearnerState, devices: Devices
) -> Runtime:
    """All of it in one jitted scan; raises UserError for settings of the local runtime."""
    config = plan.run
    jax_env = envs.jax_env_of(env, plan.env_args)
    assert jax_env is not None
    if isinstance(devices.learner, jax.sharding.NamedSharding):
        raise UserError(
            "the fused runtime learns on one device: give one `--learner-device`, or use --runtime"
            " local."
        )
    if config.actor_device is not None:
        raise UserError(
            "the fused runtime acts where it learns: give `--learner-device` alone, or use"
            " --runtime local."
        )
    if config.actor_cores is not None:
        raise UserError(
            "the fused runtime has no actors' threads: leave `--actor-cores` out, or use --runtime"
            " local."
        )
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


def fused_shape(plan: Plan, agent: Agent) -> dict[str, int]:
    """What `fused.build` is to be told of a plan; raises UserError for what can't be done."""
    config, batch_size = plan.run, plan.agent_config.batch_size
    num_envs, unroll, draws = config.envs_per_actor or batch_size, plan.agent_config.unroll, 0
    source = agent.source
    if isinstance(source, Mixed):
        draws = drawn_columns(source, batch_size)
        num_envs = batch_size - draws
        if config.envs_per_actor not in (None, num_envs):
            raise UserError(
                f"`--envs-per-actor` is {config.envs_per_actor}; of the `--batch-size`"
                f" {batch_size} trajectories {draws} are replayed, so that {num_envs}"
                " environments have to make the others."
            )
    elif isinstance(source, Replayed):
        if config.policy_lag:
            raise UserError(_NO_LAG.format(config.policy_lag, "this agent learns from replay"))
        unroll, draws = source.sequences.length, _fused_draws(source, num_envs, batch_size)
    if not isinstance(source, Fresh) and source.sequences.capacity < unroll * num_envs:
        raise UserError(
            f"`--replay-capacity` is {source.sequences.capacity}; expected room for what {num_envs}"
            f" environments do in {unroll} steps, {unroll * num_envs}."
        )
    return {
        "unroll": unroll,
        "num_envs": num_envs,
        "draws": draws,
        "policy_lag": config.policy_lag,
    }


def drawn_columns(source: Mixed, batch_size: int) -> int:
    """How many of a batch's trajectories are replayed, for agents that mix; raises UserError where
    that leaves none of a kind."""
    drawn = round(source.fraction * batch_size)
    if not math.isclose(drawn, source.fraction * batch_size) or not 0 < drawn < batch_size:
        raise UserError(
            f"`--replay-fraction` {source.fraction:g} of `--batch-size` {batch_size} is"
            f" {source.fraction * batch_size:g} trajectories; expected a whole number of them, and"
            " at least one that is not replayed."
        )
    return drawn


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


def _fused_draws(source: Replayed, num_envs: int, batch_size: int) -> int:
    """Updates per unroll; raises UserError for what the fused runtime's replay can't do."""
    draws, spec = round(source.samples_per_insert), source.sequences
    if num_envs != batch_size or draws < 1 or draws != source.samples_per_insert:
        raise UserError(
            f"the fused runtime inserts and draws as many sequences at a time as there are"
            f" environments: `--envs-per-actor` {num_envs} must equal `--batch-size` {batch_size},"
            f" and `--samples-per-insert` {source.samples_per_insert:g} be a whole number; or use"
            " --runtime local."
        )
    if spec.burn_in > spec.length:
        raise UserError(
            f"the fused runtime's burn-in is the end of the sequence before: `--burn-in`"
            f" {spec.burn_in} must not be larger than `--sequence-length` {spec.length}; or use"
            " --runtime local."
        )
    return draws


def is_fused(plan: Plan, env: Any, agent: Agent) -> bool:
    """Whether the fused runtime is meant; raises UserError where it is asked for and can't be."""
    config = plan.run
    has_jax = envs.jax_env_of(env, plan.env_args) is not None
    if config.runtime == "auto":
        alone = config.ray is None and config.learners == 1
        fresh = not isinstance(agent.source, Replayed)
        return has_jax and alone and config.architecture == "async" and fresh
    if config.runtime == "local":
        return False
    if not has_jax:
        raise UserError(
            f"the fused runtime needs an environment written in JAX, and '{plan.env}' is not; use"
            " --runtime local."
        )
    if config.ray is not None:
        raise UserError(
            f"`--ray` is '{config.ray}', and the fused runtime has no actors to send there; leave"
            " `--runtime fused` out."
        )
    if config.architecture != "async":
        raise UserError(
            f"`--architecture` {config.architecture} is one of the local runtime's; leave"
            " `--runtime fused` out."
        )
    return True
