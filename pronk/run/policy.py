"""A trained agent to act with: `policy = pronk.load(run)`."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.config import fields
from pronk.config.json_files import parse_object, read_object
from pronk.config.registry import AGENTS, AgentLike, agent_name
from pronk.config.run import EVAL_MAX_STEPS
from pronk.config.spec import Plan, run_of
from pronk.envs.common_spaces import common_spaces
from pronk.envs.suite import task_number, tasks_of
from pronk.errors import UserError, counted
from pronk.maths.keys import key_of
from pronk.maths.spaces import (
    MASK,
    Observations,
    as_mask,
    as_reward,
    check_actions,
    env_action,
    from_leaves,
    has_mask,
)
from pronk.run.evaluate import Evaluation, SuiteEvaluation, evaluate_all
from pronk.run.setup import INIT_KEY, build, key_for
from pronk.runtime.actor import act_and_keep
from pronk.storage.array_file import ArrayFile, write_arrays
from pronk.storage.checkpoint import Checkpointer, Loaded
from pronk.types import Agent, Array, EnvSpec, PyTree, TimeStep, VectorEnv


class Policy:
    """A trained agent that no longer learns.

    policy = pronk.load("runs/impala-CartPole-v1-0")
    observation, _ = env.reset()
    carry = policy.initial_carry()
    action, carry = policy.act(observation, carry)
    """

    def __init__(
        self, plan: Plan, env: Any, spec: EnvSpec, agent: Agent, behaviour: PyTree, steps: int
    ):
        self.plan, self.env, self.spec, self.agent, self.steps = plan, env, spec, agent, steps
        self._episodes = 0
        self._warned = False  # that an observation is outside the bounds of its space
        self._tasks = tasks_of(env)
        self._task_specs = envs.task_specs(self._tasks, plan.env_args) if self._tasks else [spec]
        self._common = common_spaces(self._task_specs)
        self.behaviour: PyTree = jax.tree.map(jnp.asarray, behaviour)

    def initial_carry(self, *, seed: int | None = None, sample: bool = False) -> PyTree:
        """The carry at the start of an episode.

        sample: draw actions instead of taking the most likely. seed: of the random numbers; by
        default each call uses others.
        """
        self._episodes += 1
        key = key_of(self._episodes if seed is None else seed)
        carry = self.agent.initial_carry(key, np.zeros(1, np.int32), 1, not sample)
        return carry, key, np.uint32(0)

    def words(self, *, sample: bool) -> str:
        """How actions are chosen, for people."""
        epsilon = getattr(self.plan.agent_config, "evaluation_epsilon", 0.0)
        greedy = "greedy" + f" but for ε = {epsilon:g}" * (epsilon > 0)
        count = getattr(self.plan.agent_config, "simulations", None)
        evaluation = getattr(self.plan.agent_config, "evaluation_simulations", None)
        count = count if sample or evaluation is None else evaluation
        searched = "" if count is None else f", {counted(count, 'simulation')}"
        return ("sampled" if sample else greedy) + searched

    def act(
        self,
        observation: PyTree,
        carry: PyTree,
        *,
        reward: float = 0.0,
        action_mask: Any = None,
        task: str | None = None,
    ) -> tuple[Any, PyTree]:
        """The action for one unbatched `observation` of the environment's space.

        carry: of `initial_carry` at the start of an episode, then of the previous call. reward:
        received with the observation; recurrent agents use it. action_mask: True for the actions
        allowed, needed in environments with masks unless they are part of the observation. task:
        for a suite, the name of the task that the observation comes from. Returns the action as
        that environment takes it, and the next carry. Raises UserError for an unknown task, and
        for an observation, reward or mask with which training would not go on.
        """
        k = task_number(self.env, self._tasks, task)
        own = self._task_specs[k]
        agent_carry, key, count = carry
        first = np.array([count == 0])
        no = np.zeros(1, bool)
        batched, reward, mask = self._checked(k, observation, reward, action_mask)
        scale = self._tasks[k].reward_scale if self._tasks else 1.0
        timestep = TimeStep(
            self._common.observation(k, own.observation_space, batched, np),
            np.array([reward * scale], np.float32),
            terminated=no,
            truncated=no,
            first=first,
            task=np.full(1, k, np.int32),
            action_mask=mask,
        )
        action, agent_carry, _ = act_and_keep(
            self.agent.act, self.behaviour, *agent_carry, timestep, key, count
        )
        action = np.asarray(action)
        check_actions(own.action_space, action)
        action = env_action(own.action_space, action[0])
        action = np.int64(action) if isinstance(action, int) else action
        return action, (agent_carry, key, count + np.uint32(1))

    def _checked(
        self, k: int, observation: Any, reward: Any, action_mask: Any
    ) -> tuple[PyTree, float, Array | None]:
        """Observation and mask of task `k`, batched, as environments return them in training, and
        the reward; raises UserError for what would be a fault of an environment there."""
        own = self._task_specs[k]
        space = own.observation_space
        try:
            read = Observations(space)
            leaves = [leaf[None] for leaf in read.leaves(observation)]
            reward = as_reward(reward)
            if action_mask is None and has_mask(space, own.action_space, own.name):
                action_mask = observation[MASK]
            if action_mask is None and own.has_action_mask:
                raise ValueError(f"'{own.name}' has action masks, and `action_mask` is missing")
            mask = None if action_mask is None else as_mask(own.action_space, action_mask)[None]
        except ValueError as error:
            raise UserError(
                f"this policy cannot act: {error}. Give what the environment returns, one"
                f" observation at a time; its space is {space}."
            ) from None
        if not self._warned and (found := read.outside(leaves)):
            self._warned = True
            warnings.warn(f"{found}; it is used as it is", stacklevel=3)
        if self.spec.has_action_mask:
            mask = self._common.action_mask(own.action_space, mask, 1, np)
        return from_leaves(space, leaves), reward, mask

    def evaluate(
        self,
        *,
        episodes: int,
        sample: bool = False,
        seed: int = 1_000_000,
        env: Any = None,
        env_args: Mapping[str, Any] | None = None,
        max_steps: int = EVAL_MAX_STEPS,
        log: Callable[[str], None] = warnings.warn,
    ) -> Evaluation | SuiteEvaluation:
        """Play `episodes` whole episodes, of each task of a suite, with unclipped rewards.

        max_steps: agent steps after which an episode is cut off and counts with its return so far;
        `log` receives a message, and `Evaluation.cut_off` is their number.
        sample: draw actions instead of taking the most likely. env, env_args: another environment
        of the same spaces, and arguments that replace those of training. Raises UserError where
        the spaces differ.
        """
        own = env is None or env == self.env
        chosen: Any = self.env if own else env

        def make_env(task: int | None) -> VectorEnv:
            vector = envs.make(
                chosen,
                min(episodes, 16),
                seed=seed,
                env_args={**(self.plan.env_args if own else {}), **(env_args or {})},
                threads=os.cpu_count() or 1,
                evaluate=True,
                max_faults=self.plan.run.max_env_faults,
                task=task,
            )
            try:
                self._check_spaces(vector.spec)
            except UserError:
                vector.close()
                raise
            return vector

        result = evaluate_all(
            self.agent,
            self.behaviour,
            make_env,
            self.spec if own else envs.spec_of(chosen, env_args),
            episodes=episodes,
            key=key_of(seed),
            sample=sample,
            max_steps=max_steps,
            log=log,
        )
        assert result is not None  # `stop` was not given
        return result

    def _check_spaces(self, spec: EnvSpec) -> None:
        """Raise UserError where an environment's spaces differ from those of training."""
        for kind in ("observation_space", "action_space"):
            theirs, ours = getattr(spec, kind), getattr(self.spec, kind)
            if theirs != ours:
                raise UserError(
                    f"'{spec.name}' has the {kind.replace('_', ' ')} {theirs}, but this policy was"
                    f" trained with {ours}; evaluate it on an environment like its own."
                )


