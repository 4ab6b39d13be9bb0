"""Population based training: many runs that copy each other and adapt their hyperparameters.

Espeholt et al. 2018, "IMPALA", section 5 and appendix F; Jaderberg et al. 2017, "Population Based
Training of Neural Networks". `policy` decides, `vmapped` and `processes` carry out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.pbt import processes, vmapped
from pronk.pbt.common import Setup, open_journal
from pronk.pbt.policy import tuned
from pronk.run.build import is_fused
from pronk.run.setup import build, configure_jax
from pronk.run.train import alone_in, signals
from pronk.storage.files import cannot_write


def directory_of(plan: Plan) -> Path:
    """Where a population lives: `--run-dir`, or runs/pbt-AGENT-ENV-SEED."""
    own = plan.run_dir
    return own if plan.run.run_dir is not None else own.with_name(f"pbt-{own.name}")


def set_up(plan: Plan, settings: PBTConfig, env: str | Callable[[], Any] | None = None) -> Setup:
    """The population of this plan, of which `seed` is the whole population's; raises UserError for
    settings that make no sense together."""
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, run_dir=directory_of(plan)))
    config, env = plan.run, plan.env if env is None else env
    if config.learners > 1 or config.stop_after_episodes is not None:
        flag = "learners" if config.learners > 1 else "stop-after-episodes"
        raise UserError(f"`--{flag}` is for single runs; leave it out for a population.")
    spec, agent = build(plan, env)
    return Setup(plan, settings, env, spec, agent, tuned(settings, plan, agent))


def run(
    plan: Plan, settings: PBTConfig, env: str | Callable[[], Any] | None = None
) -> dict[str, Any]:
    """Carry out a population from its start, or from where its directory says it is; returns what
    its `summary.json` holds.

    Raises UserError for bad input, and where the directory holds another population.
    """
    configure_jax()
    setup = set_up(plan, settings, env)
    carry_out = _execution(setup)
    one_program = carry_out is vmapped.run
    try:
        setup.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(setup.directory, error) from None
    with alone_in(setup.directory), signals() as stopped:
        journal = open_journal(setup, one_program=one_program)
        try:
            return carry_out(setup, journal, stopped)
        finally:
            journal.close()


def _execution(setup: Setup) -> Callable[..., dict[str, Any]]:
    """What `--execution` means here; raises UserError for what can't be."""
    settings, plan = setup.settings, setup.plan
    if settings.execution == "ray":
        if plan.run.ray is None:
            raise UserError(
                "`--execution` is ray, and no cluster is named; give `--ray auto`, `--ray local` or"
                " `--ray HOST:PORT`."
            )
        return _of_runs(setup, processes.run_on_ray)
    if settings.execution == "processes":
        return _of_runs(setup, processes.run)
    if settings.execution == "vmapped":
        if plan.run.runtime == "local":
            raise UserError(
                "`--runtime` is local, and a vmapped population is fused; leave one of them out."
            )
        fused = dataclasses.replace(plan, run=dataclasses.replace(plan.run, runtime="fused"))
        try:
            is_fused(fused, setup.env, setup.agent)
        except UserError as error:
            why = str(error).partition("; ")[0]
            raise UserError(
                f"`--execution` is vmapped, for which the runtime is fused, and {why}; use"
                " --execution processes."
            ) from None
    elif not is_fused(plan, setup.env, setup.agent):
        return _of_runs(setup, processes.run)
    vmapped.check(setup)
    return vmapped.run


def _of_runs(setup: Setup, carry_out: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    if setup.plan.run.keep_checkpoints < 2:
        raise UserError(
            f"`--keep-checkpoints` is {setup.plan.run.keep_checkpoints}; expected at least 2 where"
            " members are runs of their own, because one is copied while it saves the next."
        )
    return carry_out
