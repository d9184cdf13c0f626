"""Questions to a policy: which one answers, shown as it writes, and compiled once for a conversation."""

import json
import logging

import jax
import numpy as np
import pytest

from zsjax.config import resolve
from zsjax.errors import UserError
from zsjax.models.checkpoints.hf import save_hf
from zsjax.monitor.usage import CompileCount
from zsjax.parallel.checkpoint import Checkpointer
from zsjax.parallel.mesh import make_mesh
from zsjax.rl.learner import Learner
from zsjax.rl.steering import Steering
from zsjax.run.ask import Asker, run_of
from zsjax.run.export import export, trained_policy

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


def answers(caplog, config, workdir=None) -> str:
    """What the log says about the policy that answers."""
    caplog.clear()
    Asker(config, workdir)
    return next(line for line in caplog.messages if line.startswith("the policy that answers: ")).partition(": ")[2]


def test_the_newest_policy_of_a_run_answers(tmp_path, caplog):
    """The start before the first checkpoint, then the newest checkpoint, then models/policy; `export` takes the same."""
    caplog.set_level(logging.INFO)
    config = resolve({"policy": {"init": "random", "shape": SHAPE}, "search": {"engine": "empty", "eval_engine": "empty"},
                      "prompts": {"policy": "tiny_world"},
                      "rollout": {"max_turn_tokens": 8, "max_prompt_tokens": 40, "max_tokens": 64}})
    run = run_of(config, tmp_path)
    assert "training starts from" in answers(caplog, config, tmp_path) and trained_policy(run) is None
    with pytest.raises(UserError, match="train first"):
        export(config, tmp_path, tmp_path / "out")

    model, start = run.start_policy()
    one = make_mesh({}, jax.devices()[:1])
    moved = [jax.tree.map(lambda x, k=k: x + k, start) for k in (1, 2, 3)]
    with Checkpointer(tmp_path / "checkpoints" / "train") as checkpoints:
        for step, params in ((4, moved[0]), (8, moved[1])):
            checkpoints.save(step, Steering(config, one, reranking=None).start(Learner(config, model, one).start(params)))
            checkpoints.wait()
    assert answers(caplog, config, tmp_path) == str(tmp_path / "checkpoints" / "train" / "8")
    jax.tree.map(np.testing.assert_array_equal, trained_policy(run).params, moved[1])

    save_hf(tmp_path / "models" / "policy", model, moved[2], tokenizer=run.tokenizer)
    assert answers(caplog, config, tmp_path) == str(tmp_path / "models" / "policy")
    jax.tree.map(np.testing.assert_array_equal, trained_policy(run).params, moved[2])


def test_a_named_policy_answers_in_the_tiny_world(tmp_path, caplog):
    """The carried trained policy answers for its base alone, and never for a run."""
    caplog.set_level(logging.INFO)

    def config(init):
        return resolve({"policy": {"init": init}, "search": {"engine": "empty", "eval_engine": "empty"}})

    carried = "the trained policy of the tiny world"
    assert carried in answers(caplog, config("asset:tiny_world/base"))
    assert answers(caplog, config("asset:tiny_world/policy")) == "policy.init = 'asset:tiny_world/policy'"
    assert carried not in answers(caplog, config("asset:tiny_world/base"), tmp_path)