def load(
    path: str | Path,
    env: str | Callable[[], Any] | None = None,
    *,
    agent: AgentLike | None = None,
    simulations: int | None = None,
) -> Policy:
    """The policy of a run's newest valid checkpoint, or of a file that `export` wrote.

    env: needed only where the run was trained on a factory rather than an id. agent: the module to
    trust; needed only for an exported policy whose agent is not pronk's own. simulations: of an
    agent's search, instead of its own number. Changes no setting of JAX or of the process. Raises
    UserError where there is no run, no valid checkpoint, or one that does not fit.
    """
    path = run_of(Path(path))
    exported = ArrayFile(path) if os.path.isfile(path) else None
    plan = Plan.load(path) if exported is None else _exported_plan(exported, agent)
    if agent is not None and agent_name(agent) != plan.agent:
        raise UserError(
            f"`agent` is '{agent_name(agent)}', and '{path}' is a policy of {plan.agent}; leave"
            " `agent` out, or give that one."
        )
    if exported is not None and env is None and ":" in plan.env:
        raise UserError(
            f"`{path}` asks to import the module of its environment, '{plan.env}', and may come"
            " from somebody else. If you trust that module, load it from Python:"
            f" pronk.load(path, env='{plan.env}')."
        )
    plan = _with_simulations(plan, simulations)
    env = plan.env if env is None else env
    if isinstance(env, str) and env.endswith("()"):
        raise UserError(
            f"'{path}' was trained on the function {plan.env}, which cannot be found by its name;"
            " give it from Python: pronk.load(path, env=function)."
        )
    file = newest(path) if exported is None else exported
    spec, made = build(plan, env)
    state = jax.eval_shape(made.init, key_for(plan.run.seed, INIT_KEY))
    behaviour = file.restore("behaviour", jax.eval_shape(made.behaviour, state))
    steps = file.steps if isinstance(file, Loaded) else int(file.meta["steps"])
    return Policy(plan, env, spec, made, behaviour, steps)


