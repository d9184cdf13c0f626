"""Paid search: nothing is paid twice, a budget holds over restarts, failures cost nothing, and the key stays secret."""

import contextlib
import json
import logging
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from concurrent.futures import Future
from urllib.parse import parse_qs, urlsplit

import pytest
from faulty_server import serve

from zsjax.errors import OutputError
from zsjax.parallel import files, stops
from zsjax.rollout import running
from zsjax.search import BudgetSpent, Document, Failed, Limits, SerpApi
from zsjax.search.transport import NotSent

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
        def make():
            return SerpApi(cache_dir=tmp_path, url=server.url + "/search.json", price=0.5, budget=1.6, limits=LIMITS)

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


def test_an_empty_query_costs_nothing_and_folders_that_cannot_be_are_named(tmp_path):
    with serve({"x": lambda body: (200, results(1))}) as server:
        engine = SerpApi(url=server.url + "/x", price=1.0, cache_dir=tmp_path / "c")
        found = engine.search(["", "who", "  "], None, k=1)
    assert [len(documents) for documents in found] == [0, 1, 0] and engine.dollars == 1 and len(server.requests) == 1
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file cannot be made"):
        SerpApi(cache_dir=tmp_path / "file")
    (tmp_path / "d" / "spent.json").mkdir(parents=True)
    with pytest.raises(ValueError, match="spent.json does not hold an account"):
        SerpApi(cache_dir=tmp_path / "d")


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


def spent(folder):
    return json.loads((folder / "spent.json").read_text())


def test_engines_over_one_folder_share_the_account(tmp_path):
    with serve({"x": lambda body: (200, results(1))}) as server:
        training, evaluation = (SerpApi(cache_dir=tmp_path, url=server.url + "/x", price=1.0, budget=2.0) for _ in range(2))
        training.search(["a"], None, k=1)
        evaluation.search(["a", "b"], None, k=1)
        for engine in (training, evaluation):
            assert (engine.paid_searches, engine.dollars) == (2, 2.0)
            with pytest.raises(BudgetSpent):
                engine.search(["c"], None, k=1)
        assert len(server.requests) == 2
        assert (training.counters["paid_searches"], evaluation.counters["paid_searches"]) == (1, 1)


def search_all(folder, url, first, done):
    engine, paid = SerpApi(cache_dir=folder, url=url, price=1.0, budget=12.0), 0
    for i in range(10):
        try:
            engine.search([f"shared {i}", f"own {first} {i}"], None, k=1)
        except BudgetSpent:
            paid += 1
    done.put((engine.counters["paid_searches"], paid))


def test_processes_pay_once_and_never_above_the_budget(tmp_path):
    context = multiprocessing.get_context("fork")
    with serve({"x": lambda body: (200, results(1))}) as server:
        done = context.Queue()
        processes = [context.Process(target=search_all, args=(tmp_path, server.url + "/x", i, done)) for i in range(3)]
        [process.start() for process in processes]
        paid, refused = zip(*[done.get(timeout=30) for _ in processes], strict=True)
        [process.join() for process in processes]
        queries = [parse_qs(urlsplit(path).query)["q"][0] for path, _ in server.requests]
    assert len(queries) == len(set(queries)) == sum(paid) == spent(tmp_path)["searches"] and 11 <= sum(paid) <= 12
    assert all(refused)


def test_each_charge_is_written_before_its_request_and_outlives_a_crash(tmp_path):
    seen = []

    def reply(body):
        seen.append(spent(tmp_path))
        return 200, results(1)

    def killed(url):
        engine = SerpApi(cache_dir=tmp_path, url=url, price=0.5, limits=Limits(concurrency=1))
        keep = engine._keep
        engine._keep = lambda query, rows: (keep(query, rows), query == "b" and os._exit(9))
        engine.search(["a", "b", "c"], None, k=1)

    with serve({"x": reply}) as server:
        process = multiprocessing.get_context("fork").Process(target=killed, args=(server.url + "/x",))
        process.start()
        process.join(timeout=10)
        assert process.exitcode == 9
        assert [account["searches"] for account in seen] == [1, 2] and spent(tmp_path) == {"searches": 2, "dollars": 1.0}
        asked = len(server.requests)
        again = SerpApi(cache_dir=tmp_path, url=server.url + "/x", price=0.5)
        assert again.search(["a", "b"], None, k=1) == [[Document("T0", "s 0")]] * 2 and len(server.requests) == asked


