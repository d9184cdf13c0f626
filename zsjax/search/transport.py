"""Bounded HTTP: every request ends in time, with JSON or with a typed failure that is counted.

An attempt has one deadline for connecting, waiting, reading and redirects, and a limit on the size of the body. The
number of concurrent requests is limited. Temporary failures are tried again after a random, growing wait (tenacity). A
circuit breaker leaves a server alone for some seconds after many failures in a row.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zsjax.parallel import stops
from zsjax.search.addresses import is_secret, proxy_of, proxy_secrets, shown_address, shown_text
from zsjax.search.replies import FAILURES, Body, SearchError, parse_reply, seconds_of
from zsjax.types import whole_text

_MAX_REDIRECTS = 5
_SHOWN = 300  # characters of a message, and of a server's text in it
_LOOK_SECONDS = 0.2  # between two looks at whether the run ends
_KEEP_SECONDS = 4  # of an idle connection; uvicorn closes it after 5 s


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of a request.

    Attributes:
      timeout: seconds of one attempt, everything included.
      retries: further attempts after the first.
      backoff, max_backoff: seconds; the n-th wait is random in [0, min(max_backoff, backoff * 2^n)].
      concurrency: requests of one engine at a time.
      max_bytes: of a reply's body.
      breaker_failures: failed attempts in a row that open the circuit breaker; 0: never.
      breaker_seconds: how long it stays open. Then one request is let through as a probe.
    """

    timeout: float = 30.0
    retries: int = 3
    backoff: float = 0.5
    max_backoff: float = 10.0
    concurrency: int = 8
    max_bytes: int = 8 << 20
    breaker_failures: int = 8
    breaker_seconds: float = 15.0


DEFAULT_LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Request:
    """One HTTP request. json: the body of a POST; None is a GET. headers and params may hold keys and are never shown."""

    url: str
    json: Any = None
    params: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> list[str]:
        """What a server may repeat in its reply, and nobody may read there: keys, and the password of a proxy."""
        keys = [*self.headers.values(), *(value for name, value in self.params.items() if is_secret(name))]
        return [*(key.removeprefix("Bearer ") for key in keys), *proxy_secrets(proxy_of(self.url))]


class NotSent(Exception):
    """A request that was not sent, because the run ends."""


class _Batch:
    """The functions of one call of `send`. ended: nothing more is sent, and nothing is tried again."""

    def __init__(self, parse, begin, keep):
        self.parse, self.begin, self.keep = parse, begin, keep
        self.ended, self._turn = asyncio.Event(), asyncio.Lock()

    async def call(self, function, *arguments):
        """Calls `begin` or `keep`, which may write to a disk, without holding up the others' replies."""
        if function is not None:
            async with self._turn:
                await asyncio.to_thread(function, *arguments)


class CircuitBreaker:
    """Opens for `seconds` after `failures` failed attempts in a row (0: never). Then it lets one attempt in at a time."""

    def __init__(self, failures: int, seconds: float):
        self.failures, self.seconds = failures, seconds
        self._in_a_row, self._open_until, self._probing = 0, 0.0, False

    def enter(self) -> bool:
        """Whether an attempt may be made. Whoever gets True calls `leave` afterwards."""
        if self._open_until and (self._probing or time.monotonic() < self._open_until):
            return False
        self._probing = bool(self._open_until)
        return True

    def leave(self, *, failed: bool):
        self._probing = False
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if self.failures and self._in_a_row >= self.failures:
            self._open_until = time.monotonic() + self.seconds
        elif not failed:
            self._open_until = 0.0


