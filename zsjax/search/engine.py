"""What a search engine is: the protocol, and what it is told about a question."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

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
        random: a tuple of numbers and strings such as (step, episode id, turn).
    """

    question: Question
    noisy: bool = False
    key: Any = None
    call: tuple = ()


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


class Engine(Protocol):
    """Anything that finds documents for a batch of queries.

    A rollout searches from a thread of its own while the policy decodes, one batch after the other;
    `rollout.search_batches` above 1 allows as many threads in `search` at a time, which the engine must then bear (those
    here do, but every batch of a remote one has its own limit of concurrency). What is found for a query must not depend
    on its batch mates, which are a matter of timing: then no trajectory depends on how long a search takes.

    An engine may have
      obeys_noise: True for simulators, which obey SearchContext.noisy; or a function (queries, contexts) -> list[bool].
      by_call: True where SearchContext.call changes what is found. Otherwise the same (question, query, mode) is sent
        once in a batch, and all that asked get the same list.
      uses_devices: True where it computes with jax: it is then searched between the policy's programs and not beside
        them, since two programs of several devices that begin in different orders wait for each other without end.
      counters: a Counter of requests and failures that loops write into the metrics.
    """

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        """Up to k documents for each query, best first. An empty list says that nothing was found, `Failed` that the
        search itself failed; neither ends an episode. OSError and TimeoutError fail the whole batch so; what else is
        raised ends the rollout."""
        ...


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
