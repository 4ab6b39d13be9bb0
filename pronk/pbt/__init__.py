"""Population based training: many runs that copy each other and adapt their hyperparameters.

Espeholt et al. 2018, "IMPALA", section 5 and appendix F; Jaderberg et al. 2017, "Population Based
Training of Neural Networks". `controller` decides by `decide`; members train in `one_program` or as
`many_runs`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from pronk import envs
from pronk.config.compatibility import check
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.pbt import one_program
from pronk.pbt.controller import Controller, Workplace
from pronk.pbt.decide import parse_tune
from pronk.pbt.many_runs import ManyRuns
from pronk.pbt.member_run import Launcher
from pronk.pbt.setup import Setup, open_journal, refuse_unnamed
from pronk.run.build import is_fused
from pronk.run.contract import check_agent
from pronk.run.guard import catch_signals, lock_run_dir
from pronk.run.setup import build, configure_jax
from pronk.storage.files import cannot_write


def set_up(plan: Plan, settings: PBTConfig, env: str | Callable[[], Any] | None = None) -> Setup:
    """Resolve a population; seed and directory of `plan` are the population's.

    The default directory is runs/pbt-AGENT-ENV-SEED. Raises UserError for hyperparameters that
    cannot be tuned.
    """
    config, env = plan.run, plan.env if env is None else env
    if config.run_dir is None:
        directory = plan.run_dir.with_name(f"pbt-{plan.run_dir.name}")
        refuse_unnamed(plan, directory)
        plan = dataclasses.replace(plan, run=dataclasses.replace(config, run_dir=directory))
    spec, agent = build(plan, env)
    check_agent(plan, agent, spec)
    return Setup(plan, settings, env, spec, agent, parse_tune(settings, plan, agent))


def run(
    plan: Plan, settings: PBTConfig, env: str | Callable[[], Any] | None = None
) -> dict[str, Any]:
    """Train a population from its start, or from where its directory left off; returns the content
    of its `summary.json`.

    Raises UserError for bad input, and where the directory holds another population.
    """
    configure_jax()
    setup = set_up(plan, settings, env)
    in_one_program = _is_one_program(setup)
    try:
        setup.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(setup.directory, error) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_run_dir(setup.directory))
        stopped = stack.enter_context(catch_signals())
        journal = open_journal(setup, one_program=in_one_program)
        stack.callback(journal.close)
        workplace = one_program.OneProgram(setup) if in_one_program else _many_runs(setup)
        stack.callback(workplace.close)
        return Controller(setup, journal, workplace).run(stopped)


def _is_one_program(setup: Setup) -> bool:
    """Whether `--execution` means one program; raises UserError for settings that do not fit."""
    plan, execution = setup.plan, setup.settings.execution
    if execution == "auto":
        execution = "vmapped" if is_fused(plan, setup.env, setup.agent) else "processes"
    jax_env = envs.jax_env_of(setup.env, plan.env_args) is not None
    check(plan, setup.agent, jax_env=jax_env, population=setup.settings, execution=execution)
    if execution == "vmapped":
        one_program.check(setup)
    return execution == "vmapped"


def _many_runs(setup: Setup) -> Workplace:
    """Members as runs, in processes or on Ray; raises UserError where Ray is not installed."""
    if setup.settings.execution != "ray":
        return ManyRuns(setup, Launcher())
    try:
        from pronk.pbt.ray_tasks import RayLauncher  # an optional dependency; half a second
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "`--execution` is ray, but Ray is not installed: pip install 'pronk[ray]'."
        ) from None
    return ManyRuns(setup, RayLauncher(setup.plan, setup.settings.parallel_members))
