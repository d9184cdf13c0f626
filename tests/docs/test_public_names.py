"""Every public name has a docstring that says shapes and errors, and its place in the reference."""

import ast
import importlib
import inspect
import re
import textwrap

import pytest

import zsjax
from tests.docs.blocks import DOCS

# What the design promises, beside what the rooms list in __all__.
PROMISED = """
schedules: zero_search constant linear cosine step reverse
rewards: normalize_answer extract_answer f1_score exact_match contains_match
rl.advantages: gae grpo rloo reinforce reinforce_plus_plus whiten
rl.losses: ppo_clip gspo value_clip kl_penalty aggregate
rl.logprobs: token_logprobs
models: DecoderConfig init_params forward load_hf save_hf
sampling: generate GenerateOutput TagAutomaton
data: load_tokenizer load_questions
search: Document SearchContext Engine BM25 HttpRetriever SerpApi
search.simulator.simulator: Simulator
rollout: make_rollout
types: Episodes TokenBatch TrainState Question
train: train Setup
"""
ARRAYS = {"logprobs", "old_logprobs", "ref_logprobs", "advantages", "values", "returns", "old_values", "per_token", "tokens",
          "lengths", "hidden", "unembed", "roles", "loss_mask", "scores", "rewards", "group_id", "x", "valid", "positions"}
SHAPE = re.compile(r"(?:float|int|bool|uint)\d*\[|\[B|\[\.\.\.")
POINTS_ELSEWHERE = re.compile(r"[Ss]ee `|[Ss]ame arguments|[Aa]s (?:for )?`|as `")


def promised():
    for line in PROMISED.split("\n"):
        module, colon, names = line.partition(":")
        yield from ((f"zsjax.{module}", name) for name in names.split()) if colon else ()


def listed():
    """(module, name) of every name in the __all__ of a room."""
    for room in zsjax.__all__:
        module = importlib.import_module(f"zsjax.{room}") if not room.startswith("_") else None
        yield from ((f"zsjax.{room}", name) for name in getattr(module, "__all__", ()))


NAMES = sorted({*promised(), *listed()})
FUNCTIONS = [(module, name) for module, name in NAMES
             if inspect.isfunction(getattr(importlib.import_module(module), name))]


def of(module, name):
    return getattr(importlib.import_module(module), name)


def covered() -> set[str]:
    """Dotted names that stand in the reference: its items, and what their modules hold."""
    found = set()
    for page in (DOCS / "reference").glob("*.md"):
        for item in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            found.add(item)
            try:
                module = importlib.import_module(item)
            except ImportError:
                continue
            found |= {f"{item}.{name}" for name in vars(module)}
    return found


def test_each_has_its_place_in_the_reference():
    here = covered()
    homes = lambda module, name: {f"{module}.{name}", f"{getattr(of(module, name), '__module__', module)}.{name}"}
    missing = [f"{module}.{name}" for module, name in NAMES
               if not homes(module, name) & here and not name.endswith("Config") and callable(of(module, name))]
    assert not missing, missing


@pytest.mark.parametrize("module, name", NAMES, ids=lambda part: str(part))
def test_each_says_what_it_is(module, name):
    found = of(module, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert (found.__doc__ or "").strip(), name
        methods = vars(found).items() if inspect.isclass(found) else ()
        for method, function in methods:
            if inspect.isfunction(function) and not method.startswith("_") and len(inspect.signature(function).parameters) > 2:
                inherited = any((getattr(base, method, None) or found).__doc__ for base in found.__mro__[1:])
                assert function.__doc__ or inherited, f"{name}.{method}"


@pytest.mark.parametrize("module, name", FUNCTIONS, ids=lambda part: str(part))
def test_functions_say_shapes_and_errors(module, name):
    function = of(module, name)
    doc, parameters = inspect.getdoc(function), set(inspect.signature(function).parameters)
    if parameters & ARRAYS and module != "zsjax.schedules":
        assert SHAPE.search(doc) or POINTS_ELSEWHERE.search(doc), f"{name} takes arrays: say their dtype and shape"
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if any(isinstance(node, ast.Raise) for node in ast.walk(body)):
        assert re.search(r"Raises|raises|Error|[Ss]ame arguments", doc), f"{name} raises: say what"
