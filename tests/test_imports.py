"""The arrows between the rooms, and what importing a room may pull in."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "zsjax"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted(PACKAGE.rglob("*.py"))}

# Modules that import nothing of ours but `types`, and of others only jax, numpy, optax and flax.
PURE = ("schedules", "rewards", "models.layers", "sampling.logits", "rl.roles", "rl.logprobs", "rl.advantages",
        "rl.losses")
# Room -> rooms that its modules may import at module level, besides itself and `types`, `errors`, `files`, `schedules`.
ROOMS = {
    "types": (), "errors": (), "files": (), "registry": (), "schedules": (), "rewards": ("rollout",), "parallel": ("errors",),
    "config": ("errors", "search"), "models": ("parallel",), "sampling": ("models", "parallel"),
    "rl": ("models", "parallel", "errors", "config", "sampling"), "search": ("sampling", "models", "parallel", "errors"),
    "rollout": ("search", "sampling", "models", "rewards", "parallel", "rl", "config", "errors"),
    "supervised": ("models", "rl", "config", "parallel", "errors"),
    "data": ("search", "sampling", "rewards", "errors"),  # Document, the corpus's type; template texts
}
# The loops may import everything below them, and no room imports them.
LOOPS = ("train", "evaluate", "run", "tuning", "report", "launch", "tiny_world", "plan", "evaluation", "monitor")
LAZY = ("transformers", "orbax", "safetensors", "sentencepiece", "tokenizers", "tensorflow", "tensorflow_datasets",
        "bm25s", "ml_collections", "tensorboardX", "rich", "pyarrow", "torch", "array_record",
        "httpx", "tenacity")
BLOCKED = tuple(name for name in LAZY if name != "rich")  # flax imports rich itself


def module_level_imports(path: pathlib.Path, name: str) -> set[str]:
    """Full names of what a file imports when it is imported: not inside functions, not under TYPE_CHECKING."""
    found, todo = set(), list(ast.parse(path.read_text()).body)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            # `from zsjax import types` names the module zsjax.types, not something in the package.
            found |= {f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module
                      for alias in node.names}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)]
    return found


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def run_python(code: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.parametrize("name", MODULES)
def test_arrows(name):
    imports = module_level_imports(MODULES[name], name)
    ours = {other for other in imports if other.split(".")[0] == "zsjax"}
    rooms = {room_of(other) for other in ours} - {room_of(name), ""}
    if name.removeprefix("zsjax.") in PURE:
        assert ours <= {"zsjax.types"}, ours
        outside = {other.split(".")[0] for other in imports - ours} - set(sys.stdlib_module_names)
        assert outside <= {"jax", "numpy", "optax", "flax"}, outside
    elif room_of(name) in LOOPS or name == "zsjax":
        return
    else:
        assert room_of(name) in ROOMS, f"{name}: a new room; give it a line in ROOMS and in the design"
        allowed = {*ROOMS[room_of(name)], "types", "errors", "files", "registry", "schedules"}
        assert rooms <= allowed, f"{name} imports {sorted(rooms - allowed)} at module level"


def test_no_room_imports_a_loop():
    wrong = [(name, other) for name, path in MODULES.items() if room_of(name) not in LOOPS
             for other in module_level_imports(path, name) if other in MODULES and room_of(other) in LOOPS]
    assert not wrong


def test_heavy_packages_load_lazily():
    wrong = [(name, other) for name, path in MODULES.items() for other in module_level_imports(path, name)
             if other.split(".")[0] in LAZY]
    assert not wrong


def test_the_walk_sees_imports(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("import jax\nfrom zsjax import types\nfrom zsjax.rl import losses\ntry:\n    import torch\n"
                    "except ImportError:\n    import bm25s\ndef f():\n    import orbax\nclass A:\n    import rich\n")
    assert module_level_imports(path, "zsjax.rl.x") == {"jax", "zsjax.types", "zsjax.rl.losses", "torch", "bm25s",
                                                        "rich"}


def test_importing_touches_no_device_and_loads_nothing_heavy():
    code = f"""
import sys, zsjax
assert "jax" not in sys.modules, "import zsjax imports jax"
for room in zsjax.__all__[1:]:
    getattr(zsjax, room)
import zsjax.launch, zsjax.config.checks
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a device was touched"
loaded = [name for name in {BLOCKED!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_core_rooms_import_without_the_optional_packages():
    core = [name for name in MODULES if room_of(name) in ("types", "schedules", "parallel", "models", "sampling", "rl",
                                                          "rollout", "search", "rewards", "errors", "files")]
    code = f"""
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
for name in {core!r}:
    importlib.import_module(name)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_names_of_the_package():
    import zsjax

    for room in zsjax.__all__[1:]:
        assert f"zsjax.{room}" in MODULES, room
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zsjax.nothing
