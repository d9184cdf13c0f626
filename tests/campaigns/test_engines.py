"""Campaign of faulty engines: a training run against servers that fail by a script ends, and loses only what failed.

    ZSJAX_CAMPAIGN_STEPS=50 ZSJAX_CAMPAIGN_FOLDER=runs/campaigns python -m pytest -m slow tests/campaigns/test_engines.py -s

The tiny world's policy plays with a retrieval server ("http") or a chat server ("chat"). Its learning rate is too small to
move a parameter, so every step plays as the first: an episode without a failed search must be the same, token for token,
as in a run whose server never fails. The server also goes away once and comes back.
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

STEPS = int(os.environ.get("ZSJAX_CAMPAIGN_STEPS", 50))
TIMEOUT, RETRIES = 8.0, 1
RATE = {"http": 0.3, "chat": 0.12}  # a request for retrieval holds many queries
FAILED = ("failed", "short", "empty")


def train(folder, kind: str, url: str, steps: int):
    """Runs the training stage; (seconds, lines of metrics, {step: {id: record}})."""
    begun = time.monotonic()
    options = {
        "stages": "train", "search.engine": kind, "search.remote.url": url, "search.remote.model": "m",
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


def check_counts(script, counted):
    """Each failed request under its kind. A request that the circuit breaker kept back is counted under its own."""
    requests = collections.Counter()
    for fault, attempts in script.attempts.items():
        if fault and script.faults[fault][0]:
            name, again = script.faults[fault]
            requests[name] += attempts / (1 + RETRIES * again)
    kept_back = counted["circuit_open"] + counted["refused"]
    # A request whose second attempt was kept back counts there, so this bound holds over all kinds together.
    assert sum(counted.values()) >= sum(requests.values()) / (1 + RETRIES), (counted, requests)
    for name, count in requests.items():
        # Those that pass at the second attempt have not failed.
        assert count / (1 + RETRIES) - kept_back <= counted[name] <= 2 * count, (name, counted, requests, script.attempts)
    assert not set(counted) - set(requests) - {"circuit_open", "refused", "reset"}, counted
    assert set(requests) <= {name for name, count in counted.items() if count}, (counted, requests)


def check_engine(case, folder):
    rate, steps = RATE[case.kind], STEPS
    quiet, faulty = Script(case.kind, case.seed, rate=0.0), Script(case.kind, case.seed, rate=rate, restart_at=30)
    with Served(quiet) as server:
        plain_seconds, lines, plain = train(folder / "plain", case.kind, server.url, steps)
    assert not failures_of(lines), failures_of(lines)
    with Served(faulty) as server:
        seconds, lines, records = train(folder / "faulty", case.kind, server.url, steps)
    assert len([line for line in lines if line["stage"] == "train"]) == steps and records.keys() == plain.keys()
    counted = failures_of(lines)
    check_counts(faulty, counted)
    assert counted["refused"], counted  # while the server was away
    # Only attempts that time out cost the time-out, the others short waits; what the breaker keeps back costs nothing.
    slow, kept_back = counted["timeout"], counted["circuit_open"]
    waits = slow * (1 + RETRIES) * (TIMEOUT + 1) + (sum(counted.values()) - slow - kept_back) * (1 + RETRIES) * 2 + 15
    assert seconds < 2 * plain_seconds + waits, (seconds, plain_seconds, waits)
    compared = failed = 0
    for step, of_step in records.items():
        for id, record in of_step.items():
            if set(FAILED) & set(record["search_status"]):
                failed += 1
            else:
                compared += 1
                assert record == plain[step][id], (step, id)
    assert compared and failed, (compared, failed)
    return {"steps": 2 * steps, "compared": compared, "failed": failed, "seconds plain": round(plain_seconds),
            "seconds faulty": round(seconds), **{f"{case.kind} {name}": count for name, count in counted.items()}}


@pytest.mark.slow
def test_engines(tmp_path):
    seed = int(os.environ.get("ZSJAX_CAMPAIGN_SEED", 0))
    cases = [Case(kind, seed) for kind in RATE]
    summary = run_campaign("engines", cases, lambda case: check_engine(case, tmp_path / case.kind), steps=STEPS)
    assert not summary["failures"], summary["line"]
