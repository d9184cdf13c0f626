"""Web search through SerpApi (Google, Bing, DuckDuckGo and others), paid by the search.

Results are kept on disk, so that nothing is paid for twice, and what was spent is kept beside them, so that a budget
holds over restarts.
"""

import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Sequence

from zsjax.search.engine import BudgetSpent, Document, Engine, Failed, SearchContext, check_request, first
from zsjax.search.transport import DEFAULT_LIMITS, Limits, Request, SearchError, Transport

PRICE = 586.70 / 64_000  # dollars a search, as ZeroSearch's authors paid (arXiv 2505.04588)
URL = "https://serpapi.com/search.json"
_SPENT = "spent.json"


class SerpApi(Engine):
    """A web search engine. The key comes from the environment and is never written anywhere."""

    def __init__(self, *, engine: str = "google", key_env: str = "SERPAPI_API_KEY",
                 cache_dir: str | os.PathLike | None = None, price: float = PRICE, budget: float | None = None,
                 url: str = URL, limits: Limits = DEFAULT_LIMITS):
        """Reads the key and the account.

        Args:
          engine: which web search SerpApi is to ask: "google", "bing", "duckduckgo", ...
          key_env: name of the environment variable that holds the key.
          cache_dir: results and the account of what was spent; None keeps both in memory.
          price: dollars a search that succeeds; results from the cache and failures cost nothing.
          budget: dollars; the search that would exceed it raises BudgetSpent. None: no limit.

        Raises:
          ValueError: the environment has no key.
        """
        self._key = os.environ.get(key_env, "")
        if not self._key:
            raise ValueError(f"web search needs a key: set the environment variable {key_env}")
        self.engine, self.price, self.budget, self.url = engine, price, budget, url
        self.transport = Transport(limits)
        self._lock = threading.Lock()
        self._cache: dict[str, list] = {}
        self._folder = None if cache_dir is None else pathlib.Path(cache_dir)
        self.paid_searches, self.dollars = 0, 0.0
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            if (self._folder / _SPENT).exists():
                spent = json.loads((self._folder / _SPENT).read_text())
                self.paid_searches, self.dollars = spent["searches"], spent["dollars"]

    @property
    def counters(self):
        return self.transport.counters

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        """Up to k organic results for each query (title and snippet), in the engine's order; each query is paid once.

        Raises:
          BudgetSpent: the searches that are not in the cache would exceed the budget. None of them is sent.
          ValueError: as `check_request`.
        """
        check_request(queries, contexts, k)
        with self._lock:
            wanted = list(dict.fromkeys(query.strip() for query in queries))
            found = {query: self._cached(query) for query in wanted}
            missing = [query for query in wanted if found[query] is None]
            self.counters["cached"] += len(wanted) - len(missing)
            cost = len(missing) * self.price
            if missing and self.budget is not None and self.dollars + cost > self.budget + 1e-9:
                raise BudgetSpent(f"web search: {self.dollars:.2f} dollars were spent in {self.paid_searches} searches, and "
                                  f"{len(missing)} more would exceed the budget of {self.budget:.2f}")
            requests = [Request(self.url, params={"engine": self.engine, "q": query, "api_key": self._key,
                                                  "output": "json"}) for query in missing]
            for query, reply in zip(missing, self.transport.send(requests, organic_results), strict=True):
                found[query] = Failed(reply.kind) if isinstance(reply, SearchError) else reply
                if not isinstance(reply, SearchError):
                    self.paid_searches += 1
                    self.counters["paid_searches"] += 1
                    self.dollars += self.price
                    self._keep(query, reply)
            if missing:
                self._write_spent()
        documents = {query: rows if isinstance(rows, Failed) else [_document(row) for row in rows]
                     for query, rows in found.items()}
        return [first(documents[query.strip()], k) for query in queries]

    def _path(self, query: str) -> pathlib.Path:
        name = hashlib.sha256(json.dumps([self.engine, query]).encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.json"

    def _cached(self, query):
        if self._folder is None:
            return self._cache.get(query)
        try:
            return json.loads(self._path(query).read_text(encoding="utf-8"))["results"]
        except (OSError, ValueError, KeyError):  # none, or cut by a kill: asked again
            return None

    def _keep(self, query, results):
        if self._folder is None:
            self._cache[query] = results
            return
        path = self._path(query)
        path.parent.mkdir(exist_ok=True)
        _write(path, {"engine": self.engine, "query": query, "results": results})

    def _write_spent(self):
        if self._folder is not None:
            _write(self._folder / _SPENT, {"searches": self.paid_searches, "dollars": self.dollars})


def organic_results(reply) -> list[dict]:
    """[{title, snippet}] of a reply; [] where the engine found nothing, which is paid for like any result.

    Raises SearchError when the reply says that the search itself failed.
    """
    results = reply.get("organic_results")
    if results is None:
        status = reply.get("search_metadata", {}).get("status", "")
        if "error" not in reply and status != "Success":
            raise KeyError("organic_results")
        if "error" in reply and status != "Success":
            raise SearchError("server_error", str(reply["error"])[:200])
        results = []
    rows = [{"title": str(row.get("title") or ""), "snippet": str(row.get("snippet") or "")} for row in results]
    return [row for row in rows if any(row.values())]


def _document(row: dict) -> Document:
    return Document(row["title"], row["snippet"] or row["title"])


def _write(path, value):
    half = path.with_name(f"{path.name}.{os.getpid()}.new")
    half.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(half, path)
