"""Servers that fail, and servers that do not: every request ends in documents or in a typed, counted failure, in time."""

import socket
import time
import tracemalloc
import types

import pytest
from faulty_server import serve

from zsjax.search import Document, Failed, HttpRetriever, Limits, transport
from zsjax.search.engines import http

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
    ("count", "wrong_schema", 1), ("gzip", "too_large", 1), ("gzip_twice", "wrong_schema", 1),
    ("gzip_cut", "invalid_json", 2), ("gzip_tail", "invalid_json", 2),
])
def test_every_failure_is_typed_counted_and_in_time(server, path, kind, attempts):
    engine = HttpRetriever((closed_port() if path == "refused" else f"{server.url}/") + path, batch_size=2, limits=FAST)
    start = time.monotonic()
    found = engine.search(["a", "b", "c"], None, k=3)  # two requests, of two queries and of one
    assert time.monotonic() - start < 2 * FAST.timeout + 2 * FAST.max_backoff + 6  # the server itself would hang for 10 s
    assert [(list(documents), documents.kind) for documents in found] == [([], kind)] * 3
    assert engine.counters["requests"] == 2 and engine.counters["attempts"] == 2 * attempts
    assert {name: n for name, n in engine.counters.items() if name.startswith("failed")} == {f"failed_{kind}": 2}


@pytest.mark.parametrize("path", ["gzip", "gzip_twice", "huge"])
def test_a_reply_takes_no_more_memory_than_its_limit(server, path):
    tracemalloc.start()
    try:
        assert HttpRetriever(f"{server.url}/{path}", limits=FAST).search(["a"], None, k=1) == [[]]
        assert tracemalloc.get_traced_memory()[1] < 12 * FAST.max_bytes
    finally:
        tracemalloc.stop()


def test_a_zipped_reply_is_read(server):
    assert HttpRetriever(f"{server.url}/zipped", limits=FAST).search(["a"], None, k=1) == [[Document("T", "x")]]


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


GOOD = {"document": {"contents": '"A"\na'}, "score": 1}


@pytest.mark.parametrize("odd", [
    {"document": {"id": "7", "content": "b"}}, {"document": {"contents": None}}, {"document": None}, None, 7, [],
    {"document": {"title": None, "text": None}}, {"document": {"title": ["x"], "text": "b"}}])
def test_an_odd_document_costs_itself(odd):
    entries = {"odd": [GOOD, odd, GOOD], "only odd": [odd], "none": [], "no list": None, "a": [GOOD]}
    with serve({"x": lambda body: (200, {"result": [entries[query] for query in body["queries"]]})}) as server:
        engine = HttpRetriever(server.url + "/x", limits=FAST)
        found = dict(zip(entries, engine.search(list(entries), None, k=3), strict=True))
    assert found["odd"] == [Document("A", "a", 1.0)] * 2 and found["a"] == [Document("A", "a", 1.0)]
    assert found["only odd"].kind == found["no list"].kind == "wrong_schema" and not isinstance(found["none"], Failed)
    assert engine.counters["odd_documents"] == 3 and not engine.counters["failed_wrong_schema"]


@pytest.mark.parametrize("score", [None, "x", [1], 10**400, float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_costs_no_document(score):
    with serve({"x": lambda body: (200, {"result": [[{"document": "T\nx", "score": score}]]})}) as server:
        assert HttpRetriever(server.url + "/x", limits=FAST).search(["a"], None, k=1) == [[Document("T", "x", 0.0)]]


@pytest.mark.parametrize("entry, document", [
    ({"title": 1984, "text": "x"}, Document("1984", "x")), ({"title": float("nan"), "text": "x"}, Document("", "x")),
    ({"contents": '""Q" Is for Quarry"\nx'}, Document('"Q" Is for Quarry', "x")),
    ({"contents": '"A" b\nx'}, Document('"A" b', "x"))])
def test_titles_are_read_as_in_files(entry, document):
    assert http.parse_result({"result": [[entry]]}) == [[document]]


def test_broken_text_becomes_replacement_characters_in_both_directions():
    text = "\ude00 \U0001f600 C:\\ud83d"
    replies = {"x": lambda body: (200, {"result": [[f"T\n{query} {text}" for query in body["queries"]]]})}
    with serve(replies) as server:
        found = HttpRetriever(server.url + "/x", limits=FAST).search(["cut \ud83d"], None, k=1)
        assert server.requests[0][1]["queries"] == ["cut \ufffd"]
    assert found == [[Document("T", "cut \ufffd \ufffd \U0001f600 C:\\ud83d")]]
    assert transport.parse_reply('\ufeff["caf\xe9"]'.encode(), list) == ["caf\xe9"]  # a byte order mark
    assert transport.parse_reply(b'["caf\xe9"]', list) == ["caf\ufffd"]  # Latin-1


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/retrieve", "", "http://", "http://h:99999/", "http://[::1/x",
                                 "http://:80/x"])
def test_addresses_are_checked(url):
    with pytest.raises(ValueError, match="not the URL of a server"):
        HttpRetriever(url)
