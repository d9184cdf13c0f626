"""BM25 over a corpus, by the bm25s library: built once, stored with a hash of its corpus, memory-mapped when loaded."""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from zsjax.errors import InputError
from zsjax.search import registry
from zsjax.search.corpus_store import hash_of, load_index, row_of, save_index
from zsjax.search.engine import Document, Engine, SearchContext, check_request

_FORMAT = 1


class BM25(Engine):
    """The real engine: Lucene's BM25 over title and text, deterministic to the last tie.

    Make one with `from_documents` or `load`. Documents that share no word with the query are never returned, so fewer
    than k documents come back for a poor query or a small corpus.
    """

    def __init__(self, index, documents: Sequence, settings: dict):
        """index: a bm25s.BM25; documents: what stands at each of its rows; settings: k1, b, stopwords, corpus hash."""
        self._index, self._documents, self._settings = index, documents, settings

    @classmethod
    def from_documents(cls, documents: Iterable[Document | Mapping], *, k1: float = 1.5, b: float = 0.75,
                       stopwords: bool = True, progress: bool = False) -> "BM25":
        """Builds the index.

        Args:
          documents: `Document`s or mappings with "text" and, if there is one, "title".
          k1, b: BM25's saturation and length normalisation (Robertson and Zaragoza 2009, as in Lucene).
          stopwords: leave out the commonest English words. False keeps every word of two letters or more.
          progress: show bars while indexing.

        Raises:
          ValueError: no documents, a document without text, or no word in all of them.
        """
        bm25s = _bm25s()
        rows = [row_of(document, number) for number, document in enumerate(documents)]
        if not rows:
            raise InputError("BM25 needs at least one document; the corpus is empty")
        words = _words([f"{title} {text}" for title, text in rows], stopwords, return_ids=True, progress=progress)
        if not any(words.ids):
            raise InputError(f"none of the {len(rows)} documents holds a word of two letters or more")
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        index.index(words, show_progress=progress)
        settings = {"k1": k1, "b": b, "stopwords": stopwords, "num_documents": len(rows), "corpus_sha256": hash_of(rows)}
        return cls(index, rows, settings)

    def __len__(self) -> int:
        return self._settings["num_documents"]

    @property
    def corpus_hash(self) -> str:
        """SHA-256 of the corpus as it is stored, one JSON line a document, in hexadecimal."""
        return self._settings["corpus_sha256"]

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        """Up to k documents for each query, best first; equal scores come in the corpus's order.

        k may exceed the corpus. Contexts are ignored. Raises ValueError for k < 1 or a wrong number of contexts.
        """
        check_request(queries, contexts, k)
        if not queries:
            return []
        found = []
        for words in _words(list(queries), self._settings["stopwords"], return_ids=False):
            words = [word for word in words if word and word in self._index.vocab_dict]
            if not words:
                found.append([])
                continue
            scores = self._index.get_scores(words)
            found.append([self._document(row, scores[row]) for row in _best(scores, k)])
        return found

    def _document(self, row: int, score: float) -> Document:
        title, text = self._documents[int(row)]
        return Document(title, text, float(score))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the index folder: all of it or, if it is interrupted, none.

        An index that is already there is replaced. Raises FileExistsError when the path holds anything else.
        """
        save_index(path, self._documents, {"format": _FORMAT, "kind": "BM25", **self._settings},
                   lambda folder: self._index.save(folder, show_progress=False))

    @classmethod
    def load(cls, path: str | os.PathLike, *, corpus_hash: str | None = None, mmap: bool = True) -> "BM25":
        """Reads an index folder.

        Args:
          path: what `save` wrote.
          corpus_hash: if given, what the corpus's hash must be.
          mmap: leave the arrays on disk until they are needed. Documents are always read from disk one by one.

        Raises:
          FileNotFoundError: no such index.
          ValueError: the folder's corpus is not the one that was indexed, or not the one asked for.
        """
        documents, settings = load_index(path, kind="BM25", form=_FORMAT, corpus_hash=corpus_hash)
        index = _bm25s().BM25.load(path, mmap=mmap, load_corpus=False, show_progress=False)
        return cls(index, documents, settings)


def _bm25s():
    import logging

    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    return bm25s


def _words(texts, stopwords, *, return_ids, progress=False):
    # NFKC: a letter with its accent apart would be two words, and who searches types neither ligatures nor wide digits.
    texts = [unicodedata.normalize("NFKC", text) for text in texts]
    return _bm25s().tokenize(texts, stopwords="en" if stopwords else [], return_ids=return_ids, show_progress=progress)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k highest positive scores, highest first, equal ones by row.

    bm25s's own selection (argpartition, or jax's top_k where jax is there) breaks ties by chance of platform.
    """
    rows = np.flatnonzero(scores > 0)  # a small part of the corpus: what shares a word with the query
    found = scores[rows]
    if len(rows) > k:
        kept = found >= np.partition(found, -k)[-k]
        rows, found = rows[kept], found[kept]
    return rows[np.argsort(-found, kind="stable")][:k]


@registry.engine("bm25", "over a corpus `{id, title, text}` (JSONL, gzip, parquet); the index is built once, kept with the "
                 "run, memory-mapped", needs=("corpus",))
def _bm25(setting):
    return setting.index("bm25", lambda: BM25.from_documents(setting.documents()), BM25.load)
