"""Questions to a policy: shown as they are written, and compiled once for a conversation."""

import json

import pytest

from zsjax.config import resolve
from zsjax.errors import UserError
from zsjax.monitor.usage import CompileCount
from zsjax.run.ask import Asker

SHAPE = dict(embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)


def test_a_conversation_compiles_once(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "1", "title": "Emma", "text": "By Jane Austen."}) + "\n")
    config = resolve({
        "tokenizer": "asset:real/tokenizer", "policy": {"init": "random", "shape": SHAPE}, "prompts": {"policy": "plain"},
        "data": {"eval_corpus": str(tmp_path / "corpus.jsonl")}, "search": {"num_documents": 1, "max_document_tokens": 8},
        "rollout": {"max_turns": 1, "max_turn_tokens": 8, "max_tokens": 64, "max_prompt_tokens": 24}}, check=False)
    shown = []
    asker = Asker(config, show=lambda role, text: shown.append((role, text)))
    first = asker("Who wrote Emma?")
    shown.clear()
    compiles = CompileCount()
    second = asker("Who is the author of Dune?")
    assert compiles.take()["compile/step"] == 0
    assert (first["question"], second["question"]) == ("Who wrote Emma?", "Who is the author of Dune?")
    roles = [segment["role"] for segment in second["segments"]]
    assert {"prompt", "policy"} <= set(roles) == {role for role, _ in shown}
    assert "".join(text for _, text in shown) == "".join(segment["text"] for segment in second["segments"])
    assert asker("Who wrote Emma?") == first
    for question, message in ((" ", "the question is empty"), ("Who? " * 60, "prompts are never cut")):
        with pytest.raises(UserError, match=message):
            asker(question)
