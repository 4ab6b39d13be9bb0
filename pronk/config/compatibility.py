"""Which settings go together: `check` tries one table of refused combinations, a row each.

The table is about settings alone. A missing device, cluster or package is
reported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pronk.config.architectures import Case
from pronk.config.fields import flag
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.types import Agent, Fresh


class Row(NamedTuple):
    """A combination that is refused."""

    name: str
    applies: Callable[[Case], Any]
    message: str  # a format of `c`, the case


def check(
    plan: Plan,
    agent: Agent | None = None,
    *,
    jax_env: bool = False,
    population: PBTConfig | None = None,
    execution: str = "",
) -> None:
    """Raise UserError, the message of the first row that applies, for settings that do not go
    together.

    agent: None before it is made, for what can be refused without it. jax_env: whether the
    environment is written in JAX. execution: of a `population`, which `auto` has become.
    """
    source = Fresh() if agent is None else agent.source
    halves = agent is None or agent.halves is not None
    case = Case(plan, source, halves, jax_env, population, execution)
    for row in ROWS:
        if row.applies(case):
            raise UserError(row.message.format(c=case))


def _given(
    where: str, applies: Callable[[Case], Any], message: str, whys: dict[str, str]
) -> tuple[Row, ...]:
    """A row for each setting of the run that is refused where it is given and `applies` holds, and
    why: {flag}, {value} and {why} in the message are the setting's own."""
    return tuple(
        Row(
            f"{where}: {name}",
            lambda c, name=name: c.given(name) and applies(c),
            message.replace("{flag}", flag(name))
            .replace("{value}", f"{{c.run.{name}}}")
            .replace("{why}", why),
        )
        for name, why in whys.items()
    )


_USELESS = "`{flag}` is {value}, and {why}: leave it out."

_POPULATION = (
    *_given(
        "population",
        lambda c: c.population,
        "`{flag}` is for single runs; leave it out for a population.",
        dict.fromkeys(("learners", "stop_after_episodes"), ""),
    ),
    Row(
        "population: cluster",
        lambda c: c.execution == "ray" and c.run.ray is None,
        "`--execution` is ray, and no cluster is named; give `--ray auto`, `--ray local` or `--ray"
        " HOST:PORT`.",
    ),
    Row(
        "population: keep_checkpoints",
        lambda c: c.execution in ("processes", "ray") and c.run.keep_checkpoints < 2,
        "`--keep-checkpoints` is {c.run.keep_checkpoints}; expected at least 2 where members are"
        " runs of their own, because one is copied while it saves the next.",
    ),
    Row(
        "vmapped: runtime",
        lambda c: c.vmapped and c.run.runtime == "local",
        "`--runtime` is local, and a vmapped population is fused; leave one of them out.",
    ),
    Row(
        "vmapped: parallel_members",
        lambda c: c.vmapped and c.population.parallel_members != PBTConfig.parallel_members,
        "`--parallel-members` is {c.population.parallel_members}, and a vmapped population trains"
        " all members together; leave it out, or use --execution processes.",
    ),
    *_given(
        "vmapped",
        lambda c: c.vmapped,
        "`{flag}` is {value}, which a vmapped population can't do; leave it out, or use --execution"
        " processes.",
        dict.fromkeys(
            ("init_from", "eval_every", "eval_episodes", "eval_max_steps", "log_every"), ""
        ),
    ),
)

