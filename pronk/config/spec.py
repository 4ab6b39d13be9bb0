"""The specification of a run: agent, environment and every setting, as saved in `config.json`.

Imports neither jax nor an environment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pronk.config.fields import check
from pronk.config.registry import AgentModule, agent_module
from pronk.config.run import FREE, RunConfig
from pronk.errors import UserError

FORMAT = 2  # of what `Plan.as_json` makes


@dataclass(frozen=True)
class Plan:
    """The specification of a run; raises UserError for values out of their ranges."""

    agent: str
    env: str
    run: RunConfig
    agent_config: Any
    env_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.run)
        check(self.agent_config)

    @property
    def run_dir(self) -> Path:
        """The directory of the run."""
        if self.run.run_dir is not None:
            return Path(self.run.run_dir)
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in self.env)
        if len(name) > 100:  # a long list of tasks, and file names have a limit
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
            "format": FORMAT,
            "pronk": version(),
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
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"'{run_dir}' holds no run: there is no {path}. Give the directory of a run made by"
                " `pronk train`."
            ) from None

    @staticmethod
    def parse(text: str, source: str, *, trusted: Container[str] | None = None) -> Plan:
        """The inverse of `as_json`, from text.

        trusted: agents whose modules may be imported; None: any. Raises UserError naming `source`
        where the text is no plan, of another format, or asks for an agent that is not trusted.
        """
        try:
            saved = json.loads(text)
            check_format(saved, source)
            if trusted is not None and saved["agent"] not in trusted:
                raise UserError(
                    f"`{source}` asks to import the module of its agent, '{saved['agent']}',"
                    " and may come from somebody else. If you trust that module, name it: `--agent"
                    f" {saved['agent']}`, or pronk.load('{source}', agent='{saved['agent']}')."
                )
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
                _agent_of(saved["agent"], source).config(**config),
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
            return  # nothing was learnt there, as by a command that was refused
        saved, ours = identity(Plan.load(run_dir).as_json()), identity(self.as_json())
        refuse_another("run", run_dir, saved, ours)


def _agent_of(name: str, source: str) -> AgentModule:
    """The agent of a saved plan; raises UserError, naming `source`, where there is none."""
    try:
        return agent_module(name)
    except UserError as error:
        raise UserError(f"{source} was made with an agent that is not to be had: {error}") from None


def check_format(saved: Mapping[str, Any], source: str) -> None:
    """Raise UserError where a saved plan is not of the format that this version reads."""
    found = saved.get("format")
    if found != FORMAT:
        wrote = f"pronk {saved.get('pronk')}, in format {found}"
        if found is None:
            wrote = "a version of pronk from before format 2"
        raise UserError(
            f"{source} was written by {wrote}, and pronk {version()} reads format {FORMAT}: train"
            " again, or use the version that wrote it."
        )


def version() -> str:
    """This version of pronk."""
    from importlib import metadata  # slow to import

    try:
        return metadata.version("pronk")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def refuse_another(
    kind: str, directory: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Raise UserError where the identities of two runs or populations (`kind`), the one in
    `directory` and ours, differ."""
    differing = sorted(k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k))
    if differing:
        listed = "; ".join(f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in differing)
        raise UserError(
            f"'{directory}' holds another {kind} ({listed}). Give another --run-dir, or the same"
            " settings to resume that one; nothing was changed."
        )


def run_of(path: Path) -> Path:
    """The run at `path`, or of a population's directory its best member. Raises UserError for a
    population of which no member was scored."""
    if not (path / "pbt.json").exists():
        return path
    try:
        best = json.loads((path / "summary.json").read_text())["best_run"]
    except (OSError, ValueError, KeyError, TypeError):
        best = None
    if not isinstance(best, str):
        raise UserError(
            f"'{path}' holds a population without a best member: none was scored before it last"
            f" paused or ended. Train it for longer, or give one of {path}/members."
        )
    return path / best


def identity(plan: dict[str, Any]) -> dict[str, Any]:
    """The settings of a plan, as JSON, that decide what is learnt, by flat names."""
    flat = {"agent": plan["agent"], "env": plan["env"]}
    flat |= {k: v for k, v in plan["run"].items() if k not in FREE}
    flat |= plan["agent_config"] | {f"env_args.{k}": v for k, v in plan["env_args"].items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}


def env_name(env: Any) -> str:
    """The id of an environment, or the dotted name of a factory and `()`."""
    if isinstance(env, str):
        return env
    name = getattr(env, "__qualname__", type(env).__name__)
    return f"{getattr(env, '__module__', '')}.{name}()"
