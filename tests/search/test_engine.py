"""Engines for ablations: what they return, and what their draws depend on."""

import collections

import numpy as np
import pytest

from zsjax.search import Document, DropBest, Empty, Engine, Failed, Mixed, SearchContext
from zsjax.types import Question


class Counting:
    """Finds documents named after their rank."""

    def search(self, queries, contexts=None, *, k):
        return [[Document("", f"{query} {rank}") for rank in range(k)] for query in queries]


def contexts(n, turn=0):
    return [SearchContext(Question(str(i), "?", ("a",)), call=(turn,)) for i in range(n)]


def test_empty_finds_documents_without_content():
    found = Empty().search(["a", "b"], contexts(2), k=3)
    assert [len(documents) for documents in found] == [3, 3]
    assert all(d.title == d.text == "" for documents in found for d in documents)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_drop_best_loses_the_best_document_at_its_rate(probability):
    n = 2000
    found = DropBest(Counting(), probability, seed=1).search([f"q{i}" for i in range(n)], contexts(n), k=3)
    assert all(len(documents) == 3 for documents in found)
    lost = [documents[0].text.endswith(" 1") for documents in found]
    assert all(d[0].text.endswith(" 1") or d[0].text.endswith(" 0") for d in found)
    assert abs(sum(lost) / n - probability) < 0.04


def test_drop_best_depends_on_seed_query_and_call_only():
    queries = [f"q{i}" for i in range(200)]
    engine = DropBest(Counting(), 0.5, seed=1)
    whole = engine.search(queries, contexts(200), k=2)
    alone = [engine.search([q], [c], k=2)[0] for q, c in zip(queries, contexts(200), strict=True)]
    assert whole == alone
    assert whole != engine.search(queries, contexts(200, turn=1), k=2)  # asked again: another chance
    assert whole != DropBest(Counting(), 0.5, seed=2).search(queries, contexts(200), k=2)


def test_a_failure_stays_one():
    class Down(Engine):
        counters = collections.Counter({"failed_timeout": 3})

        def search(self, queries, contexts=None, *, k):
            return [Failed("timeout") for _ in queries]

    engine = DropBest(Down(), 1.0)
    assert engine.search(["a"], contexts(1), k=2)[0].kind == "timeout" and engine.counters["failed_timeout"] == 3


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="1.5"):
        DropBest(Counting(), 1.5)
    with pytest.raises(ValueError, match="mispaired"):
        Empty().search(["a", "b"], contexts(1), k=1)
    with pytest.raises(ValueError, match="k=0"):
        Empty().search(["a"], contexts(1), k=0)


def test_mixed_asks_each_engine_its_share_and_says_who_obeys_the_noise():
    class Named(Engine):
        def __init__(self, name):
            self.name, self.counters = name, collections.Counter({name: 1})

        def search(self, queries, contexts, *, k):
            return [[Document(self.name, query)] for query in queries]

    n = 1000
    queries = [f"q{i}" for i in range(n)]
    engine = Mixed(Named("simulator"), Named("real"), seed=3)
    for share in (0.0, 0.3, 1.0):
        engine.share = share
        found = engine.search(queries, contexts(n), k=1)
        assert [documents[0].text for documents in found] == queries
        real = [documents[0].title == "real" for documents in found]
        assert abs(np.mean(real) - share) < 0.05
        assert [not simulated for simulated in engine.obeys_noise(queries, contexts(n))] == real
        assert engine.search(queries[7:8], contexts(n)[7:8], k=1) == found[7:8]  # whatever else is asked
    assert engine.counters == {"simulator": 1, "real": 1}