_LEARNERS = (
    Row(
        "learners: meeting",
        lambda c: (
            c.run.learners > 1
            and (c.run.coordinator is None or c.run.learner_rank >= c.run.learners)
        ),
        "`--learners` is {c.run.learners}, `--learner-rank` {c.run.learner_rank} and"
        " `--coordinator` {c.run.coordinator}; expected a rank from 0 to {c.last_rank}, and the"
        " HOST:PORT where they meet.",
    ),
    *_given(
        "learners",
        lambda c: c.run.learners > 1 and c.run.runtime != "local",
        "`--learners` is {c.run.learners} with `{flag}` {value}: the fused runtime learns in one"
        " process; leave one of the two out.",
        {"runtime": ""},
    ),
    *_given(
        "learners",
        lambda c: c.run.learners > 1,
        "`--learners` is {c.run.learners} with `{flag}`: several processes learn asynchronously"
        " (async), each on all devices that it sees; leave one of the two out.",
        dict.fromkeys(("deterministic", "architecture", "learner_device", "actor_device"), ""),
    ),
    Row(
        "learners: batch_size",
        lambda c: c.config.batch_size % c.run.learners,
        "`--learners` is {c.run.learners} and `--batch-size` {c.config.batch_size}; expected a"
        " batch size that is a multiple of the number of learners.",
    ),
    Row(
        "learners: replay",
        lambda c: c.run.learners > 1 and not isinstance(c.source, Fresh),
        "`--learners` is {c.run.learners}, and this agent learns from replay; expected one that"
        " learns from what its actors have just done.",
    ),
    *_given(
        "one learner",
        lambda c: c.run.learners == 1,
        _USELESS,
        dict.fromkeys(("learner_rank", "coordinator"), "there is one learner (`--learners` 1)"),
    ),
)

_RAY = (
    *_given(
        "ray",
        lambda c: c.run.ray is not None and c.run.runtime != "local",
        "`--ray` is '{c.run.ray}', and the fused runtime has no actors to send there; leave"
        " `--runtime fused` out.",
        {"runtime": ""},
    ),
    *_given(
        "ray",
        lambda c: c.run.ray is not None,
        "`--ray` is '{c.run.ray}' with `{flag}`, and {why}: leave one of the two out.",
        {
            "deterministic": "actors on a cluster can't take turns",
            "architecture": "Ray's actors are asynchronous",
            "env_workers": "each actor on Ray steps its environments in its own process",
            "actor_cores": "it limits the actors' threads, which Ray replaces",
            "actor_device": "--actor-gpus decides where actors on Ray act",
        },
    ),
    *_given(
        "no ray",
        lambda c: c.run.ray is None,
        _USELESS,
        dict.fromkeys(
            ("actor_cpus", "actor_gpus", "actor_resource"),
            "it is for actors on a Ray cluster (`--ray`)",
        ),
    ),
)

