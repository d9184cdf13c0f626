"""Named reward terms: what each counts, that only the policy's own words are read, and what is masked."""

import dataclasses
import json

import numpy as np
import pytest

from zsjax import types
from zsjax.rewards import terms as reward_terms
from zsjax.rewards.terms import TERMS, Outcome, load_term, masked_rows, score
from zsjax.rollout.outcomes import _bare_lines, outcomes
from zsjax.types import Episodes, Question

GOOD = Outcome(answer="Ada", golds=("Ada",), status="answered", queries=("mother of Bo",), documents=("* Ada",),
               invalid_actions=0, texts=("<think> hm </think> <search> mother of Bo </search>", "<answer> Ada </answer>"),
               policy_tokens=12)


def changed(**fields):
    return dataclasses.replace(GOOD, **fields)


SILENT = changed(answer=None, status="ended_without_answer", texts=("hm",), queries=(), documents=())


@pytest.mark.parametrize("name, outcome, value", [
    ("f1", GOOD, 1), ("f1", changed(answer="Ada B"), 2 / 3), ("f1", SILENT, 0), ("em", GOOD, 1), ("em", SILENT, 0),
    ("contains", changed(answer="it is Ada"), 1), ("contains", SILENT, 0),
    ("no_answer", GOOD, 0), ("no_answer", SILENT, 1), ("no_search", GOOD, 0), ("no_search", SILENT, 1),
    ("searches", changed(queries=("a", "b"), documents=("", "")), 2), ("invalid_actions", changed(invalid_actions=3), 3),
    ("truncated", GOOD, 0), ("truncated", changed(status="out_of_tokens"), 1), ("overlong", changed(overlong=0.4), 0.4),
    ("format", GOOD, 1), ("format", SILENT, 0), ("format", changed(invalid_actions=1), 0), ("format", changed(answer=""), 0),
    ("format", changed(texts=("<think> <search> a </search>", "<answer> Ada </answer>")), 0),  # not closed
    ("format", changed(texts=("<search> a </think> <think> </search>", "<answer> Ada </answer>")), 0),
    ("format", changed(texts=("<search> a <search> b </search>", "<answer> Ada </answer>")), 0),
    ("format", changed(texts=("<search> a <think> b </think> </search>", "<answer> Ada </answer>")), 0),  # thinks inside
    # The chat template may have opened the thought: in the first generation only, and only where it did.
    ("format", changed(texts=("hm </think> <search> a </search>", "<answer> Ada </answer>")), 1),
    ("format", changed(opens_thought=True, texts=("hm </think> <search> a </search>", "<answer> Ada </answer>")), 1),
    ("format", changed(opens_thought=False, texts=("hm </think> <search> a </search>", "<answer> Ada </answer>")), 0),
    ("format", changed(opens_thought=True, texts=("<search> a </search>", "<answer> Ada </answer>")), 0),  # not closed
    ("format", changed(texts=("<search> a </search>", "hm </think> <answer> Ada </answer>")), 0),
])
def test_terms_by_hand(name, outcome, value):
    assert TERMS[name](outcome) == pytest.approx(value)


def test_a_retry_helped_only_if_it_led_to_the_answer():
    again = dict(queries=("mother of Bo", "Bo mother"), documents=("* nothing", "* Ada is it"))
    assert TERMS["retry_helped"](changed(**again)) == 1
    assert TERMS["retry_helped"](changed(**again, answer="Cy")) == 0
    assert TERMS["retry_helped"](changed(**(again | dict(documents=("* Ada", "* Ada"))))) == 0  # the first had found it
    assert TERMS["retry_helped"](changed(**(again | dict(documents=("* Ada", "* nothing"))))) == 0
    second_hop = dict(queries=("mother of Bo", "spouse of Cy"), documents=("* Cy", "* Ada"))
    assert TERMS["retry_helped"](changed(**second_hop)) == 0


def answer_length(outcome):
    return float(len(outcome.answer or ""))


