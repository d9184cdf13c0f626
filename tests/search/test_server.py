"""Our retrieval server: Search-R1's protocol, steps of Search-R1, many clients, bad requests and engines that fail."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time
import urllib.request

import httpx
import pytest

from zsjax.search import BM25, Document, Failed, HttpRetriever, Limits
from zsjax.search import server as server_module
from zsjax.search.server import RetrievalServer

CORPUS = [Document("Kora \"K\" Velim", "born in Tosk.\nSecond line"), Document("", "Tosk is a town"), Document("x", "y z")]


class FakeEngine:
    """Does what each query names; counts how many searches run at a time."""

    def __init__(self):
        self.lock, self.at_once, self.most_at_once, self.calls = threading.Lock(), 0, 0, []

    def search(self, queries, contexts, *, k):
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.calls.append(len(queries))
        time.sleep(0.01)
        with self.lock:
            self.at_once -= 1
        if "raise" in queries:
            raise RuntimeError("the index is broken")
        documents = {"fail": Failed("timeout"), "surrogate": [Document("\ud83d", "cut \ud83d", float("nan"))]}
        return [documents.get(query, [Document('"Q" and\nmore', query, 0.5)]) for query in queries]


@contextlib.contextmanager
def serving(engine, **options):
    with RetrievalServer(engine, port=0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def retrieval():
    with serving(BM25.from_documents(CORPUS), topk=1) as server:
        yield server


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
    (b'{"queries": [' + b'"a",' * 4096 + b'"a"]}', 400), (b"x" * (5 << 20), 413),
    (b'{"queries": [' + b'"a",' * 2559 + b'"a"], "topk": 100}', 400), (b"[" * 100_000, 400),
    (b'{"queries": ["a\xff"]}', 400),
])
def test_the_server_refuses_bad_requests_and_lives_on(retrieval, body, status):
    try:
        assert httpx.post(retrieval.url, content=body).status_code == status
    except (httpx.WriteError, httpx.ReadError):
        assert status == 413  # hung up on while still sending
    assert httpx.post(retrieval.url, json={"queries": ["tosk"]}).status_code == 200


@pytest.mark.parametrize("head, status", [
    ("Content-Length: " + "9" * 5000, 413), ("Content-Length: -1", 411), ("Content-Length: \u0663", 411),
    ("Transfer-Encoding: chunked", 411)])
def test_a_body_without_a_possible_length_is_refused(retrieval, head, status):
    with socket.create_connection(retrieval.server_address, timeout=5) as client:
        client.sendall(f"POST /retrieve HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        assert client.recv(100).startswith(f"HTTP/1.1 {status}".encode())


def test_a_step_of_search_r1_is_one_request():
    with serving(engine := FakeEngine()) as server:
        queries = [f"q {i}" for i in range(2560)]
        reply = httpx.post(server.url, timeout=60, json={"queries": queries, "topk": 3, "return_scores": True})
        assert [entries[0]["document"]["text"] for entries in reply.json()["result"]] == queries
    assert max(engine.calls) <= server_module.QUERIES_AT_A_TIME  # so that an engine's memory is bounded
    assert server.counters["queries"] == 2560


def test_128_clients_at_once_are_served_and_few_search_at_a_time():
    with serving(engine := FakeEngine()) as server, concurrent.futures.ThreadPoolExecutor(128) as pool:
        start, body = threading.Barrier(128), json.dumps({"queries": ["a"]}).encode()

        def ask(_):
            start.wait()
            with urllib.request.urlopen(urllib.request.Request(server.url, data=body), timeout=20) as reply:
                return reply.status

        before = time.monotonic()
        assert list(pool.map(ask, range(128))) == [200] * 128
        # Where the system's list of waiting clients is short, the others try again after 1, 3, 7 s.
        assert time.monotonic() - before < 5 and server.request_queue_size >= 128
    assert engine.most_at_once <= server_module.SEARCHES


def test_128_clients_search_an_index_on_disk_at_once(tmp_path):
    words = [f"w{a}{b}" for a in "abcdefghijklmnop" for b in "abcdefghijklmnop"]
    documents = [Document(word, f"{word} {words[i - 1]} common words") for i, word in enumerate(words)]
    BM25.from_documents(documents).save(tmp_path / "i")
    engine = BM25.load(tmp_path / "i")
    with serving(engine) as server, concurrent.futures.ThreadPoolExecutor(128) as pool:
        def ask(word):
            return HttpRetriever(server.url, limits=Limits(timeout=30, retries=0)).search([word, "common"], None, k=3)

        replies = list(pool.map(ask, words[:128]))
    for word, (own, common) in zip(words[:128], replies, strict=True):
        assert own[0].title == word and [(d.title, d.text) for d in common] == [
            (d.title, d.text) for d in engine.search(["common"], k=3)[0]]


def test_the_memory_of_bodies_is_bounded(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_BODIES", 100)
    with serving(FakeEngine()) as server:
        assert httpx.post(server.url, content=b" " * 101).status_code == 503
        assert httpx.post(server.url, json={"queries": ["a"]}).status_code == 200 and server.body_bytes == 0


def test_a_client_that_only_announces_takes_no_room(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_BODIES", 200)
    with serving(FakeEngine()) as server, contextlib.ExitStack() as clients:
        for _ in range(9):
            client = clients.enter_context(socket.create_connection(server.server_address))
            client.sendall(b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 195\r\n\r\n{")
        while server.body_bytes < 9:
            time.sleep(0.01)
        assert httpx.post(server.url, json={"queries": ["a"]}).status_code == 200


@pytest.mark.parametrize("begin, drip", [(b"POST /retri", b"e"), (b"POST /retrieve HTTP/1.1\r\nX: ", b"x"),
                                         (b"POST /retrieve HTTP/1.1\r\nContent-Length: 9999\r\n\r\n", b" ")])
def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(monkeypatch, begin, drip):
    monkeypatch.setattr(server_module, "READ_SECONDS", 0.5)
    with serving(FakeEngine()) as server, socket.create_connection(server.server_address) as client:
        started = time.monotonic()
        client.sendall(begin)
        with pytest.raises(OSError):
            while time.monotonic() - started < 5:
                client.sendall(drip)
                time.sleep(0.05)
        assert time.monotonic() - started < 4
        # A connection that rested has its whole time for the next request.
        with httpx.Client() as kept:
            for _ in range(2):
                assert kept.post(server.url, json={"queries": ["a"]}).status_code == 200
                time.sleep(0.3)


def test_bodies_are_parsed_one_after_the_other(monkeypatch):
    """Their JSON takes many times their bytes."""
    at_once, most, loads = [], [], json.loads

    def slow(data):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.02)
        at_once.pop()
        return loads(data)

    with serving(FakeEngine()) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(server_module.json, "loads", slow)
        replies = list(pool.map(lambda _: httpx.post(server.url, content=b'{"queries": ["a"]}').status_code, range(8)))
        monkeypatch.undo()
    assert replies == [200] * 8 and max(most) == 1 and len(most) == 8


def test_engines_that_fail():
    with serving(FakeEngine()) as server:
        assert httpx.post(server.url, json={"queries": ["raise"]}).status_code == 500
        assert httpx.post(server.url, json={"queries": ["fail", "fail"]}).status_code == 502  # not: nothing was found
        assert httpx.post(server.url, json={"queries": ["fail", "a"]}).json()["result"][0] == []
        found = HttpRetriever(server.url, limits=Limits(retries=0)).search(["fail"], None, k=1)
        assert found[0].kind == "server_error" and server.counters["failed"] == 4


def test_what_an_engine_finds_arrives_whole():
    with serving(FakeEngine()) as server:
        found = HttpRetriever(server.url).search(["a", "surrogate", ""], None, k=1)
    assert found == [[Document('"Q" and\nmore', "a", 0.5)], [Document("\ufffd", "cut \ufffd", 0.0)],
                     [Document('"Q" and\nmore', "", 0.5)]]
