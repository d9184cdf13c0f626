"""BM25 over a corpus, by the library bm25s: built once, stored with a hash of its corpus, loaded memory-mapped."""

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
    """Lucene's BM25 over title and text; `from_documents` or `load` make one.

    Results are deterministic, ties included. A document that shares no word with the query is never found, so a poor
    query or a small corpus gives fewer than k documents.
    """

    def __init__(self, index, documents: Sequence, settings: dict):
        """index: a bm25s.BM25; documents: (title, text) of each of its rows; settings: k1, b, stopwords, corpus hash."""
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
          InputError: no documents, a document without text, or documents without any word.
        """
        bm25s = _bm25s()
        rows = [row_of(document, number) for number, document in enumerate(documents)]
        if not rows:
            raise InputError("the corpus is empty; BM25 needs at least one document")
        words = _words([f"{title} {text}" for title, text in rows], stopwords, return_ids=True, progress=progress)
        if not any(words.ids):
            raise InputError(f"the {len(rows)} documents have no word of two letters or more; check the corpus")
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        index.index(words, show_progress=progress)
        settings = {"k1": k1, "b": b, "stopwords": stopwords, "num_documents": len(rows), "corpus_sha256": hash_of(rows)}
        return cls(index, rows, settings)

    def __len__(self) -> int:
        return self._settings["num_documents"]

    @property
    def corpus_hash(self) -> str:
        """SHA-256 of the stored corpus (one JSON line for each document), in hexadecimal."""
        return self._settings["corpus_sha256"]

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        """Up to k documents for each query, best first; equal scores are in the corpus's order.

        Contexts are ignored. Raises ValueError as `check_request`.
        """
        check_request(queries, contexts, k)
        if not queries:
            return []
        found = []
        for words in _words(list(queries), self._settings.get("stopwords", True), return_ids=False):
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
        """Writes the index folder, whole or not at all, over an older index. Raises InputExists for another folder."""
        save_index(path, self._documents, {"format": _FORMAT, "kind": "BM25", **self._settings},
                   lambda folder: self._index.save(folder, show_progress=False))

    @classmethod
    def load(cls, path: str | os.PathLike, *, corpus_hash: str | None = None, mmap: bool = True) -> "BM25":
        """Reads an index folder.

        Args:
          path: a folder that `save` wrote.
          corpus_hash: the hash that the corpus must have, or None.
          mmap: read the arrays from disk on demand. Documents are always read from disk one by one.

        Raises:
          InputNotFound, InputError: as `load_index`.
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
    # NFKC joins a letter with its accent, and replaces ligatures and wide digits, which nobody types.
    texts = [unicodedata.normalize("NFKC", text) for text in texts]
    return _bm25s().tokenize(texts, stopwords="en" if stopwords else [], return_ids=return_ids, show_progress=progress)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k highest positive scores, highest first, equal ones by row.

    bm25s's own selection (argpartition, or jax's top_k if jax is installed) breaks ties differently on each platform.
    """
    rows = np.flatnonzero(scores > 0)  # documents that share a word with the query: few of the corpus
    found = scores[rows]
    if len(rows) > k:
        kept = found >= np.partition(found, -k)[-k]
        rows, found = rows[kept], found[kept]
    return rows[np.argsort(-found, kind="stable")][:k]


@registry.engine("bm25", "over a corpus `{id, title, text}` (JSONL, gzip, parquet); the index is built once, kept with the "
                 "run, memory-mapped", needs=("corpus",))
def _bm25(setting):
    return setting.index("bm25", lambda: BM25.from_documents(setting.documents()), BM25.load)
