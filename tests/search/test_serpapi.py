"""Paid search: nothing is paid twice, a budget holds over restarts, failures cost nothing, and the key stays secret."""

import json
import logging
import pathlib
from urllib.parse import parse_qs, urlsplit

import pytest
from faulty_server import serve

from zsjax.search import BudgetSpent, Document, Failed, Limits, SerpApi

KEY = "k3y-that-must-not-leak"
LIMITS = Limits(timeout=2, retries=0, backoff=0.01)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("SERPAPI_API_KEY", KEY)


def results(n):
    return {"search_metadata": {"status": "Success"},
            "organic_results": [{"position": i, "title": f"T{i}", "snippet": f"s {i}"} for i in range(n)]}


def test_search_cache_and_account(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with serve({"search.json": lambda body: (200, results(9))}) as server:
        make = lambda: SerpApi(cache_dir=tmp_path, url=server.url + "/search.json", price=0.5, budget=1.6, limits=LIMITS)
        engine = make()
        found = engine.search(["who", "who ", "where"], None, k=3)
        assert found[0] == found[1] == [Document(f"T{i}", f"s {i}") for i in range(3)]
        assert len(server.requests) == 2 and (engine.paid_searches, engine.dollars) == (2, 1.0)
        asked = parse_qs(urlsplit(server.requests[0][0]).query)
        assert asked["engine"] == ["google"] and asked["api_key"] == [KEY]
        engine = make()  # a run that goes on
        assert engine.search(["who"], None, k=9)[0][8].title == "T8" and len(server.requests) == 2
        engine.search(["when"], None, k=1)
        with pytest.raises(BudgetSpent, match="1.50 dollars were spent in 3 searches"):
            engine.search(["who", "why"], None, k=1)
        assert len(server.requests) == 3
        assert make().search(["who", "where", "when"], None, k=1)  # what was paid for is still there
    written = [path.read_text() for path in pathlib.Path(tmp_path).rglob("*.json")]
    assert len(written) == 4 and not any(KEY in text for text in written)
    assert KEY not in caplog.text


@pytest.mark.parametrize("status, reply, kind", [
    (401, {"error": "Invalid API key"}, "client_error"), (429, {"error": "run out"}, "rate_limited"),
    (200, {"search_metadata": {"status": "Error"}, "error": "We couldn't get valid results"}, "server_error"),
    (200, {"unknown": 1}, "wrong_schema"), (200, [], "wrong_schema"),
])
def test_failures_are_typed_and_free(status, reply, kind, tmp_path, caplog):
    with serve({"x": lambda body: (status, reply)}) as server:
        engine = SerpApi(cache_dir=tmp_path, url=server.url + "/x", limits=LIMITS)
        (found,) = engine.search(["who"], None, k=3)
    assert isinstance(found, Failed) and found.kind == kind and engine.dollars == 0
    assert engine.counters[f"failed_{kind}"] == 1 and KEY not in caplog.text


def test_nothing_found_is_a_result():
    empty = {"search_metadata": {"status": "Success"}, "error": "Google hasn't returned any results for this query."}
    odd = {"search_metadata": {"status": "Success"}, "organic_results": [{"title": None}, {"title": "only a title"}]}
    replies = iter([empty, odd])
    with serve({"x": lambda body: (200, next(replies))}) as server:
        engine = SerpApi(url=server.url + "/x", limits=Limits(concurrency=1))
        assert engine.search(["a", "b"], None, k=3) == [[], [Document("only a title", "only a title")]]
        assert engine.search(["a"], None, k=3) == [[]] and engine.paid_searches == 2
    assert not isinstance(engine.search(["a"], None, k=3)[0], Failed)


def test_a_cut_cache_file_is_asked_again(tmp_path):
    with serve({"x": lambda body: (200, results(1))}) as server:
        engine = SerpApi(cache_dir=tmp_path, url=server.url + "/x")
        engine.search(["a"], None, k=1)
        (path,) = [path for path in tmp_path.rglob("*.json") if path.name != "spent.json"]
        path.write_text(path.read_text()[:20])
        assert engine.search(["a"], None, k=1) == [[Document("T0", "s 0")]] and len(server.requests) == 2
        assert json.loads((tmp_path / "spent.json").read_text())["searches"] == 2


def test_no_key(monkeypatch):
    monkeypatch.delenv("SERPAPI_API_KEY")
    with pytest.raises(ValueError, match="SERPAPI_API_KEY"):
        SerpApi()