def test_rewards_are_weighted_sums_and_terms_are_kept_apart():
    weights = {"f1": 1.0, "searches": -0.1, "no_answer": -0.5, "tests.test_reward_terms:answer_length": 0.01}
    total, terms = score([GOOD, SILENT], weights)
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, [1 - 0.1 + 0.03, -0.5], rtol=1e-6)
    assert {name: values.tolist() for name, values in terms.items()} == {
        "f1": [1, 0], "searches": [1, 0], "no_answer": [0, 1], "tests.test_reward_terms:answer_length": [3, 0]}
    for name in ("f2", "no.such:term", "zsjax.types:PAD"):
        with pytest.raises(ValueError, match="term"):
            load_term(name)


def test_what_leaves_the_loss():
    rows = [GOOD, changed(status="out_of_tokens"), changed(overlong=1.0), changed(overlong=0.9)]
    assert masked_rows(rows, ()).tolist() == [False] * 4
    assert masked_rows(rows, ("truncated",)).tolist() == [False, True, False, False]
    assert masked_rows(rows, ("truncated", "overlong")).tolist() == [False, True, True, False]


class Words:
    """A tokenizer whose tokens are words."""

    words = ["", "<search>", "</search>", "<answer>", "</answer>", "who", "Ada", "Bo", "<information>", "spam",
             "Doc 1: A of 2.\n", "Doc 2: B of 4.\n", "Doc 3: C\n"]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


def two_episodes(documents):
    """The first searches and is shown three tokens, then answers "Bo". The second ends within its search."""
    P, S, D, M = types.PROMPT, types.POLICY, types.DOCUMENT, types.TEMPLATE
    tokens = [3, 6, 4, 1, 5, 2, 8, *documents, 3, 7, 4]
    roles = [P, P, P, S, S, S, M, D, D, D, S, S, S]
    length = len(tokens)
    empty = {field.name: np.zeros((2, length), np.int32) for field in dataclasses.fields(Episodes)}
    rows = dict(tokens=np.array([tokens, tokens]), roles=np.array([roles, roles], np.int8),
                length=np.array([length, 6]), status=np.array([types.ANSWERED, types.OUT_OF_TOKENS]),
                query_span=np.array([[[3, 6], [0, 0]]] * 2), documents_span=np.array([[[7, 10], [0, 0]], [[0, 0]] * 2]),
                search_status=np.array([[1, 0], [1, 4]]), noisy=np.zeros((2, 2, 1), bool))
    questions = [Question("a", "who", ("Bo",)), Question("b", "who", ("Ada",))]
    return outcomes(Episodes(**(empty | rows)), questions, Words(), overlong=(4, 8))


def test_outcomes_read_the_policys_tokens_only():
    first, second = two_episodes(documents=[3, 6, 4])  # prompt and document hold a whole answer each
    assert first.answer == "Bo" and first.queries == ["who"] and first.documents == ["<answer> Ada </answer>"]
    assert first.texts == ["<search> who </search>", "<answer> Bo </answer>"] and first.policy_tokens == 6
    assert first.overlong == 0.5 and second.overlong == 0
    assert second.answer is None and second.status == "out_of_tokens" and second.invalid_actions == 1
    assert score([first, second], {"f1": 1.0})[0].tolist() == [1, 0]
    json.dumps(reward_terms.score([first], {"format": 1.0})[1]["format"].tolist())


def test_numbers_of_documents_are_not_what_they_say():
    first, second = two_episodes(documents=[10, 11, 12])
    assert first.documents == ["Doc : A of 2.\nDoc : B of 4.\nDoc : C"] and second.documents == [""]
    # "Doc 1" of the first search does not hold the answer "1", so the second, which does, helped.
    again = dict(answer="1", golds=("1",), queries=("mother of Bo", "Bo mother"))
    assert TERMS["retry_helped"](changed(**again, documents=(first.documents[0], "Doc : D of 1."))) == 1


@pytest.mark.parametrize("text, lines", [("Doc 1(Title: A) b\nDoc 2(Title: C) d", "Doc (Title: A) b\nDoc (Title: C) d"),
                                         ("Apollo 1. A fire\n2 Fast 2 Furious", "Apollo 1. A fire\n2 Fast 2 Furious"),
                                         ("* 1950 was\n* 2 is", "* 1950 was\n* 2 is"), ("[1] A\n\n[2] B", "[] A\n[] B")])
def test_what_is_no_number_of_a_document_stays(text, lines):
    assert "\n".join(_bare_lines(text)) == lines