def _with_simulations(plan: Plan, simulations: int | None) -> Plan:
    """The plan with another number of simulations, unless it is None; raises UserError for an agent
    that does not search."""
    if simulations is None:
        return plan
    if not hasattr(plan.agent_config, "simulations"):
        raise UserError(
            f"`--simulations` is {simulations}, and agent '{plan.agent}' chooses its actions"
            " without a search; leave it out."
        )
    changed: dict[str, Any] = {"simulations": simulations}
    if hasattr(plan.agent_config, "evaluation_simulations"):  # of evaluations, too
        changed["evaluation_simulations"] = None
    config = dataclasses.replace(plan.agent_config, **changed)
    return dataclasses.replace(plan, agent_config=config)


def load_behaviour(path: Path, template: PyTree, plan: Plan) -> PyTree:
    """The behaviour for `--init-from PATH`: of a run's newest valid checkpoint, or of a file that
    `export` wrote.

    template: `jax.eval_shape(agent.behaviour, state)` of the run that starts from it, which has
    this `plan`. Raises UserError where there is none, where its names, shapes or dtypes are not the
    template's, and where it was learnt with settings with which its parameters mean something else.
    """
    from_run = not os.path.isfile(path)
    file = Checkpointer(run_of(path) / "checkpoints").load() if from_run else ArrayFile(path)
    if file is None:
        raise UserError(
            f"`--init-from` '{path}' holds no checkpoint; give a run's directory, or a file"
            " that `pronk export` wrote."
        )
    if not from_run:
        saved = parse_object(file.meta.get("plan", "{}"), str(path))
    elif (config := run_of(path) / "config.json").exists():
        saved = read_object(config)
    else:
        saved = {}
    if isinstance(settings := saved.get("agent_config"), dict):
        _check_meaning(path, settings, plan)
    try:
        return file.restore("behaviour", template)
    except UserError as error:
        raise UserError(f"`--init-from` '{path}' cannot start this run: {error}") from None


def _check_meaning(path: Path, saved: Mapping[str, Any], plan: Plan) -> None:
    """Raise UserError where the settings with which the parameters in `path` were learnt differ
    from the plan's in one that decides what they mean."""
    for name, rule in fields.rules(type(plan.agent_config)).items():
        ours = getattr(plan.agent_config, name)
        theirs = saved.get(name, ours)
        if rule.meaning and theirs != ours:
            flag = fields.flag(name)
            raise UserError(
                f"`{flag}` is {ours}, and `--init-from` '{path}' was trained with {theirs}, with"
                f" which its values mean something else; give `{flag} {theirs}`, or leave"
                " `--init-from` out."
            )


def _exported_plan(file: ArrayFile, agent: AgentLike | None) -> Plan:
    """The plan in a file that `export` wrote, of pronk's own agents or the one that is trusted;
    raises UserError where there is none."""
    steps = file.meta.get("steps", "")
    if "plan" not in file.meta or not (steps.isdecimal() and len(steps) <= 18):
        raise UserError(
            f"`{file.path}` holds no policy; give a run's directory, or a file that `pronk export`"
            " wrote."
        )
    trusted = {*AGENTS, *([] if agent is None else [agent_name(agent)])}
    return Plan.parse(file.meta["plan"], str(file.path), trusted=trusted)


def export(run_dir: Path, output: Path, *, simulations: int | None = None) -> int:
    """Write a run's newest behaviour, all that acting needs, and its configuration to the
    safetensors file `output`; returns its agent steps.

    simulations: of an agent's search, instead of its own number. Raises UserError where there is no
    valid checkpoint, or the file cannot be written.
    """
    run_dir = run_of(run_dir)
    plan, loaded = _with_simulations(Plan.load(run_dir), simulations), newest(run_dir)
    described = plan.as_json()
    described["run"] |= {"run_dir": None, "init_from": None}  # names of this machine's directories
    meta = {"plan": json.dumps(described), "steps": str(loaded.steps)}
    trees = {"behaviour": loaded.tree("behaviour")}
    write_arrays(output, trees, meta, flag="FILE")
    return loaded.steps


def newest(run_dir: Path) -> Loaded:
    """The newest valid checkpoint of a run; raises UserError where there is none."""
    loaded = Checkpointer(run_dir / "checkpoints").load()
    if loaded is None:
        raise UserError(f"'{run_dir}' holds no checkpoint yet; train it first, or for longer.")
    return loaded
