"""Judges of documents: a server's and a decoder's yes or no, what happens without one, and the label made of it."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.search.faulty_server import serve
from zsjax.config import ConfigError, resolve
from zsjax.data import load_tokenizer
from zsjax.models.decoder import DecoderConfig, forward, init_params
from zsjax.run import build
from zsjax.search import Document, Limits
from zsjax.search.simulator.prompt import JudgeTemplate
from zsjax.tuning.collect import Search, read_searches, write_searches
from zsjax.tuning.dataset import make_examples, targets_of
from zsjax.tuning.judge import ChatJudge, DecoderJudge, continuation_logprobs, judge_searches, yes_or_no
from zsjax.types import Question

AUSTEN = Question("1", "Who wrote Emma?", ("Jane Austen", "Austen"))
DUNE = Question("2", "Who wrote Dune?", ("Herbert",))
GOOD, HOLDS, PLAIN = Document("Emma", "A novel by J. A."), Document("", "Austen was born in 1775."), Document("", "A film.")
SEARCHES = [Search(AUSTEN, "emma author", (GOOD, HOLDS, PLAIN), True), Search(AUSTEN, "emma", (PLAIN, GOOD), False),
            Search(DUNE, "dune author", (PLAIN,), None, "probe")]
TEMPLATE = JudgeTemplate.load("default")


def chat(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def chat_judge(server, path="v1"):
    return ChatJudge(f"{server.url}/{path}", model="m", template=TEMPLATE,
                     limits=Limits(timeout=0.5, retries=1, backoff=0.01, max_bytes=1 << 20, breaker_failures=0))


def test_each_document_of_a_question_is_judged_once_by_the_server():
    def verdict(body):
        prompt = body["messages"][0]["content"]
        return chat("<think> No? </think> **Yes**." if "J. A." in prompt else "Perhaps" if "1775" in prompt else "no")

    with serve({"v1": verdict}) as server:
        judged, counts = judge_searches(SEARCHES, chat_judge(server))
        assert len(server.requests) == 4 and server.requests[0][1]["temperature"] == 0
        prompts = [body["messages"][0]["content"] for _, body in server.requests]
        assert any("Who wrote Emma?" in p and "Jane Austen; Austen" in p and "Emma. A novel by J. A." in p for p in prompts)
    # "Perhaps" is no verdict: the document holds a gold answer, so it counts as useful.
    assert [search.useful for search in judged] == [(True, True, False), (False, True), (False,)]
    assert counts == {"judged": 4, "useful": 2, "malformed": 1, "failed": 0, "too_long": 0, "contradicts_containment": 1}
    assert [dataclasses.replace(search, useful=None) for search in judged] == SEARCHES


@pytest.mark.parametrize("path", ["status/500", "garbage"])
def test_a_server_that_fails_leaves_containment(path):
    with serve({"status": lambda body: (500, {}), "garbage": lambda body: (200, {"choices": []})}) as server:
        judged, counts = judge_searches(SEARCHES, chat_judge(server, path))
    assert [search.useful for search in judged] == [(False, True, False), (False, False), (False,)]
    assert counts["failed"] == 4 and counts["contradicts_containment"] == 0


@pytest.mark.parametrize("finish, kind", [("length", "thoughts_cut"), ("stop", "thoughts_only"),
                                          ("content_filter", "declined")])
def test_a_model_that_thinks_is_counted_by_its_own_name(finish, kind):
    reply = {"choices": [{"finish_reason": finish, "message": {"content": None, "reasoning_content": "Okay, ..."}}]}
    with serve({"v1": lambda body: (200, reply)}) as server:
        judged, counts = judge_searches(SEARCHES, chat_judge(server))
    assert counts[kind] == 4 and counts["failed"] == 0
    assert [search.useful for search in judged] == [(False, True, False), (False, False), (False,)]


def test_two_questions_of_one_id_are_judged_apart():
    other = Search(Question("1", "Who wrote Dune?", ("Herbert",)), "q", (GOOD,), True)
    with serve({"v1": lambda body: chat("yes" if "Emma?" in body["messages"][0]["content"] else "no")}) as server:
        judged, counts = judge_searches([dataclasses.replace(SEARCHES[0], documents=(GOOD,)), other], chat_judge(server))
    assert [search.useful for search in judged] == [(True,), (False,)] and counts["judged"] == 2


def test_fields_of_the_judges_request():
    fields = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None, "max_completion_tokens": 9}
    with serve({"v1": lambda body: chat("yes")}) as server:
        judge = ChatJudge(server.url + "/v1", model="m", template=TEMPLATE, extra_body=fields)
        assert judge([dict(question="q", answers=(), document="")]) == [True]
        body = server.requests[0][1]
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_what_counts_as_a_word():
    assert yes_or_no("No gold answer in it, but it helps.\n</think>\nYes") is True
    assert [yes_or_no(text) for text in ("Yes", " no.", "YES!", "- no", "", "yesterday", "I say yes", "<think> yes")] == [
        True, False, True, False, "malformed", "malformed", "malformed", "malformed"]


@pytest.fixture(scope="module")
def decoder_judge():
    tokenizer = load_tokenizer("asset:tiny_world/tokenizer")
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1,
                           head_dim=8, mlp_dim=16)
    return DecoderJudge(config, init_params(config, jax.random.key(0)), tokenizer, TEMPLATE, batch_rows=3, max_tokens=600)


def test_a_decoder_judges_by_the_two_words(decoder_judge):
    judge = decoder_judge
    slots = [{"question": q.question, "answers": q.golden_answers, "document": d.text}
             for q in (AUSTEN, DUNE) for d in (GOOD, HOLDS, PLAIN)]
    said = judge(slots)
    expected, whole = [], jax.jit(lambda tokens: jax.nn.log_softmax(forward(judge.params, judge.config, tokens), axis=-1)[0])
    for of_one in slots:  # one at a time, the whole logits; what stands behind changes nothing
        prompt, sums = judge.tokenizer.encode(TEMPLATE.render(**of_one)), []
        for word in (" yes", " no"):
            ids = judge.tokenizer.encode(word)
            logprobs = np.asarray(whole(np.array([[*prompt, *ids, *[0] * (640 - len(prompt) - len(ids))]])))
            sums.append(sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(ids)))
        expected.append(sums)
    assert said == [yes > no for yes, no in expected]
    assert judge(slots[::-1]) == said[::-1] and judge([]) == []
    tokens = np.array([judge.tokenizer.encode(TEMPLATE.render(**slots[0]) + " yes")])
    start = len(judge.tokenizer.encode(TEMPLATE.render(**slots[0])))
    count = tokens.shape[1] - start
    one = jax.jit(continuation_logprobs, static_argnums=(0, 5))(
        judge.config, judge.params, tokens, np.array([start]), np.array([count]), count)
    np.testing.assert_allclose(one, expected[0][0], rtol=1e-4)


def test_a_decoder_without_an_opinion(decoder_judge):
    slots = [{"question": "q", "answers": ("a",), "document": text} for text in ("long " * 600, "d")]
    said = decoder_judge(slots)
    assert said[0] == "too_long" and isinstance(said[1], bool)
    broken = dataclasses.replace(decoder_judge, params=jax.tree.map(lambda x: x * np.nan, decoder_judge.params))
    assert broken(slots[1:]) == ["malformed"]


def test_the_label(tmp_path):
    judged = dataclasses.replace(SEARCHES[0], useful=(False, True, False))
    assert targets_of(judged, 1, "judge") == {True: [GOOD]}
    assert targets_of(judged, 2, "judge") == {True: [GOOD, PLAIN], False: [GOOD, HOLDS]}
    path = tmp_path / "searches.jsonl"
    write_searches(path, [judged, SEARCHES[2]], provenance={"judge": {"failed": 0}})
    provenance, read = read_searches(path)
    assert read == [judged, SEARCHES[2]] and provenance["judge"] == {"failed": 0}
    assert {example.noisy for example in make_examples([judged], 2, label="judge")} == {True, False}
    with pytest.raises(ValueError, match="collect.label='judge'"):
        make_examples(SEARCHES, 1, label="judge")


def test_a_judge_by_config():
    base = dict(stages=("collect",), policy=dict(init="asset:tiny_world/base"), search=dict(engine="bm25"))
    model = dict(init="asset:tiny_world/base", tokenizer="asset:tiny_world/tokenizer", max_tokens=512)
    judge = build.judge(resolve(base | dict(collect=dict(label="judge", judge=model))))
    assert isinstance(judge, DecoderJudge) and judge.max_tokens == 512
    server = dict(url="http://localhost:1/v1", model="m")
    assert isinstance(build.judge(resolve(base | dict(collect=dict(label="judge", judge=server)))), ChatJudge)
    for wrong, field in (({}, "init"), (model | server, "init"), (dict(url="x"), "url"), (dict(url="http://h"), "model"),
                         (server | dict(key_env="NO_SUCH_KEY"), "key_env"),
                         (server | dict(extra_body={"messages": 1}), "extra_body"),
                         (model | dict(template="x"), "template")):
        with pytest.raises(ConfigError) as caught:
            resolve(base | dict(collect=dict(label="judge", judge=wrong)))
        assert f"collect.judge.{field}" in {problem.field for problem in caught.value.problems}
