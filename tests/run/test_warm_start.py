"""The stage warm_start: episodes made or read, a policy that training starts from, and clear errors."""

import dataclasses
import json

import numpy as np
import pytest

from zsjax.config import resolve
from zsjax.errors import UserError
from zsjax.monitor.writer import read_jsonl
from zsjax.run import pipeline
from zsjax.run.stages.context import Run
from zsjax.run.stages.warm_start import warm_start

NAMES = ("anna", "bella", "clara")
SHAPE = dict(embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(
        {"id": f"q{i}", "question": f"Which city has spring {name}?", "golden_answers": [f"Bath{i}"]}) + "\n"
        for i, name in enumerate(NAMES)))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(
        {"id": f"d{i}", "title": "City", "text": f"The city with spring {name} is Bath{i}."}) + "\n"
        for i, name in enumerate(NAMES[:2])))
    files = {"train": "questions", "eval": "questions", "corpus": "corpus", "eval_corpus": "corpus"}
    return resolve({
        "tokenizer": "asset:real/tokenizer", "stages": ["warm_start"], "policy": {"init": "random", "shape": SHAPE},
        "prompts": {"policy": "plain"}, "data": {name: str(tmp_path / f"{file}.jsonl") for name, file in files.items()},
        "search": {"engine": "bm25", "index_dir": "", "num_documents": 1, "max_query_tokens": 32},
        "rollout": {"max_turns": 1, "max_turn_tokens": 48, "max_tokens": 192, "max_prompt_tokens": 64},
        "warm_start": {"steps": 2, "batch_rows": 2, "max_tokens": 192, "checkpoint_every": 1}})


def test_it_trains_what_reinforcement_starts_from(config, tmp_path):
    pipeline.run(config, tmp_path / "run")
    assert len(read_jsonl(tmp_path / "run" / "episodes.jsonl")) == 2  # the third question's answer is nowhere
    lines = [line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if line["stage"] == "warm_start"]
    assert [line["step"] for line in lines] == [1, 2]
    run = Run(config, tmp_path / "run", None, "")
    started, base = run.start_policy()[1], run.policy("base")[1]
    assert not np.array_equal(started["embed_tokens"], base["embed_tokens"])
    pipeline.run(config, tmp_path / "run")  # what is there is kept
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == len(lines)


def with_options(config, **options):
    return dataclasses.replace(config, warm_start=dataclasses.replace(config.warm_start, **options))


def test_episodes_of_a_file_and_their_errors(config, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UserError, match="mine.jsonl, line 1: field 'question' is missing"):
        pipeline.run(with_options(config, episodes=str(path)), tmp_path / "bad")
    with pytest.raises(UserError, match="no episode fits"):
        pipeline.run(with_options(config, max_tokens=8), tmp_path / "small")
    assert warm_start.__name__ in pipeline.STAGES
