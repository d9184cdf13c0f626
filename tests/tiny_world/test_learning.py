"""The tiny world is learned, and only through the policy's own tokens: with the loss mask inverted it is not."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.environment import one_device
from zsjax.monitor.writer import read_jsonl

ROOT = pathlib.Path(__file__).parents[2]


def rewards_of(workdir, arg):
    """The reward of each of ten steps from the carried base, with the real engine unless `arg` says otherwise."""
    command = [sys.executable, "-m", "zsjax.launch", "train", "--config", f"experiments/tiny_world.py:{arg}", "--workdir",
               str(workdir), "--config.train.steps=10", "--config.train.questions_per_step=8",
               "--config.train.group_size=6", "--config.train.eval_questions=8"]
    run = subprocess.run(command, cwd=ROOT, env=one_device(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return np.array([line["reward"] for line in read_jsonl(workdir / "metrics.jsonl")])


# The standard error of the mean of three steps' rewards, 8 questions each, is at most 0.10.
def test_learning_needs_the_mask(tmp_path):
    learned = rewards_of(tmp_path / "real", "engine=bm25")
    inverted = rewards_of(tmp_path / "inverted", "engine=bm25,invert_mask")
    assert learned[-3:].mean() > learned[0] + 0.3
    assert inverted[-3:].mean() < learned[-3:].mean() - 0.4


@pytest.mark.slow
def test_learning_needs_the_documents(tmp_path):
    learned = rewards_of(tmp_path / "real", "engine=bm25")
    empty = rewards_of(tmp_path / "empty", "engine=empty")
    assert empty[-3:].mean() < learned[-3:].mean() - 0.4