_FUSED = (
    Row(
        "fused: environment",
        lambda c: c.fused and not c.jax_env,
        "the fused runtime needs an environment written in JAX, and '{c.plan.env}' is not;"
        " {c.instead}.",
    ),
    *_given(
        "fused",
        lambda c: c.fused,
        "`{flag}` is {value}, and {why}: leave it out, or {c.instead}.",
        {
            "architecture": "the fused runtime has none of the local runtime's architectures",
            **dict.fromkeys(
                ("actors", "max_restarts", "hang_after"), "the fused runtime has no actors"
            ),
            "actor_cores": "the fused runtime has no actors' threads",
            "actor_device": "the fused runtime acts where it learns",
        },
    ),
    Row(
        "fused: learner_device",
        lambda c: c.fused and c.several,
        "`--learner-device` is {c.run.learner_device}, and the fused runtime learns on one device:"
        " give one, or {c.instead}.",
    ),
    *(
        Row(
            f"fused: {name}",
            lambda c, name=name, usual=usual: c.fused and getattr(c.sequences, name) != usual,
            f"`{flags}` is {{c.sequences.{name}}}, and {why}: give {flags} {usual}, or"
            " {c.instead}.",
        )
        for name, usual, flags, why in (
            ("priority_exponent", 0, "--priority-exponent", "the fused runtime draws uniformly"),
            ("overlap", 0, "--overlap", "the fused runtime's sequences do not overlap"),
            ("eviction", "fifo", "--replay-eviction", "the fused runtime drops the oldest"),
        )
    ),
    Row(
        "fused: compress",
        lambda c: c.fused and c.sequences.compress,
        "`--replay-compress` is given, and the fused runtime keeps the replay on the device, not"
        " compressed: leave it out, or {c.instead}.",
    ),
    Row(
        "fused: checkpoint",
        lambda c: c.fused and not c.sequences.checkpoint,
        "`--no-replay-saved` is given, and the fused runtime saves its replay with all of the run:"
        " leave it out, or {c.instead}.",
    ),
    Row(
        "fused: envs of a mix",
        lambda c: c.fused and c.mixed and c.run.envs_per_actor not in (None, c.fresh),
        "`--envs-per-actor` is {c.run.envs_per_actor}; of the `--batch-size` {c.config.batch_size}"
        " trajectories {c.drawn:g} are replayed, so that {c.fresh} environments have to make the"
        " others.",
    ),
    Row(
        "fused: draws",
        lambda c: (
            c.fused
            and c.replayed
            and not (
                math.isclose(c.due_draws, c.shape["draws"], rel_tol=1e-6) and c.shape["draws"] >= 1
            )
        ),
        "the fused runtime makes whole updates after each unroll: `--envs-per-actor`"
        " {c.shape[num_envs]} and {c.draw_settings} make {c.due_draws:g} updates, which must be a"
        " whole number; change one of them, or {c.instead}.",
    ),
    Row(
        "fused: unroll of transitions",
        lambda c: (
            c.fused
            and c.replayed
            and hasattr(c.config, "updates_per_step")
            and c.config.unroll != c.sequences.length
        ),
        "`--unroll` is {c.config.unroll}; expected {c.sequences.length}: the fused runtime learns"
        " after each step of its environments; leave it out, or {c.instead}.",
    ),
    Row(
        "fused: burn_in",
        lambda c: c.fused and c.sequences.burn_in > c.sequences.length,
        "the fused runtime's burn-in is the end of the sequence before: `--burn-in`"
        " {c.sequences.burn_in} must not be larger than `--sequence-length` {c.sequences.length};"
        " or {c.instead}.",
    ),
    Row(
        "fused: capacity",
        lambda c: (
            c.fused and not isinstance(c.source, Fresh) and c.sequences.capacity < c.inserted_steps
        ),
        "`--replay-capacity` is {c.sequences.capacity}; expected room for what"
        " {c.shape[num_envs]} environments do in {c.shape[unroll]} steps, {c.inserted_steps}.",
    ),
)

_LOCAL = (
    *_given(
        "no batched inference",
        lambda c: not c.architecture.central,
        _USELESS,
        dict.fromkeys(
            ("inference_minimum", "inference_maximum", "inference_timeout"),
            "only async-batched and sync-batched infer in batches (`--architecture`)",
        ),
    ),
    *_given(
        "jax environment",
        lambda c: c.jax_env,
        _USELESS,
        {
            "env_workers": "'{c.plan.env}' is written in JAX and steps without processes",
            "max_env_faults": "'{c.plan.env}' is written in JAX and has no faults",
        },
    ),
    *_given(
        "no evaluation",
        lambda c: c.run.eval_every is None,
        _USELESS,
        dict.fromkeys(
            ("eval_episodes", "eval_max_steps"), "there are no evaluations without `--eval-every`"
        ),
    ),
    *_given(
        "in turns",
        lambda c: c.exact,
        _USELESS,
        {"max_restarts": "actors that wait for the learner are not restarted"},
    ),
    *_given(
        "deterministic",
        lambda c: c.run.deterministic and not c.fused,
        _USELESS,
        {"actor_cores": "deterministic actors have no threads of their own"},
    ),
    Row(
        "deterministic: architecture",
        lambda c: c.run.deterministic and (c.architecture.central or c.architecture.gradients),
        "`--architecture` {c.run.architecture} answers requests in the order in which they arrive,"
        " so that no two runs are alike; leave `--deterministic` out, or use --architecture"
        " sync-unroll.",
    ),
    Row(
        "gradients: halves",
        lambda c: c.architecture.gradients and not c.halves,
        "`--architecture` {c.run.architecture} needs an agent whose update is one gradient step and"
        " nothing besides, and with these settings this agent's is not; use --architecture async.",
    ),
    Row(
        "gradients: learner_device",
        lambda c: c.architecture.gradients and c.several,
        "`--learner-device` is {c.run.learner_device}, and `--architecture` {c.run.architecture}"
        " applies one actor's gradient at a time: give one device.",
    ),
    Row(
        "learner_device: batch_size",
        lambda c: c.config.batch_size % len(c.devices),
        "`--learner-device` is {c.run.learner_device}; expected different devices, by whose number"
        " `--batch-size` {c.config.batch_size} can be divided.",
    ),
)

