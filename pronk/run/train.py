"""Training: a run from its start or last checkpoint to its end, counted, shown and saved."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.config.compatibility import check
from pronk.config.registry import AgentLike
from pronk.config.spec import Plan
from pronk.envs.episodes import derived_seed
from pronk.errors import Diverged, UserError
from pronk.nn.networks import describe
from pronk.run.build import make_runtime
from pronk.run.contract import check_agent
from pronk.run.episode_log import EpisodeLog
from pronk.run.evaluate import evaluate_all
from pronk.run.guard import STARTING, Signals, catch_signals, check_signals, lock_run_dir
from pronk.run.meter import Meter
from pronk.run.monitor import Monitor
from pronk.run.policy import load_behaviour
from pronk.run.resolve import resolve
from pronk.run.setup import EVALUATION_KEY, build, configure_jax, initial_state, key_for
from pronk.runtime.api import Runtime, Update
from pronk.runtime.multi_learner import SINGLE_PROCESS, Group, join
from pronk.storage.array_file import write_arrays
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.files import cannot_write, write_json_atomically
from pronk.types import Agent, Batch, LearnerState, Replayed, VectorEnv

# (agent, state, notes) -> (state, notes): changes the learner's state before a segment of a run
# starts, as PBT does; notes (JSON) are kept in the run's checkpoints.
Change = Callable[[Agent, LearnerState, dict[str, Any]], tuple[LearnerState, dict[str, Any]]]

# Consecutive updates with gradients that are not finite after which a run stops.
MAX_SKIPPED = 20


def train(
    agent: AgentLike,
    env: str | Callable[[], Any],
    *,
    preset: str = "auto",
    env_args: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train `agent`, a name or a module, on `env`, an id or a function returning a Gymnasium
    environment.

    settings: fields of `RunConfig` (steps, seed, run_dir …) and of the agent's `Config`. Returns
    what `summary.json` holds. The same call again resumes. Raises UserError for bad input; after
    Ctrl-C KeyboardInterrupt, after SIGTERM and SIGHUP SystemExit, unless the program handles them
    itself, once everything is saved.
    """
    with catch_signals() as signals, signals.within(STARTING), envs.looked_at_once():
        plan = resolve(agent, env, preset=preset, env_args=env_args, **settings)
        return run(plan, env)


def run(
    plan: Plan, env: str | Callable[[], Any] | None = None, *, change: Change | None = None
) -> dict[str, Any]:
    """Carry out a plan, from its last checkpoint if there is one; returns the summary.

    Raises KeyboardInterrupt after a signal that comes before there is anything to save.
    """
    with catch_signals() as signals, signals.within(STARTING), envs.looked_at_once():
        check_signals()
        configure_jax()
        return _start(plan, env, change, signals)


def _start(plan: Plan, env: Any, change: Change | None, signals: Signals) -> dict[str, Any]:
    group = SINGLE_PROCESS
    if plan.run.learners > 1:
        check(plan)  # before the others are waited for
        assert plan.run.coordinator is not None
        group = join(plan.run.coordinator, plan.run.learners, plan.run.learner_rank)
        if group.rank:  # the first one has the run; the others' logs are in directories below it
            directory = plan.run_dir / f"learner{group.rank}"
            plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, run_dir=directory))
    return _Run(plan, plan.env if env is None else env, group, signals, change).train()


