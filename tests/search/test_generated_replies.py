"""Generated replies and requests: each ends in documents or in a failure of a named kind; no traceback, no hang."""

import contextlib
import copy
import functools
import http.server
import json
import logging
import random

import httpx
import pytest

from tests.raw_replies import Raw, started
from zsjax.search import ChatSimulator, Document, Failed, HttpRetriever, Limits, SearchContext, SerpApi
from zsjax.search.server import RetrievalServer
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.search.transport import FAILURES
from zsjax.types import Question

VALUES = [None, True, 0, -1, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\ud83d", "\0", "a\nb", "</think>",
          "<think>", "length", [], [[]], [None], {}, {"document": None}, {"text": 1}, "Doc 1:\n" * 50, "\u2028", "Here:"]
RETRIEVED = {"result": [[{"document": {"id": "1", "contents": '"A"\na', "title": "A", "text": "a"}, "score": 1.0}]] * 2}
CHAT = {"id": "x", "choices": [{"finish_reason": "stop", "message": {
    "role": "assistant", "content": "Doc 1: A. a\nDoc 2: B. b", "reasoning_content": None, "refusal": None}}]}
WEB = {"search_metadata": {"status": "Success"}, "organic_results": [{"position": 1, "title": "T", "snippet": "s"}] * 2}
REQUEST = {"queries": ["a", "b"], "topk": 2, "return_scores": True}


def places(value, at=()):
    """Paths of everything inside a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from places(item, (*at, name))


def mutated(value, draw):
    """The value's JSON in bytes, with up to three places replaced, removed or doubled, and now and then broken bytes."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        inner = [place for place in places(value) if place]
        if not inner or draw.random() < 0.03:
            value = copy.deepcopy(draw.choice(VALUES))
            continue
        *path, last = draw.choice(inner)
        node = functools.reduce(lambda node, name: node[name], path, value)
        change = draw.choice(["replace", "replace", "remove", "double"])
        if change == "remove":
            del node[last]
        elif change == "double" and isinstance(node, list):
            node.append(node[last])
        else:
            node[last] = copy.deepcopy(draw.choice(VALUES))
    data = bytearray(json.dumps(value, ensure_ascii=draw.random() < 0.7).encode("utf-8", "surrogatepass"))
    if draw.random() < 0.2 and data:
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data[:draw.randrange(len(data) + 1)] if draw.random() < 0.1 else data)


@contextlib.contextmanager
def running(server):
    with server:
        started(server)
        yield f"http://127.0.0.1:{server.server_address[1]}/x"
        server.shutdown()


LIMITS = Limits(timeout=5, retries=0, breaker_failures=0, max_bytes=1 << 20)
ENGINES = {
    "retrieve": (RETRIEVED, lambda url: HttpRetriever(url, limits=LIMITS)),
    "chat": (CHAT, lambda url: ChatSimulator(url, model="m", template=SimulatorTemplate.load("prompted"), limits=LIMITS)),
    "web": (WEB, lambda url: SerpApi(url=url, limits=LIMITS, price=1.0)),
}


@pytest.mark.parametrize("name", ENGINES)
def test_every_reply_is_documents_or_a_failure_with_a_name(name, monkeypatch, generated_cases):
    monkeypatch.setenv("SERPAPI_API_KEY", "k")
    monkeypatch.setattr(logging.getLogger(), "disabled", True)
    reply, make = ENGINES[name]
    draw, outcomes = random.Random(7), set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Raw)
    with running(server) as url:
        engine = make(url)
        for i in range(generated_cases):
            server.body = mutated(reply, draw)
            queries = [f"a {i}", f"b {i}"]
            found = engine.search(queries, [SearchContext(Question("1", "who?", ("x",)))] * 2, k=3)
            assert len(found) == 2, server.body
            for documents in found:
                assert not isinstance(documents, Failed) or documents.kind in FAILURES and not documents, server.body
                for document in documents:
                    assert isinstance(document, Document), server.body
                    f"{document.title}{document.text}".encode()  # no lone surrogates
                outcomes.add(getattr(documents, "kind", "found" if documents else "nothing"))
    assert {"found", "wrong_schema", "invalid_json"} <= outcomes and "timeout" not in outcomes


class Echo:
    def search(self, queries, contexts, *, k):
        return [[Document(query, query)] for query in queries]


def test_every_request_to_our_server_gets_json_and_a_status(caplog, generated_cases):
    draw, statuses = random.Random(7), set()
    with running(RetrievalServer(Echo(), port=0)) as url, httpx.Client(timeout=5) as client:
        for _ in range(generated_cases):
            body = mutated(REQUEST, draw)
            reply = client.post(url.replace("/x", "/retrieve"), content=body)
            assert reply.status_code in (200, 400) and reply.json(), body
            assert isinstance(reply.json()["result" if reply.status_code == 200 else "detail"], (list, str))
            statuses.add(reply.status_code)
    assert statuses == {200, 400} and not caplog.records