class Transport:
    """One engine's HTTP client; it keeps its connections. `counters`: requests, attempts, failures ("failed_timeout")."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS):
        self.limits, self.counters = limits, collections.Counter()
        self._lock, self._process = threading.Lock(), None
        for library in ("httpx", "httpcore"):  # their lines hold addresses with keys, and headers
            logging.getLogger(library).setLevel(logging.WARNING)

    def send(self, requests: Sequence[Request], parse: Callable[[Any], Any], *,
             begin: Callable[[int, list[str]], None] | None = None, keep: Callable[[int, Any], None] | None = None) -> list:
        """Sends all requests and logs failures.

        An error or a signal ends it: no further request is sent. Those in flight are waited for, at most
        `stops.PATIENCE` seconds, if `keep` wants their results. The same holds while `stops.is_ending`.

        Args:
          parse: JSON -> result. It may raise ValueError, KeyError, TypeError, ... for another form ("wrong_schema").
          begin: called just before each attempt, with the request's index and the kinds of its failures so far.
          keep: called with a request's index and its result or `SearchError` as soon as it arrives, to survive a crash.
            begin and keep are called in threads, one call at a time. What they raise ends all.

        Returns:
          For each request its result or a `SearchError`.

        Raises:
          NotSent: the run ends, and some requests were not sent.
        """
        if not requests:
            return []
        self._count("requests", len(requests))
        batch, loop = _Batch(parse, begin, keep), self._started()
        future = asyncio.run_coroutine_threadsafe(self._send_all(requests, batch), loop)

        def end():
            if keep is None:
                future.cancel()
            else:
                loop.call_soon_threadsafe(batch.ended.set)

        try:
            while not future.done():
                concurrent.futures.wait([future], _LOOK_SECONDS)
                if stops.is_ending():
                    end()
            results = future.result()
        except BaseException:
            with stops.ending():
                end()
                if not future.done():
                    concurrent.futures.wait([future], stops.PATIENCE)
            future.cancel()
            raise
        for message in dict.fromkeys(str(result) for result in results if isinstance(result, SearchError)):
            logging.warning("%s", message)
        return results

    def _started(self):
        with self._lock:
            if self._process != os.getpid():  # a fork has neither the thread nor the connections of its parent
                self._process, self._clients = os.getpid(), {}
                self._loop = _event_loop(self._process)
                self._places = asyncio.Semaphore(self.limits.concurrency)
                self._breaker = CircuitBreaker(self.limits.breaker_failures, self.limits.breaker_seconds)
                weakref.finalize(self, _close, self._loop, self._clients, self._process).atexit = False
            return self._loop

    async def _send_all(self, requests, batch):
        async def one(index, request):
            try:
                async with self._places:
                    if batch.ended.is_set():
                        raise NotSent("the run ends: this request was not sent")
                    result = await self._with_retries(index, request, batch)
                await batch.call(batch.keep, index, result)
                return result
            except BaseException:
                batch.ended.set()
                raise

        results = await asyncio.gather(*(one(*request) for request in enumerate(requests)), return_exceptions=True)
        raised = [result for result in results if isinstance(result, BaseException) and not isinstance(result, SearchError)]
        for error in sorted(raised, key=lambda error: isinstance(error, NotSent)):
            raise error
        return results

    async def _with_retries(self, index, request, batch):
        """The result of a request, or a `SearchError` with the kinds of all attempts."""
        import tenacity

        limits, failed = self.limits, []
        jitter = tenacity.wait_random_exponential(multiplier=limits.backoff, max=limits.max_backoff)

        async def attempt():
            try:
                return await self._attempt(index, request, batch, [failure.kind for failure in failed])
            except SearchError as error:
                failed.append(error)
                raise

        def wait(state):
            return max(jitter(state), min(failed[-1].retry_after, limits.max_backoff))

        async def sleep(seconds):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(batch.ended.wait(), seconds)
                raise failed[-1]

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(1 + limits.retries), wait=wait, sleep=sleep, reraise=True,
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, SearchError) and FAILURES[e.kind]))
        try:
            return await retrying(attempt)
        except SearchError as error:
            self._count(f"failed_{error.kind}")
            error.attempts = tuple(failure.kind for failure in failed)
            return error

    async def _attempt(self, index, request, batch, failed_before):
        if not self._breaker.enter():
            raise SearchError("circuit_open", f"{shown_address(request.url)} failed too often")
        failed = True
        try:
            await batch.call(batch.begin, index, failed_before)
            self._count("attempts")
            result = await asyncio.to_thread(parse_reply, await self._body(request), batch.parse)
            failed = False
            return result
        except SearchError as error:
            failed = FAILURES[error.kind]
            # The cause, with the reply in it, is dropped: a traceback would show it.
            message = shown_text(error.message, request.secrets, _SHOWN)
            said = shown_text(error.said, request.secrets, _SHOWN)
            raise SearchError(error.kind, f"{message}: {said}" if said else message, error.retry_after) from None
        finally:
            self._breaker.leave(failed=failed)

    async def _body(self, request) -> bytes:
        import httpx

        proxy = proxy_of(request.url)
        where = shown_address(request.url) + (f" through the proxy {shown_address(proxy)}" if proxy else "")
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await self._follow(self._client(proxy), request, where)
        except TimeoutError as error:
            raise SearchError("timeout", f"{where} did not reply in {self.limits.timeout} s") from error
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise SearchError("refused", f"no connection to {where}") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, ImportError, ValueError) as error:
            raise SearchError("client_error", f"{where} cannot be asked: {type(error).__name__}") from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise SearchError("reset", f"{where} broke off ({type(error).__name__})") from error

    def _client(self, proxy):
        import httpx

        if proxy not in self._clients:
            pool = httpx.Limits(max_keepalive_connections=self.limits.concurrency, keepalive_expiry=_KEEP_SECONDS)
            # An attempt has a deadline of its own. httpx's time-outs are of single operations, and off.
            self._clients[proxy] = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(proxy=proxy, limits=pool), timeout=None,
                headers={"Accept-Encoding": "identity"})
        return self._clients[proxy]

    async def _follow(self, client, request, where) -> bytes:
        """The body of the reply, after redirects on the same host."""
        url, params, headers, content = request.url, request.params or None, dict(request.headers), None
        if request.json is not None:
            content = json.dumps(whole_text(request.json), ensure_ascii=False).encode()
            headers["Content-Type"] = "application/json"
        for _ in range(1 + _MAX_REDIRECTS):
            async with client.stream("GET" if content is None else "POST", url, params=params, headers=headers,
                                     content=content) as response:
                if not response.has_redirect_location:
                    return await self._read(response, where)
                url, params = self._redirected(response, where), None
        raise SearchError("client_error", f"{where} redirects more than {_MAX_REDIRECTS} times")

    @staticmethod
    def _redirected(response, where):
        """The address that a redirect names. Another host is refused: it would get the query and the key."""
        old = response.request.url
        new = old.join(response.headers["location"])
        upgraded = (old.scheme, old.port, new.scheme, new.port) == ("http", None, "https", None)
        if new.host != old.host or (new.scheme, new.port) != (old.scheme, old.port) and not upgraded:
            raise SearchError("client_error", f"{where} redirects to another server; use its address "
                              f"{shown_address(str(new))} if you trust it")
        if response.request.method == "POST" and response.status_code in (302, 303):
            raise SearchError("client_error", f"{where} redirects by {response.status_code}, which drops the request's "
                              f"body; use the address {shown_address(str(new))}")
        return new

    async def _read(self, response, where) -> bytes:
        status = response.status_code
        if status != 200:
            kind = "rate_limited" if status == 429 else "server_error" if status >= 500 else "client_error"
            raise SearchError(kind, f"{where} says {status}", seconds_of(response.headers.get("retry-after", "")))
        body = Body(where, response.headers.get("content-encoding", ""), self.limits.max_bytes)
        async for chunk in response.aiter_raw():
            body.add(chunk)
        return bytes(body.data)

    def _count(self, name, n=1):
        with self._lock:
            self.counters[name] += n


@functools.cache
def _event_loop(process: int):
    """An event loop in a thread of its own, one for each process: callers may run inside another loop (notebooks).

    httpx's blocking client has time-outs for single operations only: a slow, steady reply would never end.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="zsjax-http", daemon=True).start()
    return loop


def _close(loop, clients, process):
    if process == os.getpid():
        for client in clients.values():
            asyncio.run_coroutine_threadsafe(client.aclose(), loop)
