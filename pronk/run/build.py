"""Puts a plan's parts together: agent, environments, actors and runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk import agents, envs
from pronk.config.compatibility import ARCHITECTURES, check_together, fixed_numbers
from pronk.config.run import DEFAULT_ACTORS, RunConfig
from pronk.config.spec import Plan
from pronk.envs.episodes import derived_seed
from pronk.envs.suite import check_slots
from pronk.errors import UserError
from pronk.replay import Replay, SegmentLog
from pronk.run.allocator import keep_freed_memory
from pronk.runtime import tuning
from pronk.runtime.a3c import A3CRuntime
from pronk.runtime.actor import Actor, Player
from pronk.runtime.base import Devices, Runtime
from pronk.runtime.fused import FusedRuntime
from pronk.runtime.inference import Batching, CentralPlayer, InferenceServer
from pronk.runtime.learner import Learner
from pronk.runtime.local import LocalRuntime, SynchronousRuntime
from pronk.runtime.places.process import ActorProcess
from pronk.runtime.places.supervise import Restarts, Supervised
from pronk.runtime.replaying import (
    Memory,
    MixedRuntime,
    ReplayRuntime,
    SynchronousMixedRuntime,
    SynchronousReplayRuntime,
)
from pronk.types import (
    Agent,
    Device,
    EnvSpec,
    Fresh,
    Key,
    LearnerState,
    Mixed,
    PyTree,
    Replayed,
    TimeStep,
    Trajectory,
)

# Keys folded into the run's seed, one per purpose, so that no two share random numbers.
INIT_KEY, ACTOR_KEY, EVALUATION_KEY, REPLAY_KEY = range(4)


def configure_jax() -> None:
    """Settings of JAX and of what it stands on; call before anything is computed.

    Compiled programs are kept on disk, unless the user has said where or that they don't want it.
    """
    keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pronk" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def key_for(seed: int, purpose: int) -> Any:
    """The random key for one purpose of a run."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def build(plan: Plan, env: Any) -> tuple[EnvSpec, Agent]:
    """The environment's spec and the agent for it."""
    spec = envs.spec_of(env, plan.env_args)
    return spec, agents.make(plan.agent, plan.agent_config, spec, horizon=plan.run.steps)


def row_of(agent: Agent, spec: EnvSpec) -> tuple[PyTree, PyTree, dict[str, PyTree]]:
    """What one environment sees and the agent decides at one moment, as shapes and dtypes."""

    def act(observation: PyTree, mask: PyTree, key: Key) -> tuple[PyTree, ...]:
        no, zero = jnp.zeros(1, bool), jnp.zeros(1, jnp.int32)
        timestep = TimeStep(observation, jnp.zeros(1), no, no, no, zero, mask)
        carry = agent.initial_carry(key, zero, 1, False)
        action, _, extras = agent.act(agent.behaviour(agent.init(key)), carry, timestep, key)
        return timestep, action, extras

    observation = jax.tree.map(lambda x: np.asarray(x)[None], spec.observation_space.sample())
    mask = np.ones((1, spec.action_space.n), bool) if spec.has_action_mask else None  # type: ignore[attr-defined]
    row = jax.eval_shape(act, observation, mask, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), row)


def core_of(agent: Agent) -> PyTree:
    """The recurrent state of one environment, as shapes and dtypes."""

    def core(key: Key) -> PyTree:
        return agent.initial_carry(key, jnp.zeros(1, jnp.int32), 1, False).core

    core_spec = jax.eval_shape(core, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), core_spec)


