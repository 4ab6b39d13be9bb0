"""What a run is: agent, environment and every setting, as saved in its `config.json`.

Imports neither jax nor an environment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pronk.config.registry import config_module
from pronk.config.run import FREE, RunConfig
from pronk.errors import UserError, nearest


@dataclass(frozen=True)
class Plan:
    """A run, fully resolved."""

    agent: str
    env: str
    run: RunConfig
    agent_config: Any
    env_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.run, self.agent_config)

    @property
    def run_dir(self) -> Path:
        """Where the run lives."""
        if self.run.run_dir is not None:
            return Path(self.run.run_dir)
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in self.env)
        if len(name) > 100:  # a long list of tasks, and file names have an end
            name = f"{name[:90]}-{hashlib.sha256(self.env.encode()).hexdigest()[:8]}"
        return Path("runs") / f"{self.agent}-{name}-{self.run.seed}"

    def as_json(self) -> dict[str, Any]:
        """The content of `config.json`."""
        run = {
            k: str(v) if isinstance(v, Path) else v
            for k, v in dataclasses.asdict(
                dataclasses.replace(self.run, run_dir=self.run_dir)
            ).items()
        }
        return {
            "agent": self.agent,
            "env": self.env,
            "run": run,
            "agent_config": dataclasses.asdict(self.agent_config),
            "env_args": dict(self.env_args),
        }

    @staticmethod
    def load(run_dir: Path) -> Plan:
        """The plan of the run in `run_dir`; raises UserError where there is none."""
        path = Path(run_dir) / "config.json"
        try:
            return Plan.parse(path.read_text(), str(path))
        except FileNotFoundError:
            raise UserError(
                f"'{run_dir}' holds no run: there is no {path}. Give the directory of a run made by"
                " `pronk train`."
            ) from None

    @staticmethod
    def parse(text: str, source: str) -> Plan:
        """The plan whose `as_json` is `text`; raises UserError naming `source` where it isn't."""
        try:
            saved = json.loads(text)
            run: dict[str, Any] = {
                k: Path(v) if k in ("run_dir", "init_from") and v else v
                for k, v in saved["run"].items()
            }
            config: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in saved["agent_config"].items()
            }
            if not isinstance(saved["env"], str):
                raise TypeError("its environment is no name")
            return Plan(
                saved["agent"],
                saved["env"],
                RunConfig(**run),
                config_module(saved["agent"]).Config(**config),
                dict(saved["env_args"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{source} can't be read as a run's configuration ({error}); it was damaged, or"
                " written by another version of pronk."
            ) from None

    def check_same(self, run_dir: Path) -> None:
        """Raise UserError if `run_dir` holds a run that learns something else, or a population."""
        if (run_dir / "pbt.json").exists():
            raise UserError(
                f"'{run_dir}' holds a population, whose members are runs of their own below it;"
                " give another --run-dir, or the one of a member."
            )
        if not any((run_dir / "checkpoints").glob("[0-9]*")):
            return  # nothing was learnt there: a command that was refused, say
        saved, ours = identity(Plan.load(run_dir).as_json()), identity(self.as_json())
        refuse_another("run", run_dir, saved, ours)


def refuse_another(
    kind: str, directory: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Raise UserError where the run or population (`kind`) in `directory` is another one than ours,
    by what identifies each."""
    differing = sorted(k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k))
    if differing:
        listed = "; ".join(f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in differing)
        raise UserError(
            f"'{directory}' holds another {kind} ({listed}). Give another --run-dir, or the same"
            " settings to resume that one; nothing was changed."
        )


def run_of(path: Path) -> Path:
    """The run that is meant by `path`: of a population's directory, its best member's, and anything
    else as it is. Raises UserError for a population without one."""
    if not (path / "pbt.json").exists():
        return path
    try:
        best = json.loads((path / "summary.json").read_text())["best_run"]
    except (OSError, ValueError, KeyError, TypeError):
        best = None
    if not isinstance(best, str):
        raise UserError(
            f"'{path}' holds a population of which no member has been found the best yet; train it"
            f" until it pauses or ends after members were scored, or give one of {path}/members."
        )
    return path / best


def identity(plan: dict[str, Any]) -> dict[str, Any]:
    """What of a plan, as JSON, decides what is learnt, by flat names."""
    flat = {"agent": plan["agent"], "env": plan["env"]}
    flat |= {k: v for k, v in plan["run"].items() if k not in FREE}
    flat |= plan["agent_config"] | {f"env_args.{k}": v for k, v in plan["env_args"].items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}


# Numbers that must be above zero, and those that may be zero, by name.
_POSITIVE = frozenset(
    {"steps", "stop_after", "actors", "envs", "checkpoint_every", "keep_checkpoints", "log_every"}
    | {"inference_minimum", "inference_maximum", "inference_timeout", "actor_cores"}
    | {"eval_every", "eval_episodes", "unroll", "batch_size", "learning_rate", "optimiser_epsilon"}
    | {"max_gradient_norm", "rho_bar", "c_bar", "reward_scale", "recurrent_units", "initial_std"}
    | {"sequence_length", "n_steps", "replay_capacity", "replay_minimum", "samples_per_insert"}
    | {"target_every", "hang_after", "actor_cpus", "learners", "pixel_control_cell"}
    | {"stop_after_episodes"}
)
_NOT_NEGATIVE = frozenset(
    {"seed", "env_workers", "max_env_faults", "entropy_cost", "value_cost"}
    | {"reward_clip", "overlap", "burn_in", "rescaling_epsilon", "priority_exponent"}
    | {"importance_exponent", "epsilon_alpha", "head_units", "max_restarts", "actor_gpus"}
    | {"learner_rank", "policy_lag", "trust_region", "pixel_control_cost"}
)
_FRACTIONS = frozenset(
    {"discount", "rmsprop_decay", "priority_mixture", "epsilon_greedy", "average_decay"}
    | {"trace_leak", "replay_fraction", "popart_beta", "pixel_control_discount", "trace_lambda"}
)


def _check(*configs: Any) -> None:
    """Raise UserError for values of the wrong type, and numbers that make no sense."""
    for config in configs:
        hints = typing.get_type_hints(type(config))
        for f in dataclasses.fields(config):
            value = getattr(config, f.name)
            flag = "--" + f.name.replace("_", "-")
            _check_type(flag, value, hints[f.name])
            if f.name == "seed" and value >= 2**63:
                raise UserError(f"`{flag}` is {value}; expected less than 2^63.")
            if f.name == "hidden_sizes" and (not value or min(value) < 1):
                raise UserError(f"`{flag}` is {value}; expected one or more widths of at least 1.")
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if f.name in _POSITIVE and not value > 0:
                raise UserError(f"`{flag}` is {value}; expected a number above zero.")
            if f.name in _NOT_NEGATIVE and not value >= 0:
                raise UserError(f"`{flag}` is {value}; expected zero or more.")
            if f.name in _FRACTIONS and not 0 <= value <= 1:
                raise UserError(f"`{flag}` is {value}; expected a number from 0 to 1.")


def _check_type(flag: str, value: Any, hint: Any) -> None:
    """Raise UserError where `value` is not of the annotated type."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if value not in options:
            listed = ", ".join(map(str, options))
            raise UserError(f"`{flag}` is {value!r}{nearest(str(value), options)} Known: {listed}.")
        return
    optional = type(None) in options
    if value is None and optional:
        return
    kinds = [o for o in options if o is not type(None)] if optional else [hint]
    if kinds == [int]:
        right = isinstance(value, int) and not isinstance(value, bool)
    elif kinds == [float]:
        right = isinstance(value, int | float) and not isinstance(value, bool)
    elif kinds == [bool]:
        right = isinstance(value, bool)
    elif kinds == [str]:
        right = isinstance(value, str)
    elif kinds == [Path]:
        right = isinstance(value, str | Path)
    else:  # the layer widths
        right = isinstance(value, tuple | list) and all(isinstance(v, int) for v in value)
    if not right:
        name = getattr(kinds[0], "__name__", str(kinds[0]))
        raise UserError(f"`{flag}` is {value!r}; expected {name}.")


def preset_config(agent: str, preset: str) -> Any:
    """The agent's configuration with a preset's values; raises UserError for an unknown one."""
    module = config_module(agent)
    if preset not in module.PRESETS:
        raise UserError(
            f"preset '{preset}' of {agent} is unknown{nearest(preset, module.PRESETS) or '.'} Known"
            f" presets: auto, {', '.join(module.PRESETS)}."
        )
    return module.Config(**module.PRESETS[preset])


def env_name(env: Any) -> str:
    """An environment's id, or the dotted name of a factory and `()`."""
    if isinstance(env, str):
        return env
    name = getattr(env, "__qualname__", type(env).__name__)
    return f"{getattr(env, '__module__', '')}.{name}()"
