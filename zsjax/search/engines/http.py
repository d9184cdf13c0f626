"""A retrieval server as an engine: the `/retrieve` protocol of Search-R1 and FlashRAG.

    POST /retrieve {"queries": ["...", ...], "topk": 3, "return_scores": true}
    -> {"result": [[{"document": {"id": "...", "contents": "\\"Title\\"\\nText"}, "score": 1.5}, ...], ...]}

Without return_scores a result is the document itself. `python -m zsjax.launch serve-corpus` serves it.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from zsjax.search.engine import Document, Engine, Failed, SearchContext, check_request
from zsjax.search.transport import DEFAULT_LIMITS, Limits, Request, SearchError, Transport

MAX_TEXT = 20_000  # characters kept of a document's text: far more than a context has room for


class HttpRetriever(Engine):
    """Searches on a server; a request that fails gives `Failed` results, and the episodes go on."""

    def __init__(self, url: str, *, batch_size: int = 64, limits: Limits = DEFAULT_LIMITS):
        """url: of the server, or of its endpoint ("/retrieve" is put behind a bare host). batch_size: queries a request.

        Raises ValueError when the url has no http(s) scheme or no host.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{url!r} is no address of a server; give http://HOST:PORT/retrieve")
        self.url = url if parts.path.strip("/") else url.rstrip("/") + "/retrieve"
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
        found = []
        for batch, reply in zip(batches, self.transport.send(requests, parse_result), strict=True):
            if not isinstance(reply, SearchError) and len(reply) != len(batch):
                self.transport.counters["failed_wrong_schema"] += 1
                reply = SearchError("wrong_schema", f"{len(reply)} results for {len(batch)} queries")
            if isinstance(reply, SearchError):
                found += [Failed(reply.kind) for _ in batch]
            else:
                found += [documents[:k] for documents in reply]
        return found


def parse_result(reply) -> list[list[Document]]:
    """Documents of a reply of `/retrieve`. Raises KeyError, TypeError or ValueError on another form."""
    if not isinstance(reply["result"], list):
        raise TypeError(f"result is a {type(reply['result']).__name__}, not a list")
    return [[_document(entry) for entry in documents] for documents in reply["result"]]


def _document(entry) -> Document:
    score = None
    if isinstance(entry, dict) and "document" in entry:
        entry, score = entry["document"], float(entry.get("score") or 0.0)
    if isinstance(entry, str):
        entry = {"contents": entry}
    if "contents" in entry:
        title, _, text = entry["contents"].partition("\n")
        title = title.strip().strip('"')
    else:
        title, text = entry.get("title") or "", entry["text"]
    if not isinstance(title, str) or not isinstance(text, str):
        raise TypeError("a document's title and text must be strings")
    return Document(title[:MAX_TEXT], text[:MAX_TEXT], score)


def result_entry(document: Document, with_score: bool) -> dict:
    """A document as `/retrieve` sends it; the inverse of what `parse_result` does to it."""
    contents = f'"{document.title}"\n{document.text}'
    entry = {"title": document.title, "text": document.text, "contents": contents}
    return {"document": entry, "score": document.score or 0.0} if with_score else entry