def unroll_of(plan: Plan, agent: Agent, spec: EnvSpec, num_envs: int) -> Trajectory:
    """What an actor of `num_envs` environments brings, as shapes and dtypes."""
    rows = plan.agent_config.unroll + 1
    timestep, action, extras = row_of(agent, spec)
    # Environments bring the dtypes of their space, of which JAX has 64 bits in none.
    seen = jax.tree.map(np.asarray, spec.observation_space.sample())
    timestep, action, extras = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, num_envs, *x.shape), x.dtype),
        (timestep._replace(observation=seen), action, extras),
    )

    def core(key: Key) -> PyTree:
        return agent.initial_carry(key, jnp.arange(num_envs), num_envs, False).core

    version = jax.ShapeDtypeStruct((num_envs,), jnp.int32)
    return Trajectory(timestep, action, extras, jax.eval_shape(core, jax.random.key(0)), version)


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
    # Agent steps at which this life of the run began; a random number if the actor is made again.
    life: int

    def __call__(self, agent: Agent | None = None, server: InferenceServer | None = None) -> Actor:
        """The actor with its own environments, seeds and random key.

        agent: if it is made already, so that it is compiled once. server: decides for the actor.
        """
        config, agent_config = self.plan.run, self.plan.agent_config
        first = self.index * self.num_envs
        key = jax.random.fold_in(key_for(config.seed, ACTOR_KEY), self.life)
        fault_log = self.plan.run_dir / "env_faults.log"
        if config.actors_apart:
            configure_jax()
        threads = max(1, (os.cpu_count() or 1) * config.learners // self.actors)
        if config.ray is not None:
            threads = max(1, int(config.actor_cpus))
            fault_log.parent.mkdir(parents=True, exist_ok=True)  # it may be another machine
        if agent is None:
            _, agent = build(self.plan, self.env)
        env = envs.make(
            self.env,
            self.num_envs,
            seed=derived_seed(config.seed, ACTOR_KEY, self.life),
            first_env_id=first,
            env_args=self.plan.env_args,
            # An actor's process steps its environments itself.
            workers=0 if config.actors_apart else config.env_workers,
            threads=threads,
            replayable=config.deterministic,
            fault_log=fault_log,
            max_faults=config.max_env_faults,
            hang_after=config.hang_after / 2,  # before the actor is taken for hung
        )
        key = jax.random.fold_in(key, self.index)
        env_ids = np.arange(first, first + self.num_envs, dtype=np.int32)
        num_envs = self.actors * self.num_envs
        if server is None:
            player = Player(agent, key, env_ids, num_envs)
        else:
            player = CentralPlayer(server, agent, key, env_ids, num_envs)
        sequences = agent.source.sequences if isinstance(agent.source, Replayed) else None
        return Actor(player, env, unroll=agent_config.unroll, sequences=sequences)


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
    devices = _devices(plan)
    if is_fused(plan, env, agent):
        return _fused_runtime(plan, env, agent, state, devices)
    architecture = ARCHITECTURES[config.architecture]
    check_together(config, batch_size)
    # A resumed life that starts new episodes must not replay those of the first.
    life = 0 if config.deterministic else life
    source = agent.source
    drawn = drawn_columns(source, batch_size) if isinstance(source, Mixed) else 0
    if config.policy_lag and not (config.deterministic or architecture.synchronous):
        raise UserError(_NO_LAG.format(config.policy_lag, "the actors wait for nobody"))
    if config.policy_lag and isinstance(source, Replayed):
        raise UserError(_NO_LAG.format(config.policy_lag, "this agent learns from replay"))
    learner = None
    if not architecture.gradients:
        learner = Learner(
            agent,
            state,
            devices,
            batch_size=math.gcd(batch_size, drawn),  # parts have the share of the whole
            policy_lag=config.policy_lag,
        )
    num_actors, num_envs = fixed_numbers(config, batch_size, source, batch_size - drawn)
    cluster = None
    if config.ray is not None:
        cluster = _connected(config, num_actors or DEFAULT_ACTORS)
        stack.callback(cluster.close)
        for warning in cluster.warnings():
            tell(warning)
        room = DEFAULT_ACTORS if config.ray == "local" else cluster.room() // config.learners
        num_actors = num_actors or max(1, room)
    restarts = Restarts(config.max_restarts, plan.run_dir / "actor_faults.log", config.hang_after)
    crew = _Crew(plan, env, agent, life, restarts, cluster)
    if num_actors is None or num_envs is None:
        assert learner is not None
        picked = tuning.pick(
            crew.make,
            learner.behaviour(),
            batch_size=batch_size - drawn,
            actors=num_actors,
            envs=num_envs,
            actor_cores=config.actor_cores,
        )
        num_actors, num_envs = picked.actors, picked.envs
        tell(picked.why)
    server = None
    if architecture.central:
        assert learner is not None
        maximum = min(config.inference_maximum or num_actors, num_actors)
        batching = Batching(
            min(config.inference_minimum, maximum), maximum, config.inference_timeout
        )
        key = jax.random.fold_in(key_for(config.seed, ACTOR_KEY), life)
        key = jax.random.fold_in(key, num_actors)  # actor i has i
        server = InferenceServer(agent, key, learner.behaviour, batching, config.actor_cores)
        restarts.hopeless = server.failed
        stack.callback(server.close)
    # Each of several learners counts the games of its own actors.
    check_slots(env, num_actors * num_envs, config.learner_rank * num_actors * num_envs)
    actors = crew.make(num_actors, num_envs, server)
    how = actors[0].placement
    plural = "s" if num_actors > 1 else ""
    tell(f"{config.architecture}: {num_actors} actor{plural} × {num_envs} environments, {how}")
    with contextlib.ExitStack() as unfinished:
        for actor in actors:
            unfinished.callback(actor.close)
        if learner is None:
            runtime = _a3c(plan, agent, state, actors, devices)
        elif not isinstance(source, Fresh):
            memory = _memory(plan, env, source, agent, life, unfinished)
            if isinstance(source, Mixed):
                runtime = _mixed(learner, actors, memory, plan, batch_size - drawn)
            elif config.deterministic:
                runtime = SynchronousReplayRuntime(learner, actors, memory)
            else:
                cores = config.actor_cores
                runtime = ReplayRuntime(learner, actors, memory, actor_cores=cores)
        elif architecture.synchronous or config.deterministic:
            runtime = SynchronousRuntime(
                learner,
                actors,
                batch_size=batch_size,
                in_turns=config.deterministic,
                actor_cores=config.actor_cores,
            )
        else:
            runtime = LocalRuntime(
                learner,
                actors,
                batch_size=batch_size // config.learners,
                actor_cores=config.actor_cores,
            )
        unfinished.pop_all()  # the runtime's to close
    return runtime


class _Crew(NamedTuple):
    """Makes a run's actors, where the plan wants them: in threads, in processes or on Ray."""

    plan: Plan
    env: Any
    agent: Agent
    life: int
    restarts: Restarts
    cluster: Any  # of Ray, if any

    def make(
        self, num_actors: int, num_envs: int, server: InferenceServer | None = None
    ) -> list[Any]:
        """So many actors of so many environments; `server` decides for them."""
        config = self.plan.run
        like = None
        if config.actors_apart:
            spec = envs.spec_of(self.env, self.plan.env_args)
            like = unroll_of(self.plan, self.agent, spec, num_envs)
        made: list[Any] = []
        with contextlib.ExitStack() as unfinished:
            for i in range(num_actors):
                index = config.learner_rank * num_actors + i
                total = config.learners * num_actors
                factory = ActorFactory(self.plan, self.env, index, total, num_envs, self.life)
                name = f"actor {i}"

                # Bound now: the loop goes on.
                def make(life: int, factory: ActorFactory = factory, name: str = name) -> Any:
                    return self._place(dataclasses.replace(factory, life=life), name, server)

                actor = make(self.life)
                unfinished.callback(actor.close)
                # What is saved with its actors' states can't go on without exactly these.
                exact = config.deterministic or ARCHITECTURES[config.architecture].synchronous
                supervised = Supervised(make, name, self.restarts, actor, like)
                made.append(actor if exact else supervised)
            unfinished.pop_all()  # the caller's to close
        return made

    def _place(self, factory: ActorFactory, name: str, server: InferenceServer | None) -> Any:
        if self.cluster is not None:
            return self.cluster.actor(factory, name)
        if self.plan.run.actor_kind == "process":
            return ActorProcess(factory, name)
        return factory(self.agent, server)


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
    return FusedRuntime(
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


def _a3c(
    plan: Plan, agent: Agent, state: LearnerState, actors: list[Any], devices: Devices
) -> Runtime:
    """Actors that send gradients."""
    if isinstance(devices.learner, jax.sharding.NamedSharding):
        raise UserError(
            "`--architecture async-gradients` applies one actor's gradient at a time: give one"
            " `--learner-device`."
        )
    return A3CRuntime(agent, state, actors, devices, plan.run.actor_cores)


def _memory(
    plan: Plan,
    env: Any,
    source: Replayed | Mixed,
    agent: Agent,
    life: int,
    unfinished: contextlib.ExitStack,
) -> Memory:
    """The replay that actors fill, with its log if it is saved."""
    config = plan.run
    spec = envs.spec_of(env, plan.env_args)
    replay = Replay(source.sequences, row_of(agent, spec), core_of(agent))
    log = None
    if source.sequences.checkpoint:
        log = SegmentLog(replay, plan.run_dir / "replay", config.keep_checkpoints)
        unfinished.callback(log.close)
    seed = derived_seed(config.seed, REPLAY_KEY, life)
    return Memory(source, replay, log, batch_size=plan.agent_config.batch_size, seed=seed)


def _mixed(
    learner: Learner, actors: list[Any], memory: Memory, plan: Plan, batch_size: int
) -> Runtime:
    """Learning from what actors do and from replay, `batch_size` fresh trajectories at a time."""
    config = plan.run
    options: dict[str, Any] = {"batch_size": batch_size, "actor_cores": config.actor_cores}
    if config.deterministic or ARCHITECTURES[config.architecture].synchronous:
        in_turns = config.deterministic
        return SynchronousMixedRuntime(learner, actors, memory, in_turns=in_turns, **options)
    return MixedRuntime(learner, actors, memory, **options)


def _connected(config: RunConfig, actors: int) -> Any:
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


def _devices(plan: Plan) -> Devices:
    """Those that the plan names; raises UserError where they are not there, or can't be shared."""
    config = plan.run
    if config.learners > 1:
        if plan.agent_config.batch_size % jax.device_count():
            raise UserError(
                f"`--batch-size` is {plan.agent_config.batch_size}, and the {config.learners}"
                f" learners have {jax.device_count()} devices; expected a number that can be"
                " divided among them."
            )
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return Devices(jax.local_devices()[0], everywhere)
    actor = None
    if config.actor_device is not None:
        actor = find_device("--actor-device", config.actor_device)
    if config.learner_device is None:
        return Devices(actor)
    found = [find_device("--learner-device", name) for name in config.learner_device.split(",")]
    if len(found) == 1:
        return Devices(actor, found[0])
    batch_size = plan.agent_config.batch_size
    if len(set(found)) < len(found) or batch_size % len(found):
        raise UserError(
            f"`--learner-device` is {config.learner_device}; expected different devices, by whose"
            f" number `--batch-size` {batch_size} can be divided."
        )
    mesh = jax.sharding.Mesh(np.array(found), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return Devices(found[0] if actor is None else actor, everywhere)


def find_device(flag: str, name: str) -> Device:
    """The device that a user calls `cpu`, `gpu` or `gpu:1`; raises UserError if there is none."""
    platform, _, index = name.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError):
        known = [f"{d.platform}:{d.id}" for d in jax.devices()]
        if jax.default_backend() != "cpu":
            known += [f"cpu:{i}" for i in range(len(jax.devices("cpu")))]
        raise UserError(
            f"`{flag}` is '{name}'; expected a device that JAX sees here: {', '.join(known)}."
        ) from None


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
