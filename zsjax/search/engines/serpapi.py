"""Web search through SerpApi (Google, Bing, DuckDuckGo and others), which charges for each search.

Results are kept on disk, so no search is paid twice. The account is kept beside them, so a budget holds over restarts,
engines and processes.
"""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Sequence

from zsjax.errors import BudgetSpent, InputError, json_value
from zsjax.parallel.files import write_json
from zsjax.search import registry
from zsjax.search.addresses import check_address, environment_key
from zsjax.search.engine import Document, Engine, Failed, SearchContext, check_request, first
from zsjax.search.paid_searches import Account, amount
from zsjax.search.transport import DEFAULT_LIMITS, Limits, Request, SearchError, Transport
from zsjax.types import whole_text

PRICE = 586.70 / 64_000  # dollars a search, as ZeroSearch's authors paid (arXiv 2505.04588)
URL = "https://serpapi.com/search.json"
# The query's parameter of some web searches (serpapi.com has a page of each); the others use "q".
QUERY_PARAMETERS = {"yahoo": "p", "yandex": "text", "naver": "query", "walmart": "query", "ebay": "_nkw", "amazon": "k",
                    "youtube": "search_query"}
_LOST = ("timeout", "reset", "too_large")  # the server may have searched and charged


class SerpApi(Engine):
    """A web search engine. The key comes from the environment and is never written anywhere."""

    def __init__(self, *, engine: str = "google", key_env: str = "SERPAPI_API_KEY",
                 cache_dir: str | os.PathLike | None = None, price: float = PRICE, budget: float | None = None,
                 url: str = URL, limits: Limits = DEFAULT_LIMITS):
        """Reads the key and the account.

        Args:
          engine: the web search that SerpApi asks: "google", "bing", "duckduckgo", ...
          key_env: name of the environment variable that holds the key.
          cache_dir: folder of results and account, which all engines with this folder share; None keeps both in memory.
          price: dollars of a search that succeeds or whose reply is lost. Cached results and failures cost nothing.
          budget: dollars; a search that would exceed them raises BudgetSpent. None: no limit.

        Raises:
          InputError: the environment has no key; cache_dir cannot be made; price or budget is not a finite number of 0 or
            more; or the account cannot be read.
        """
        self._key, self.url = environment_key(key_env, "web search"), check_address(url, URL)
        self.engine, self.price = engine, amount("price", price)
        self.budget = None if budget is None else amount("budget", budget)
        self.transport = Transport(limits)
        self._cache: dict[str, list] = {}
        self._folder = None if cache_dir is None else pathlib.Path(cache_dir)
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cache_dir {self._folder} cannot be made ({error.strerror}); use a writable folder"
                                 ) from error
        self.account = Account(self._folder)

    @property
    def counters(self):
        return self.transport.counters

    @property
    def paid_searches(self) -> int:
        """Of all engines that share the account."""
        return self.account.spent().searches

    @property
    def dollars(self) -> float:
        """Of all engines that share the account."""
        return self.account.spent().dollars

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext] | None = None, *,
               k: int) -> list[list[Document]]:
        """Up to k organic results for each query (title and snippet), in the engine's order; each query is paid once.

        Raises:
          BudgetSpent: the searches outside of the cache would exceed the budget, and none of them is sent; or one more
            attempt after a lost reply would.
          OSError: a charge cannot be written. Its search and later ones are not sent.
          ValueError: as `check_request`, or the account cannot be read.
        """
        check_request(queries, contexts, k)
        queries = [whole_text(query).strip() for query in queries]
        wanted = list(dict.fromkeys(query for query in queries if query))  # nothing is paid for an empty query
        found = {query: self._cached(query) for query in wanted}
        missing = [query for query in wanted if found[query] is None]
        if missing:
            with self.account.held():
                found |= {query: self._cached(query) for query in missing}  # others may have paid while this one waited
                missing = [query for query in missing if found[query] is None]
                found |= self._paid(missing) if missing else {}
        self.counters["cached"] += len(wanted) - len(missing)
        documents = {query: rows if isinstance(rows, Failed) else [_document(row) for row in rows]
                     for query, rows in found.items()}
        return [first(documents.get(query, []), k) for query in queries]

    def _paid(self, queries: list[str]) -> dict[str, list]:
        """Rows or `Failed` for each query.

        Each is charged just before it is sent, and again before it is sent again after a reply that got lost. The charge of
        a free failure is taken back.
        """
        self._check_budget(len(queries))
        name = QUERY_PARAMETERS.get(self.engine, "q")
        requests = [Request(self.url, params={"engine": self.engine, name: query, "api_key": self._key, "output": "json"})
                    for query in queries]
        charged = [0] * len(requests)  # searches

        def charge(i, failed_before):
            if charged[i] > _lost(failed_before):
                return  # for an attempt that turned out to be free
            self._check_budget(1)
            self.account.charge(1, self.price)
            charged[i] += 1

        def keep(i, reply):
            if not isinstance(reply, SearchError):
                self._keep(queries[i], reply)
            elif free := charged[i] - _lost(reply.attempts):
                self.account.charge(-free, self.price)
                charged[i] -= free

        try:
            replies = self.transport.send(requests, organic_results, begin=charge, keep=keep)
        finally:
            self.counters["paid_searches"] += sum(charged)
        return {query: Failed(reply.kind) if isinstance(reply, SearchError) else reply
                for query, reply in zip(queries, replies, strict=True)}

    def _check_budget(self, more: int):
        spent = self.account.spent()
        if self.budget is not None and spent.dollars + more * self.price > self.budget + 1e-9:
            raise BudgetSpent(f"web search: {spent.dollars:.2f} dollars were spent in {spent.searches} searches, and "
                              f"{more} more would exceed the budget of {self.budget:.2f}")

    def _path(self, query: str) -> pathlib.Path:
        name = hashlib.sha256(json.dumps([self.engine, query]).encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.json"

    def _cached(self, query):
        if self._folder is None or query in self._cache:
            return self._cache.get(query)
        try:
            return [_row(row) for row in json_value(self._path(query).read_bytes())["results"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or half written: search again
            return None

    def _keep(self, query, results):
        if self._folder is not None:
            path = self._path(query)
            try:
                return write_json(path, {"engine": self.engine, "query": query, "results": results})
            except OSError as error:  # a full disk: this process keeps the paid result
                logging.warning("a web search's results cannot be kept at %s: %s", path, error)
        self._cache[query] = results


def _lost(kinds) -> int:
    """The number of failures that may have cost a search."""
    return sum(kind in _LOST for kind in kinds)


def organic_results(reply) -> list[dict]:
    """[{title, snippet}] of a reply; [] if the engine found nothing, which is charged too.

    A result without title and snippet is left out. Raises SearchError if the reply says that the search failed.
    """
    results = reply.get("organic_results")
    if results is None:
        status = (reply.get("search_metadata") or {}).get("status", "")
        if "error" not in reply and status != "Success":
            raise KeyError("organic_results")
        if "error" in reply and status != "Success":
            raise SearchError("server_error", "the search failed", said=str(reply["error"]))
        results = []
    if not isinstance(results, list):
        raise TypeError(f"organic_results is a {type(results).__name__}, not a list")
    rows = [_row(row) for row in results if isinstance(row, dict)]
    return [row for row in rows if any(row.values())]


def _row(row: dict) -> dict:
    return {name: row.get(name) if isinstance(row.get(name), str) else "" for name in ("title", "snippet")}


def _document(row: dict) -> Document:
    return Document(row["title"], row["snippet"] or row["title"])


@registry.engine("serpapi", "web search; key from the environment, results kept on disk, `search.remote.budget` stops the "
                 "run before it is exceeded", needs=("key",), keeps_account=True, key_env="SERPAPI_API_KEY")
def _serpapi(setting):
    remote = setting.config.search.remote
    return SerpApi(engine=remote.web_engine, key_env=remote.key_env or "SERPAPI_API_KEY",
                   cache_dir=setting.workdir / remote.cache_dir, budget=remote.budget, price=setting.config.cost.search,
                   limits=setting.limits)
