"""A server of the `/retrieve` protocol around any engine, by the standard library: see `zsjax.search.engines.http`.

    POST /retrieve {"queries": [...], "topk": 3, "return_scores": true}     GET /health

It is meant for a machine's own processes or a trusted network: there is no encryption and no password.
"""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from zsjax.search.engines.http import result_entry

MAX_BODY = 4 << 20  # bytes of a request
MAX_QUERIES, MAX_QUERY, MAX_TOPK = 1024, 8192, 100
READ_SECONDS = 30  # a client that sends slower is cut off


class RetrievalServer(ThreadingHTTPServer):
    """Serves `engine` at host:port (0: any free port, see `url`). `serve_forever()` runs it; `counters` counts."""

    daemon_threads = True

    def __init__(self, engine, *, host: str = "127.0.0.1", port: int = 8000, topk: int = 3):
        """topk: documents where a request names no number. Raises OSError when the port is taken."""
        self.engine, self.topk = engine, topk
        self.counters = {"queries": 0, "requests": 0, "refused": 0}
        self.lock = threading.Lock()  # of the counters; engines are searched by several threads at a time
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}/retrieve"

    def count(self, **numbers):
        with self.lock:
            for name, number in numbers.items():
                self.counters[name] += number


class _Refused(Exception):
    """A request that is answered with an error: (status, message)."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version, timeout = "HTTP/1.1", READ_SECONDS
    server: RetrievalServer

    def do_GET(self):
        if self.path == "/health":
            self._reply(200, {"status": "ok", **self.server.counters})
        else:
            self._reply(404, {"detail": "there are GET /health and POST /retrieve"})

    def do_POST(self):
        try:
            queries, topk, with_scores = self._request()
            found = self.server.engine.search(queries, None, k=topk)
            result = [[result_entry(document, with_scores) for document in documents] for documents in found]
            self.server.count(requests=1, queries=len(queries))
            self._reply(200, {"result": result})
        except _Refused as refused:
            self.server.count(refused=1)
            status, message = refused.args
            self.close_connection = True  # the body may not have been read
            self._reply(status, {"detail": message})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:  # an engine's mistake must end this request only
            logging.exception("a search failed")
            self._reply(500, {"detail": "the search failed; see the server's log"})

    def _request(self):
        if self.path.rstrip("/") != "/retrieve":
            raise _Refused(404, "there are GET /health and POST /retrieve")
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise _Refused(411, "Content-Length is needed")
        if int(size) > MAX_BODY:
            raise _Refused(413, f"a request has at most {MAX_BODY} bytes")
        try:
            body = json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError):
            raise _Refused(400, "the body is no JSON") from None
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
        return [query[:MAX_QUERY] for query in queries], topk, bool(body.get("return_scores", False))

    def _reply(self, status, value):
        body = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass  # a line a request would drown everything else
