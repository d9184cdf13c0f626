"""The interface of search engines, and the context of a query."""

import abc
import dataclasses
import hashlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from zsjax.parallel import hosts
from zsjax.types import Question


@dataclasses.dataclass(frozen=True)
class Document:
    """One search result. score: the engine's own measure, higher is better, or None."""

    title: str
    text: str
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class SearchContext:
    """The facts about a query beside its text. Real engines ignore them; a simulator needs them.

    Attributes:
      question: the question that the policy answers, with every gold answer.
      noisy: whether the documents are to be unhelpful.
      key: a jax key for a simulator's draws; the same for a whole batch.
      call: names this search, a tuple of numbers and strings such as (step, episode id, turn, place). An engine that
        fails at random draws anew for each call.
      action: name of the policy's action that asked, see `zsjax.rollout.actions`.
    """

    question: Question
    noisy: bool = False
    key: Any = None
    call: tuple = ()
    action: str = "search"


class Failed(list):
    """The empty result of a failed search. kind: how it failed, see `zsjax.search.replies.FAILURES`."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind


def first(documents: list[Document], k: int) -> list[Document]:
    """The k first documents; `Failed` stays as it is."""
    return documents if isinstance(documents, Failed) else documents[:k]


class Engine(abc.ABC):
    """Finds documents for a batch of queries. An engine of your own need only define `search`.

    A rollout searches from a thread of its own while the policy decodes, one batch after the other. With
    `rollout.search_batches` above 1, `search` is called from that many threads at a time.

    Attributes:
      by_call: True if SearchContext.call changes the result. Otherwise equal (question, query, mode) of a batch are
        sent once and get the same list.
      uses_devices: True if the engine computes with jax. Its searches then run between the policy's programs, never
        beside them: two programs on several devices that begin in different orders deadlock.
      counters: requests and failures by name; the loops write them into the metrics.
      share: P(the real engine answers), set by the training loop, of an engine that mixes two; None elsewhere.
    """

    by_call: bool = False
    uses_devices: bool = False
    counters: Mapping[str, int] = types.MappingProxyType({})
    share: float | None = None

    @abc.abstractmethod
    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        """Up to k documents for each query, best first.

        An empty list says that nothing was found, and `Failed` that the search failed. Neither ends an episode. The
        result of a query must not depend on the other queries of the batch, which depend on timing.

        Raises:
          OSError, TimeoutError: every search of the batch is recorded as failed. Anything else ends the rollout.
        """

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        """Which searches obey SearchContext.noisy; a simulator's do."""
        return [False] * len(queries)


class Wrapped(Engine):
    """An engine around another one, with the other's attributes and a `search` of its own."""

    def __init__(self, engine: Engine):
        self.engine = as_engine(engine)
        self.by_call, self.uses_devices = self.engine.by_call, self.engine.uses_devices

    @property
    def counters(self) -> Mapping[str, int]:
        return self.engine.counters

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        return self.engine.obeys_noise(queries, contexts)


class AskedByLead(Wrapped):
    """An engine that the lead host alone asks; all hosts get its documents. For searches that all hosts would repeat."""

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        """All hosts must call it, with the same arguments. Errors as of `hosts.together`."""
        if jax.process_count() == 1:
            return self.engine.search(queries, contexts, k=k)

        def ask():
            return [[getattr(documents, "kind", None), [dataclasses.asdict(document) for document in documents]]
                    for documents in self.engine.search(queries, contexts, k=k)]

        return [[Document(**document) for document in documents] if kind is None else Failed(kind)
                for kind, documents in hosts.from_lead(ask)]


class _Plain(Engine):
    """An object that has `search` and nothing else."""

    def __init__(self, searcher):
        self.searcher = searcher

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        return self.searcher.search(queries, contexts, k=k)


def as_engine(engine) -> Engine:
    """The engine as an `Engine`; an object that only has `search` gets the defaults.

    Raises:
      TypeError: the object has no `search`.
    """
    if isinstance(engine, Engine):
        return engine
    if not callable(getattr(engine, "search", None)):
        raise TypeError(f"{engine!r} is not a search engine; subclass zsjax.search.Engine and define search")
    return _Plain(engine)


def check_request(queries: Sequence[str], contexts: Sequence[SearchContext] | None, k: int) -> None:
    """Raises ValueError unless k >= 1 and each query has a context (None: no contexts)."""
    if isinstance(queries, str):
        raise ValueError("queries must be a sequence of strings, not one string")
    if k < 1:
        raise ValueError(f"k={k} is below 1; ask for at least one document")
    if contexts is not None and len(contexts) != len(queries):
        raise ValueError(f"{len(queries)} queries and {len(contexts)} contexts would be mispaired; give one for each")


def chance(*names) -> float:
    """A number in [0, 1) that is a function of its arguments."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