def kept(folder):
    return {json.loads(path.read_text())["query"] for path in folder.glob("??/*.json")}


def asked(server):
    return {parse_qs(urlsplit(path).query)["q"][0] for path, _ in server.requests}


@contextlib.contextmanager
def slow_search(folder, seconds=0.3, **limits):
    """(engine, server) of searches that take a while; each charge is on disk when its request arrives."""
    def reply(body):
        assert spent(folder)["searches"] >= len(server.requests)
        time.sleep(seconds)
        return 200, results(1)

    with serve({"x": reply}) as server:
        limits = Limits(timeout=9, retries=0, **limits)
        yield SerpApi(cache_dir=folder, url=server.url + "/x", price=0.5, limits=limits), server


def test_a_signal_ends_a_batch_after_what_was_sent(tmp_path):
    """Nothing is charged that was not sent, and what was sent is kept, though SIGTERM comes twice."""
    with slow_search(tmp_path, concurrency=3) as (engine, server):
        timers = [threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)) for seconds in (0.45, 0.5)]
        with pytest.raises(stops.Stopped), stops.handled():
            [timer.start() for timer in timers]
            try:
                engine.search([f"q{i}" for i in range(60)], None, k=1)
            finally:
                [timer.cancel() for timer in timers]
        assert kept(tmp_path) == asked(server) and 3 <= len(asked(server)) <= 9
        assert spent(tmp_path)["searches"] == engine.counters["paid_searches"] == len(asked(server))
        assert engine.search(sorted(asked(server)), None, k=1) and engine.paid_searches == len(asked(server))


def test_a_run_that_ends_ends_the_batches_of_its_threads(tmp_path):
    with slow_search(tmp_path, concurrency=3) as (engine, server):
        search = Future()
        running.in_thread(search, lambda queries: engine.search(queries, None, k=1), [f"q{i}" for i in range(60)])
        while not server.requests:
            time.sleep(0.01)
        with stops.ending():
            assert isinstance(search.exception(timeout=10), NotSent)
        assert kept(tmp_path) == asked(server) and spent(tmp_path)["searches"] == len(asked(server)) <= 6
        assert engine.search(["later"], None, k=1)


def test_an_account_that_cannot_be_written_ends_a_batch_after_what_was_sent(tmp_path, monkeypatch):
    with slow_search(tmp_path, concurrency=2) as (engine, server):
        charge = engine.account.charge

        def full(searches, price):
            if engine.paid_searches == 3:
                raise OutputError("the disk is full")
            charge(searches, price)

        monkeypatch.setattr(engine.account, "charge", full)
        with pytest.raises(OutputError):
            engine.search([f"q{i}" for i in range(9)], None, k=1)
        assert kept(tmp_path) == asked(server) and len(asked(server)) == spent(tmp_path)["searches"] == 3


def test_a_failure_after_a_lost_reply_counts_as_paid(tmp_path):
    replies = iter(["hang", "500"])
    with serve() as server:
        engine = SerpApi(cache_dir=tmp_path, url=f"{server.url}/x", limits=Limits(timeout=1, retries=1, backoff=0.01))
        server.replies["x"] = lambda body: (500, {}) if next(replies) == "500" else time.sleep(1.5) or (200, {})
        assert engine.search(["a"], None, k=1)[0].kind == "server_error" and engine.paid_searches == 1


