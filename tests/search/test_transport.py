"""The HTTP client: connections that are kept, redirects, proxies, the circuit breaker, forks."""

import http.server
import logging
import multiprocessing
import re
import threading
import time
import urllib.parse

import pytest
from faulty_server import serve

from zsjax.search import HttpRetriever, Limits, SearchError
from zsjax.search.addresses import environment_key, proxy_of, shown_address, shown_text
from zsjax.search.engines.serpapi import organic_results
from zsjax.search.transport import CircuitBreaker, Request, Transport

FAST = Limits(timeout=2, retries=0, breaker_failures=0)


class KeptAlive(http.server.BaseHTTPRequestHandler):
    """Keeps connections; /N/status/PLACE redirects to PLACE, all else replies with what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.server.clients.add(self.client_address)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        _, *redirect = self.path.split("/", 3)[1:] if self.path.startswith("/to/") else [""]
        status = int(redirect[0]) if redirect else 200
        reply = b"{}" if redirect else b'["%s", %s]' % (self.command.encode(), body or b"0")
        self.send_response(status)
        if redirect:
            place = redirect[1] if "://" in redirect[1] else "/" + redirect[1]
            self.send_header("Location", place.replace("SELF", self.headers["Host"]))
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), KeptAlive) as server:
        server.daemon_threads, server.clients = True, set()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path, json=None, limits=FAST):
    return Transport(limits).send([Request(server.url + path, json=json)], lambda value: value)[0]


def test_connections_are_kept_between_batches(server):
    transport = Transport(Limits(concurrency=2))
    server.clients.clear()
    for _ in range(5):
        assert transport.send([Request(server.url, json=i) for i in range(4)], list) == [["POST", i] for i in range(4)]
    assert len(server.clients) <= 2


def test_concurrency_is_that_of_the_engine_whatever_the_threads():
    with serve() as server:
        engine = HttpRetriever(server.url + "/slow", batch_size=1, limits=Limits(timeout=30, concurrency=2))
        threads = [threading.Thread(target=engine.search, args=(list("abc"), None), kwargs={"k": 1}) for _ in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert server.most_at_once == 2 and len(server.requests) == 9


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_on_the_same_host_keeps_the_post(server, status):
    assert ask(server, f"/to/{status}/there", json=5) == ["POST", 5]
    assert ask(server, f"/to/{status}/to/{status}/http://SELF/there", json=5) == ["POST", 5]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_get_follows_any_redirect_on_the_same_host(server, status):
    assert ask(server, f"/to/{status}/there") == ["GET", 0]


@pytest.mark.parametrize("path, what", [
    ("/to/302/there", "redirects by 302, which drops the request's body; use the address http://127.0.0.1"),
    ("/to/303/there", "redirects by 303"),
    ("/to/307/http://elsewhere.test/x?key=secret", "another server; use its address http://elsewhere.test/x if"),
    ("/to/307/http://127.0.0.1:1/x", "another server"), ("/to/307/https://SELF/x", "another server"),
    ("/to/307/" + "to/307/" * 9, "more than 5 times")])
def test_other_redirects_are_refused_and_said(server, path, what):
    error = ask(server, path, json=5)
    assert isinstance(error, SearchError) and error.kind == "client_error" and what in str(error)
    assert "secret" not in str(error)


def test_an_error_through_a_proxy_names_the_proxy_and_no_password(monkeypatch, caplog):
    with serve({"http:": lambda body: (502, {})}) as proxy:
        address = proxy.url.removeprefix("http://")
        monkeypatch.setenv("http_proxy", f"http://user:secret@{address}")
        monkeypatch.setenv("no_proxy", "localhost")
        (error,) = Transport(FAST).send([Request("http://me:secret@engine.test/x?key=secret")], list)
        assert str(error) == f"server_error: http://engine.test/x through the proxy http://{address} says 502"
    for proxy, kind in ((f"http://{address}", "refused"), ("socks9://x", "client_error"), ("socks5://x:1", "client_error")):
        monkeypatch.setenv("http_proxy", proxy)
        (error,) = Transport(FAST).send([Request("http://engine.test/x")], list)
        assert error.kind == kind and f"through the proxy {proxy}" in str(error) and str(error) in caplog.text
    assert proxy_of("http://localhost:80/x") is None and proxy_of("https://engine.test/x") is None
    assert "secret" not in caplog.text and shown_address("http://a:b@c/d@e?f") == "http://c/d@e"


def test_the_breaker_lets_one_attempt_through_after_a_while():
    breaker = CircuitBreaker(2, 0.05)
    for _ in range(2):
        assert breaker.enter()
        breaker.leave(failed=True)
    assert not breaker.enter()
    time.sleep(0.06)
    assert breaker.enter() and not breaker.enter()
    breaker.leave(failed=False)
    assert breaker.enter() and breaker.enter()


@pytest.mark.parametrize("header, waits", [("1", True), ("Fri, 31 Dec 2100 23:59:59 GMT", True), ("soon", False),
                                           ("Fri, 31 Dec 1999 23:59:59 GMT", False), ("9" * 400, True)])
def test_a_server_says_when_to_ask_again(header, waits):
    class Handler(KeptAlive):
        def do_GET(self):
            self.send_response(503)
            self.send_header("Retry-After", header)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.url, before = f"http://127.0.0.1:{server.server_address[1]}", time.monotonic()
        error = ask(server, "/", limits=Limits(retries=1, backoff=0.001, max_backoff=0.5))
        assert error.kind == "server_error" and (time.monotonic() - before >= 0.5) == waits
        server.shutdown()


def test_a_forked_process_has_connections_of_its_own(server):
    transport = Transport(FAST)
    assert transport.send([Request(server.url)], list) == [["GET", 0]]

    def child(results):
        results.put(transport.send([Request(server.url)], list))

    results = multiprocessing.get_context("fork").Queue()
    process = multiprocessing.get_context("fork").Process(target=child, args=(results,))
    process.start()
    assert results.get(timeout=10) == [["GET", 0]]
    process.join()


def test_keys(monkeypatch):
    monkeypatch.setenv("KEY", "abc\n")  # as `cat key.txt` leaves it
    assert environment_key("KEY", "it") == "abc"
    for value in (" ", "a\nb", "k\u00e9y"):
        monkeypatch.setenv("KEY", value)
        with pytest.raises(ValueError, match="KEY"):
            environment_key("KEY", "it")


KEY = "sk-A+b/c==d" + "9" * 30


@pytest.mark.parametrize("spelled", [
    KEY, KEY.upper(), urllib.parse.quote(KEY), urllib.parse.quote(KEY, safe="").lower(), urllib.parse.quote_plus(KEY),
    urllib.parse.quote(urllib.parse.quote(KEY)), KEY.replace("/", r"\/"), KEY.replace("+", r"\u002b"),
    KEY.replace("=", "&#61;").replace("+", "&plus;")])
def test_a_key_is_not_shown_however_a_server_spells_it_and_wherever_it_is_cut(spelled):
    for before in range(0, 60):
        shown = shown_text("x" * before + f" {spelled} after", [KEY, ""], 40)
        assert not re.search("sk|9{2}", shown, re.IGNORECASE) and len(shown) <= 43, shown


def test_a_key_at_the_end_of_what_is_searched_for_keys_is_not_shown():
    key = "k9" * 200
    assert set(shown_text(f"{key} " * 99, [key], 60)) <= set("* .")


def test_a_servers_text_is_one_line_and_drives_no_terminal(caplog):
    with serve({"x": lambda body: (200, {"error": "a\x1b]0;owned\x07\nerror: forged\u202e",
                                         "search_metadata": {"status": "Error"}})}) as server:
        Transport(FAST).send([Request(server.url + "/x")], organic_results)
    (record,) = caplog.records
    assert record.message == "server_error: the search failed: a\u241b]0;owned\u2407 error: forged\ufffd"


def test_failures_are_logged_once_a_batch(caplog):
    caplog.set_level(logging.WARNING)
    with serve() as server:
        Transport(FAST).send([Request(server.url + "/404")] * 5, list)
    assert [record.message for record in caplog.records] == [f"client_error: {server.url}/404 says 404"]
