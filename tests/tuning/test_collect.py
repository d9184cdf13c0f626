"""Searches of episodes: paired with their own question, deduplicated, kept on disk with provenance."""

import json

import jax
import numpy as np
import pytest

from zsjax import types
from zsjax.data import load_tokenizer
from zsjax.errors import InputError
from zsjax.search import BM25, Document
from zsjax.tiny_world import world as tiny_world
from zsjax.tuning import collect
from zsjax.types import Question


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("asset:tiny_world/tokenizer")


@pytest.fixture(scope="module")
def world():
    return tiny_world.make_world(0)


def play(questions, engine, tokenizer, turns=2):
    """Episodes as a rollout would return them: row i searches for its own right queries, then answers rightly if i is
    even; every third row does not search at all."""
    rows = []
    for i, question in enumerate(questions):
        queries = [] if i % 3 == 2 else question.metadata["queries"]
        parts, spans = [(types.PROMPT, question.question + "\n")], []
        for query in queries:
            documents = engine.search([f"  {query} "], [collect.SearchContext(question)], k=3)[0]
            spans.append(sum(len(tokenizer.encode(text)) for _, text in parts))
            parts.append((types.POLICY, f"<search> {query} </search>"))
            spans.append(spans[-1] + len(tokenizer.encode(parts[-1][1])))
            parts.append((types.DOCUMENT, "".join(f"* {d.text}\n" for d in documents)))
        answer = question.golden_answers[0] if i % 2 == 0 else "nobody"
        rows.append((parts + [(types.POLICY, f"<answer> {answer} </answer>")], spans, len(queries)))
    T = 200
    tokens, roles = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), np.int8)
    spans = np.zeros((len(rows), turns, 2), np.int32)
    status = np.zeros((len(rows), turns), np.int8)
    for b, (parts, row_spans, count) in enumerate(rows):
        ids = [(token, role) for role, text in parts for token in tokenizer.encode(text)]
        tokens[b, :len(ids)], roles[b, :len(ids)] = zip(*ids, strict=True)
        spans[b, :count] = np.reshape(row_spans, (-1, 2))
        status[b, :count] = types.SEARCH_OK
    lengths, blank = (tokens > 0).sum(axis=1), np.zeros(len(rows))
    ended = np.full(len(rows), types.ANSWERED)
    return types.Episodes(tokens, roles, None, lengths, ended, blank, None, status, spans, None, blank, blank)


def test_every_search_keeps_its_own_question(world, tokenizer):
    questions = list(world.questions[:30])
    engine = BM25.from_documents(world.documents)
    asked, recorder = [], collect.RecordingEngine(engine, depth=12)

    def rollout(params, batch, *, key, group_ids):
        asked.append(list(group_ids))
        return play(batch, recorder, tokenizer)

    searches = collect.collect_searches(rollout, recorder, None, questions, tokenizer, episodes=25, batch_questions=10,
                                        key=jax.random.key(0))
    assert asked == [list(range(i, i + 10)) for i in (0, 10, 20)]
    expected = [(q.id, query, i % 10 % 2 == 0) for i, q in enumerate(questions) if i % 10 % 3 < 2
                for query in q.metadata["queries"]]
    assert [(s.question.id, s.query, s.correct) for s in searches] == expected
    for search in searches:
        assert list(search.documents) == engine.search([search.query], None, k=12)[0]
        assert search.documents[0].text.startswith(search.query)


def test_recorder_shows_k_and_keeps_more(world):
    recorder = collect.RecordingEngine(BM25.from_documents(world.documents), depth=12)
    question = world.questions[0]
    shown = recorder.search(["mother"], [collect.SearchContext(question)], k=3)
    assert len(shown[0]) == 3
    assert recorder.found[question.id, "mother"][:3] == shown[0] and len(recorder.found[question.id, "mother"]) == 12


def test_searches_are_deduplicated():
    one, other = Question("1", "?", ("a",)), Question("2", "?", ("b",))
    found = (Document("", "x"),)
    searches = [collect.Search(one, "mother of  X", found), collect.Search(one, "Mother of x", found),
                collect.Search(other, "mother of X", found), collect.Search(one, "mother of X", found, correct=True)]
    assert collect.deduplicate(searches) == [searches[0], searches[2], searches[3]]


