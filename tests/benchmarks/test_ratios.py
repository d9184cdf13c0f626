"""The baselines of rollout and update, in units of a matrix product measured in the same run.

ZSJAX_RATIOS=required: a platform without a baseline fails instead of being skipped.
"""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import ratios
from tests.campaigns.campaign import Case, check_all
from tests.environment import ROOT, one_device
from tests.golden_runs import platform_name


def test_a_tenth_more_is_noticed():
    before = {"rollout": [10.0, 12.0], "update": [4.0]}
    assert ratios.slower(before, {"rollout": [10.9, 99.0], "update": [3.0]}) == [] == ratios.slower(None, before)
    slow = {"rollout": [11.1, 11.2], "update": [4.5, 4.6]}
    assert [line.partition(":")[0] for line in ratios.slower(before, slow)] == [*before]


def test_runs_a_tenth_apart_make_no_baseline():
    assert ratios.apart({"rollout": [10.0, 10.4, 10.9], "update": [4.0]}) == []
    assert [line.partition(":")[0] for line in ratios.apart({"rollout": [10.0, 11.1], "update": [4.0, 4.1]})] == ["rollout"]


@pytest.mark.slow
def test_rollout_and_update_are_not_slower_than_the_baseline():
    if platform_name() not in json.loads(ratios.FILE.read_text()):
        missing = f"benchmarks/ratios.json has no baseline of {platform_name()}: python benchmarks/ratios.py --write"
        (pytest.fail if os.environ.get("ZSJAX_RATIOS") == "required" else pytest.skip)(missing)

    def check(case):
        done = subprocess.run([sys.executable, ratios.__file__], cwd=ROOT, env=one_device(XLA_FLAGS=""),
                              capture_output=True, text=True, timeout=3600, check=False)
        report = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        assert done.returncode == 0, report.get("problems") or done.stderr[-2000:]
        return {name: min(report["found"][name]) / min(before) for name, before in report["baseline"].items()}

    check_all("ratios", [Case("rollout_and_update", 0)], check)
