"""Baselines: the vote, the tree, and every method through the one harness with the tiny world's carried policy."""

import dataclasses

import jax
import numpy as np
import pytest

from zsjax import types
from zsjax.config import ConfigError, load_experiment, resolve
from zsjax.data import load_tokenizer
from zsjax.evaluation import baselines
from zsjax.evaluation.baseline_setting import Setting, vote
from zsjax.evaluation.tree_search import Node, agreement, grow_path, select_path
from zsjax.rollout import policy_prompt
from zsjax.run import build
from zsjax.search import BM25, Empty


def record(answer, **fields):
    return {"answer": answer, "num_searches": 2, "tokens": 10} | fields


def test_vote_is_over_normalised_answers():
    records = [record("Rome"), record("Oslo", id="first"), record("the Oslo!"), record(None), record(None), record(None)]
    chosen = vote(records)
    assert chosen["id"] == "first" and chosen["num_searches"] == 12 and chosen["episodes"] == 6
    assert vote([record(None), record("")])["answer"] is None
    assert agreement(records) == pytest.approx([1 / 6, 2 / 6, 2 / 6, 0, 0, 0])


def episode(*turns, prefix=3):
    """An episode of one row: a prompt, then (policy, documents, closing tag) tokens a turn, then an answer."""
    tokens, roles, spans = list(range(prefix)), [types.PROMPT] * prefix, np.zeros((1, 3, 2), int)
    for index, documents in turns:
        tokens += [50 + index, *documents, 99]
        roles += [types.POLICY] + [types.DOCUMENT] * len(documents) + [types.TEMPLATE]
        spans[0, index] = len(tokens) - 1 - len(documents), len(tokens) - 1
    tokens, roles = [*tokens, 7, 0, 0], [*roles, types.POLICY, types.PAD, types.PAD]
    fields = {name: None for name in types.Episodes.__dataclass_fields__}
    return types.Episodes(**{**fields, "tokens": np.array([tokens]), "roles": np.array([roles]), "documents_span": spans})


def test_tree_grows_by_a_search_and_prefers_what_agrees():
    root = Node((0, 1, 2), 0)
    assert select_path(root, []) == [root]
    grow_path([root], episode((0, [10, 11]), (1, [12])), 0, 0)
    (child,) = root.children.values()
    assert child.tokens == (0, 1, 2, 50, 10, 11, 99) and child.turns == 1 and child.passed == [0]
    grow_path([root], episode(), 0, 1)  # answered at once: no node
    grow_path([root], episode((0, [20])), 0, 2)
    assert len(root.children) == 2 and root.passed == [0, 1, 2]
    deep = episode((1, [12]), prefix=7)
    grow_path([root, child], deep, 0, 3)
    assert [n.turns for n in child.children.values()] == [2] and child.passed == [0, 3]
    # After as many visits to all arms, the branch whose episodes agree is gone down.
    tried = Node((0,), 0, passed=list(range(120)))
    tried.children = {1: Node((1,), 1, passed=list(range(40))), 2: Node((2,), 1, passed=list(range(40, 80)))}
    assert select_path(tried, [0.9] * 40 + [0.1] * 80)[-1] is tried.children[1]
    assert select_path(tried, [0.1] * 40 + [0.9] * 40 + [0.1] * 40)[-1] is tried.children[2]
    assert select_path(tried, [0.1] * 80 + [0.9] * 40) == [tried]  # from the node itself
    # What was hardly tried comes first where nothing is known.
    tried.children[2].passed = [40]
    tried.passed = [*range(41), *range(80, 120)]
    assert select_path(tried, [0.0] * 120)[-1] is tried.children[2]


def test_config_names_the_methods():
    every = {"evaluate.baselines": ",".join(baselines.METHODS), "trajectory_sft.steps": "1"}
    config = resolve(load_experiment("experiments/tiny_world.py:smoke"), every)
    assert config.evaluate.baselines == tuple(baselines.METHODS)
    with pytest.raises(ConfigError, match="name some of .*tree_search"):
        resolve(config, {"evaluate.baselines": "direct,oracle"})


