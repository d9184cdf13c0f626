"""Dense retrieval: documents and queries are vectors, and the nearest documents by cosine are found.

Any `embed(list[str]) -> float32[N, D]` may be used. `decoder_embedder` makes one of a decoder, as Qwen3-Embedding
(arXiv 2506.05176): the hidden state of an end token behind the text.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from zsjax.errors import InputError
from zsjax.sampling import ragged
from zsjax.search import registry
from zsjax.search.corpus_store import hash_of, load_index, row_of, save_index
from zsjax.search.engine import Document, Engine, SearchContext, check_request

_FORMAT = 1
_VECTORS = "vectors.npy"
_QUERIES = 32  # scored at a time, which takes float32[32, N]
# The form of queries for Qwen3-Embedding; documents are read as they are.
QUERY_FORMAT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:{query}"


class Dense(Engine):
    """An exact index of float32[N, D] unit vectors. A document's score is its cosine with the query."""

    uses_devices = True  # a decoder may embed the queries

    def __init__(self, vectors, documents: Sequence, settings: dict, embed_query: Callable):
        """vectors: float32[N, D] unit rows; documents: (title, text) rows; embed_query: list[str] -> float32[B, D]."""
        self._vectors, self._documents, self._settings, self._embed_query = vectors, documents, settings, embed_query

    @classmethod
    def from_documents(cls, documents: Iterable[Document | Mapping], embed: Callable[[list[str]], np.ndarray], *,
                       embed_query: Callable | None = None, batch_size: int = 256, name: str = "") -> "Dense":
        """Embeds a corpus.

        Args:
          documents: `Document`s or mappings with "text" and, if there is one, "title".
          embed: texts ("title" newline "text") -> float[B, D], normalised or not.
          embed_query: the same for queries; None is embed.
          batch_size: texts of one call of embed.
          name: of the embedder, kept with a stored index.

        Raises:
          InputError: no documents, or one without text.
          ValueError: embed returns another shape, or numbers that are not finite.
        """
        rows = [row_of(document, number) for number, document in enumerate(documents)]
        if not rows:
            raise InputError("the corpus is empty; a dense index needs at least one document")
        texts = [f"{title}\n{text}".strip() for title, text in rows]
        vectors = np.concatenate([_unit(embed(texts[i:i + batch_size]), len(texts[i:i + batch_size]))
                                  for i in range(0, len(texts), batch_size)])
        settings = {"embedder": name, "num_documents": len(rows), "corpus_sha256": hash_of(rows)}
        return cls(vectors, rows, settings, embed_query or embed)

    def __len__(self) -> int:
        return self._settings["num_documents"]

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        """The k nearest documents of each query, nearest first; equal scores are in the corpus's order.

        Contexts are ignored. Raises ValueError as `check_request`.
        """
        check_request(queries, contexts, k)
        found, k = [], min(k, len(self))
        for first in range(0, len(queries), _QUERIES):
            batch = list(queries[first:first + _QUERIES])
            for scores in _unit(self._embed_query(batch), len(batch)) @ self._vectors.T:
                rows = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
                rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
                found.append([Document(*self._documents[int(row)], float(scores[row])) for row in rows])
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Writes the index folder: all of it or none. Raises FileExistsError when the path holds anything else."""
        save_index(path, self._documents, {"format": _FORMAT, "kind": "Dense", **self._settings},
                   lambda folder: np.save(folder / _VECTORS, self._vectors, allow_pickle=False))

    @classmethod
    def load(cls, path: str | os.PathLike, embed_query: Callable, *, name: str = "", corpus_hash: str | None = None,
             mmap: bool = True) -> "Dense":
        """Reads an index folder; vectors are memory-mapped.

        Raises:
          InputNotFound, InputError: as `load_index`; or the index has another embedder than `name`.
        """
        documents, settings = load_index(path, kind="Dense", form=_FORMAT, corpus_hash=corpus_hash)
        if settings.get("embedder") != name:
            held = settings.get("embedder")
            raise InputError(f"{path} is the index of embedder {held!r:.200}, not {name!r}; build the index anew")
        vectors = np.load(os.path.join(path, _VECTORS), mmap_mode="r" if mmap else None, allow_pickle=False)
        return cls(vectors, documents, settings, embed_query)


def decoder_embedder(config, params, tokenizer, *, max_tokens: int = 512, batch_rows: int = 32,
                     text_format: str = "{query}") -> Callable[[list[str]], np.ndarray]:
    """embed(list[str]) -> float32[N, D] unit vectors, of a decoder by last-token pooling.

    A text is cut to max_tokens - 1 tokens and followed by the tokenizer's padding token (Qwen's <|endoftext|>). The
    vector is that token's hidden state after the final norm. sentence-transformers computes the same for
    Qwen3-Embedding.

    Args:
      config, params: DecoderConfig and parameters.
      tokenizer: of `zsjax.data.load_tokenizer`.
      batch_rows: texts read at a time; rows are padded to a power of two of tokens, so few programs are compiled.
      text_format: with the slot {query} for a text: QUERY_FORMAT for queries, "{query}" for documents.
    """
    import jax

    from zsjax.models.decoder import hidden_states

    @jax.jit
    def embed_rows(params, tokens, lengths):
        valid = np.arange(tokens.shape[1]) < lengths[:, None]
        hidden = hidden_states(params, config, tokens, valid=valid)
        last = hidden[np.arange(tokens.shape[0]), lengths - 1].astype("float32")
        return last / (last**2).sum(axis=1, keepdims=True) ** 0.5

    def embed(texts: list[str]) -> np.ndarray:
        bos = list(tokenizer.bos_ids)
        ids = [tokenizer.encode_text(text_format.replace("{query}", text)) for text in texts]
        rows = [[*(bos + of_one)[:max_tokens - 1], tokenizer.pad_id] for of_one in ids]
        out = np.zeros((len(rows), config.embed_dim), np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for first in range(0, len(order), batch_rows):
            batch = order[first:first + batch_rows]
            size = ragged.batch_size(max(len(rows[i]) for i in batch), smallest=16)
            tokens, lengths = ragged.pad(ragged.fill([rows[i] for i in batch], batch_rows), size)
            out[batch] = np.asarray(embed_rows(params, tokens, lengths))[:len(batch)]
        return out

    return embed


def _unit(vectors, count: int) -> np.ndarray:
    """float32[count, D] rows of length 1."""
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) != count or not np.isfinite(vectors).all():
        raise ValueError(f"embed returned shape {vectors.shape}; it must return finite float32[{count}, D]")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@registry.engine("dense", "over a corpus, by vectors: `search.embedder` is a checkpoint (last-token pooling, as "
                 "Qwen3-Embedding) or any function", needs=("corpus", "embedder"))
def _dense(setting):
    name, (embed, embed_query) = setting.config.search.embedder, setting.embedder()

    def build():
        return Dense.from_documents(setting.documents(), embed, embed_query=embed_query, name=name)

    return setting.index("dense", build, lambda folder: Dense.load(folder, embed_query, name=name), name)
