"""An HTTP server that replies with given bytes, whatever they are."""

import http.server
import threading


class Raw(http.server.BaseHTTPRequestHandler):
    """Replies with `server.body`."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST

    def log_message(self, *args):
        pass


def started(server):
    """The server, answering in a thread of its own until the process ends or `shutdown`."""
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server
