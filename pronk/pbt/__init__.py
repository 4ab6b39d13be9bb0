"""Population based training: many runs that copy each other and adapt their hyperparameters.

Espeholt et al. 2018, "IMPALA", section 5 and appendix F; Jaderberg et al. 2017, "Population Based
Training of Neural Networks". `policy` decides, `vmapped` and `processes` carry out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pronk import envs
from pronk.config.compatibility import check
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.pbt import processes, vmapped
from pronk.pbt.common import Setup, open_journal
from pronk.pbt.policy import tuned
from pronk.run.build import is_fused
from pronk.run.guard import catch_signals, lock_run_dir
from pronk.run.setup import build, configure_jax
from pronk.storage.files import cannot_write


def directory_of(plan: Plan) -> Path:
    """Where a population lives: `--run-dir`, or runs/pbt-AGENT-ENV-SEED."""
    own = plan.run_dir
    return own if plan.run.run_dir is not None else own.with_name(f"pbt-{own.name}")


def set_up(plan: Plan, settings: PBTConfig, env: str | Callable[[], Any] | None = None) -> Setup:
    """The population of this plan, of which `seed` is the whole population's; raises UserError for
    hyperparameters that can't be tuned."""
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, run_dir=directory_of(plan)))
    env = plan.env if env is None else env
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
    with lock_run_dir(setup.directory), catch_signals() as stopped:
        journal = open_journal(setup, one_program=one_program)
        try:
            return carry_out(setup, journal, stopped)
        finally:
            journal.close()


def _execution(setup: Setup) -> Callable[..., dict[str, Any]]:
    """What `--execution` means here; raises UserError for what can't be."""
    plan, execution = setup.plan, setup.settings.execution
    if execution == "auto":
        execution = "vmapped" if is_fused(plan, setup.env, setup.agent) else "processes"
    jax_env = envs.jax_env_of(setup.env, plan.env_args) is not None
    check(plan, setup.agent, jax_env=jax_env, population=setup.settings, execution=execution)
    if execution == "vmapped":
        vmapped.check(setup)
        return vmapped.run
    return processes.run_on_ray if execution == "ray" else processes.run
