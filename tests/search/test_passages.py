"""The passage that is shown of a long document: the window that matches the query, whatever engine found it."""

import json

import pytest

from zsjax.config import resolve
from zsjax.run import build
from zsjax.search import BM25, Document, Failed
from zsjax.search.engine import Engine
from zsjax.search.passages import Passages, best_passage

TEXT = "Ann was a painter. She lived in Rome for long. Her brother Bob wrote plays there. He died young."


@pytest.mark.parametrize("query, passage", [
    ("who wrote plays", "Her brother Bob wrote plays"),
    ("when did he die", "plays there. He died young."),  # no sentence has five words left: the end of the text
    ("what is the", "Ann was a painter. She"),  # nothing but common words: the beginning
    ("Ann Rome plays", "Ann was a painter. She"),  # one word each: the first window
    ("ROME painter", "Ann was a painter. She"),
    ("lived, Rome?", "She lived in Rome for"),
])
def test_the_window_with_most_words_of_the_query(query, passage):
    assert best_passage(TEXT, query, 5) == passage


def test_a_short_text_is_left_as_it_is():
    assert best_passage("Two  words", "words", 2) == "Two  words"


def test_the_wrapper_keeps_titles_scores_failures_and_what_the_engine_says_of_itself():
    class Fake(Engine):
        by_call = True

        def search(self, queries, contexts, *, k):
            return [[Document("T", TEXT, 2.5)], Failed("timeout")]

    engine = Passages(Fake(), 5)
    found, failed = engine.search(["wrote plays", "x"], None, k=1)
    assert found == [Document("T", "Her brother Bob wrote plays", 2.5)]
    assert isinstance(failed, Failed) and failed.kind == "timeout"
    assert engine.by_call and getattr(engine, "uses_devices", False) is False
    with pytest.raises(ValueError, match="words=0"):
        Passages(Fake(), 0)


def test_the_option_wraps_the_engines_of_a_run(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "a", "title": "Ann", "text": TEXT}) + "\n")
    settings = {"engine": "bm25", "index_dir": "", "passage_words": 5}
    config = resolve({"search": settings}, check=False)
    engine = build.engine("bm25", config, str(corpus))
    assert engine.search(["who wrote plays"], None, k=1)[0][0].text == "Her brother Bob wrote plays"
    config = resolve({"search": settings | {"passage_words": 0}}, check=False)
    assert isinstance(build.engine("bm25", config, str(corpus)), BM25)
