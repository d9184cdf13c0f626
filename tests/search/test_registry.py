"""Engines by name: what is registered, and what is said of a name, an option or a factory that cannot be used."""

import dataclasses
import pathlib

import pytest

from zsjax.config import ConfigError, resolve
from zsjax.config.declare import field
from zsjax.errors import InputError
from zsjax.search import registry

HERE = __name__


@dataclasses.dataclass(frozen=True)
class Options:
    speed: float = field(1.0, "words per second", "(0, 10]")
    language: str = field("en", "of the words", choices=("en", "de"))
    plain: int = 3


def mine(setting, options: Options): ...
def bare(setting): ...
def no_dataclass(setting, options): ...


@dataclasses.dataclass(frozen=True)
class Required:
    speed: float


def required(setting, options: Required): ...


def problems_of(**search) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        resolve({"stages": ["evaluate"], "search": search}, files=False)
    return {problem.field: str(problem) for problem in caught.value.problems if problem.field.startswith("search")}


def test_the_table_of_the_readme_is_the_registry():
    assert registry.table() in (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    assert all(registry.find(name).help for name in registry.names())


def test_what_the_engines_say_of_themselves():
    assert registry.real_names() == ("bm25", "dense", "http", "serpapi")
    assert set(registry.names()) - set(registry.evaluation_names()) == {"mixed"}
    search = resolve({"search": {"engine": "mixed", "mix": {"real": "serpapi"}}}, check=False).search
    assert registry.needs("mixed", search) == {"simulator", "prompt", "key"}
    assert registry.needs("nothing", search) == set() == registry.needs("empty", search)
    assert registry.real_or("chat", "bm25") == "bm25" and registry.real_or("http", "bm25") == "http"


@pytest.mark.parametrize("options, field_, said", [
    ({"speed": 11}, "search.options.speed", "above 0, up to 10"), ({"speed": "fast"}, "search.options.speed", "a number"),
    ({"language": "fr"}, "search.options.language", "en, de"), ({"plain": 1.5}, "search.options.plain", "a whole number"),
    ({"sped": 1.0}, "search.options", "did you mean speed?")])
def test_options_are_checked_as_fields_are(options, field_, said):
    found = problems_of(eval_engine=f"{HERE}:mine", options=options)
    assert list(found) == [field_] and said in found[field_]


@pytest.mark.parametrize("name, said", [
    (f"{HERE}:nothing", "no attribute 'nothing'"), ("no.such:thing", "No module"), (f"{HERE}:HERE", "is not a function"),
    (f"{HERE}:no_dataclass", "not annotated by a dataclass"),
    (f"{HERE}:required", "'speed' has no default"), ("mine", "bm25, chat")])
def test_an_engine_that_cannot_be_had(name, said):
    assert said in problems_of(eval_engine=name)["search.eval_engine"]
    with pytest.raises(InputError):
        registry.find(name)


def test_options_need_an_engine_that_has_some():
    assert "none of the named engines has options" in problems_of(options={"speed": 1.0})["search.options"]
    given = resolve({"search": {"eval_engine": f"{HERE}:bare"}, "stages": ["evaluate"]}, files=False, check=False)
    assert registry.find(given.search.eval_engine).options is None


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="zsjax.search.engines.bm25 already"):
        registry.engine("bm25")(mine)
    with pytest.raises(ValueError, match="needs money"):
        registry.engine("other", needs=("money",))
    assert "other" not in registry.names()
