"""The carried base reads, and searches badly: the bars that reinforcement starts from."""

import functools

import jax
import numpy as np
import pytest

from zsjax.config import Config, ModelConfig, PromptsConfig, RolloutConfig, SearchConfig
from zsjax.evaluate import play, summarize
from zsjax.models.decoder import init_params
from zsjax.rollout import make_rollout
from zsjax.run import build
from zsjax.tiny_world.reading import documents_given, reading_accuracy

CONFIG = Config(
    policy=ModelConfig(init="asset:tiny_world/base"), prompts=PromptsConfig(policy="tiny_world"),
    search=SearchConfig(num_documents=3, max_document_tokens=12, max_query_tokens=12, document_format="* {text}"),
    rollout=RolloutConfig(max_turns=3, max_turn_tokens=40, max_tokens=256, max_prompt_tokens=24))


@functools.cache
def base():
    tokenizer = build.tokenizer(CONFIG)
    return (*build.model(CONFIG.policy, tokenizer, seed=0), tokenizer)


@functools.cache
def engine():
    return build.engine("bm25", CONFIG, "tiny_world:eval")


@pytest.mark.parametrize("facts, bar", [(4, 0.95), (8, 0.9)])
def test_the_carried_base_copies_unseen_names(facts, bar):
    model, params, tokenizer = base()
    assert reading_accuracy(model, params, tokenizer, facts) >= bar
    assert reading_accuracy(model, init_params(model, jax.random.key(0)), tokenizer, facts, rows=8) < 0.1


def test_the_carried_base_answers_from_given_documents():
    model, params, tokenizer = base()
    questions = build.questions(CONFIG, "tiny_world:eval", 160)
    rows = documents_given(model, params, tokenizer, engine(), questions, CONFIG)
    assert [(row["hops"], row["n"]) for row in rows] == [(1, 80), (2, 80)]
    assert all(row["em"] >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / 80) for row in rows), rows


def test_the_carried_base_searches_badly():
    model, params, tokenizer = base()
    questions = build.questions(CONFIG, "tiny_world:eval", 96)
    rollout = make_rollout(model, engine(), tokenizer, CONFIG)
    records, _ = play(rollout, params, questions, key=jax.random.key(0), batch_rows=96)
    one, two = summarize("", records, questions)
    assert one["em"] <= 0.1 and two["em"] <= 0.5
    assert one["answered"] > 0.95