_SOURCE = (
    Row(
        "mixed: fraction",
        lambda c: (
            c.mixed
            and not (math.isclose(c.drawn, round(c.drawn)) and 0 < c.fresh < c.config.batch_size)
        ),
        "`--replay-fraction` {c.source.fraction:g} of `--batch-size` {c.config.batch_size} is"
        " {c.drawn:g} trajectories; expected a whole number of them, and at least one that is not"
        " replayed.",
    ),
    Row(
        "replay: architecture",
        lambda c: (
            (c.replayed and c.architecture.synchronous)
            or (not isinstance(c.source, Fresh) and c.architecture.gradients)
        ),
        "`--architecture` {c.run.architecture} learns from what actors have just done, and this"
        " agent from replay; use --architecture async or async-batched.",
    ),
    Row(
        "replay: policy_lag",
        lambda c: c.run.policy_lag and c.replayed,
        "`--policy-lag` is {c.run.policy_lag}, and this agent learns from replay: a lag is exact"
        " where one update is made of what all actors did; leave it out, or use an agent that"
        " does so.",
    ),
    Row(
        "async: policy_lag",
        lambda c: c.run.policy_lag and not (c.fused or c.exact),
        "`--policy-lag` is {c.run.policy_lag}, and the actors wait for no update: a lag is exact"
        " where one update is made of what all actors did; use --runtime fused, --deterministic or"
        " --architecture sync-unroll.",
    ),
)

_ROUNDS = (
    Row(
        "rounds: gradients",
        lambda c: c.architecture.gradients and c.envs != c.config.batch_size,
        "`--architecture` {c.run.architecture} makes one gradient of each actor's unroll:"
        " `--envs-per-actor` {c.envs} must equal `--batch-size` {c.config.batch_size}.",
    ),
    Row(
        "rounds: policy_lag",
        lambda c: c.exact and c.run.policy_lag and c.actors * c.envs != c.fresh,
        "`--policy-lag` is {c.run.policy_lag}, which is exact where a round makes one update:"
        " `--actors` {c.actors} × `--envs-per-actor` {c.envs} must equal {c.fresh_in_words}.",
    ),
    Row(
        "rounds: architecture",
        lambda c: c.exact and c.architecture.synchronous and c.actors * c.envs != c.fresh,
        "`--architecture` {c.run.architecture} learns once from what all actors did: `--actors`"
        " {c.actors} × `--envs-per-actor` {c.envs} must equal {c.fresh_in_words}.",
    ),
    Row(
        "rounds: deterministic",
        lambda c: (
            c.exact
            and not (c.architecture.synchronous or c.replayed)
            and (c.actors * c.envs) % c.fresh
        ),
        "`--deterministic` learns from whole rounds: `--actors` {c.actors} × `--envs-per-actor`"
        " {c.envs} must be a multiple of {c.fresh_in_words}.",
    ),
)

ROWS = (*_POPULATION, *_LEARNERS, *_RAY, *_FUSED, *_LOCAL, *_SOURCE, *_ROUNDS)
