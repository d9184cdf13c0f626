"""Servers that fail, and servers that do not: every request ends in documents or in a typed, counted failure, in time."""

import socket
import threading
import time
import types

import httpx
import pytest
from faulty_server import serve

from zsjax.search import BM25, Document, Failed, HttpRetriever, Limits, transport
from zsjax.search.server import RetrievalServer

FAST = Limits(timeout=0.8, retries=1, backoff=0.01, max_backoff=0.05, max_bytes=1 << 20, breaker_failures=0)


@pytest.fixture(scope="module")
def server():
    with serve() as server:
        yield server


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


@pytest.mark.parametrize("path, kind, attempts", [
    ("refused", "refused", 2), ("hang", "timeout", 2), ("drip", "timeout", 2), ("drip_head", "timeout", 2),
    ("reset", "reset", 2), ("short", "reset", 2), ("nothttp", "reset", 2), ("429", "rate_limited", 2),
    ("500", "server_error", 2), ("404", "client_error", 1), ("redirect", "client_error", 1),
    ("garbage", "invalid_json", 2), ("deep", "invalid_json", 2), ("huge", "too_large", 1), ("schema", "wrong_schema", 1),
    ("count", "wrong_schema", 1),
])
def test_every_failure_is_typed_counted_and_in_time(server, path, kind, attempts):
    engine = HttpRetriever((closed_port() if path == "refused" else f"{server.url}/") + path, batch_size=2, limits=FAST)
    start = time.monotonic()
    found = engine.search(["a", "b", "c"], None, k=3)  # two requests, of two queries and of one
    assert time.monotonic() - start < 2 * FAST.timeout + 2 * FAST.max_backoff + 6  # the server itself would hang for 10 s
    assert [(list(documents), documents.kind) for documents in found] == [([], kind)] * 3
    assert engine.counters["requests"] == 2 and engine.counters["attempts"] == 2 * attempts
    assert {name: n for name, n in engine.counters.items() if name.startswith("failed")} == {f"failed_{kind}": 2}


def test_a_server_that_comes_back_is_found_by_a_retry():
    states = iter([500, 500, 200])
    replies = {"retrieve": lambda body: (next(states), {"result": [[{"contents": "T\nx"}] for _ in body["queries"]]})}
    with serve(replies) as server:
        engine = HttpRetriever(server.url, limits=Limits(timeout=2, retries=2, backoff=0.01))
        assert engine.search(["a"], None, k=1) == [[Document("T", "x")]]
    assert engine.counters["attempts"] == 3


def test_circuit_breaker_leaves_a_dead_server_alone_and_tries_again_later(monkeypatch):
    clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(transport, "time", clock)
    states = {"status": 500}
    replies = {"retrieve": lambda body: (states["status"], {"result": [[] for _ in body["queries"]]})}
    with serve(replies) as server:
        limits = Limits(timeout=2, retries=0, backoff=0.01, breaker_failures=3, breaker_seconds=30, concurrency=1)
        engine = HttpRetriever(server.url, batch_size=1, limits=limits)
        kinds = [documents.kind for documents in engine.search(list("abcdefgh"), None, k=1)]
        assert kinds == ["server_error"] * 3 + ["circuit_open"] * 5 and len(server.requests) == 3
        clock.now = 31.0
        kinds = [documents.kind for documents in engine.search(list("abc"), None, k=1)]
        assert kinds == ["server_error"] + ["circuit_open"] * 2 and len(server.requests) == 4  # one probe
        states["status"] = 200
        assert engine.search(["a"], None, k=1)[0].kind == "circuit_open"  # not yet
        clock.now = 62.0
        assert not any(isinstance(d, Failed) for d in engine.search(list("abc"), None, k=1))


def test_concurrency_is_limited_and_used():
    for concurrency in (1, 4):
        with serve() as server:
            engine = HttpRetriever(server.url + "/slow", batch_size=1, limits=Limits(timeout=30, concurrency=concurrency))
            assert engine.search(list("abcdefgh"), None, k=1) == [[]] * 8
            assert server.most_at_once <= concurrency and (server.most_at_once > 1) == (concurrency > 1)


def test_search_inside_a_running_event_loop():
    import asyncio

    replies = {"retrieve": lambda body: (200, {"result": [["plain text"]]})}

    async def notebook(url):
        return HttpRetriever(url).search(["a"], None, k=1)

    with serve(replies) as server:
        assert asyncio.run(notebook(server.url)) == [[Document("plain text", "")]]


CORPUS = [Document("Kora \"K\" Velim", "born in Tosk.\nSecond line"), Document("", "Tosk is a town"), Document("x", "y z")]


@pytest.fixture(scope="module")
def retrieval():
    with RetrievalServer(BM25.from_documents(CORPUS), port=0, topk=1) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_our_client_and_our_server_give_what_the_engine_gives(retrieval):
    queries = ["tosk", "Velim born", "nothing known"]
    assert HttpRetriever(retrieval.url, batch_size=2).search(queries, None, k=3) == BM25.from_documents(CORPUS).search(
        queries, None, k=3)


def test_the_protocol_is_search_r1s(retrieval):
    reply = httpx.post(retrieval.url, json={"queries": ["velim"], "topk": 2, "return_scores": True}).json()
    ((entry,),) = reply["result"]
    assert entry["score"] > 0
    # What Search-R1's rollout does with it: the first line is the title, the rest the text.
    lines = entry["document"]["contents"].split("\n")
    assert lines == ['"Kora "K" Velim"', "born in Tosk.", "Second line"]
    reply = httpx.post(retrieval.url, json={"queries": ["tosk"]}).json()  # no scores; topk is the server's
    assert [document["text"] for document in reply["result"][0]] == ["Tosk is a town"]
    assert httpx.get(retrieval.url.replace("/retrieve", "/health")).json()["status"] == "ok"


@pytest.mark.parametrize("body, status", [
    (b"{", 400), (b"[]", 400), (b'{"queries": "tosk"}', 400), (b'{"queries": [1]}', 400),
    (b'{"queries": ["a"], "topk": 1000}', 400), (b'{"queries": ["a"], "topk": "x"}', 400),
    (b'{"queries": [' + b'"a",' * 2000 + b'"a"]}', 400), (b"x" * (5 << 20), 413),
])
def test_the_server_refuses_bad_requests_and_lives_on(retrieval, body, status):
    try:
        assert httpx.post(retrieval.url, content=body).status_code == status
    except (httpx.WriteError, httpx.ReadError):
        assert status == 413  # hung up on while still sending
    assert httpx.post(retrieval.url, json={"queries": ["tosk"]}).status_code == 200


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/retrieve", "", "http://"])
def test_addresses_are_checked(url):
    with pytest.raises(ValueError, match="no address"):
        HttpRetriever(url)
