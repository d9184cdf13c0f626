"""What servers reply: JSON, or a failure of a known kind."""

import email.utils
import json
import time
import zlib
from collections.abc import Callable
from typing import Any

from zsjax.types import whole_text

# Kind of a failure -> whether it may be temporary: then it is tried again, and the circuit breaker counts it.
FAILURES = {
    "refused": True,  # no connection: no server or no such host, also behind the proxy
    "timeout": True,
    "reset": True,  # the connection broke, or the reply was not HTTP
    "rate_limited": True,  # 429
    "server_error": True,  # 5xx
    "client_error": False,  # 4xx or a redirect to another server: a wrong address, a missing or wrong key
    "invalid_json": True,
    "too_large": False,
    "wrong_schema": False,
    "circuit_open": False,  # not sent: the server failed too often
    "thoughts_only": False,  # a chat model's reply holds thoughts only
    "thoughts_cut": False,  # max_tokens ended the thoughts
    "declined": False,  # a chat model's refusal or its server's content filter
}


class SearchError(Exception):
    """A request that failed for good.

    Attributes:
      kind: one of FAILURES.
      retry_after: seconds that the server asks to wait, or 0.
      said: text of the server's that explains it, whole: it may hold keys, which are removed before it is cut and shown.
      attempts: the kinds of all failed attempts, this one last.
    """

    def __init__(self, kind: str, message: str, retry_after: float = 0.0, *, said: str = ""):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.retry_after, self.said, self.attempts = kind, message, retry_after, said, (kind,)


class Body:
    """The body of a reply, unzipped piece by piece, so that neither its memory nor its time depends on what it claims."""

    def __init__(self, where: str, encoding: str, most: int):
        """Begins empty.

        Args:
          where: the server, as errors name it.
          encoding: the reply's Content-Encoding: none, or gzip or deflate once. The client asks for none.
          most: bytes of the unzipped body.

        Raises:
          SearchError: "wrong_schema", another encoding.
        """
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise SearchError("wrong_schema", f"the reply of {where} has an encoding that was not asked for")
        self.where, self.most, self.data = where, most, bytearray()
        self._unzip = zlib.decompressobj(32 + zlib.MAX_WBITS) if encoding not in ("", "identity") else None

    def add(self, piece: bytes) -> None:
        """Adds bytes as they were sent. Raises SearchError: "too_large", or "invalid_json" where they cannot be unzipped."""
        if self._unzip is not None:
            try:
                piece = self._unzip.decompress(piece, self.most + 1 - len(self.data))
            except zlib.error as error:
                raise SearchError("invalid_json", f"the reply of {self.where} cannot be unzipped") from error
            if self._unzip.unused_data:
                raise SearchError("invalid_json", f"the reply of {self.where} goes on after its zipped part")
        self.data += piece
        if len(self.data) > self.most:
            raise SearchError("too_large", f"the reply of {self.where} exceeds {self.most} bytes")


def seconds_of(retry_after: str) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 for anything else."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def parse_reply(body: bytes, parse: Callable[[Any], Any]):
    """parse(JSON of the body). Invalid UTF-8 and lone surrogates become U+FFFD.

    Raises SearchError: invalid_json, wrong_schema, or a `SearchError` of parse.
    """
    text = body.decode("utf-8-sig", "replace")
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # an escape may spell a surrogate
            value = whole_text(value)
    except (ValueError, RecursionError) as error:
        raise SearchError("invalid_json", "the reply is not JSON", said=text) from error
    try:
        return parse(value)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        raise SearchError("wrong_schema", "the reply has another form", said=repr(error)) from error
