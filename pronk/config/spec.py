"""The specification of a run: agent, environment and every setting, as saved in `config.json`.

Imports neither jax nor an environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pronk.config.fields import check, plain
from pronk.config.json_files import MissingJSON, holds, parse_object, read_object
from pronk.config.registry import AgentModule, agent_module
from pronk.config.run import FREE, RunConfig
from pronk.config.sources import changed, refuse_changed, sources
from pronk.errors import UserError

FORMAT = 2  # of what `Plan.as_json` makes


def here() -> str:
    """The current directory; empty where it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


@dataclass(frozen=True)
class Plan:
    """The specification of a run; raises UserError for values out of their ranges."""

    agent: str
    env: str
    run: RunConfig
    agent_config: Any
    env_args: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""  # of which `agent_config` was made; "" where that is not known
    # Relative paths start from this directory, also if an environment changes the current one.
    home: str = field(default_factory=here, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", plain(self.run))
        object.__setattr__(self, "agent_config", plain(self.agent_config))
        check(self.run)
        check(self.agent_config, schedules=True)

    @property
    def run_dir(self) -> Path:
        """The directory of the run."""
        if self.run.run_dir is not None:
            return Path(self.run.run_dir)
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in self.env)
        if len(name) > 100:  # a long list of tasks, and file names have a limit
            env = self.env.encode(errors="surrogatepass")
            name = f"{name[:90]}-{hashlib.sha256(env).hexdigest()[:8]}"
        return Path("runs") / f"{self.agent}-{name}-{self.run.seed}"

    @property
    def directory(self) -> Path:
        """`run_dir` as an absolute path, where this process finds its files."""
        return Path(self.home, self.run_dir)

    def as_json(self) -> dict[str, Any]:
        """The settings in `config.json`, from which `from_json` makes the plan again."""
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
            "preset": self.preset,
            "run": run,
            "agent_config": dataclasses.asdict(self.agent_config),
            "env_args": dict(self.env_args),
        }

    @staticmethod
    def load(run_dir: Path) -> Plan:
        """The plan of the run in `run_dir`; raises UserError where there is none."""
        path = Path(run_dir) / "config.json"
        try:
            return Plan.from_json(read_object(path), str(path))
        except MissingJSON:
            raise UserError(
                f"'{run_dir}' holds no run: there is no {path}. Give the directory of a run made by"
                " `pronk train`."
            ) from None

    @staticmethod
    def parse(text: str, source: str, *, trusted: Container[str] | None = None) -> Plan:
        """`from_json`, from text."""
        return Plan.from_json(parse_object(text, source), source, trusted=trusted)

    @staticmethod
    def from_json(
        saved: Mapping[str, Any], source: str, *, trusted: Container[str] | None = None
    ) -> Plan:
        """The inverse of `as_json`.

        trusted: agents whose modules may be imported; None: any. Raises UserError naming `source`
        where that is no plan, of another format, or asks for an agent that is not trusted.
        """
        try:
            check_format(saved, source)
            for name in ("agent", "env"):
                if not isinstance(saved[name], str):
                    raise TypeError(f"its {name} is not a string")
            preset = saved.get("preset", "")
            if not isinstance(preset, str):
                raise TypeError("its preset is not a string")
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
            agent = _agent_of(saved["agent"], source)
            settings = RunConfig(**run), agent.config(**config)
            try:
                return Plan(
                    saved["agent"], saved["env"], *settings, dict(saved["env_args"]), preset
                )
            except UserError as error:
                raise UserError(f"{source} can't be used: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{source} can't be read as a run's configuration ({why}); it was damaged, or"
                " written by another version of pronk: put back a copy of it, or use that version."
            ) from None

    def described(self) -> dict[str, Any]:
        """The content of `config.json`: the settings, the versions of packages and the sources."""
        return {**self.as_json(), "versions": versions(), "sources": sources(self.agent, self.env)}

    def check_same(self, run_dir: Path) -> list[str]:
        """Raise UserError if `run_dir` holds a run that learns something else, or a population.

        Returns the modules of its agent and environment whose source has changed since. If there
        are any, raises UserError unless the plan names the directory.
        """
        if holds(run_dir, "pbt.json"):
            raise UserError(
                f"'{run_dir}' holds a population, whose members are runs of their own below it;"
                " give another --run-dir, or the one of a member."
            )
        if not any((run_dir / "checkpoints").glob("[0-9]*")):
            return []  # nothing was learnt there, as by a command that was refused
        saved, ours = identity(Plan.load(run_dir).as_json()), identity(self.as_json())
        refuse_another("run", run_dir, saved, ours)
        before = read_object(run_dir / "config.json").get("sources")
        modules = changed(before, sources(self.agent, self.env))
        if self.run.run_dir is None:
            refuse_changed(run_dir, modules)
        return modules


def _agent_of(name: str, source: str) -> AgentModule:
    """The agent of a saved plan; raises UserError, naming `source`, where there is none."""
    try:
        return agent_module(name)
    except UserError as error:
        raise UserError(f"`{source}` needs an agent that can't be used: {error}") from None


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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, of those that are there."""
    from importlib import metadata  # slow to import

    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "ale-py", "ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def refuse_another(
    kind: str, directory: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Raise UserError where the identities of two runs or populations (`kind`), the one in
    `directory` and ours, differ."""
    differing = sorted(k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k))
    if differing:
        listed = "; ".join(f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in differing)
        further = ""
        if differing == ["steps"] and kind == "run":
            further = f"; --init-from {directory} begins a new run with its parameters"
        raise UserError(
            f"'{directory}' holds another {kind} ({listed}). Give another --run-dir{further}, or"
            " the same settings to resume that one; nothing was changed."
        )


def run_of(path: Path) -> Path:
    """The run at `path`, or of a population's directory its best member. Raises UserError for a
    population of which no member was scored."""
    if not holds(path, "pbt.json"):
        return path
    try:
        best = read_object(path / "summary.json").get("best_run")
    except MissingJSON:
        best = None
    if not (isinstance(best, str) and re.fullmatch(r"members/[0-9]{2,}", best)):
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
