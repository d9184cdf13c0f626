"""The misinforming engine is wrong at its rate, in the right form, and alike for the same call."""

import numpy as np
import pytest

from zsjax.config import Config, resolve
from zsjax.errors import ConfigError
from zsjax.run import build
from zsjax.search import BM25, SearchContext
from zsjax.tiny_world import world as tiny_world
from zsjax.tiny_world.misinformation import Misinformed

WORLD = tiny_world.make_world(0)
ENGINE = BM25.from_documents(WORLD.documents)
QUERIES = [tiny_world.query_text(f.relation, WORLD.entities[f.subject]) for f in WORLD.facts]


def search(wrong, call=0, seed=0):
    contexts = [SearchContext(WORLD.questions[0], call=(call,)) for _ in QUERIES]
    return Misinformed(ENGINE, WORLD.documents, wrong, seed).search(QUERIES, contexts, k=3)


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_the_best_document_tells_another_object_at_the_rate(wrong):
    right, found = ENGINE.search(QUERIES, None, k=3), search(wrong)
    changed = [a[0].text != b[0].text for a, b in zip(right, found, strict=True)]
    assert abs(np.mean(changed) - wrong) <= 0.1
    objects = {tiny_world.answer_of(document) for document in WORLD.documents}
    for a, b in zip(right, found, strict=True):
        assert a[1:] == b[1:] and a[0].title == b[0].title
        assert b[0].text.rpartition(" is ")[0] == a[0].text.rpartition(" is ")[0]
        assert tiny_world.answer_of(b[0]) in objects and b[0].text.endswith(".")


def test_it_depends_on_seed_and_call_alone():
    assert search(0.5) == search(0.5) != search(0.5, call=1)
    assert search(0.5) != search(0.5, seed=1)
    engine = Misinformed(ENGINE, WORLD.documents, 0.5)
    context = SearchContext(WORLD.questions[0], call=(0,))
    assert engine.search(QUERIES[:1], [context], k=3)[0] == search(0.5)[0] and engine.by_call


def test_a_share_out_of_range_and_an_empty_corpus_are_errors():
    with pytest.raises(ValueError, match="wrong=1.5"):
        Misinformed(ENGINE, WORLD.documents, 1.5)
    with pytest.raises(ValueError, match="the corpus is empty"):
        Misinformed(ENGINE, [], 0.5)


def test_training_and_evaluation_can_ask_for_it():
    options = dict(search=dict(engine="zsjax.tiny_world.misinformation:misinformed", options=dict(wrong=1.0)))
    config = resolve(options, check=False)
    contexts = [SearchContext(WORLD.questions[0])]
    for engine in (build.engine(config.search.engine, config, "tiny_world:train"),
                   build.engine("bm25", Config(), "tiny_world:train", misinformation=1.0)):
        right = build.engine("bm25", Config(), "tiny_world:train").search(QUERIES[:1], None, k=3)[0]
        found = engine.search(QUERIES[:1], contexts, k=3)[0]
        assert found[0].text != right[0].text and found[1:] == right[1:]


def test_a_corpus_without_facts_cannot_be_made_wrong(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "0", "title": "a", "text": "b"}\n')
    with pytest.raises(ConfigError, match="evaluate.misinformation"):
        resolve(dict(data=dict(eval_corpus=str(corpus)), evaluate=dict(misinformation=0.2)))
