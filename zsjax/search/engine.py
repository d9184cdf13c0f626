"""What a search engine is: the protocol, what it is told about a question, and two engines for ablations."""

import collections
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


class Mixed:
    """Asks one of two engines for each search, by a coin: training that moves from a simulator to real search.

    The coin of a search is a function of (seed, query, question id, context.call) alone. `share`: P(the real engine);
    the training loop sets it before each step.
    """

    by_call = True

    def __init__(self, simulator: Engine, real: Engine, *, share: float = 0.0, seed: int = 0):
        self.simulator, self.real, self.share, self.seed = simulator, real, share, seed
        self.uses_devices = any(getattr(engine, "uses_devices", False) for engine in (simulator, real))

    @property
    def counters(self) -> collections.Counter:
        return sum((getattr(engine, "counters", collections.Counter()) for engine in (self.simulator, self.real)),
                   collections.Counter())

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        """Which searches the simulator answers."""
        return [chance(self.seed, query, context.question.id, context.call) >= self.share
                for query, context in zip(queries, contexts, strict=True)]

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        check_request(queries, contexts, k)
        simulated = self.obeys_noise(queries, contexts)
        found: list = [None] * len(queries)
        for engine, side in ((self.simulator, True), (self.real, False)):
            rows = [row for row, is_simulated in enumerate(simulated) if is_simulated == side]
            if rows:
                results = engine.search([queries[row] for row in rows], [contexts[row] for row in rows], k=k)
                for row, documents in zip(rows, results, strict=True):
                    found[row] = documents
        return found


class Empty:
    """Finds k documents without any content, whatever is asked: an ablation, since nothing can be read from it."""

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        check_request(queries, contexts, k)
        return [[Document("", "") for _ in range(k)] for _ in queries]


class DropBest:
    """Loses the best document of a call with some probability: a test of robustness.

    The loss is a function of (seed, query, question id, context.call) alone: no batch mate and no earlier search
    changes it, and the same query asked again under another call has another chance.
    """

    by_call = True

    def __init__(self, engine: Engine, probability: float, seed: int = 0):
        """Wraps engine. probability: of losing the best document, 0 to 1. Raises ValueError outside of that."""
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} must be between 0 and 1")
        self.engine, self.probability, self.seed = engine, probability, seed
        self.counters = getattr(engine, "counters", collections.Counter())
        self.uses_devices = getattr(engine, "uses_devices", False)

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        check_request(queries, contexts, k)
        found = self.engine.search(queries, contexts, k=k + 1)
        calls = [()] * len(queries) if contexts is None else [(c.question.id, *c.call) for c in contexts]
        return [documents[1:] if documents and self._loses(query, call) else first(documents, k)
                for documents, query, call in zip(found, queries, calls, strict=True)]

    def _loses(self, query: str, call: tuple) -> bool:
        return chance(self.seed, query, call) < self.probability


def chance(*names) -> float:
    """A number in [0, 1) that is a function of what it is given."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
