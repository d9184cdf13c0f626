"""Search engines by name: their needs, their uses, and how a run makes them.

    @engine("mine", "finds nothing, quickly")
    def mine(setting: EngineSetting, options: Options) -> Engine:
        return Mine(setting.documents(), options.speed)

The files of `zsjax.search.engines` register themselves this way. `search.engine = "package.module:mine"` names any
other factory, with or without the decorator. Config checks, runs and README's table read this registry.
"""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

from zsjax.config.named import load_object
from zsjax.errors import InputError
from zsjax.search.engine import Document, Engine
from zsjax.search.transport import Limits

_SPECS: dict[str, "EngineSpec"] = {}
NEEDS = ("corpus", "simulator", "prompt", "url", "served_model", "key", "embedder")


@dataclasses.dataclass(frozen=True)
class EngineSetting:
    """What a run gives to the factory of an engine. Its callables make things on demand.

    Attributes:
      config: the run's `zsjax.config.Config`.
      workdir: the run's folder; relative folders of the config are within it.
      limits: of requests to a server, from search.remote.
      documents: () -> the corpus.
      index: (name, build: () -> index, load: folder -> index, *further inputs of build) -> an index of the corpus, which
        is built once, saved by `index.save(folder)` and loaded later.
      embedder: () -> (embed documents, embed queries) of search.embedder.
      simulator: () -> the run's simulator.
      engine: name -> another engine over the same corpus.
    """

    config: Any
    workdir: pathlib.Path
    limits: Limits
    documents: Callable[[], list[Document]]
    index: Callable[..., Engine]
    embedder: Callable[[], tuple[Callable, Callable]]
    simulator: Callable[[], Engine]
    engine: Callable[[str], Engine]


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """The facts of an engine before it is made.

    Attributes:
      name: in a config.
      factory: (setting: EngineSetting) -> Engine, or (setting, options: Options) -> Engine; a function or a class.
        `Options` is a dataclass with a default for every field; `zsjax.config.declare.field` gives a field its range and
        choices. `search.options` sets them.
      help: a line of README's table.
      needs: names in `NEEDS`, what the config must provide.
      parts: config.search -> names of the engines that it asks; () for an engine that searches itself.
      is_real: whether it finds documents that exist before the search. Other searches are never collected.
      trains, evaluates: whether `search.engine` and `search.eval_engine` may name it.
      keeps_account: whether it keeps results and an account in search.remote.cache_dir, which all hosts must share.
      key_env: environment variable with its key, unless search.remote.key_env names one.
    """

    name: str
    factory: Callable[..., Engine]
    help: str = ""
    needs: tuple[str, ...] = ()
    parts: Callable[[Any], tuple[str, ...]] = lambda search: ()
    is_real: bool = True
    trains: bool = True
    evaluates: bool = True
    keeps_account: bool = False
    key_env: str = ""

    @property
    def options(self) -> type | None:
        """The dataclass of its options, the annotation of the factory's argument `options`; None without options."""
        argument = inspect.signature(self.factory, eval_str=True).parameters.get("options")
        if argument is None:
            return None
        kind = argument.annotation
        if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind)):
            raise InputError(f"the engine {self.name!r}: argument options is not annotated by a dataclass; annotate it")
        required = [field.name for field in dataclasses.fields(kind)
                    if field.default is field.default_factory is dataclasses.MISSING]
        if required:
            raise InputError(f"the engine {self.name!r}: option {required[0]!r} has no default; give it one")
        return kind


def engine(name: str, help: str = "", **said) -> Callable[[Callable], Callable]:
    """Registers a factory under a name. said: fields of `EngineSpec`. Raises ValueError for a name that is taken."""
    if unknown := set(said.get("needs", ())) - set(NEEDS):
        raise ValueError(f"engine {name!r} needs {', '.join(unknown)}; use {', '.join(NEEDS)}")

    def register(factory):
        taken = _SPECS.get(name, EngineSpec(name, factory)).factory
        if (taken.__module__, taken.__qualname__) != (factory.__module__, factory.__qualname__):
            raise ValueError(f"engine {name!r} is registered by {taken.__module__} already; choose another name")
        _SPECS[name] = EngineSpec(name, factory, help, **said)
        return factory

    return register


def find(name: str) -> EngineSpec:
    """The engine that a config names. Raises InputError for an unknown engine or wrong options of it."""
    if name in _SPECS:
        return _SPECS[name]
    factory = load_object(name, "engine", names())
    spec = next((spec for spec in _SPECS.values() if spec.factory is factory), EngineSpec(name, factory))
    _ = spec.options  # raises
    return spec


def names(**said) -> tuple[str, ...]:
    """Names of the registered engines whose fields of `EngineSpec` are these."""
    return tuple(name for name, spec in sorted(_SPECS.items())
                 if all(getattr(spec, key) == value for key, value in said.items()))


def training_names() -> tuple[str, ...]:
    return names(trains=True)


def evaluation_names() -> tuple[str, ...]:
    return names(evaluates=True)


def real_names() -> tuple[str, ...]:
    return names(is_real=True)


def real_or(name: str, other: str) -> str:
    """name if its engine is real, else other."""
    return name if find(name).is_real else other


def specs(name: str, search) -> list[EngineSpec]:
    """The engine of a name and the engines that it asks; [] for an unknown name. search: config.search."""
    try:
        spec = find(name)
    except Exception:  # a user's module may raise anything; the check of the field itself reports it
        return []
    return [spec, *(part for other in spec.parts(search) for part in specs(other, search))]


def needs(name: str, search) -> set[str]:
    """The needs of an engine and of the engines that it asks."""
    return {need for spec in specs(name, search) for need in spec.needs}


def table() -> str:
    """The registered engines as a Markdown table."""
    rows = "".join(f"| `{name}` | {_SPECS[name].help} |\n" for name in names())
    return f"| name | what it is |\n| --- | --- |\n{rows}"
