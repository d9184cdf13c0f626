"""A server of the `/retrieve` protocol around any engine, by the standard library: see `zsjax.search.engines.http`.

    POST /retrieve {"queries": [...], "topk": 3, "return_scores": true}     GET /health

Use it within one machine or a trusted network: it has no encryption and no password.
"""

import contextlib
import io
import json
import logging
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from zsjax.search.engine import Failed
from zsjax.search.engines.http import result_entry
from zsjax.types import whole_text

MAX_BODY = 4 << 20  # bytes of a request
MAX_BODIES = 256 << 20  # bytes of all current requests, as far as they have arrived
MAX_QUERIES, MAX_QUERY, MAX_TOPK = 4096, 8192, 100  # a step of Search-R1 is 2,560 queries
MAX_DOCUMENTS = 100_000  # of a reply
SEARCHES = 4  # at a time; further ones wait
QUERIES_AT_A_TIME = 256  # given to the engine in one call
CONNECTIONS = 1024  # open at a time, each with a thread
READ_SECONDS = 30  # for a request's first line, and for all that follows; a client that sends slower is cut off


class RetrievalServer(ThreadingHTTPServer):
    """Serves `engine` at host:port (0: any free port, see `url`). `serve_forever()` runs it; `counters` counts."""

    daemon_threads = True
    request_queue_size = CONNECTIONS  # the system's list of clients that wait to be accepted

    def __init__(self, engine, *, host: str = "127.0.0.1", port: int = 8000, topk: int = 3):
        """topk: documents for a request without a number. Raises OSError when the port is taken."""
        self.engine, self.topk = engine, topk
        self.counters = {"queries": 0, "requests": 0, "refused": 0, "failed": 0}
        self.lock, self.body_bytes = threading.Lock(), 0  # guards counters and body_bytes
        self.searching, self.connections = threading.Semaphore(SEARCHES), threading.Semaphore(CONNECTIONS)
        self.parsing = threading.Lock()  # a body's JSON may take 25 times its bytes
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{str(self.server_address[0])}:{self.server_address[1]}/retrieve"

    def count(self, **numbers):
        with self.lock:
            for name, number in numbers.items():
                self.counters[name] += number

    @contextlib.contextmanager
    def room(self):
        """Bounds the memory of all bodies together: a function to be called with each number of bytes that has arrived.

        It raises _Refused (503) beyond the bound. A client that announces much and sends little takes little.
        """
        taken = 0

        def take(size):
            nonlocal taken
            with self.lock:
                if self.body_bytes + size > MAX_BODIES:
                    raise _Refused(503, "the server is at its limit; try again")
                self.body_bytes += size
                taken += size

        try:
            yield take
        finally:
            with self.lock:
                self.body_bytes -= taken

    def process_request(self, request, client_address):
        self.connections.acquire()  # further clients wait in the system's list
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self.connections.release()
            raise

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address):
        logging.debug("a client at %s broke off", client_address, exc_info=True)


class _Refused(Exception):
    """A request to answer with an error: (status, message)."""


class _Reader(io.RawIOBase):
    """Reads a connection until a moment, however the bytes are spread: a time-out of the connection is of one read alone."""

    def __init__(self, connection):
        super().__init__()
        self.connection = connection
        self.allow()

    def allow(self):
        """Gives READ_SECONDS from now."""
        self.until = time.monotonic() + READ_SECONDS

    def readable(self):
        return True

    def readinto(self, buffer):
        self.connection.settimeout(max(0.001, self.until - time.monotonic()))
        return self.connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # on a kept connection a reply's second packet would wait 40 ms
    server: RetrievalServer

    def setup(self):
        super().setup()
        self.rfile.close()
        self.reader = _Reader(self.connection)
        self.rfile = io.BufferedReader(self.reader)

    def handle_one_request(self):
        self.reader.allow()
        super().handle_one_request()

    def parse_request(self):  # the first line has come, maybe after a long rest of the connection
        self.reader.allow()
        return super().parse_request()

    def do_GET(self):
        if self.path == "/health":
            self._reply(200, {"status": "ok", **self.server.counters})
        else:
            self._reply(404, {"detail": "there are GET /health and POST /retrieve"})

    def do_POST(self):
        try:
            size = self._body_size()
            with self.server.room() as take:
                queries, topk, with_scores = self._request(self._body(size, take))
                self._reply(200, {"result": self._search(queries, topk, with_scores)})
        except _Refused as refused:
            self.server.count(refused=1)
            status, message = refused.args
            self.close_connection = True  # the body may not have been read
            self._reply(status, {"detail": message})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:  # an engine's error ends this request only
            logging.exception("a search failed")
            self._reply(500, {"detail": "the search failed; see the server's log"})

    def _search(self, queries, topk, with_scores):
        engine, found = self.server.engine, []
        with self.server.searching:
            for start in range(0, len(queries), QUERIES_AT_A_TIME):
                found += engine.search(queries[start:start + QUERIES_AT_A_TIME], None, k=topk)
        failed = [documents.kind for documents in found if isinstance(documents, Failed)]
        self.server.count(requests=1, queries=len(queries), failed=len(failed))
        if failed and len(failed) == len(found):
            raise _Refused(502, f"the engine's searches failed ({failed[0]})")
        return [[result_entry(document, with_scores) for document in documents] for documents in found]

    def _body_size(self) -> int:
        if self.path.partition("?")[0].rstrip("/") != "/retrieve":
            raise _Refused(404, "there are GET /health and POST /retrieve")
        size = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]+", size):
            raise _Refused(411, "Content-Length is needed")
        if len(size) > 12 or int(size) > MAX_BODY:
            raise _Refused(413, f"a request has at most {MAX_BODY} bytes")
        return int(size)

    def _body(self, size: int, take) -> bytearray:
        data = bytearray()
        while len(data) < size:
            piece = self.rfile.read1(min(size - len(data), 1 << 16))
            if not piece:
                raise ConnectionError("the client broke off")
            take(len(piece))
            data += piece
        return data

    def _request(self, data: bytearray):
        with self.server.parsing:
            try:
                return self._checked(json.loads(data))
            except (ValueError, RecursionError):
                raise _Refused(400, "the body is not JSON") from None

    def _checked(self, body):
        """(queries, topk, return_scores) of a request's JSON."""
        queries = body.get("queries") if isinstance(body, dict) else None
        if isinstance(body, dict) and isinstance(body.get("query"), str) and queries is None:
            queries = [body["query"]]
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise _Refused(400, "queries must be a list of strings")
        if len(queries) > MAX_QUERIES:
            raise _Refused(400, f"at most {MAX_QUERIES} queries a request")
        topk = body.get("topk") or self.server.topk
        if not isinstance(topk, int) or isinstance(topk, bool) or not 1 <= topk <= MAX_TOPK:
            raise _Refused(400, f"topk must be 1 to {MAX_TOPK}")
        if len(queries) * topk > MAX_DOCUMENTS:
            raise _Refused(400, f"at most {MAX_DOCUMENTS} documents a request (queries times topk)")
        return [whole_text(query[:MAX_QUERY]) for query in queries], topk, bool(body.get("return_scores", False))

    def _reply(self, status, value):
        body = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.connection.settimeout(READ_SECONDS)  # for the whole reply
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass  # no line for each request
