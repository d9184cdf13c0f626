"""What a search engine is: its interface, and what it is told about a question."""

import abc
import dataclasses
import hashlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

from zsjax.types import Question


@dataclasses.dataclass(frozen=True)
class Document:
    """One search result. score: the engine's own measure, higher is better; None where it has none."""

    title: str
    text: str
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class SearchContext:
    """What is known about a query beside its text. Real engines ignore it; a simulator needs it.

    Attributes:
      question: the question that is being answered, with every gold answer.
      noisy: whether unhelpful documents are asked for.
      key: a jax key, what a simulator draws from; one for a whole batch.
      call: names this very search, so that the same query asked twice has two chances with an engine that fails at
        random: a tuple of numbers and strings such as (step, episode id, turn, place).
      action: name of the policy's action that asked, see `zsjax.rollout.actions`.
    """

    question: Question
    noisy: bool = False
    key: Any = None
    call: tuple = ()
    action: str = "search"


class Failed(list):
    """The empty result of a search that failed. kind says how: see `zsjax.search.transport.FAILURES`."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind


def first(documents: list[Document], k: int) -> list[Document]:
    """The k first documents; a failure stays one."""
    return documents if isinstance(documents, Failed) else documents[:k]


class BudgetSpent(Exception):
    """The next search would cost more than is left. Nothing is lost: what was paid for is kept, and the run can go on."""


class Engine(abc.ABC):
    """Anything that finds documents for a batch of queries. An engine of your own defines `search` alone.

    A rollout searches from a thread of its own while the policy decodes, one batch after the other. With
    `rollout.search_batches` above 1, `search` is called from that many threads at a time.

    Attributes:
      by_call: True where SearchContext.call changes what is found. Otherwise the same (question, query, mode) is sent
        once in a batch, and all that asked get the same list.
      uses_devices: True where the engine computes with jax. It is then searched between the policy's programs and not
        beside them: two programs of several devices that begin in different orders wait for each other without end.
      counters: requests and failures by name, which the loops write into the metrics.
      share: P(the real engine answers) of an engine that mixes two, which the training loop sets; None elsewhere.
    """

    by_call: bool = False
    uses_devices: bool = False
    counters: Mapping[str, int] = types.MappingProxyType({})
    share: float | None = None

    @abc.abstractmethod
    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        """Up to k documents for each query, best first.

        An empty list says that nothing was found, `Failed` that the search itself failed; neither ends an episode.
        What is found for a query must not depend on the other queries of the batch, which are a matter of timing.

        Raises:
          OSError, TimeoutError: every search of the batch is recorded as failed. Anything else ends the rollout.
        """

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        """Which searches obey SearchContext.noisy: those that a simulator answers."""
        return [False] * len(queries)


class Wrapped(Engine):
    """An engine around another one, of which it has everything but `search`."""

    def __init__(self, engine: Engine):
        self.engine = as_engine(engine)
        self.by_call, self.uses_devices = self.engine.by_call, self.engine.uses_devices

    @property
    def counters(self) -> Mapping[str, int]:
        return self.engine.counters

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        return self.engine.obeys_noise(queries, contexts)


class _Plain(Engine):
    """An object that has `search` and nothing else."""

    def __init__(self, searcher):
        self.searcher = searcher

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        return self.searcher.search(queries, contexts, k=k)


def as_engine(engine) -> Engine:
    """The engine itself; an object that only has `search` gets the defaults of `Engine`.

    Raises:
      TypeError: the object has no `search`.
    """
    if isinstance(engine, Engine):
        return engine
    if not callable(getattr(engine, "search", None)):
        raise TypeError(f"{engine!r} is not a search engine; subclass zsjax.search.Engine and define search")
    return _Plain(engine)


def check_request(queries: Sequence[str], contexts: Sequence[SearchContext] | None, k: int) -> None:
    """Raises ValueError unless k >= 1 and there is one context for each query (None stands for no contexts)."""
    if isinstance(queries, str):
        raise ValueError("queries must be a sequence of strings, not one string")
    if k < 1:
        raise ValueError(f"k={k}: at least one document must be asked for")
    if contexts is not None and len(contexts) != len(queries):
        raise ValueError(f"{len(queries)} queries but {len(contexts)} contexts: query and question would be mispaired")


def chance(*names) -> float:
    """A number in [0, 1) that is a function of what it is given."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