class _Run:
    """One segment of a run: from its start or a checkpoint to its end or a pause."""

    def __init__(
        self, plan: Plan, env: Any, group: Group, signals: Signals, change: Change | None = None
    ):
        self.group, self.signals, self.change = group, signals, change
        self.plan, self.env, self.config = plan, env, plan.run
        self.run_dir = plan.directory
        self.changed = plan.check_same(self.run_dir)
        check_signals()
        self.spec, self.agent = build(plan, env)
        check_agent(plan, self.agent, self.spec)
        _check_learns(plan, self.agent)
        self.checkpointer = Checkpointer(
            self.run_dir / "checkpoints", keep=self.config.keep_checkpoints
        )
        self.agent_steps = 0
        self.episodes = EpisodeLog(self.spec)
        self.notes: dict[str, Any] = {}
        self.wall_seconds = 0.0  # of earlier segments
        self.lag_sum, self.lag_count = 0.0, 0
        self.batch: Sequence[Batch] = ()  # the last one learnt from
        self.started = time.perf_counter()

    def train(self) -> dict[str, Any]:
        """Train until the end, a pause or a signal; leaves a checkpoint and a summary."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.run_dir, error) from None
        with lock_run_dir(self.run_dir):
            return self._train()

    def _train(self) -> dict[str, Any]:
        loaded = self.checkpointer.load()
        if loaded is None and not self.group.rank:  # of several learners, the first one saves
            _check_nothing_lost(self.run_dir)
        check_signals()
        state = initial_state(self.plan, self.agent)
        check_signals()
        if loaded is not None:
            state = loaded.restore("learner", state)
            try:
                self._resume(loaded.meta)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"`{loaded.path}` is not the checkpoint of a run ({error!r}); put back a copy"
                    " of it, or give another --run-dir."
                ) from None
        elif self.config.init_from is not None and not self.group.rank:
            template = jax.eval_shape(self.agent.behaviour, state)
            path = Path(self.plan.home, self.config.init_from)
            behaviour = load_behaviour(path, template, self.plan)
            state = self.agent.warm_start(state, jax.tree.map(jnp.asarray, behaviour))
        if self.change is not None:
            state, self.notes = self.change(self.agent, state, self.notes)
        self._check_group()
        state = self.group.broadcast(state)
        (self.agent_steps,) = self.group.all_reduce_sum(0 if self.group.rank else self.agent_steps)
        # At the last record: all updates, and those skipped because a gradient was not finite.
        self.updates, self.skipped = int(state.updates), int(state.skipped)
        described = self.plan.described()
        if self.agent_steps < self.config.steps:  # else it describes what was done
            write_json_atomically(self.run_dir / "config.json", described)
        monitor = Monitor(
            self.run_dir,
            total_steps=self.config.steps,
            frames_per_step=self.spec.frames_per_step,
            title=f"{self.plan.agent} on {self.plan.env}",
            quiet=self.config.quiet,
            resume_steps=self.agent_steps or None,
            alerts=self.agent.alerts,
        )
        with contextlib.closing(monitor), contextlib.closing(self.checkpointer):
            for warning in loaded.warnings if loaded is not None else ():
                monitor.message(f"warning: {warning}")
            for module in self.changed:
                monitor.message(f"warning: the source of {module} has changed since the last start")
            if self.agent_steps >= self.config.steps:
                directory = self.plan.run_dir
                monitor.message(f"already trained for {self.agent_steps:,} steps: {directory}")
                return self._summary("finished", "", self.updates)
            if (torso := getattr(self.plan.agent_config, "torso", None)) is not None:
                monitor.message(describe(self.spec.observation_space, torso))
            for note in self.agent.notes:
                monitor.message(note)
            with contextlib.ExitStack() as stack:
                runtime = make_runtime(
                    self.plan,
                    self.env,
                    self.agent,
                    state,
                    start_step=self.agent_steps,
                    log=monitor.message,
                    stack=stack,
                    note=lambda numbers: write_json_atomically(
                        self.run_dir / "config.json", described | {"resolved": numbers}
                    ),
                )
                stack.callback(runtime.close)
                if loaded is not None:
                    monitor.message(f"resumed at {self.agent_steps:,} steps from {loaded.path}")
                    for line in runtime.restore(loaded):
                        monitor.message(line)
                check_signals()
                with self.signals.within(None):  # the loop looks whether one came
                    return self._loop(runtime, monitor)

    def _check_group(self) -> None:
        """Raise UserError in all learners if their settings are not the same."""
        free = ("run_dir", "learner_rank", "quiet", "log_every")
        run = {k: v for k, v in self.plan.as_json()["run"].items() if k not in free}
        settings = json.dumps([self.plan.as_json() | {"run": run}], sort_keys=True, default=str)
        mine = int.from_bytes(hashlib.sha256(settings.encode()).digest()[:3], "big")
        (total,) = self.group.all_reduce_sum(mine)
        if total != mine * self.group.count:
            raise UserError(
                f"the {self.group.count} learners were not started with the same settings; expected"
                " the same command for each but for `--learner-rank`."
            )

    def _resume(self, meta: Mapping[str, Any]) -> None:
        self.agent_steps = meta["agent_steps"]
        self.episodes.restore(meta)
        self.notes = meta.get("notes", {})
        self.wall_seconds = meta["wall_seconds"]
        self.lag_sum, self.lag_count = meta["lag_sum"], meta["lag_count"]

    def _loop(self, runtime: Runtime, monitor: Monitor) -> dict[str, Any]:
        config = self.config
        # With several learners, the first one evaluates.
        eval_every = None if self.group.rank else config.eval_every
        next_eval = _next_multiple(self.agent_steps, eval_every)
        last_save = last_line = time.perf_counter()
        meter: Meter | None = None  # begins after the first update, which compiles
        try:
            stop = 0  # agreed on by all learners
            while not (status := self._status(runtime, stop)):
                update = runtime.update()
                steps, stop = self.group.all_reduce_sum(update.steps, int(self.signals.is_set()))
                self._count(update, steps)
                for warning in update.warnings:
                    monitor.message(f"warning: {warning}")
                if not update.metrics:
                    continue  # nothing was learnt yet
                self.batch = update.batch
                if meter is None:
                    jax.block_until_ready(update.metrics)
                    seconds = time.perf_counter() - self.started
                    monitor.message(f"first update after {seconds:.1f} s")
                    meter, last_line = Meter(self.agent_steps), time.perf_counter()
                meter.add(update)
                line = time.perf_counter() - last_line >= config.log_every
                if line or meter.is_due(config, self.agent_steps):
                    self._log(runtime, monitor, meter, line=line)
                    meter = Meter(self.agent_steps)
                    last_line = time.perf_counter() if line else last_line
                if next_eval is not None and runtime.drained and self.agent_steps >= next_eval:
                    with meter.paused():
                        self._evaluate(runtime, monitor)
                    next_eval = _next_multiple(self.agent_steps, eval_every)
                if runtime.drained and time.perf_counter() - last_save >= config.checkpoint_every:
                    self._save(runtime)
                    last_save = time.perf_counter()
            if meter is not None and meter.metrics:
                self._log(runtime, monitor, meter)
        except BaseException:
            # Save what was learnt, unless the update itself failed half-way: then its state is
            # gone (its memory was donated), and the last checkpoint stands.
            if runtime.drained and not _donated(runtime.learner_state):
                with contextlib.suppress(UserError):  # the first failure is the one to report
                    self._save(runtime, block=True)
            raise
        self._save(runtime, block=True)
        summary = self._summary(status, runtime.bound_by(), int(runtime.learner_state.updates))
        if status == "finished" and not summary["updates"]:
            smaller = ", or a smaller `--replay-minimum`" * isinstance(self.agent.source, Replayed)
            monitor.message(
                "warning: the run ended before its first update, so nothing was learnt and there"
                f" is no checkpoint; expected more `--steps`{smaller}"
            )
        monitor.summary(summary)
        return summary

    def _status(self, runtime: Runtime, stop: int) -> str:
        """Why the run stops here; empty to go on."""
        if not runtime.drained:
            return ""
        if stop or (self.group.count == 1 and self.signals.is_set()):
            return "interrupted"
        if self.agent_steps >= self.config.steps:
            return "finished"
        stop_after = self.config.stop_after
        if stop_after is not None and self.agent_steps >= stop_after:
            return "paused"
        stop_after = self.config.stop_after_episodes
        return "paused" if stop_after is not None and self.episodes.count >= stop_after else ""

    def _count(self, update: Update, steps: int) -> None:
        self.agent_steps += steps
        self.episodes.add(update.episodes)
        if update.metrics:
            self.lag_sum, self.lag_count = self.lag_sum + update.policy_lag, self.lag_count + 1

    def _log(self, runtime: Runtime, monitor: Monitor, meter: Meter, *, line: bool = True) -> None:
        state = runtime.learner_state
        record = {
            **self._counters(),
            "updates": int(state.updates),
            **meter.record(self.agent_steps),
            "bound_by": runtime.bound_by(),
            "skipped_updates": int(state.skipped),
            **runtime.faults(),
        }
        monitor.log(record, line=line)
        self._check_finite(record)

    def _check_finite(self, record: Mapping[str, Any]) -> None:
        """Raise UserError if no update since some record had a finite gradient, and these are at
        least MAX_SKIPPED updates."""
        updates = record["updates"] - self.updates
        skipped = record["skipped_updates"] - self.skipped
        if skipped < updates:
            self.updates, self.skipped = record["updates"], record["skipped_updates"]
        if skipped < max(updates, MAX_SKIPPED):
            return
        kept = "The fused runtime, and several learners, keep no batch: --runtime local does."
        if self.batch and self.group.count == 1:
            path = self.run_dir / "diverged.safetensors"
            write_arrays(path, {"batch": list(self.batch)}, {"updates": str(record["updates"])})
            kept = f"The last batch is in {path}."
        raise Diverged(
            f"the last {skipped} updates were left out because their gradients were not finite, so"
            f" nothing is learnt any more. The parameters from before are saved. {kept} Look for"
            " huge rewards or observations, or lower the learning rate."
        )

    def _counters(self) -> dict[str, Any]:
        return {
            "steps": self.agent_steps,
            "frames": self.agent_steps * self.spec.frames_per_step,
            "wall_seconds": self.wall_seconds + time.perf_counter() - self.started,
            **self.episodes.metrics(explores=self.agent.explores is not None),
        }

    def _evaluate(self, runtime: Runtime, monitor: Monitor) -> None:
        config = self.config

        def make_env(task: int | None) -> VectorEnv:
            return envs.make(
                self.env,
                min(config.eval_episodes, 16),
                seed=derived_seed(config.seed, EVALUATION_KEY, self.agent_steps),
                env_args=self.plan.env_args,
                workers=config.env_workers,
                hang_after=config.hang_after,
                threads=os.cpu_count() or 1,
                evaluate=True,
                fault_log=self.run_dir / "env_faults.log",
                max_faults=config.max_env_faults,
                task=task,
            )

        behaviour = jax.tree.map(np.asarray, self.agent.behaviour(runtime.learner_state))
        result = evaluate_all(
            self.agent,
            behaviour,
            make_env,
            self.spec,
            episodes=config.eval_episodes,
            key=key_for(config.seed, EVALUATION_KEY),
            stop=self.signals.is_set,
            max_steps=config.eval_max_steps,
            log=monitor.message,
        )
        if result is not None:
            fields = {f"eval/{k}": v for k, v in result.metrics().items()}
            monitor.log({**self._counters(), **fields})

    def _save(self, runtime: Runtime, *, block: bool = False) -> None:
        if not self.lag_count or self.group.rank:
            return  # nothing was learnt yet; of several learners the first one saves
        meta = {
            "agent_steps": self.agent_steps,
            **self.episodes.as_json(),
            "notes": self.notes,
            "wall_seconds": self.wall_seconds + time.perf_counter() - self.started,
            "lag_sum": self.lag_sum,
            "lag_count": self.lag_count,
        }
        learner = runtime.learner_state
        behaviour = self.agent.behaviour(learner)
        trees = {"learner": learner, "behaviour": behaviour, **runtime.state()}
        self.checkpointer.save(self.agent_steps, trees, meta, block=block)

    def _summary(self, status: str, bound_by: str, updates: int) -> dict[str, Any]:
        counters = self._counters()
        return {
            "status": status,
            "agent": self.plan.agent,
            "env": self.plan.env,
            "seed": self.config.seed,
            "agent_steps": counters["steps"],
            "frames": counters["frames"],
            "updates": updates,
            "wall_seconds": counters["wall_seconds"],
            "steps_per_second": counters["steps"] / counters["wall_seconds"],
            **self.episodes.metrics(explores=self.agent.explores is not None),
            "policy_lag": self.lag_sum / max(self.lag_count, 1),
            "bound_by": bound_by,
            "run_dir": str(self.plan.run_dir),
        }


def _check_learns(plan: Plan, agent: Agent) -> None:
    """Raise UserError if the run ends before its replay has what the first update needs."""
    source, steps = agent.source, plan.run.steps
    # A step adds at most one sequence.
    if isinstance(source, Replayed) and steps <= source.min_size:
        raise UserError(
            f"`--steps` is {steps:,}, and nothing is learnt before the replay holds"
            f" {source.min_size:,} sequences, one per step at most; expected more steps, or a"
            " smaller `--replay-minimum`."
        )


def _check_nothing_lost(run_dir: Path) -> None:
    """Raise UserError for a run that has no checkpoint any more, whose curves a new one would
    overwrite. The summary of a run that made updates is written after a checkpoint."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text())
        steps, updates = int(summary["agent_steps"]), int(summary["updates"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not updates:
        return
    raise UserError(
        f"`{run_dir}` has the curves of a run of {steps:,} steps, and no checkpoint in"
        f" `{run_dir / 'checkpoints'}`, so it can't go on. Put the checkpoints back, or give"
        " another --run-dir."
    )


def _donated(state: LearnerState) -> bool:
    return any(x.is_deleted() for x in jax.tree.leaves(state) if isinstance(x, jax.Array))


def _next_multiple(steps: int, every: int | None) -> int | None:
    return None if every is None else (steps // every + 1) * every
