"""Bounded HTTP: every request ends, within its time, in JSON or in a typed failure that is counted.

One attempt has a deadline for all of it (connecting, waiting, reading), a limit on the size of the body, and a place in
a limited number of requests under way. Failures that may pass are tried again after a random, growing wait (tenacity);
a server that fails again and again is left alone for a while (the circuit breaker), so that a dead server costs seconds
and not a run. Nothing is retried without end and nothing is hidden: ZeroSearch's loop of bare retries did both.
"""

import asyncio
import collections
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# What may go wrong with a request, and whether another attempt may help.
FAILURES = {
    "refused": True,  # no connection: nobody listens there, no such host
    "timeout": True,
    "reset": True,  # the connection broke, or what came was no HTTP
    "rate_limited": True,  # 429
    "server_error": True,  # 5xx
    "client_error": False,  # 4xx: a wrong address, a missing or wrong key
    "invalid_json": True,
    "too_large": False,
    "wrong_schema": False,
    "circuit_open": False,  # not sent: the server has just failed too often
}
# Failures that say nothing about the server's health: the breaker does not count them.
_OUR_FAULT = ("client_error", "wrong_schema", "too_large", "circuit_open")


class SearchError(Exception):
    """A request that failed for good. kind: one of FAILURES. retry_after: seconds the server asked to wait, or 0."""

    def __init__(self, kind: str, message: str, retry_after: float = 0.0):
        super().__init__(f"{kind}: {message}")
        self.kind, self.retry_after = kind, retry_after


@dataclasses.dataclass(frozen=True)
class Limits:
    """What bounds a request.

    Attributes:
      timeout: seconds of one attempt, everything included.
      retries: further attempts after the first.
      backoff, max_backoff: seconds; the n-th wait is random in [0, min(max_backoff, backoff * 2^n)].
      concurrency: requests under way at a time.
      max_bytes: of a reply's body.
      breaker_failures: so many failed attempts in a row open the circuit breaker (0: never) ...
      breaker_seconds: ... for so long; then one request is let through to see.
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
    """One HTTP request. json: the body to post; None is a GET. headers and params may hold keys: they are never shown."""

    url: str
    json: Any = None
    params: Mapping[str, str] = dataclasses.field(default_factory=dict)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Transport:
    """Sends batches of requests. `counters` counts requests, attempts, and failures by kind ("failed_timeout", ...)."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS):
        self.limits = limits
        self.counters: collections.Counter = collections.Counter()
        self._lock = threading.Lock()
        self._failures_in_a_row, self._open_until, self._probing = 0, 0.0, False
        logging.getLogger("httpx").setLevel(logging.WARNING)  # its INFO lines hold addresses with keys in them

    def send(self, requests: Sequence[Request], parse: Callable[[Any], Any]) -> list:
        """Sends all requests; results in their order: parse(JSON) or a `SearchError`.

        parse: raises (ValueError, KeyError, TypeError, ...) on JSON that has not the right form ("wrong_schema").
        """
        if not requests:
            return []
        # An event loop in a thread of its own: callers may be inside one already (notebooks).
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self._send_all(requests, parse)).result()

    async def _send_all(self, requests, parse):
        import httpx

        slots = asyncio.Semaphore(self.limits.concurrency)
        # Each attempt has its own deadline, so httpx's time-outs per operation are off.
        async with httpx.AsyncClient(timeout=None, headers={"Accept-Encoding": "identity"}) as client:
            async def one(request):
                async with slots:
                    try:
                        result = await self._with_retries(client, request, parse)
                    except SearchError as error:
                        self._count(f"failed_{error.kind}")
                        return error
                    return result

            self._count("requests", len(requests))
            return await asyncio.gather(*map(one, requests))

    async def _with_retries(self, client, request, parse):
        import tenacity

        limits = self.limits
        jitter = tenacity.wait_random_exponential(multiplier=limits.backoff, max=limits.max_backoff)

        def wait(state):
            asked = getattr(state.outcome.exception(), "retry_after", 0.0)
            return max(jitter(state), min(asked, limits.max_backoff))

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(1 + limits.retries), wait=wait, reraise=True,
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, SearchError) and FAILURES[e.kind]))
        return await retrying(self._attempt, client, request, parse)

    async def _attempt(self, client, request, parse):
        self._enter_circuit(request)
        self._count("attempts")
        failed = True
        try:
            result = parse_reply(await self._body(client, request), parse)
            failed = False
            return result
        except SearchError as error:
            failed = error.kind not in _OUR_FAULT
            raise
        finally:
            self._leave_circuit(failed=failed)

    async def _body(self, client, request) -> bytes:
        import httpx

        where, limits = request.url.partition("?")[0], self.limits
        try:
            async with asyncio.timeout(limits.timeout):
                async with client.stream("GET" if request.json is None else "POST", request.url, json=request.json,
                                         params=request.params or None, headers=dict(request.headers)) as response:
                    body = bytearray()
                    _check_status(response, where)
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > limits.max_bytes:
                            raise SearchError("too_large", f"the reply of {where} exceeds {limits.max_bytes} bytes")
                    return bytes(body)
        except TimeoutError as error:
            raise SearchError("timeout", f"{where} did not reply in {limits.timeout} s") from error
        except httpx.ConnectError as error:
            raise SearchError("refused", f"no connection to {where}") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise SearchError("reset", f"{where} broke off ({type(error).__name__})") from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise SearchError("client_error", f"{where} is no address") from error

    def _enter_circuit(self, request):
        with self._lock:
            if not self._open_until:
                return
            if time.monotonic() < self._open_until or self._probing:
                raise SearchError("circuit_open", f"{request.url.partition('?')[0]} failed too often")
            self._probing = True

    def _leave_circuit(self, *, failed: bool):
        with self._lock:
            self._probing = False
            self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
            threshold = self.limits.breaker_failures
            if threshold and self._failures_in_a_row >= threshold:
                self._open_until = time.monotonic() + self.limits.breaker_seconds
            elif not failed:
                self._open_until = 0.0

    def _count(self, name, n=1):
        with self._lock:
            self.counters[name] += n


def _check_status(response, where):
    status = response.status_code
    if status == 429:
        asked = response.headers.get("retry-after", "")
        raise SearchError("rate_limited", f"{where} says 429", float(asked) if asked.isdecimal() else 0.0)
    if status >= 500:
        raise SearchError("server_error", f"{where} says {status}")
    if status != 200:
        raise SearchError("client_error", f"{where} says {status}")


def parse_reply(body: bytes, parse: Callable[[Any], Any]):
    """parse(JSON of the body). Raises SearchError: invalid_json, wrong_schema."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SearchError("invalid_json", f"the reply is no JSON: {bytes(body[:80])!r}") from error
    try:
        return parse(value)
    except SearchError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SearchError("wrong_schema", f"the reply has another form: {error!r:.200}") from error
