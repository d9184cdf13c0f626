"""BM25: its scores are bm25s's, its index survives the disk, and a foreign corpus is refused."""

import json

import bm25s
import numpy as np
import pytest

from zsjax.search import BM25, Document

WORDS = [f"w{i:03d}" for i in range(60)]


def corpus(n=200, seed=0):
    rng = np.random.default_rng(seed)

    def draw(count):
        return " ".join(rng.choice(WORDS, count))

    return [Document(draw(2), draw(int(rng.integers(5, 30)))) for _ in range(n)]


def queries(n=30, seed=1):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 4)) for _ in range(n)]


def test_scores_equal_bm25s_used_directly():
    documents = corpus()
    found = BM25.from_documents(documents).search(queries(), k=5)
    direct = bm25s.BM25()
    direct.index(bm25s.tokenize([f"{d.title} {d.text}" for d in documents], show_progress=False), show_progress=False)
    _, scores = direct.retrieve(bm25s.tokenize(queries(), show_progress=False), k=5, show_progress=False)
    np.testing.assert_allclose([[d.score for d in row] for row in found], scores, rtol=1e-6)


def test_title_and_text_are_both_searched_and_ties_keep_the_order():
    engine = BM25.from_documents([{"title": "Kora Velim", "text": "born somewhere"}, {"text": "about nothing"},
                                  {"title": "", "text": "somewhere born"}])
    assert [d.title for d in engine.search(["velim"], k=3)[0]] == ["Kora Velim"]
    texts = [d.text for d in engine.search(["nothing somewhere"], k=9)[0]]
    assert texts[0] == "about nothing" and len(texts) == 3
    twins = BM25.from_documents([{"text": "same words here"} for _ in range(50)] + [{"text": "other"}])
    assert len({d.score for d in twins.search(["words"], k=50)[0]}) == 1
    numbered = BM25.from_documents([{"text": f"same n{i:02d}"} for i in range(50)])
    assert [d.text for d in numbered.search(["same"], k=7)[0]] == [f"same n{i:02d}" for i in range(7)]


def test_odd_queries_and_a_large_k():
    engine = BM25.from_documents(corpus(8))
    assert engine.search([], k=3) == []
    assert engine.search(["", "?!", "unknownword", "the of"], k=3) == [[], [], [], []]
    found = engine.search([" ".join(WORDS)], k=100)[0]
    assert 0 < len(found) <= 8
    assert all(a.score >= b.score for a, b in zip(found, found[1:], strict=False))


def test_stop_words_are_an_option():
    documents = [{"text": "the mother of whom"}, {"text": "a spouse of them"}]
    assert BM25.from_documents(documents).search(["of"], k=2) == [[]]
    assert len(BM25.from_documents(documents, stopwords=False).search(["of"], k=2)[0]) == 2


def test_saved_index_is_the_same_engine(tmp_path):
    engine = BM25.from_documents(corpus() + [Document("Zürich\nline", "ünïcode  text w001")], stopwords=False, k1=0.9)
    engine.save(tmp_path / "index")
    loaded = BM25.load(tmp_path / "index", corpus_hash=engine.corpus_hash)
    asked = [*queries(), "zürich"]
    assert loaded.search(asked, k=7) == engine.search(asked, k=7)
    loaded.save(tmp_path / "index")  # replaces what it reads from
    assert BM25.load(tmp_path / "index", mmap=False).search(asked, k=7) == engine.search(asked, k=7)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_load_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BM25.load(tmp_path / "nowhere")
    engine = BM25.from_documents(corpus())
    engine.save(tmp_path / "index")
    with pytest.raises(ValueError, match="another corpus"):
        BM25.load(tmp_path / "index", corpus_hash=BM25.from_documents(corpus(seed=3)).corpus_hash)
    lines = (tmp_path / "index/corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "index/corpus.jsonl").write_text("".join(lines[1:] + lines[:1]))
    with pytest.raises(ValueError, match="changed"):
        BM25.load(tmp_path / "index")
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    (tmp_path / "index/manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(ValueError, match="another format"):
        BM25.load(tmp_path / "index")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine"):
        engine.save(tmp_path / "mine")


@pytest.mark.parametrize("documents, match", [([], "empty"), ([{"title": "a"}], "text"), (["plain"], "str"),
                                              ([{"text": "!"}], "word")])
def test_bad_corpora(documents, match):
    with pytest.raises(ValueError, match=match):
        BM25.from_documents(documents)


@pytest.mark.parametrize("query", ["Cafe\u0301", "CAF\u00c9", "\uff23\uff41\uff46\u00e9"])
def test_documents_and_queries_are_searched_in_one_unicode_form(query, tmp_path):
    texts = "the cafe\u0301 there", "this caf\u00e9 here", "cafe no", "half a character \ud83d"
    engine = BM25.from_documents([Document("", text) for text in texts])
    assert [d.text[:4] for d in engine.search([query], k=3)[0]] == ["the ", "this"]
    engine.save(tmp_path / "index")  # a lone surrogate can be kept on disk
    found = BM25.load(tmp_path / "index").search(["character"], k=1)[0]
    assert [d.text for d in found] == ["half a character \ufffd"]
