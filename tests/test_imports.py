"""The arrows between the rooms, and what importing a room may pull in."""

import ast
import functools
import importlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import zsjax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "zsjax"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted(PACKAGE.rglob("*.py"))}

# Modules that import nothing of ours but `PURE_TOO`, and of others only jax, numpy, optax and flax.
PURE_TOO = {"zsjax.types", "zsjax.models.architecture", "zsjax.models.operands", "zsjax.parallel.constrain"}
PURE = ("schedules", "rewards", "models.layers", "models.operands", "sampling.logits", "rl.roles", "rl.logprobs",
        "rl.advantages", "rl.losses")
# Rooms from bottom to top. A module imports its own room and rooms of lower rows, inside of functions as well.
# The config's declarations are at the bottom; what reads and checks a config stands on the rooms that it names.
ROWS = (
    ("errors", "types", "schedules"),
    ("config.fields", "parallel"),
    ("models",),
    ("sampling", "rl", "rewards"),
    ("search",),
    ("rollout", "data"),
    ("evaluate", "supervised"),
    ("monitor",),
    ("train", "tuning"),
    ("evaluation",),
    ("report", "tiny_world"),
    ("config",),
    ("run",),
    ("plan",),
    ("launch",),
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
FREE = ("run", "launch")  # may import everything
DECLARATIONS = ("zsjax.config.fields", "zsjax.config.declare", "zsjax.config.named")
LAZY = ("transformers", "orbax", "safetensors", "sentencepiece", "tokenizers", "tensorflow", "tensorflow_datasets",
        "bm25s", "ml_collections", "tensorboardX", "rich", "pyarrow", "torch", "array_record",
        "httpx", "tenacity")
BLOCKED = tuple(name for name in LAZY if name != "rich")  # flax imports rich itself


class Import(NamedTuple):
    """What a file imports: a full name, and whether only inside of a function."""

    name: str
    lazy: bool


@functools.cache
def imports_of(path: pathlib.Path, name: str) -> set[Import]:
    """Imports of a file, those inside of functions included, those under TYPE_CHECKING not."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return set(_imports(ast.parse(path.read_text()), package, lazy=False))


def _imports(node, package: str, lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, lazy) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*parents, *([node.module] if node.module else [])])
        # `from zsjax import types` names the module zsjax.types, not something in the package.
        names = [f"{module}.{alias.name}" for alias in node.names]
        yield from (Import(full if full in MODULES else module, lazy) for full in names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.orelse:
            yield from _imports(child, package, lazy)
    else:
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, package, lazy)


def module_level_imports(path: pathlib.Path, name: str) -> set[str]:
    return {found.name for found in imports_of(path, name) if not found.lazy}


def room_of(name: str) -> str:
    if name.startswith(DECLARATIONS):
        return "config.fields"
    return name.split(".")[1] if "." in name else ""


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of a circle in order, [] if there is none."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node):]
        if node in done:
            return []
        path.append(node)
        circle = next(filter(None, map(visit, sorted(graph[node]))), [])
        path.pop()
        done.add(node)
        return circle

    return next(filter(None, map(visit, sorted(graph))), [])


def run_python(code: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.parametrize("name", MODULES)
def test_arrows(name):
    imports = {found.name for found in imports_of(MODULES[name], name)}
    ours = {other for other in imports if other.split(".")[0] == "zsjax"}
    if name.removeprefix("zsjax.") in PURE:
        assert ours <= PURE_TOO, ours
        outside = {other.split(".")[0] for other in imports - ours} - set(sys.stdlib_module_names)
        assert outside <= {"jax", "numpy", "optax", "flax"}, outside
    room = room_of(name)
    if not room:
        assert not ours, "the package imports its rooms when they are first named"
        return
    assert room in ROW_OF, f"{name}: a new room; give it a place in ROWS and in the design"
    assert ours <= set(MODULES), f"not a module: {ours - set(MODULES)}"
    wrong = {other for other in ours if room_of(other) != room and ROW_OF.get(room_of(other), 99) >= ROW_OF[room]}
    assert room in FREE or not wrong, f"{name} imports {sorted(wrong)}, which do not stand below it"


def test_no_circle_of_modules():
    graph = {name: {found.name for found in imports_of(path, name)} & (set(MODULES) - {name})
             for name, path in MODULES.items()}
    assert not find_circle(graph)


def test_the_search_for_circles():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert sorted(find_circle({"a": {"b"}, "b": {"d", "c"}, "c": {"b"}, "d": set()})) == ["b", "c"]


def test_heavy_packages_load_lazily():
    wrong = [(name, other) for name, path in MODULES.items() for other in module_level_imports(path, name)
             if other.split(".")[0] in LAZY]
    assert not wrong


def test_the_walk_sees_imports(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("import jax\nfrom zsjax import types\nfrom zsjax.rl import losses\ntry:\n    import torch\n"
                    "except ImportError:\n    import bm25s\ndef f():\n    import orbax\nclass A:\n    import rich\n"
                    "if TYPE_CHECKING:\n    import numpy\n")
    now = {"jax", "zsjax.types", "zsjax.rl.losses", "torch", "bm25s", "rich"}
    assert module_level_imports(path, "zsjax.rl.x") == now
    assert imports_of(path, "zsjax.rl.x") == {Import(name, False) for name in now} | {Import("orbax", True)}


def test_importing_touches_no_device_and_loads_nothing_heavy():
    """Every room, and each module of the rooms that need jax, flax, optax and numpy only."""
    core = [name for name in MODULES if room_of(name) in ("types", "schedules", "parallel", "models", "sampling", "rl",
                                                          "rollout", "search", "rewards", "errors", "config.fields")]
    code = f"""
import importlib, sys
tried = []
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            tried.append(name)
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import zsjax
assert "jax" not in sys.modules, "import zsjax imports jax"
for name in {core!r}:
    importlib.import_module(name)
for room in zsjax.__all__[1:]:
    getattr(zsjax, room)
import zsjax.launch, zsjax.config.checks
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a device was touched"
assert not tried, tried
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_names_of_the_package():
    for room in zsjax.__all__[1:]:
        assert f"zsjax.{room}" in MODULES, room
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zsjax.nothing


def test_names_of_version_0_1_that_left_their_module():
    for path, rooms in zsjax._MOVED_NAMES.items():
        old = importlib.import_module(f"zsjax.{path}")
        for room, names in rooms.items():
            assert all(getattr(old, name) is getattr(importlib.import_module(f"zsjax.{room}"), name) for name in names)
