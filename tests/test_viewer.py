"""The trajectory viewer: filters, pages of files of any size, runs side by side, and documents that stay data."""

import json
import threading

import httpx
import pytest

from zsjax.errors import InputError
from zsjax.report import trajectory_index
from zsjax.report.trajectory_index import ENTRY, Filters, TrajectoryIndex
from zsjax.report.view_server import TrajectoryServer


@pytest.fixture
def served(trajectory_runs):
    """A client of a server over both runs."""
    with TrajectoryServer(trajectory_runs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with httpx.Client(base_url=server.url) as client:
            yield client
        server.shutdown()


def ids(client, **filters):
    reply = client.get("/api/list", params=filters)
    assert reply.status_code == 200, reply.text
    return [row["id"] for row in reply.json()["rows"]]


def test_the_page_loads_nothing_from_elsewhere(served):
    page = served.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert "http" not in page.text and "out_of_turns" in page.text
    for path, kind in (("/viewer.js", "text/javascript"), ("/viewer.css", "text/css")):
        reply = served.get(path)
        assert reply.headers["Content-Type"].startswith(kind) and path in page.text
        assert "innerHTML" not in reply.text and "eval(" not in reply.text


def test_runs(served):
    first, second = served.get("/api/runs").json()
    assert (first["name"], first["count"], first["damaged"]) == ("first", 62, 1) and second["count"] == 20
    assert first["data_sets"] == ["nq", "popqa"]
    assert first["files"] == ["trajectories/train_000001", "trajectories/train_000011", "trajectories/train_000021",
                              "evaluation/after-1"]


@pytest.mark.parametrize("filters, count, wanted", [
    ({"low": 0.9}, 6, lambda row: row["score"] >= 0.9),
    ({"high": 0.05, "file": "trajectories/"}, 6, lambda row: row["score"] < 0.06),
    ({"low": 0.25, "high": 0.25}, 3, lambda row: row["score"] == 0.25),
    ({"fewest": 3}, 15, lambda row: row["searches"] == 3), ({"most": 0}, 16, lambda row: row["searches"] == 0),
    ({"status": "out_of_turns"}, 1, lambda row: row["data_set"] == "popqa"),
    ({"noisy": "yes"}, 31, lambda row: row["noisy"]),
    ({"noisy": "no"}, 31, lambda row: not row["noisy"]),
    ({"data_set": "nq"}, 1, lambda row: row["file"] == "evaluation/after-1"),
    ({"file": "evaluation/"}, 2, lambda row: row["data_set"]),
    ({"text": "QUESTION 7?"}, 3, lambda row: "7" in row["question"]),
    ({"text": "deep down", "fewest": 1}, 1, lambda row: row["id"] == "trajectories/train_000011:13"),
    ({"text": "golden_answers"}, 0, None),  # a field's name is not a text
    ({"text": 'say "\u00fc"\n'}, 1, lambda row: row["id"] == "trajectories/train_000021:4")])
def test_filters(served, filters, count, wanted):
    rows = served.get("/api/list", params=filters | {"count": 200}).json()["rows"]
    assert len(rows) == count and all(wanted(row) for row in rows)


def test_order_and_pages(served):
    assert ids(served, order="best", count=3) == ["trajectories/train_000001:19", "trajectories/train_000011:19",
                                                  "trajectories/train_000021:19"]
    assert ids(served, order="worst", count=1) == ["trajectories/train_000001:0"]
    seen, first = [], 0
    while first is not None:
        page = served.get("/api/list", params={"first": first, "count": 25}).json()
        seen, first = seen + [row["id"] for row in page["rows"]], page["next"]
    assert len(seen) == len(set(seen)) == page["total"] == 62
    assert ids(served, first=1000) == []


def test_a_text_search_gives_what_it_has_in_time(served, monkeypatch):
    monkeypatch.setattr(trajectory_index, "SCAN_SECONDS", -1.0)
    found, first, requests = [], 0, 0
    while first is not None:
        page = served.get("/api/list", params={"first": first, "text": "question 7?"}).json()
        found, first, requests = found + page["rows"], page["next"], requests + 1
    assert len(found) == 3 and requests == 62


def test_the_same_question_in_both_runs(served):
    one = served.get("/api/trajectory", params={"run": 0, "id": "trajectories/train_000011:7"}).json()
    assert one["question"] == "Question 7?" and one["facts"]["status"] == "answered"
    assert [(other["run"], other["id"]) for other in one["same"]] == [
        (0, "trajectories/train_000001:7"), (0, "trajectories/train_000011:7"), (0, "trajectories/train_000021:7"),
        (1, "trajectories/train_000011:7")]
    assert one["same"][3]["score"] == 1.0
    assert [segment["noisy"] for segment in one["segments"]] == [False, False, True]


def test_documents_are_data(served, evil):
    raw = served.get("/api/trajectory", params={"run": 0, "id": "evaluation/after-1:0"})
    assert raw.headers["Content-Type"].startswith("application/json") and "default-src 'none'" in raw.headers[
        "Content-Security-Policy"]
    shown = raw.json()
    assert shown["segments"][2]["text"] == evil.replace("\x1b", "␛").replace("\u202e", "\ufffd")
    assert "\u202e" not in raw.text and shown["facts"]["em"] is None


@pytest.mark.parametrize("path, params, status, message", [
    ("/api/list", {"run": 2}, 400, "run=2: use 0 to 1"), ("/api/list", {"low": "much"}, 400, "low='much' is not a number"),
    ("/api/list", {"fewest": "1.5"}, 400, "use a whole one"),
    ("/api/list", {"status": "dead"}, 400, "status='dead': use running"),
    ("/api/list", {"data_set": "x"}, 400, "data_set='x'"), ("/api/list", {"count": 10**6}, 400, "a count of 1 to 200"),
    ("/api/list", {"first": -1}, 400, "first >= 0"), ("/api/trajectory", {"id": "x"}, 400, "not FILE:NUMBER"),
    ("/api/trajectory", {"id": "../../secret:0"}, 400, "has no trajectory"), ("/etc/passwd", {}, 404, "there is no"),
    ("/api/trajectory", {"id": "evaluation/after-1:9"}, 400, "has no trajectory")])
def test_wrong_requests(served, path, params, status, message):
    reply = served.get(path, params=params)
    assert reply.status_code == status and message in reply.json()["error"]


def test_other_sites_and_uploads_are_refused(served):
    assert served.get("/api/runs", headers={"Host": "evil.example:8001"}).status_code == 403
    assert served.get("/api/runs", headers={"Host": f"localhost:{served.base_url.port}"}).status_code == 200
    assert served.post("/api/list", json={}).status_code == 501


def test_a_run_that_goes_on(trajectory_runs, monkeypatch):
    monkeypatch.setattr(trajectory_index, "REFRESH_SECONDS", 0.0)
    index = TrajectoryIndex(trajectory_runs[1])
    known = index.files["trajectories/train_000011"]
    more = trajectory_runs[1] / "trajectories" / "train_000031.jsonl"
    more.write_text('{"question": "new?", "reward": 1}\n{"question": "cut off')
    index.refresh()
    assert len(index) == 21 and index.damaged == 0 and index.files["trajectories/train_000011"] is known
    more.unlink()
    index.refresh()
    assert len(index) == 20


def test_memory_does_not_grow_with_the_texts(tmp_path):
    (tmp_path / "trajectories").mkdir()
    line = json.dumps({"question": "q", "reward": 0.5, "segments": [{"role": "policy", "text": "x" * 20_000}]}) + "\n"
    (tmp_path / "trajectories" / "train_000001.jsonl").write_text(line * 200)
    index = TrajectoryIndex(tmp_path)
    held = sum(file.entries.nbytes for file in index.files.values())
    assert len(index) == 200 and held == 200 * ENTRY.itemsize < len(line)
    page = index.page(Filters(), 150, 10)
    assert [found.number for found in page.found] == list(range(150, 160)) and page.next == 160


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(InputError, match="there is no run in"):
        TrajectoryIndex(tmp_path / "nowhere")
    assert len(TrajectoryIndex(tmp_path)) == 0