def test_each_attempt_after_a_lost_reply_is_charged_and_within_the_budget(tmp_path):
    with serve() as server:
        engine = SerpApi(cache_dir=tmp_path, url=f"{server.url}/hang", price=0.01, budget=0.03,
                         limits=Limits(timeout=0.3, retries=3, backoff=0.01, concurrency=1))
        with pytest.raises(BudgetSpent, match="0.03 dollars were spent in 3 searches"):
            engine.search(["a", "b"], None, k=1)
        assert len(server.requests) == spent(tmp_path)["searches"] == engine.counters["paid_searches"] == 3


@pytest.mark.parametrize("path, paid", [("hang", 1), ("reset", 1), ("500", 0), ("404", 0), ("garbage", 0)])
def test_a_reply_that_got_lost_counts_as_paid(tmp_path, path, paid):
    with serve() as server:
        engine = SerpApi(cache_dir=tmp_path, url=f"{server.url}/{path}", limits=Limits(timeout=1, retries=0))
        assert isinstance(engine.search(["a"], None, k=1)[0], Failed)
    assert engine.paid_searches == engine.counters["paid_searches"] == spent(tmp_path)["searches"] == paid


@pytest.mark.parametrize("wrong", [-1, -0.01, float("nan"), float("inf"), "5", True, 10**400])
def test_amounts_of_money_are_numbers_of_dollars(wrong, tmp_path):
    for name in ("price", "budget"):
        with pytest.raises(ValueError, match=f"{name} = .* is not an amount of dollars"):
            SerpApi(**{name: wrong})
    (tmp_path / "spent.json").write_text(json.dumps({"searches": 1, "dollars": wrong}))
    with pytest.raises(ValueError, match="spent.json does not hold an account"):
        SerpApi(cache_dir=tmp_path)


def test_without_file_locks_one_process_is_still_right(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "fcntl", None)
    with serve({"x": lambda body: (200, results(1))}) as server:
        engines = [SerpApi(cache_dir=tmp_path, url=server.url + "/x", price=1.0) for _ in range(4)]
        threads = [threading.Thread(target=engine.search, args=(list("abcde"), None), kwargs={"k": 1}) for engine in engines]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(server.requests) == 5 == spent(tmp_path)["searches"]
    assert "let only one process at a time use" in caplog.text


def test_what_was_paid_is_kept_where_the_disk_is_full(tmp_path, caplog):
    with serve({"x": lambda body: (200, results(1))}) as server:
        engine = SerpApi(cache_dir=tmp_path, url=server.url + "/x")
        path = engine._path("a")
        path.parent.write_text("a file where a folder must be")
        assert engine.search(["a"], None, k=1) == engine.search(["a"], None, k=1) == [[Document("T0", "s 0")]]
        assert len(server.requests) == 1 and "cannot be kept" in caplog.text
        (tmp_path / "spent.json").unlink()
        (tmp_path / "spent.json").mkdir()  # a charge that cannot be written
        with pytest.raises((OSError, ValueError)):
            engine.search(["b"], None, k=1)
        assert len(server.requests) == 1


@pytest.mark.parametrize("engine, name", [("google", "q"), ("yahoo", "p"), ("yandex", "text"), ("naver", "query")])
def test_each_web_search_gets_the_query_under_its_own_name(engine, name):
    with serve({"x": lambda body: (200, results(1))}) as server:
        SerpApi(engine=engine, url=server.url + "/x").search(["who \ud83d"], None, k=1)
        assert parse_qs(urlsplit(server.requests[-1][0]).query)[name] == ["who \ufffd"]


@pytest.mark.parametrize("odd", [None, 5, "x", [], {"title": ["x"]}, {"title": None, "snippet": {"a": 1}}])
def test_an_odd_result_costs_itself(odd, tmp_path):
    reply = results(2)
    reply["organic_results"].insert(1, odd)
    with serve({"x": lambda body: (200, reply)}) as server:
        engine = SerpApi(cache_dir=tmp_path, url=server.url + "/x")
        for _ in range(2):  # asked, and from the cache
            assert engine.search(["a"], None, k=3) == [[Document("T0", "s 0"), Document("T1", "s 1")]]
        engine._path("a").write_text('{"results": [5]}')
        assert engine.search(["a"], None, k=3) and len(server.requests) == 2