@pytest.fixture(scope="module")
def setting():
    config = resolve(load_experiment("experiments/tiny_world.py:smoke"), {
        "evaluate.batch_rows": "4", "evaluate.baseline_samples": "3", "rollout.max_tokens": "192"})
    config = dataclasses.replace(config, prompts=dataclasses.replace(config.prompts, policy="tiny_world"))
    tokenizer = build.tokenizer(config)
    model, params = build.model(config.policy, tokenizer, seed=0, path="asset:tiny_world/policy")
    engine = BM25.from_documents(build.corpus(config, config.data.eval_corpus))
    questions = build.questions(config, config.data.eval, 6)
    return Setting(config, model, params, tokenizer, engine, questions, jax.random.key(0))


@pytest.mark.parametrize("name", ["tree_search", "rag", "interleaved"])
def test_methods_answer_every_question(setting, name, monkeypatch):
    if name == "rag":  # the policy knows no other prompt than its own
        monkeypatch.setitem(policy_prompt.TEMPLATES, "rag",
                            dataclasses.replace(policy_prompt.PolicyTemplate.load("tiny_world"), name="rag"))
    records = baselines.METHODS[name](setting)
    assert [r["id"] for r in records] == [q.id for q in setting.questions]
    needed = {"em", "f1", "contains", "answer", "num_searches", "tokens", "queries", "segments"}
    assert all(needed <= r.keys() for r in records)
    if name == "tree_search":
        assert all(r["episodes"] == 3 for r in records)
        assert np.mean([r["em"] for r in records]) >= 0.5  # the carried policy, which answers most
        # Searches that a prefix holds are not run again: three whole episodes would make 3 to 6.
        assert min(r["num_searches"] for r in records) < 3 * max(q.metadata["hops"] for q in setting.questions)
    else:
        assert all(r["num_searches"] >= 1 and r["queries"][0] == q.question
                   for r, q in zip(records, setting.questions, strict=True))


@pytest.mark.parametrize("name, turn, turns", [("direct", 128, 2), ("chain_of_thought", 300, 2), ("rag", 128, 2),
                                               ("search_agent", 300, 4)])
def test_examples_and_thoughts_have_room(name, turn, turns, monkeypatch):
    """The budgets hold the longest prompt with its examples, and the thoughts of every turn."""
    config = resolve({"prompts": {"baseline_examples": True}, "evaluate": {"baseline_turn_tokens": 300},
                      "search": {"num_documents": 2, "max_document_tokens": 10},
                      "rollout": {"max_turns": 3, "max_prompt_tokens": 240}}, check=False)
    changes = []

    class Played(Setting):
        def rollout(self, engine=None, **given):
            changes.append(given)

        def play(self, rollout, questions=None, params=None):
            return []

    tokenizer = load_tokenizer("asset:real/tokenizer")
    baselines.METHODS[name](Played(config, None, None, tokenizer, Empty(), [], None))
    (given,) = changes
    assert given["prompts__policy"] == f"{name}_examples" and given["rollout__max_turn_tokens"] == turn
    text, room = " a" * 20, given["rollout__max_prompt_tokens"]
    plain, used = (len(policy_prompt.PolicyTemplate.load(each).encode(tokenizer, text)) for each in (
        name, given["prompts__policy"]))
    assert room >= 240 + 256 + used - plain + (20 if name == "rag" else 0)
    assert given["rollout__max_tokens"] == 2048 + room - 240 + turns * (turn - 128)
    short = dataclasses.replace(config, prompts=dataclasses.replace(config.prompts, baseline_examples=False),
                                evaluate=dataclasses.replace(config.evaluate, baseline_turn_tokens=0))
    baselines.METHODS[name](Played(short, None, None, tokenizer, Empty(), [], None))
    assert changes[1]["prompts__policy"] == name and changes[1]["rollout__max_turn_tokens"] == 128
