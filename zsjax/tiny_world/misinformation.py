"""A real engine that is sometimes wrong: its best document has the right form and tells another object.

    c.search.engine = "zsjax.tiny_world.misinformation:misinformed"; c.search.options = dict(wrong=0.2)

`evaluate.misinformation` evaluates with it, beside `evaluate.drop_best`, which loses the best document.
"""

import dataclasses
from collections.abc import Sequence

from zsjax.config.declare import field
from zsjax.errors import InputError
from zsjax.search.engine import Document, Engine, SearchContext, Wrapped, chance, check_request
from zsjax.tiny_world.world import answer_of


@dataclasses.dataclass(frozen=True)
class Options:
    """search.options of the engine."""

    wrong: float = field(0.0, "share of searches whose best document tells another object", "[0, 1]")


class Misinformed(Wrapped):
    """Replaces the object of a search's best document at random.

    Whether and by what is a function of (seed, query, question id, context.call) alone. The same query asked again under
    another call has another chance.
    """

    def __init__(self, engine: Engine, documents: Sequence[Document], wrong: float, seed: int = 0):
        """Wraps engine.

        Args:
          engine: over the documents.
          documents: the tiny world's; their objects take the place of the right one.
          wrong: share of searches, 0 to 1.
          seed: of the draws.

        Raises:
          InputError: wrong is outside of 0 to 1, or there are no documents.
        """
        if not 0 <= wrong <= 1:
            raise InputError(f"wrong={wrong} must be between 0 and 1")
        if not documents:
            raise InputError("misinformation needs the tiny world's documents; the corpus is empty")
        super().__init__(engine)
        self.objects = sorted({answer_of(document) for document in documents})
        self.wrong, self.seed, self.by_call = wrong, seed, True

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        check_request(queries, contexts, k)
        found = self.engine.search(queries, contexts, k=k)
        calls = [()] * len(queries) if contexts is None else [(c.question.id, *c.call) for c in contexts]
        return [[self._falsified(documents[0], query, call), *documents[1:]]
                if documents and chance("wrong", self.seed, query, call) < self.wrong else documents
                for documents, query, call in zip(found, queries, calls, strict=True)]

    def _falsified(self, document: Document, query: str, call: tuple) -> Document:
        right = answer_of(document)
        others = [name for name in self.objects if name != right] or self.objects
        other = others[int(chance("other", self.seed, query, call) * len(others))]
        return dataclasses.replace(document, text=f"{document.text.removesuffix(f'{right}.')}{other}.")


def misinformed(setting, options: Options) -> Misinformed:
    """The factory for `search.engine`: BM25 over the corpus, wrong at random."""
    return Misinformed(setting.engine("bm25"), setting.documents(), options.wrong, setting.config.seed)
