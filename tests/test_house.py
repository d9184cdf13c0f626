"""Rules of the house, read from the source: sizes, signatures, and one name for one thing."""

import ast
import collections
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "zsjax"
FILES = {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(text) for name, text in FILES.items()}

MAX_LINES = 350  # of a file
MAX_REQUIRED, MAX_PARAMETERS = 8, 12  # parameters without a default, and in all
MAX_TOP_MODULES, MAX_ROOMS = 9, 16
MAX_TRAIN_LINES, MAX_LOOP_LINES = 220, 40
# Names that several files define for one thing, each with the reason.
SHARED_NAMES = {
    "read": "models/families: each family's config.json -> DecoderConfig", "write": "models/families: the way back",
    "train": "the loop; and the stage, which is named as its command", "main": "entry points of two processes",
    "engine": "run/build: a config's engine; search/registry: the decorator that registers one",
    "questions": "run/build: of a config's source; tiny_world: of its worlds",
    "linear": "schedules: a public name; models/layers: the field's word",
}


def parameters(function) -> tuple[int, int]:
    """(without a default, in all), of a method without self."""
    given = function.args
    positional = given.posonlyargs + given.args
    method = bool(positional) and positional[0].arg in ("self", "cls")
    defaults = len(given.defaults) + sum(default is not None for default in given.kw_defaults)
    total = len(positional) + len(given.kwonlyargs) - method
    return total - defaults, total


def is_registered(node) -> bool:
    """Whether a decorator puts the function into a registry, so that the config's name for it counts, not its own."""
    called = [decorator.func for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    return any(isinstance(function, ast.Name) and function.id.isupper() for function in called)


def public_names(trees) -> dict[str, list[str]]:
    """{public class or function: files that define it}."""
    found = collections.defaultdict(list)
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_" and not is_registered(node):
                found[node.name].append(name)
    return found


def loop_lines(tree) -> int:
    """Lines of the longest loop body of the function `train`, blank ones not counted."""
    (train,) = [node for node in tree.body if getattr(node, "name", "") == "train"]
    text = FILES["train.py"].splitlines()
    loops = [node for node in ast.walk(train) if isinstance(node, ast.For | ast.While)]
    return max(sum(bool(line.strip()) for line in text[loop.body[0].lineno - 1:loop.end_lineno]) for loop in loops)


@pytest.mark.parametrize("name", FILES)
def test_sizes_and_signatures(name):
    assert len(FILES[name].splitlines()) <= MAX_LINES, "split it by what a reader looks for"
    long = {node.name: parameters(node) for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef)}
    long = {function: counts for function, counts in long.items()
            if counts[0] > MAX_REQUIRED or counts[1] > MAX_PARAMETERS}
    assert not long, f"(without default, in all) parameters; put what belongs together into a container: {long}"


def test_the_top_of_the_package():
    modules = [path.name for path in PACKAGE.glob("*.py")]
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert len(modules) <= MAX_TOP_MODULES and len(rooms) <= MAX_ROOMS, (sorted(modules), sorted(rooms))


def test_train_reads_top_to_bottom():
    assert len(FILES["train.py"].splitlines()) <= MAX_TRAIN_LINES and loop_lines(TREES["train.py"]) <= MAX_LOOP_LINES


def test_no_two_files_share_a_name():
    files = collections.defaultdict(list)
    for name in FILES:
        files[pathlib.Path(name).name].append(name)
    assert not {name: found for name, found in files.items() if len(found) > 1 and name != "__init__.py"}


def test_no_two_things_share_a_name():
    shared = {name: files for name, files in public_names(TREES).items() if len(files) > 1}
    assert not {name: files for name, files in shared.items() if name not in SHARED_NAMES}
    assert SHARED_NAMES.keys() <= shared.keys(), "an exception that nothing needs any more"


def test_no_test_imports_another_test_file():
    """Fakes and small models are in conftest or in a module that is not a test."""
    found = set()
    for path in sorted((PACKAGE.parent / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [
                alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {(path.name, name) for name in names if name.split(".")[-1].startswith("test_")}
    assert not found


def test_the_glossary_is_short():
    text = (PACKAGE.parent / "docs" / "glossary.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) <= 40 and len({word for word, _ in rows}) == len(rows)
    assert all(meaning.endswith(".") and ". " not in meaning for _, meaning in rows), "one sentence for each word"


def test_the_rules_see_faults():
    faulty = ast.parse("def f(a, b, c, d, e, f, g, h, i): ...\ndef g(self, a, b=1, *, c, d=2): ...\n"
                       "@TERMS('f')\ndef h(): ...\nclass K: ...\n_x = 1")
    functions = [node for node in faulty.body if isinstance(node, ast.FunctionDef)]
    assert [parameters(function) for function in functions] == [(9, 9), (2, 4), (0, 0)]
    assert set(public_names({"one": faulty, "two": ast.parse("class K: ...")})) == {"f", "g", "K"}
    assert public_names({"one": faulty, "two": ast.parse("class K: ...")})["K"] == ["one", "two"]
