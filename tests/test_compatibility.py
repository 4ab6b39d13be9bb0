"""The table of refused combinations: every row can be reached, and its message is complete."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pronk.agents import sac_config
from pronk.agents.impala_config import Config
from pronk.config.architectures import ARCHITECTURES, Case, actors_and_envs, fused_shape, is_fused
from pronk.config.compatibility import ROWS, check
from pronk.config.pbt import PBTConfig
from pronk.config.run import RunConfig
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.types import Fresh, Mixed, Replayed, Sequences

SEQUENCES = Sequences(10_000, length=10, burn_in=5)
REPLAYED = Replayed(SEQUENCES, 100, 2.0)
MIXED = Mixed(SEQUENCES, 0.5)
FUSED = {"runtime": "fused"}
SYNC = {"architecture": "sync-unroll"}
A3C = {"architecture": "async-gradients"}
LEARNERS = {"learners": 2, "coordinator": "here:1"}
RAY = {"ray": "auto"}


def plan_of(batch_size: int = 32, config: Any = None, **run: Any) -> Plan:
    config = config or Config(batch_size=batch_size)
    return Plan("impala", "CartPole-v1", RunConfig(**run), config)


def run_check(
    *,
    source: Any = None,
    halves: bool = True,
    batch_size: int = 32,
    jax_env: bool = False,
    pbt: dict[str, Any] | None = None,
    execution: str = "",
    **run: Any,
) -> None:
    source = Fresh() if source is None else source
    agent: Any = SimpleNamespace(source=source, halves=() if halves else None)
    check(
        plan_of(batch_size, **run),
        agent,
        jax_env=jax_env,
        population=PBTConfig(**(pbt or {})) if execution else None,
        execution=execution,
    )


def sequences(**changes: Any) -> Replayed:
    return REPLAYED._replace(sequences=SEQUENCES._replace(**changes))


def fused(**settings: Any) -> dict[str, Any]:
    return {**FUSED, "jax_env": True, **settings}


def vmapped(**settings: Any) -> dict[str, Any]:
    return {"execution": "vmapped", "jax_env": True, **settings}


# Of each row: settings of which it is the first that applies, and a part of the message.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "population: learners": (
        {"execution": "processes", "learners": 2},
        "`--learners` is for single runs",
    ),
    "population: stop_after_episodes": (
        {"execution": "processes", "stop_after_episodes": 9},
        "`--stop-after-episodes` is for single runs",
    ),
    "population: cluster": ({"execution": "ray"}, "give `--ray auto`"),
    "population: keep_checkpoints": (
        {"execution": "processes", "keep_checkpoints": 1},
        "`--keep-checkpoints` is 1; expected at least 2",
    ),
    "vmapped: runtime": (vmapped(runtime="local"), "`--runtime` is local"),
    "vmapped: parallel_members": (
        vmapped(pbt={"parallel_members": 3}),
        "`--parallel-members` is 3, and a vmapped population",
    ),
    "vmapped: init_from": (vmapped(init_from=Path("a")), "`--init-from` is a, which a vmapped"),
    "vmapped: eval_every": (vmapped(eval_every=5), "`--eval-every` is 5, which a vmapped"),
    "vmapped: eval_episodes": (vmapped(eval_episodes=5), "`--eval-episodes` is 5, which a"),
    "vmapped: eval_max_steps": (vmapped(eval_max_steps=5), "`--eval-max-steps` is 5, which a"),
    "vmapped: log_every": (vmapped(log_every=9.0), "`--log-every` is 9.0, which a vmapped"),
    "learners: meeting": ({"learners": 2}, "`--coordinator` None; expected a rank from 0 to 1"),
    "learners: runtime": (LEARNERS | fused(), "with `--runtime` fused: the fused runtime"),
    "learners: deterministic": (LEARNERS | {"deterministic": True}, "with `--deterministic`"),
    "learners: architecture": (LEARNERS | SYNC, "with `--architecture`"),
    "learners: learner_device": (LEARNERS | {"learner_device": "cpu"}, "with `--learner-device`"),
    "learners: actor_device": (LEARNERS | {"actor_device": "cpu"}, "with `--actor-device`"),
    "learners: batch_size": (
        LEARNERS | {"batch_size": 3},
        "`--batch-size` 3; expected a batch size that",
    ),
    "learners: replay": (LEARNERS | {"source": REPLAYED}, "this agent learns from replay"),
    "one learner: learner_rank": ({"learner_rank": 1}, "`--learner-rank` is 1, and there is one"),
    "one learner: coordinator": ({"coordinator": "x:1"}, "`--coordinator` is x:1, and there is"),
    "ray: runtime": (RAY | fused(), "the fused runtime has no actors to send there"),
    "ray: deterministic": (RAY | {"deterministic": True}, "`--ray` is 'auto' with `--determin"),
    "ray: architecture": (RAY | SYNC, "with `--architecture`, and Ray's actors are asynchronous"),
    "ray: env_workers": (RAY | {"env_workers": 2}, "with `--env-workers`"),
    "ray: actor_cores": (RAY | {"actor_cores": 1}, "with `--actor-cores`"),
    "ray: actor_device": (RAY | {"actor_device": "cpu"}, "--actor-gpus decides where"),
    "no ray: actor_cpus": ({"actor_cpus": 2.0}, "`--actor-cpus` is 2.0, and it is for actors on"),
    "no ray: actor_gpus": ({"actor_gpus": 1.0}, "`--actor-gpus` is 1.0, and it is for actors on"),
    "no ray: actor_resource": ({"actor_resource": "a"}, "`--actor-resource` is a, and it is for"),
    "fused: environment": (FUSED, "'CartPole-v1' is not; use --runtime local"),
    "fused: architecture": (fused(**A3C), "`--architecture` is async-gradients, and the fused"),
    "fused: actors": (fused(actors=3), "`--actors` is 3, and the fused runtime has no actors"),
    "fused: max_restarts": (fused(max_restarts=1), "`--max-restarts` is 1, and the fused runtime"),
    "fused: hang_after": (fused(hang_after=1.0), "`--hang-after` is 1.0, and the fused runtime"),
    "fused: actor_cores": (fused(actor_cores=1), "the fused runtime has no actors' threads"),
    "fused: actor_device": (fused(actor_device="cpu"), "the fused runtime acts where it learns"),
    "fused: learner_device": (fused(learner_device="gpu:0,gpu:1"), "learns on one device"),
    "fused: priority_exponent": (
        fused(source=sequences(priority_exponent=0.9)),
        "`--priority-exponent` is 0.9, and the fused runtime draws uniformly",
    ),
    "fused: overlap": (fused(source=sequences(overlap=5)), "`--overlap` is 5, and the fused"),
    "fused: eviction": (
        fused(source=sequences(eviction="lowest-priority")),
        "`--replay-eviction` is lowest-priority",
    ),
    "fused: compress": (fused(source=sequences(compress=True)), "`--replay-compress` is given"),
    "fused: checkpoint": (fused(source=sequences(checkpoint=False)), "`--no-replay-saved`"),
    "fused: envs of a mix": (
        fused(source=MIXED, envs_per_actor=32),
        "16 are replayed, so that 16 environments have to make the others",
    ),
    "fused: draws": (fused(source=REPLAYED._replace(samples_per_insert=1.5)), "be a whole number"),
    "fused: unroll of transitions": (
        fused(source=sequences(length=1, burn_in=0), config=sac_config.Config(unroll=8)),
        "`--unroll` is 8; expected 1",
    ),
    "fused: burn_in": (fused(source=sequences(burn_in=11)), "`--burn-in` 11 must not be larger"),
    "fused: capacity": (
        fused(source=sequences(capacity=60)),
        "32 environments do in 10 steps, 320",
    ),
    "no batched inference: inference_minimum": ({"inference_minimum": 2}, "only async-batched"),
    "no batched inference: inference_maximum": ({"inference_maximum": 2}, "only async-batched"),
    "no batched inference: inference_timeout": ({"inference_timeout": 2.0}, "only async-batched"),
    "jax environment: env_workers": ({"jax_env": True, "env_workers": 1}, "is written in JAX"),
    "jax environment: max_env_faults": ({"jax_env": True, "max_env_faults": 1}, "has no faults"),
    "no evaluation: eval_episodes": ({"eval_episodes": 3}, "no evaluations without"),
    "no evaluation: eval_max_steps": ({"eval_max_steps": 3}, "no evaluations without"),
    "in turns: max_restarts": (SYNC | {"max_restarts": 3}, "are not restarted"),
    "deterministic: actor_cores": (
        {"deterministic": True, "actor_cores": 1},
        "deterministic actors have no threads",
    ),
    "deterministic: architecture": (A3C | {"deterministic": True}, "no two runs are alike"),
    "gradients: halves": (A3C | {"halves": False}, "needs an agent whose update is one gradient"),
    "gradients: learner_device": (A3C | {"learner_device": "gpu:0,gpu:1"}, "give one device"),
    "learner_device: batch_size": (
        {"learner_device": "gpu:0,gpu:1", "batch_size": 3},
        "`--batch-size` 3 can be divided",
    ),
    "mixed: fraction": (
        {"source": Mixed(SEQUENCES, 0.3), "batch_size": 8},
        "`--replay-fraction` 0.3 of `--batch-size` 8 is 2.4 trajectories",
    ),
    "replay: architecture": (SYNC | {"source": REPLAYED}, "and this agent from replay"),
    "replay: policy_lag": (
        {"source": REPLAYED, "deterministic": True, "policy_lag": 1},
        "`--policy-lag` is 1, and this agent learns from replay",
    ),
    "async: policy_lag": ({"policy_lag": 2}, "`--policy-lag` is 2, and the actors wait for no"),
    "rounds: gradients": (
        A3C | {"envs_per_actor": 3},
        "`--envs-per-actor` 3 must equal `--batch-size` 32",
    ),
    "rounds: policy_lag": (
        {"policy_lag": 2, "deterministic": True, "envs_per_actor": 8},
        "`--actors` 2 × `--envs-per-actor` 8 must equal `--batch-size` 32",
    ),
    "rounds: architecture": (
        SYNC | {"source": MIXED, "envs_per_actor": 3},
        "must equal 16, which is `--batch-size` 32 without what is replayed",
    ),
    "rounds: deterministic": (
        {"deterministic": True, "actors": 1, "envs_per_actor": 3},
        "`--actors` 1 × `--envs-per-actor` 3 must be a multiple of `--batch-size` 32",
    ),
}


def test_every_row_has_a_case() -> None:
    assert list(CASES) == [row.name for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_reached_and_says_what_to_do(row: Any) -> None:
    settings, part = CASES[row.name]
    with pytest.raises(UserError) as caught:
        run_check(**settings)
    message = str(caught.value)
    assert part in message
    assert "{" not in message
    assert message.endswith(".")
    assert any(word in message for word in ("leave", "give ", "use ", "expected", "must", "have"))


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"jax_env": True},
    {"deterministic": True},
    {"source": REPLAYED, "jax_env": True},
    {"source": sequences(priority_exponent=0.9, overlap=5, compress=True)},
    {"source": REPLAYED, "deterministic": True},
    {"source": MIXED},
    {"source": MIXED, "deterministic": True, "envs_per_actor": 8},
    fused(source=REPLAYED, policy_lag=0),
    fused(source=MIXED, policy_lag=3),
    fused(deterministic=True),
    {"policy_lag": 2, "deterministic": True},
    {"architecture": "async-batched", "inference_minimum": 2, "max_restarts": 1},
    {"halves": False},
    {"learner_device": "gpu:0,gpu:1"},
    {"eval_every": 100, "eval_episodes": 3},
    {**LEARNERS, "learner_rank": 1, "jax_env": True},
    {**RAY, "actor_cpus": 2.0, "actor_resource": "a", "jax_env": True},
    {"execution": "ray", **RAY, "actor_gpus": 0.5},
    {"execution": "processes", "pbt": {"parallel_members": 4}},
    vmapped(stop_after=100, learner_device="gpu:1"),
]


@pytest.mark.parametrize("settings", ACCEPTED, ids=str)
def test_what_goes_together_is_accepted(settings: dict[str, Any]) -> None:
    run_check(**settings)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_its_numbers(architecture: str) -> None:
    run_check(architecture=architecture)
    expected = {
        "async": (None, None),
        "async-batched": (2, 16),
        "sync-step": (1, 32),
        "async-gradients": (2, 32),
    }
    plan = plan_of(architecture=architecture)
    assert actors_and_envs(plan, Fresh()) == expected.get(architecture, (2, 16))


def test_auto_is_fused_where_it_does_the_same() -> None:
    assert is_fused(plan_of(), Fresh(), jax_env=True)
    assert is_fused(plan_of(), MIXED, jax_env=True)
    assert not is_fused(plan_of(), REPLAYED, jax_env=True)
    assert not is_fused(plan_of(), Fresh(), jax_env=False)
    for settings in (SYNC, RAY, LEARNERS, {"runtime": "local"}):
        assert not is_fused(plan_of(**settings), Fresh(), jax_env=True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Fresh(), {"unroll": 20, "num_envs": 32, "draws": 0}),
        (MIXED, {"unroll": 20, "num_envs": 16, "draws": 16}),
        (REPLAYED, {"unroll": 10, "num_envs": 32, "draws": 2}),
    ],
)
def test_the_fused_runtime_has_its_shape(source: Any, expected: dict[str, int]) -> None:
    agent: Any = SimpleNamespace(source=source)
    assert fused_shape(plan_of(), agent) == expected | {"draw_size": 32, "policy_lag": 0}


def test_fewer_environments_draw_fewer_batches_of_the_same_size() -> None:
    """Each sequence inserted is drawn as often."""
    agent: Any = SimpleNamespace(source=REPLAYED)
    shape = fused_shape(plan_of(envs_per_actor=16), agent)
    assert (shape["num_envs"], shape["draws"], shape["draw_size"]) == (16, 1, 32)
    run_check(**fused(source=REPLAYED, envs_per_actor=16))
    with pytest.raises(UserError, match=r"make 0.5 updates, which must be a whole number"):
        run_check(**fused(source=REPLAYED, envs_per_actor=8))


def test_given_is_what_differs_from_the_agents_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that wants another architecture is not told that the fused runtime has none."""
    from pronk.agents import impala_config

    monkeypatch.setattr(impala_config, "RUN_DEFAULTS", SYNC, raising=False)
    own = Case(plan_of(**SYNC), Fresh(), halves=True, jax_env=True)
    assert own.fused
    assert not own.given("architecture")
    other = Case(plan_of(), Fresh(), halves=True, jax_env=True)
    assert not other.fused
    assert other.given("architecture")
