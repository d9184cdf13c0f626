"""Campaign of faulty engines: a training run against servers that fail by a script ends, and loses only what failed.

    ZSJAX_CAMPAIGN_STEPS=50 ZSJAX_CAMPAIGN_FOLDER=runs/campaigns python -m pytest -m slow tests/campaigns/test_engines.py -s

The tiny world's policy plays with a retrieval server ("http") or a chat server ("chat"). Its learning rate is 1e-38, too
small to move a parameter, so every step plays as the first. An episode without a failed search must have the same record
as in a run whose server never fails: texts of its segments, number of tokens, queries, answer and reward.

Each kind is played three times: with a server that never fails; with faults and without a circuit breaker, where failures
are counted exactly; and a third of the steps with the breaker and a server that goes away once and comes back, where each
request is counted once, as answered or as failed.
"""

import collections
import json
import os
import subprocess
import sys
import time

import pytest
from faulty_engines import Script, Served

from tests.campaigns.campaign import Case, run_campaign
from tests.environment import ROOT, one_device
from zsjax.search import Limits

STEPS = int(os.environ.get("ZSJAX_CAMPAIGN_STEPS", 50))
TIMEOUT, RETRIES = 8.0, 1
RATE = {"http": 0.3, "chat": 0.12}  # a request for retrieval holds many queries
AT_ONCE = Limits().concurrency
FAILED = ("failed", "short", "empty")


def train(folder, engine: str, url: str, steps: int):
    """Runs the training stage; (seconds, lines of metrics, {step: {id: record}})."""
    begun = time.monotonic()
    options = {
        "stages": "train", "search.engine": engine, "search.remote.url": url, "search.remote.model": "m",
        "search.remote.timeout": TIMEOUT, "search.remote.retries": RETRIES, "search.shuffle_documents": "false",
        "train.steps": steps, "train.questions_per_step": 8, "train.group_size": 2, "train.eval_every": 100_000,
        "train.trajectories_every": 1, "train.checkpoint_every": 1000, "optimizer.learning_rate": 1e-38}
    done = subprocess.run(
        [sys.executable, "-m", "zsjax.launch", "train", "--config", "experiments/tiny_world.py", "--workdir", str(folder),
         *(f"--config.{name}={value}" for name, value in options.items())],
        cwd=ROOT, env=one_device(), capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = {}
    for path in sorted((folder / "trajectories").glob("*.jsonl")):
        records[path.stem] = {record["id"]: record for record in map(json.loads, path.read_text().splitlines())}
    return time.monotonic() - begun, lines, records


def failures_of(lines) -> collections.Counter:
    counted = collections.Counter()
    for line in lines:
        for name, value in line.items():
            if name.startswith("engine/failed_"):
                counted[name.removeprefix("engine/failed_")] += int(value)
    return counted


def sent_of(lines) -> int:
    """Requests, without further attempts."""
    return int(sum(line.get("engine/requests", 0) for line in lines))


def check_time(seconds, plain_seconds, counted):
    # Only attempts that time out cost the time-out, the others short waits; what the breaker keeps back costs nothing.
    slow, kept_back = counted["timeout"], counted["circuit_open"]
    waits = slow * (1 + RETRIES) * (TIMEOUT + 1) + (sum(counted.values()) - slow - kept_back) * (1 + RETRIES) * 2 + 15
    assert seconds < 2 * plain_seconds + waits, (seconds, plain_seconds, waits)


def check_records(records, plain) -> collections.Counter:
    """Compares the episodes without a failed search; how many were compared, and how many failed."""
    counts = collections.Counter()
    for step, of_step in records.items():
        for id, record in of_step.items():
            failed = bool(set(FAILED) & set(record["search_status"]))
            counts["failed" if failed else "compared"] += 1
            assert failed or record == plain[step][id], (step, id)
    assert counts["compared"], counts
    return counts


def check_engine(case, folder):
    kind, steps, fewer = case.kind, STEPS, max(STEPS // 3, 3)
    every = f"tests.campaigns.faulty_engines:{kind}_without_breaker"
    quiet, faulty = (Script(kind, case.seed, rate=rate) for rate in (0.0, RATE[kind]))
    with Served(quiet) as server:
        plain_seconds, lines, plain = train(folder / "plain", every, server.url, steps)
    assert not failures_of(lines), failures_of(lines)
    with Served(faulty) as server:
        seconds, lines, records = train(folder / "faulty", every, server.url, steps)
    assert len([line for line in lines if line["stage"] == "train"]) == steps and records.keys() == plain.keys()
    counted = failures_of(lines)
    assert counted == faulty.failed and counted, (counted, faulty.failed, faulty.attempts)
    assert sent_of(lines) == faulty.answered + sum(counted.values()), (sent_of(lines), faulty.attempts, counted)
    check_time(seconds, plain_seconds, counted)
    counts = check_records(records, plain)
    assert counts["failed"], counts

    away = Script(kind, case.seed, rate=RATE[kind], restart_at=min(10, steps))
    with Served(away) as server:
        away_seconds, lines, records = train(folder / "away", kind, server.url, fewer)
    assert len([line for line in lines if line["stage"] == "train"]) == fewer
    kept = failures_of(lines)
    assert kept["refused"], kept  # while the server was away
    # A reply that the server had not finished when it went away may be lost.
    assert 0 <= away.answered + sum(kept.values()) - sent_of(lines) <= AT_ONCE, (sent_of(lines), away.attempts, kept)
    known = {away.faults[fault][0] for fault in away.attempts if fault}
    assert not set(kept) - known - {"circuit_open", "refused", "reset"}, (kept, away.attempts)
    check_time(away_seconds, plain_seconds, kept)
    counts += check_records(records, plain)
    return {"steps": 2 * steps + fewer, **counts, "seconds plain": round(plain_seconds), "seconds faulty": round(seconds),
            "seconds away": round(away_seconds), **{f"{kind} {name}": count for name, count in (counted + kept).items()}}


@pytest.mark.slow
def test_engines(tmp_path):
    seed = int(os.environ.get("ZSJAX_CAMPAIGN_SEED", 0))
    cases = [Case(kind, seed) for kind in RATE]
    summary = run_campaign("engines", cases, lambda case: check_engine(case, tmp_path / case.kind), steps=STEPS)
    assert not summary["failures"], summary["line"]
