"""A retrieval server as an engine: the `/retrieve` protocol of Search-R1 and FlashRAG.

    POST /retrieve {"queries": ["...", ...], "topk": 3, "return_scores": true}
    -> {"result": [[{"document": {"id": "...", "contents": "\\"Title\\"\\nText"}, "score": 1.5}, ...], ...]}

Without return_scores a result is the document itself. `python -m zsjax.launch serve-corpus` serves it.
"""

import math
from collections.abc import Sequence
from urllib.parse import urlsplit

from zsjax.search import registry
from zsjax.search.addresses import check_address
from zsjax.search.corpus_store import title_of, unquoted
from zsjax.search.engine import Document, Engine, Failed, SearchContext, check_request
from zsjax.search.transport import DEFAULT_LIMITS, Limits, Request, SearchError, Transport
from zsjax.types import whole_text

MAX_TEXT = 20_000  # characters kept of a document's text, far more than a context holds


class HttpRetriever(Engine):
    """Searches on a server. A failed request gives `Failed` results, and the episodes continue.

    A malformed document is left out and counted ("odd_documents"). A search with malformed documents only has failed.
    """

    def __init__(self, url: str, *, batch_size: int = 64, limits: Limits = DEFAULT_LIMITS):
        """url: of the server ("/retrieve" is appended), or of its endpoint. batch_size: queries of one request.

        Raises InputError as `check_address`.
        """
        path = urlsplit(check_address(url, "http://HOST:PORT/retrieve")).path
        self.url = url if path.strip("/") else url.rstrip("/") + "/retrieve"
        self.batch_size, self.transport = batch_size, Transport(limits)

    @property
    def counters(self):
        return self.transport.counters

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        """Up to k documents for each query, in the server's order. Raises ValueError as `check_request`."""
        check_request(queries, contexts, k)
        batches = [list(queries[i:i + self.batch_size]) for i in range(0, len(queries), self.batch_size)]
        requests = [Request(self.url, json={"queries": batch, "topk": k, "return_scores": True}) for batch in batches]
        found: list[list[Document]] = []
        for batch, reply in zip(batches, self.transport.send(requests, parse_result), strict=True):
            if not isinstance(reply, SearchError) and len(reply) != len(batch):
                self.counters["failed_wrong_schema"] += 1
                reply = SearchError("wrong_schema", f"{len(reply)} results for {len(batch)} queries")
            if isinstance(reply, SearchError):
                found += [Failed(reply.kind) for _ in batch]
                continue
            for documents in reply:
                good = [document for document in documents if document is not None]
                self.counters["odd_documents"] += len(documents) - len(good)
                found.append(good[:k] if good or not documents else Failed("wrong_schema"))
        return found


def parse_result(reply) -> list[list[Document | None]]:
    """The documents of a reply of `/retrieve`, with None for a malformed one.

    A query whose entry is not a list has one malformed document. Raises KeyError or TypeError for another form of reply.
    """
    if not isinstance(reply["result"], list):
        raise TypeError(f"result is a {type(reply['result']).__name__}, not a list")
    return [[_document(entry) for entry in documents] if isinstance(documents, list) else [None]
            for documents in reply["result"]]


def _document(entry) -> Document | None:
    score = None
    if isinstance(entry, dict) and "document" in entry:
        entry, score = entry["document"], _score(entry.get("score"))
    if isinstance(entry, str):
        entry = {"contents": entry}
    if not isinstance(entry, dict):
        return None
    title, text = title_of(entry) or "", entry.get("text")
    if not text and isinstance(entry.get("contents"), str):
        line, _, rest = entry["contents"].partition("\n")
        title, text = (title, text) if text == rest else (unquoted(line), rest)
    if not isinstance(title, str) or not isinstance(text, str):
        return None
    return Document(title[:MAX_TEXT], text[:MAX_TEXT], score)


def _score(value) -> float:
    """A finite number; 0 for anything else."""
    try:
        return float(value) if math.isfinite(float(value)) else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0


def result_entry(document: Document, with_score: bool) -> dict:
    """A document as `/retrieve` sends it; `parse_result` is the inverse."""
    title, text = whole_text(document.title), whole_text(document.text)
    entry = {"title": title, "text": text, "contents": f'"{" ".join(title.split())}"\n{text}'}
    return {"document": entry, "score": _score(document.score)} if with_score else entry


@registry.engine("http", "a server of the `/retrieve` protocol of Search-R1 and FlashRAG (`search.remote.url`)",
                 needs=("url",))
def _http(setting):
    return HttpRetriever(setting.config.search.remote.url, limits=setting.limits)
