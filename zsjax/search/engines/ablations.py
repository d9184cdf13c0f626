"""Engines for ablations: documents without content, and a loss of the best document."""

from collections.abc import Sequence

from zsjax.search import registry
from zsjax.search.engine import Document, Engine, SearchContext, Wrapped, chance, check_request, first


class Empty(Engine):
    """Finds k documents without content for each query."""

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        check_request(queries, contexts, k)
        return [[Document("", "") for _ in range(k)] for _ in queries]


class DropBest(Wrapped):
    """Loses the best document of a call with some probability, a test of robustness.

    The loss is a function of (seed, query, question id, context.call) alone. The same query under another call draws
    anew.
    """

    def __init__(self, engine: Engine, probability: float, seed: int = 0):
        """Wraps engine. probability: of losing the best document. Raises ValueError outside of 0 to 1."""
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} must be between 0 and 1")
        super().__init__(engine)
        self.probability, self.seed, self.by_call = probability, seed, True

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        check_request(queries, contexts, k)
        found = self.engine.search(queries, contexts, k=k + 1)
        calls = [()] * len(queries) if contexts is None else [(c.question.id, *c.call) for c in contexts]
        return [documents[1:] if documents and self._loses(query, call) else first(documents, k)
                for documents, query, call in zip(found, queries, calls, strict=True)]

    def _loses(self, query: str, call: tuple) -> bool:
        return chance(self.seed, query, call) < self.probability


@registry.engine("empty", "documents without content: an ablation", is_real=False)
def _empty(setting):
    return Empty()
