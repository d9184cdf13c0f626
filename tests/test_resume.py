"""A run that is killed at any moment and started again ends with the same metrics, bit for bit."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.environment import one_device
from zsjax.monitor.writer import read_jsonl, without_wall_time

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 6
COMMAND = [sys.executable, "-m", "zsjax.launch", "train", "--config", "experiments/tiny_world.py:smoke",
           f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=2", "--config.train.eval_every=3"]


def start(workdir):
    # One device, as a user has it, and compiled programs kept: a restart costs seconds, so kills are cheap.
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "log.txt", "a") as log:
        return subprocess.Popen([*COMMAND, "--workdir", str(workdir)], cwd=ROOT, env=one_device(), stdout=log,
                                stderr=subprocess.STDOUT)


def finish(process, workdir):
    assert process.wait(timeout=300) == 0, (workdir / "log.txt").read_text()[-2000:]
    return [without_wall_time(line) for line in read_jsonl(workdir / "metrics.jsonl")]


def kill_at(workdir, step, delay):
    """Starts the run, waits for the line of `step`, then `delay` seconds, and kills it. False if it ended before."""
    process, began = start(workdir), time.monotonic()
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and time.monotonic() - began < 300:
        lines = read_jsonl(metrics) if metrics.exists() else []
        if step == 0 or any(line["step"] >= step for line in lines):
            time.sleep(delay)
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder and the metrics of a run that ended by itself."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    lines = finish(start(workdir), workdir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return workdir, lines


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_runs_end_the_same(tmp_path, undisturbed, kills):
    rng, killed = random.Random(kills), 0
    for step in sorted(rng.sample(range(1, STEPS - 1), kills)):
        killed += kill_at(tmp_path / "killed", step, rng.random() * 0.5)
    assert killed == kills
    resumed = finish(start(tmp_path / "killed"), tmp_path / "killed")
    assert json.dumps(resumed) == json.dumps(undisturbed[1])
    assert (tmp_path / "killed" / "models" / "policy" / "config.json").exists()


def test_another_config_is_refused(undisturbed):
    answer = subprocess.run([*COMMAND, "--workdir", str(undisturbed[0]), "--config.optimizer.learning_rate=0.5"],
                            cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2
    assert "optimizer.learning_rate" in answer.stderr and "Traceback" not in answer.stderr
