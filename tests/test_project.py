"""The project's own promises: layers, sizes, safety, quick start, packaging."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pronk.config.registry import AGENTS, agent_module

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pronk"

# From the top down. A module may import from lower lines, and within its own package.
LAYERS = (
    ("__main__",),
    ("pronk", "cli"),
    ("experiments",),
    ("report",),
    ("pbt",),
    ("run",),
    ("runtime", "agents"),
    ("envs", "replay"),
    ("nn",),
    ("maths",),
    ("storage",),
    ("config",),
    ("types",),
    ("errors",),
)
# What an agent may know: mathematics, its configuration, and what crosses boundaries.
AGENTS_MAY_IMPORT = {"agents", "nn", "maths", "config", "types", "errors"}

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "torch"}
LISTENING_MODULES = {"socket", "socketserver", "http", "xmlrpc", "asyncio"}
UNSAFE_LOADERS = {"np.load", "numpy.load", "jnp.load", "jax.numpy.load", "np.fromfile"}


def module_name(path: Path) -> str:
    """`pronk.envs.atari` for its file, `pronk.envs` for the package's `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TREES = {module_name(p): ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}


def component(module: str) -> str:
    """What the layers speak of: `envs` for `pronk.envs.atari`, `pronk` for the package itself."""
    return module.split(".")[1] if "." in module else module


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every import, also those inside functions or for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in TREES else node.module


def own_imports(module: str) -> Iterator[tuple[int, str]]:
    """Those of pronk's own modules."""
    for line, name in imported(TREES[module]):
        if name.split(".")[0] == "pronk":
            yield line, name


def test_every_module_has_a_layer() -> None:
    known = {name for layer in LAYERS for name in layer}
    assert {component(module) for module in TREES} == known


def test_imports_point_downwards() -> None:
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module}:{line} imports {name}"
        for module in TREES
        for line, name in own_imports(module)
        if component(name) != component(module) and rank[component(name)] <= rank[component(module)]
    ]
    assert not wrong, wrong


