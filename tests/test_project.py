"""The project's own promises: layers, safety, quick start, packaging."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pronk.config.registry import AGENTS, agent_module

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pronk"

# From the top down. A module may import from lower lines, and within its own package.
LAYERS = (
    ("__main__",),
    ("pronk", "cli"),
    ("experiments",),
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


def test_agents_know_neither_each_other_nor_the_machinery() -> None:
    for module in TREES:
        if component(module) != "agents":
            continue
        for line, name in own_imports(module):
            own = name.rsplit(".", 1)[-1]
            assert own not in AGENTS or module.endswith(f".{own}"), (
                f"{module}:{line} imports {name}"
            )
            assert component(name) in AGENTS_MAY_IMPORT, f"{module}:{line} imports {name}"


def test_runtimes_know_no_algorithm() -> None:
    for path in [*(PACKAGE / "runtime").glob("*.py"), PACKAGE / "run" / "train.py"]:
        assert "r2d2" not in path.read_text().lower(), path
    mathematics = {"agents", "nn", "maths"}
    for module in TREES:
        if component(module) == "runtime":
            for line, name in own_imports(module):
                assert component(name) not in mathematics, f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", TREES)
def test_nothing_unsafe(module: str) -> None:
    """What multiprocessing does on pipes between its own processes is its business."""
    for line, name in imported(TREES[module]):
        assert name.split(".")[0] not in UNSAFE_MODULES, f"{module}:{line} imports {name}"
        if (module, name) != ("pronk.runtime.places.ray", "socket"):
            assert name.split(".")[0] not in LISTENING_MODULES, f"{module}:{line} imports {name}"
    for node in ast.walk(TREES[module]):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert not called.startswith("socket.") or called == "socket.create_connection"
        assert called not in UNSAFE_LOADERS | {"eval", "exec"}, f"{module}:{node.lineno}"
        for keyword in node.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg != "allow_pickle" or refused, f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", TREES)
def test_docstrings(module: str) -> None:
    tree = TREES[module]
    nodes: list[ast.AST] = [tree] if tree.body else []
    nodes += [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    for node in nodes:
        where = f"{module}.{getattr(node, 'name', '')}"
        assert ast.get_docstring(node), f"{where} has no docstring"  # type: ignore[arg-type]


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


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"
