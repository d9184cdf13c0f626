"""Two questions of one id are two questions: in pairing, statistics, records, collected searches and examples."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from zsjax import evaluate
from zsjax.search import Document, SearchContext
from zsjax.search.simulator.requests import question_keys
from zsjax.tuning.collect import RecordingEngine, Search, deduplicate, read_searches, write_searches
from zsjax.tuning.tune import split_by_question
from zsjax.types import Question

EMMA = Question("test_0", "Who wrote Emma?", ("Austen",))
DUNE = Question("test_0", "Who wrote Dune?", ("Herbert",), key="test_0#2")


def record(question, em, **fields):
    return {"id": question.id, **({"key": question.key} if question.key != question.id else {}), "em": em, **fields}


def test_pairing():
    first, second = [record(EMMA, 1.0), record(DUNE, 0.0)], [record(DUNE, 1.0), record(EMMA, 1.0)]
    found = evaluate.paired_bootstrap(first, second, resamples=100)
    assert (found["n"], found["first"], found["second"]) == (2, 0.5, 1.0)
    with pytest.raises(ValueError, match="only one has test_0#2"):
        evaluate.paired_bootstrap(first, second[1:])


def test_records_of_runs_before_keys_still_pair_with_new_ones():
    old = [{"id": "test_0", "data_set": name, "em": 0.0} for name in ("nq", "popqa")]
    new = [{"id": "test_0", "key": f"{name}:test_0", "data_set": name, "em": 1.0} for name in ("nq", "popqa")]
    assert evaluate.paired_bootstrap(old, new, resamples=100)["n"] == 2


def test_metadata_that_parquet_filled_with_nulls_is_summarized():
    played = {"queries": ["who"], "num_searches": 1, "tokens": 3, "status": "answered",
              "em": 1.0, "f1": 1.0, "contains": 1.0}
    questions = [Question(id, "q", ("x",), metadata) for id, metadata in (
        ("1", {"queries": ["who"], "hops": 1}), ("2", {"queries": None, "hops": None}))]
    rows = evaluate.summarize("n", [played, played], questions)
    assert {row["hops"]: row.get("on_path") for row in rows} == {1: 1.0, "all": None}


def test_collected_searches(tmp_path):
    class Engine:
        def search(self, queries, contexts, *, k):
            return [[Document("", context.question.question)] for context in contexts]

    recorder = RecordingEngine(Engine(), 1)
    recorder.search(["author"] * 2, [SearchContext(EMMA), SearchContext(DUNE)], k=1)
    assert recorder.found[EMMA.key, "author"] != recorder.found[DUNE.key, "author"]
    searches = deduplicate(Search(question, "author", (Document("", "x"),), True) for question in (EMMA, DUNE, EMMA))
    assert [search.question for search in searches] == [EMMA, DUNE]
    write_searches(tmp_path / "searches.jsonl", searches, provenance={"seed": 0})
    assert read_searches(tmp_path / "searches.jsonl")[1] == searches
    lines = (tmp_path / "searches.jsonl").read_text().splitlines()
    old = json.loads(lines[1])
    del old["question"]["key"]  # as runs before keys wrote them
    (tmp_path / "searches.jsonl").write_text("\n".join([lines[0], json.dumps(old)]))
    assert read_searches(tmp_path / "searches.jsonl")[1] == searches[:1]
    asked = [dataclasses.replace(search, query=search.question.question) for search in searches]
    assert sum(map(len, split_by_question(asked, 0.5))) == 2


def test_random_streams():
    keys = question_keys([EMMA, DUNE, Question("test_0", "another text", ())])
    assert keys[0] != keys[1] and keys[0] == keys[2] and keys.dtype == np.uint32


def test_a_simulator_writes_for_each_of_them():
    """Questions made by hand have no keys of their own: their texts keep them apart."""
    from zsjax.config import load_experiment, resolve
    from zsjax.run import build

    # A carried model: one with random weights hardly looks at its prompt.
    config = resolve(load_experiment("experiments/tiny_world.py:smoke"))
    tokenizer = build.tokenizer(config)
    simulator = build.simulator(config, *build.model(config.simulator, tokenizer, seed=0), tokenizer)
    asked = [SearchContext(Question("same", text, (gold,)), key=jax.random.key(0)) for text, gold in (
        ("who is the spouse of Kora Velim ?", "Dran Tosk"), ("where was Dran Tosk born ?", "Velim"))]
    found = simulator.search(["spouse"] * 2, asked, k=3)
    alone = [simulator.search(["spouse"], [context], k=3)[0] for context in asked]
    assert found == alone and found[0] != found[1]
