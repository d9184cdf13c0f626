"""Trajectories as other trainers read them."""

import json

import pytest

from zsjax import launch
from zsjax.config import resolve, write_config
from zsjax.errors import InputError
from zsjax.report.conversations import FORMS, conversation, write_conversations
from zsjax.report.trajectory_index import Filters

RECORD = {"id": "1", "key": "nq:1", "question": "Who wrote Emma?", "golden_answers": ["Jane Austen"], "reward": 1.0,
          "status": "answered", "segments": [
              {"role": "prompt", "text": "<|im_start|>user\nQuestion: Who wrote Emma?<|im_end|>\n<|im_start|>assistant\n"},
              {"role": "policy", "text": "<search> Emma </search>"}, {"role": "template", "text": "\n<information>\n"},
              {"role": "document", "text": "Doc 1: A novel.\n"}, {"role": "template", "text": "</information>\n"},
              {"role": "policy", "text": "<answer> Jane Austen </answer>"}]}
DOCUMENTS = "\n<information>\nDoc 1: A novel.\n</information>\n"


def test_forms():
    made = conversation(RECORD, FORMS["trl"], lambda question: f"Question: {question}\n")
    assert made == {"id": "nq:1", "score": 1.0, "golden_answers": ["Jane Austen"], "status": "answered", "messages": [
        {"role": "user", "content": "Question: Who wrote Emma?\n"},
        {"role": "assistant", "content": "<search> Emma </search>"},
        {"role": "tool", "content": DOCUMENTS}, {"role": "assistant", "content": "<answer> Jane Austen </answer>"}]}
    turns = conversation(RECORD, FORMS["sharegpt"])["conversations"]
    # LLaMA-Factory: human and observation at odd places, gpt at even ones.
    assert [turn["from"] for turn in turns] == ["human", "gpt", "observation", "gpt"]
    assert turns[0]["value"] == RECORD["segments"][0]["text"] and turns[2]["value"] == DOCUMENTS


def test_what_nobody_answered_is_left_out():
    cut = RECORD | {"segments": RECORD["segments"][:5]}
    assert [turn["role"] for turn in conversation(cut, FORMS["trl"])["messages"]] == ["user", "assistant"]
    assert conversation(RECORD | {"segments": RECORD["segments"][:1]}, FORMS["trl"]) is None


def test_lines_that_are_left_out_are_counted(trajectory_runs, tmp_path, caplog):
    path = trajectory_runs[0] / "trajectories" / "train_000001.jsonl"
    path.write_text(path.read_text() + '{"segments": 5}\n[]\n')
    write_conversations(trajectory_runs[0], tmp_path / "out.jsonl", filters=Filters(file="trajectories/"))
    assert caplog.messages == ["trajectories/train_000001.jsonl: left out, as not trajectories: 2"]


def test_a_run_is_written(trajectory_runs, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert write_conversations(trajectory_runs[0], out, filters=Filters(low=0.9, file="trajectories/")) == 6
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["score"] for row in rows] == [0.9, 0.95] * 3
    with pytest.raises(InputError, match="out.jsonl exists already"):
        write_conversations(trajectory_runs[0], out)
    with pytest.raises(InputError, match="has no trajectory for"):
        write_conversations(trajectory_runs[0], tmp_path / "none.jsonl", filters=Filters(low=2.0))
    assert not (tmp_path / "none.jsonl").exists()
    write_config(trajectory_runs[0], resolve({
        "prompts": {"chat": True, "policy": "plain"}, "tokenizer": "asset:real/tokenizer",
        "policy": {"init": "gone/model"}, "simulator": {"init": "gone/model"}}, check=False))
    assert launch.main(["conversations", str(tmp_path / "chat.jsonl"), "--form", "sharegpt",
                        "--workdir", str(trajectory_runs[0])]) == 0
    assert "60 conversations" in capsys.readouterr().out
    first = json.loads((tmp_path / "chat.jsonl").read_text().splitlines()[0])
    assert first["conversations"][0] == {"from": "human", "value": "Question: Question 0?\n"}
