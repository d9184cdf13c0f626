import gzip
import json
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from zsjax.data.questions import QuestionStream, load_corpus, load_questions
from zsjax.search.engine import Document
from zsjax.types import Question

ROWS = [{"id": f"q{i}", "question": f"who is {i}?", "golden_answers": [str(i), "x"],
         "metadata": {"split": "dev" if i % 2 else "train"}} for i in range(10)]


def write(path, rows):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_files(tmp_path):
    plain = load_questions(write(tmp_path / "q.jsonl", ROWS))
    assert plain[3] == Question("q3", "who is 3?", ("3", "x"), {"split": "dev"})
    assert len(plain) == 10
    assert load_questions(write(tmp_path / "q.jsonl.gz", ROWS)) == plain
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "q.parquet")
    assert load_questions(tmp_path / "q.parquet") == plain


def test_split_limit_and_seed(tmp_path):
    path = write(tmp_path / "q.jsonl", ROWS)
    assert [q.id for q in load_questions(path, split="dev", limit=2)] == ["q1", "q3"]
    shuffled = load_questions(path, seed=1)
    assert shuffled != load_questions(path) and sorted(q.id for q in shuffled) == [row["id"] for row in ROWS]
    assert load_questions(path, seed=1, limit=3) == shuffled[:3]
    with pytest.raises(ValueError, match="no row has metadata.split == 'test'; there are dev, train"):
        load_questions(path, split="test")


@pytest.mark.parametrize("row, message", [
    ({"id": "a", "golden_answers": ["x"]}, "line 2: field 'question' is missing"),
    ({"id": "a", "question": " ", "golden_answers": ["x"]}, "line 2: field 'question' is ' '"),
    ({"id": "a", "question": "q", "golden_answers": {"x": 1}}, "line 2: field 'golden_answers'"),
    ({"id": "a", "question": "q", "golden_answers": "['x', 'y']"}, "line 2: field 'golden_answers'"),
    ({"question": "q", "golden_answers": ["x"]}, "line 2: field 'id' is missing"),
    ({"id": "a", "question": "q", "golden_answers": ["x"], "metadata": 1}, "line 2: field 'metadata' is 1"),
    ("{'id': 1}", "line 2: not a JSON"),
    ("[1]", "line 2: a list is not an object"),
])
def test_bad_rows_name_file_line_and_field(tmp_path, row, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_questions(write(tmp_path / "bad.jsonl", [ROWS[0], row]))
    assert "bad.jsonl" in str(caught.value)


def test_bad_sources():
    with pytest.raises(FileNotFoundError, match="no file 'nowhere.jsonl'"):
        load_questions("nowhere.jsonl")
    with pytest.raises(ValueError, match="'squad': unknown kind of source; use a path ending in .jsonl"):
        load_questions("squad")


def test_corpus(tmp_path):
    path = write(tmp_path / "c.jsonl.gz", [{"id": "0", "title": "", "text": "a b"}])
    assert load_corpus(path) == [Document("", "a b")]
    with pytest.raises(ValueError, match="line 1: field 'text' is missing"):
        load_corpus(write(tmp_path / "c.jsonl", [{"id": "0", "title": "t"}]))


def test_stream_is_a_function_of_the_step():
    questions = list(range(7))
    stream = QuestionStream(questions, seed=3)
    steps = [stream.batch(step, 3) for step in range(14)]
    flat = sum(steps, [])
    epochs = [flat[at:at + 7] for at in range(0, 42, 7)]
    assert all(sorted(epoch) == questions for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert [QuestionStream(questions, seed=3).batch(step, 3) for step in (11, 2, 2)] == [steps[11], steps[2], steps[2]]
    assert QuestionStream(questions, seed=4).batch(0, 7) != steps[0] + steps[1] + steps[2][:1]
    assert len(QuestionStream(questions, seed=3).batch(0, 20)) == 20
    with pytest.raises(ValueError, match="no questions"):
        QuestionStream([], seed=0)


def test_tfds_fields(monkeypatch):
    rows = {
        "natural_questions_open": [{"question": b"who?", "answer": [b"A", "B", b"A"]}],
        "trivia_qa/unfiltered": [{"question": "what?", "question_id": "t1",
                                  "answer": {"value": "V", "aliases": ["V", "W"], "normalized_aliases": ["v"]}}],
        "imdb": [{"text": "x"}],
    }

    def data_source(name, split):
        if name not in rows:
            raise RuntimeError("not found\nmore")
        return rows[name]

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(data_source=data_source))
    assert load_questions("tfds:natural_questions_open") == [
        Question("natural_questions_open-validation-0", "who?", ("A", "B"), {"split": "validation"})]
    assert load_questions("tfds:trivia_qa/unfiltered", split="train") == [
        Question("t1", "what?", ("V", "W"), {"split": "train"})]
    with pytest.raises(ValueError, match="row 0: no features 'question' and 'answer' .there are text"):
        load_questions("tfds:imdb")
    with pytest.raises(ValueError, match="cannot load tfds:gone, split 'validation': not found; prepare it"):
        load_questions("tfds:gone")