def test_file_keeps_everything(tmp_path, world):
    engine = BM25.from_documents(world.documents)
    searches = collect.search_for([(q, q.metadata["queries"][0], "right") for q in world.questions[:5]], engine,
                                  num_documents=3)
    path = tmp_path / "made" / "searches.jsonl"
    collect.write_searches(path, searches, provenance={"seed": 3, "engine": "bm25"})
    provenance, again = collect.read_searches(path)
    assert provenance == {"seed": 3, "engine": "bm25"} and again == searches
    assert [p.name for p in path.parent.iterdir()] == ["searches.jsonl"]


@pytest.mark.parametrize("damage", [lambda record: record.pop("query"), lambda record: record.update(question=None),
                                    lambda record: record.update(documents=[{"a": 1}])])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "searches.jsonl"
    search = collect.Search(Question("1", "?", ("a",)), "q", (Document("", "x"),))
    collect.write_searches(path, [search] * 3, provenance={})
    lines = path.read_text().splitlines()
    record = json.loads(lines[2])
    damage(record)
    path.write_text("\n".join([*lines[:2], json.dumps(record), lines[3]]) + "\n")
    with pytest.raises(ValueError, match="line 3"):
        collect.read_searches(path)
    path.write_text("")
    with pytest.raises(ValueError, match="empty"):
        collect.read_searches(path)


def made_by_hand(question=None, document=None, **fields) -> str:
    """A line of searches.jsonl."""
    return json.dumps({
        "question": {"id": "1", "question": "?", "golden_answers": ["a"], **(question or {})}, "query": "q",
        "documents": [{"title": "T", "text": "x", **(document or {})}], "correct": None, "source": "policy", **fields})


@pytest.mark.parametrize("fields, message", [
    ({"query": None}, "'query' is None; it must be a text"), ({"document": {"text": None}}, "'text' is None; use a string"),
    ({"document": {"title": []}}, "'title' is .*; use a string or null"), ({"documents": ["x"]}, "a document is 'x'"),
    ({"document": {"score": "high"}}, "'score' is 'high'; it must be a number or null"),
    ({"documents": {}}, "'documents' is {}; it must be a list"), ({"correct": "yes"}, "it must be true, false or null"),
    ({"source": 1}, "'source' is 1; it must be a text"), ({"useful": [True, False]}, "true or false for each document"),
    ({"question": {"golden_answers": {}}}, "'golden_answers' is .*; it must be a text or a list of texts"),
    ({"question": {"id": None}}, "'id' is None"), ({"question": {"key": 3}}, "'key' is 3; it must be a text")])
def test_a_field_of_a_wrong_kind_is_named(tmp_path, fields, message):
    path = tmp_path / "searches.jsonl"
    path.write_text('{"provenance": {}}\n' + made_by_hand(**fields) + "\n")
    with pytest.raises(InputError, match=f"searches.jsonl, line 2: .*{message}") as caught:
        collect.read_searches(path)
    assert "\n" not in str(caught.value)


def test_a_file_made_by_hand_may_say_things_as_question_files_do(tmp_path):
    path = tmp_path / "searches.jsonl"
    lines = ['{"provenance": {}}', "", made_by_hand(question={"golden_answers": "Bo"}, document={"title": 5}), " "]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    _, (search,) = collect.read_searches(path)
    assert search.question.golden_answers == ("Bo",) and search.documents == (Document("5", "x"),)
    path.write_text(made_by_hand())
    with pytest.raises(InputError, match="line 1: field 'provenance' is missing; it must be an object, in the first line"):
        collect.read_searches(path)


def test_queries_beside_the_point_are_of_others_or_of_what_was_shown():
    searches = [collect.Search(Question(f"q{i}", f"ask {i}", ("x",)), f"ask {i}",
                               (Document(f"Page {i} - Part", "a"), Document(f"Page {i} -", "b"), Document("Deep", "c")))
                for i in range(40)]
    made = collect.off_target_queries(searches, num_documents=2, seed=0)
    assert [question.id for question, _, _ in made] == [f"q{i}" for i in range(40)]
    queries = [query for _, query, _ in made]
    assert {source for *_, source in made} == {collect.OFF_TARGET}
    assert all(query.startswith("ask ") and query != f"ask {i}" for i, query in enumerate(queries) if i % 2 == 0)
    assert all(query == f"Page {i}" for i, query in enumerate(queries) if i % 2)
    assert len(set(queries[::2])) > 10 and queries != [q for _, q, _ in collect.off_target_queries(
        searches, num_documents=2, seed=1)]
    assert collect.off_target_queries(searches[:1], num_documents=2, seed=0) == []  # it needs two questions
