"""The baselines of rollout and update, in units of a matrix product measured in the same run."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.environment import ROOT, one_device

SCRIPT = ROOT / "benchmarks" / "ratios.py"


def test_a_tenth_more_is_noticed():
    spec = importlib.util.spec_from_file_location("ratios", SCRIPT)
    ratios = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ratios)
    before = {"rollout": 10.0, "update": 4.0}
    assert ratios.slower(before, {"rollout": 10.9, "update": 3.0}) == [] == ratios.slower(None, before)
    assert [line.partition(":")[0] for line in ratios.slower(before, {"rollout": 11.1, "update": 4.5})] == [*before]


@pytest.mark.slow
def test_rollout_and_update_are_not_slower_than_the_baseline():
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=ROOT, env=one_device(XLA_FLAGS=""), capture_output=True,
                          text=True, timeout=1800, check=False)
    report = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    if report and report["baseline"] is None:
        pytest.skip(f"benchmarks/ratios.json has no baseline of {report['platform']}: python benchmarks/ratios.py --write")
    assert done.returncode == 0, report.get("slower") or done.stderr[-2000:]