def test_no_import_cycles() -> None:
    graph = {module: {name for _, name in own_imports(module)} - {module} for module in TREES}
    while graph:
        leaves = {module for module, below in graph.items() if not below & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {module: below for module, below in graph.items() if module not in leaves}


def test_agents_import_neither_each_other_nor_runtimes() -> None:
    for module in TREES:
        if component(module) != "agents":
            continue
        for line, name in own_imports(module):
            own = name.rsplit(".", 1)[-1]
            assert own not in AGENTS or module.endswith(f".{own}"), (
                f"{module}:{line} imports {name}"
            )
            assert component(name) in AGENTS_MAY_IMPORT, f"{module}:{line} imports {name}"


def test_runtimes_import_no_agent() -> None:
    for module, tree in TREES.items():
        if component(module) == "runtime" or module == "pronk.run.train":
            strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
            assert not {*AGENTS} & {s for s in strings if isinstance(s, str)}, module
    mathematics = {"agents", "nn", "maths"}
    for module in TREES:
        if component(module) == "runtime":
            for line, name in own_imports(module):
                assert component(name) not in mathematics, f"{module}:{line} imports {name}"


def unsafe(module: str) -> Iterator[str]:
    """What a module imports or calls that could run somebody else's code, or listen."""
    for line, name in imported(TREES[module]):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield f"{module}:{line} imports {name}"
        allowed = (module, name) == ("pronk.runtime.places.ray", "socket")
        if name.split(".")[0] in LISTENING_MODULES and not allowed:
            yield f"{module}:{line} imports {name}"
    for node in ast.walk(TREES[module]):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        connects = called == "socket.create_connection"
        if called in UNSAFE_LOADERS | {"eval", "exec"} or (
            called.startswith("socket.") and not connects
        ):
            yield f"{module}:{node.lineno} calls {called}"
        for keyword in node.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not refused:
                yield f"{module}:{node.lineno} allows pickles"


def test_nothing_unsafe() -> None:
    """But for the use of pickle that multiprocessing makes of pipes between its own processes."""
    wrong = [line for module in TREES for line in unsafe(module)]
    assert not wrong, wrong


FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module | ast.ClassDef) -> list[Any]:
    """The public functions and classes of a module or class."""
    kinds = FUNCTIONS | ast.ClassDef
    return [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


def test_docstrings() -> None:
    """Of modules and of their public functions and classes."""
    missing = []
    for module, tree in TREES.items():
        nodes: list[Any] = [tree] if tree.body else []
        nodes += public(tree)
        missing += [f"{module}.{getattr(n, 'name', '')}" for n in nodes if not ast.get_docstring(n)]
    assert not missing, missing


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_functions_are_short() -> None:
    """At most 80 lines, decorators and docstring included."""
    long = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if (count := (node.end_lineno or 0) - begin + 1) > 80:
                    long.append(f"{module}.{node.name}: {count} lines")
    assert not long, long


def test_files_are_short() -> None:
    """At most 450 lines, and an agent, its configuration aside, at most 250."""
    agents = [p for p in (PACKAGE / "agents").glob("*.py") if not p.stem.endswith("_config")]
    counts = {p.relative_to(ROOT): (lines(p), 450) for p in PACKAGE.rglob("*.py")}
    counts |= {p.relative_to(ROOT): (lines(p), 250) for p in agents}
    long = [f"{p}: {count} lines, of {most}" for p, (count, most) in counts.items() if count > most]
    assert not long, long


def test_the_package_has_few_modules_at_its_top() -> None:
    modules = sorted(p.name for p in PACKAGE.glob("*.py"))
    assert len(modules) <= 12, modules


@pytest.mark.parametrize(
    "args",
    [["--help"], ["train", "--help"], ["train", "impala", "--help"]],
    ids=" ".join,
)
def test_help_does_not_wait_for_jax(args: list[str]) -> None:
    program = f"""
import sys
from pronk.cli import main
try:
    main({args!r})
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"jax", "flax", "optax", "gymnasium", "ale_py", "matplotlib"}} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
    assert not done.stderr


def quick_start() -> list[str]:
    """The commands of the README's quick start."""
    readme = (ROOT / "README.md").read_text()
    section = re.search(r"^## Quick start\n(.*?)^## ", readme, re.M | re.S)
    assert section is not None
    blocks = re.findall(r"^```sh\n(.*?)^```", section[1], re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def test_quick_start_is_two_commands() -> None:
    commands = quick_start()
    assert len(commands) == 2
    install = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e "
    assert all(command.startswith(install) for command in commands)
    assert commands[0].endswith(" && .venv/bin/pronk train impala ALE/Pong-v5")
    assert commands[1].endswith(" && .venv/bin/python -m pytest")


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    reading = re.search(r"^test_command=\$\(.*\)$", script, re.M)
    assert reading is not None
    show = f"{reading[0]}\nprintf '%s' \"$test_command\""
    found = subprocess.run(
        ["bash", "-c", show], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == quick_start()[1]
    assert script.splitlines()[-1].startswith('bash -c "$test_command"')


def test_pre_commit_checks_what_ci_checks() -> None:
    assert re.search(r"^\S.* \.ci/lint$", (ROOT / ".ci" / "run").read_text(), re.M)
    hooks = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    assert hooks == [".ci/lint"]


def test_constraints_pin_exactly_and_name_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-z_]+ [<>=!]+ '[a-z0-9.]+')?", line)
    assert not [line for line in lines if "://" in line or "index" in line or "find-links" in line]
    pinned = {line.split("==")[0] for line in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *extras["dev"], *extras["ray"]]
    names = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in direct} - {"pronk"}
    assert names <= pinned, names - pinned


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["pronk"]}  # the directory, all of its files
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not {"py.typed", "*.typed", "pronk", "pronk/"} & set(ignored)


@pytest.mark.parametrize("agent", AGENTS)
def test_documented_presets_are_the_presets(agent: str) -> None:
    page = (ROOT / "docs" / "agents" / f"{agent}.md").read_text()
    for preset, settings in agent_module(agent).presets.items():
        if not settings:
            continue
        row = re.search(rf"^\| `{preset}` \|[^|]*\|([^|]*)\|$", page, re.M)
        assert row is not None, preset
        assert row[1].strip() == ", ".join(f"`{k}` {v}" for k, v in settings.items())


def test_links_in_the_documentation_exist() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"
