"""A server that fails in every way a server can, chosen by the request's path."""

import contextlib
import gzip
import json
import socket
import socketserver
import threading
import time

BOMB = gzip.compress(bytes(64 << 20), 1)
OK = {"result": [[{"document": {"contents": '"Title"\nText of {q}'}, "score": 1.0}]]}


class FaultyServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, replies=None, *, port=0, handler=None):
        """replies: path -> function(body) -> (status, JSON value), for the paths that do work. handler: a `Handler`."""
        super().__init__(("127.0.0.1", port), handler or Handler)
        self.replies, self.requests, self.stop = replies or {}, [], threading.Event()
        self.at_once, self.most_at_once, self.lock = 0, 0, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args):
        pass  # clients that hang up are what this is about


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        path, body = self._read()
        self.server.requests.append((path, body))
        name = path.partition("?")[0].strip("/").split("/")[0]
        if name in self.server.replies:
            status, value = self.server.replies[name](body)
            return self._send(status, json.dumps(value).encode())
        getattr(self, f"do_{name}")()

    def _read(self):
        path = self.rfile.readline().split()[1].decode()
        size = 0
        while (line := self.rfile.readline().strip()):
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        return path, json.loads(self.rfile.read(size)) if size else None

    def _send(self, status, body, size=None, extra=""):
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n{extra}"
        self.wfile.write(f"{head}Content-Length: {len(body) if size is None else size}\r\n\r\n".encode() + body)

    def do_hang(self):
        self.server.stop.wait(10)

    def do_drip(self):
        """A byte now and then: every read succeeds, and the reply never ends."""
        self._send(200, b"", size=10**6)
        while not self.server.stop.wait(0.05):
            self.wfile.write(b" ")

    def do_drip_head(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.server.stop.wait(0.05):
            self.wfile.write(b"x")

    def do_reset(self):
        self._send(200, b'{"result": [', size=1000)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.connection.close()

    def do_short(self):
        self._send(200, b'{"result": [', size=1000)

    def do_429(self):
        self._send(429, b"{}", extra="Retry-After: 3600\r\n")

    def do_500(self):
        self._send(500, b"{}")

    def do_404(self):
        self._send(404, b"{}")

    def do_redirect(self):
        self._send(302, b"", extra="Location: /hang\r\n")

    def do_garbage(self):
        self._send(200, b"<html>not JSON</html>")

    def do_nothttp(self):
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    def do_deep(self):
        self._send(200, b"[" * 200_000)

    def do_huge(self):
        """A hundred megabytes."""
        self._send(200, b"", size=100 << 20)
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x" * (1 << 20))

    def do_gzip(self):
        """64 kB that become 64 MB."""
        self._send(200, BOMB, extra="Content-Encoding: gzip\r\n")

    def do_gzip_twice(self):
        self._send(200, gzip.compress(BOMB), extra="Content-Encoding: gzip, gzip\r\n")

    def do_gzip_cut(self):
        self._send(200, b"not zipped", extra="Content-Encoding: gzip\r\n")

    def do_gzip_tail(self):
        self._send(200, gzip.compress(b"{}") + b"x" * 5000, extra="Content-Encoding: gzip\r\n")

    def do_zipped(self):
        self._send(200, gzip.compress(json.dumps({"result": [[{"contents": "T\nx"}]]}).encode()),
                   extra="Content-Encoding: GZip\r\n")

    def do_schema(self):
        self._send(200, json.dumps({"results": []}).encode())

    def do_count(self):
        self._send(200, json.dumps({"result": []}).encode())

    def do_slow(self):
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(0.1)
        with self.server.lock:
            self.server.at_once -= 1
        self._send(200, json.dumps({"result": [[]]}).encode())


@contextlib.contextmanager
def serve(replies=None):
    with FaultyServer(replies) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            server.shutdown()
            thread.join()
