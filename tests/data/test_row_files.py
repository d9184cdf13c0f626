"""Files that people have: read as they are, or refused in one line with file and line."""

import gzip
import json
import pathlib
import random

import pyarrow
import pyarrow.parquet
import pytest

from zsjax.data import load_corpus, load_questions, row_files
from zsjax.errors import InputError
from zsjax.search import BM25, Document

ROW = {"id": "1", "question": "Who wrote it?", "golden_answers": ["Jo"]}
LINE = json.dumps(ROW).encode() + b"\n"
MANY = b"".join(json.dumps(ROW | {"id": str(i), "question": f"Who wrote {i * 7919}?"}).encode() + b"\n" for i in range(400))
LATIN = '{"id": "1", "question": "Beyonc\u00e9?", "golden_answers": ["x"]}\n'.encode("latin-1")


@pytest.mark.parametrize("name, data, message", [
    ("cut.jsonl.gz", gzip.compress(MANY, mtime=0)[:-40], "line .*cut off or damaged"),
    ("cut.jsonl.gz", gzip.compress(MANY, mtime=0)[:5], "line 1: .*cut off or damaged"),
    ("flipped.jsonl.gz", gzip.compress(MANY, mtime=0)[:60] + b"\xff" * 9 + gzip.compress(MANY, mtime=0)[69:],
     "cut off or damaged"),
    ("plain.jsonl.gz", LINE, "line 1: is not compressed with gzip; name it without .gz"),
    ("packed.jsonl", gzip.compress(LINE, mtime=0), "line 1: is compressed with gzip; name it .jsonl.gz"),
    ("latin.jsonl", LINE + LATIN, r"line 2: not UTF-8 \(byte 0xe9, column 32\)"),
    ("latin.jsonl.gz", gzip.compress(LINE + LATIN, mtime=0), "line 2: not UTF-8"),
    ("wide.jsonl", LINE.decode().encode("utf-16"), "line 1: UTF-16; save the file as UTF-8"),
    ("wide.jsonl", LINE.decode().encode("utf-16-le"), "line 1: UTF-16 or binary data"),
    ("list.jsonl", b"[" + LINE.strip() + b"]", "line 1: a list is not an object; write one object a line"),
    ("deep.jsonl", LINE + b"[" * 100_000, "line 2: not a JSON object"),
    ("long.jsonl", b'{"id": ' + b"9" * 5000 + b"}", "line 1: not a JSON object"),
    ("half.jsonl", LINE + LINE[:20], "line 2: not a JSON object"),
    ("empty.jsonl", b"\n\n", ": no questions in it"),
    ("empty.jsonl.gz", b"", ": no questions in it"),
    ("fake.parquet", LINE, "not readable as parquet"),
    ("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
])
def test_a_bad_file_is_one_line_with_its_name(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}.*{message}") as caught:
        load_questions(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_cut_parquet_file(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW] * 50), tmp_path / "q.parquet")
    data = (tmp_path / "q.parquet").read_bytes()
    (tmp_path / "q.parquet").write_bytes(data[:len(data) // 2])
    with pytest.raises(InputError, match="q.parquet: not readable as parquet"):
        load_questions(tmp_path / "q.parquet")


def test_times_that_python_cannot_hold_are_texts(tmp_path):
    path = tmp_path / "q.parquet"
    moments = pyarrow.array([1, None], pyarrow.int64()).view(pyarrow.timestamp("ns"))
    far = pyarrow.array([2**62] * 2, pyarrow.int64()).view(pyarrow.duration("s"))
    days = pyarrow.array([2**31 - 1] * 2, pyarrow.int32()).view(pyarrow.date32())
    metadata = pyarrow.StructArray.from_arrays([moments, far, days, pyarrow.array([[1.5]] * 2)],
                                               ["made", "far", "day", "plain"])
    table = {name: [value] * 2 for name, value in ROW.items()}
    table |= {"made": moments, "far": far, "day": days, "metadata": metadata}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    one, two = load_questions(path)
    assert one.golden_answers == ("Jo",) and one.metadata["made"] == "1970-01-01 00:00:00.000000001"
    assert one.metadata["plain"] == [1.5] and "made" not in two.metadata and "far" in two.metadata
    zone = pyarrow.array([1], pyarrow.int64()).view(pyarrow.timestamp("us", tz="No/Where"))
    pyarrow.parquet.write_table(pyarrow.table({name: [value] for name, value in ROW.items()} | {"made": zone}), path)
    with pytest.raises(InputError, match="q.parquet, column 'made': cannot be read .*; write it as text") as caught:
        load_questions(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [
    b"\xef\xbb\xbf" + LINE, b"\xef\xbb\xbf\n\xef\xbb\xbf" + LINE, LINE.replace(b"\n", b"\r\n")])
def test_byte_order_marks_and_line_ends(tmp_path, data):
    (tmp_path / "q.jsonl").write_bytes(data)
    assert [question.question for question in load_questions(tmp_path / "q.jsonl")] == ["Who wrote it?"]


def test_lone_surrogates_become_replacement_characters(tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps(ROW | {"question": "cut \ud83d, whole \U0001f600"}))
    assert load_questions(tmp_path / "q.jsonl")[0].question == "cut \ufffd, whole \U0001f600"


DOCUMENTS = [
    ({"id": "0", "contents": '"Evan Morris"\nEvan Morris was a lobbyist.'},
     Document("Evan Morris", "Evan Morris was a lobbyist.")),
    ({"contents": '""Q" Is for Quarry"\na novel\nof two lines'}, Document('"Q" Is for Quarry', "a novel\nof two lines")),
    ({"contents": "only text here"}, Document("", "only text here")),
    ({"title": "T", "contents": "T\nbody"}, Document("T", "body")),
    ({"title": None, "text": "ab cd"}, Document("", "ab cd")),
    ({"text": "ab cd"}, Document("", "ab cd")),
    ({"title": float("nan"), "text": "ab cd"}, Document("", "ab cd")),
    ({"title": 1984, "text": "ab cd"}, Document("1984", "ab cd")),
    ({"document": {"contents": '"A"\nab cd'}, "score": 1.0}, Document("A", "ab cd")),
    ({"text": "", "contents": '"A"\nab cd'}, Document("A", "ab cd")),
    ({"text": "cut word \ud83d"}, Document("", "cut word \ufffd")),
    ({"title": "words here", "text": ""}, Document("words here", "")),
]


@pytest.mark.parametrize("row, document", DOCUMENTS)
def test_files_and_python_read_the_same_documents(tmp_path, row, document):
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    assert load_corpus(tmp_path / "c.jsonl") == [document]
    word = max(f"{document.title} {document.text}".split(), key=len)
    assert BM25.from_documents([row]).search([word], k=1)[0][0].text == document.text


@pytest.mark.parametrize("row, field", [
    ({"text": None}, "text"), ({"contents": 3}, "contents"), ({"title": ["x"], "text": "a"}, "title"), ({"id": 1}, "text")])
def test_both_refuse_the_same_documents(tmp_path, row, field):
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "a b"}) + "\n" + json.dumps(row))
    with pytest.raises(InputError, match=f"c.jsonl, line 2: field '{field}'"):
        load_corpus(tmp_path / "c.jsonl")
    with pytest.raises(InputError, match=f"document 1: field '{field}'"):
        BM25.from_documents([{"text": "a b"}, row])


# ------------------------------------------------------------------- generated files

VALUES = [None, "", " ", "x", "Who?", 0, 3, 2.5, float("nan"), True, [], [""], ["a"], [None], ["a", 1], {},
          {"target": ["a"]}, {"ground_truth": {"target": ["a", "b"]}}, [["a"]], "\ud83d", "\u202e<|im_end|>",
          {"a": {"b": None}},
          "[1]", "{", "[\"a\"]", 10**30, [{"role": "user", "content": "Question: who?"}], {"index": 3, "split": "dev"}]
FIELDS = ["id", "_id", "question", "golden_answers", "metadata", "reward_model", "extra_info", "prompt", "answer",
          "data_source", "title", "text", "contents", "document"]


def generated(rng, kind):
    document = rng.choice([{"id": "0", "title": "T", "text": "ab cd"}, {"id": "0", "contents": '"T"\nab cd'}])
    base = ROW if kind == "questions" else document
    row = dict(base)
    for _ in range(rng.randint(0, 2)):
        field = rng.choice(FIELDS)
        row.pop(field, None)
        if rng.random() < 0.8:
            row[field] = rng.choice(VALUES)
    return row


def damaged(data, rng):
    kind = rng.randint(0, 5)
    if kind == 0 and data:
        return data[:rng.randrange(len(data))]
    if kind == 1 and data:
        at = rng.randrange(len(data))
        return data[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 6))) + data[at + 1:]
    return b"\xef\xbb\xbf" + data if kind == 2 else data


@pytest.mark.parametrize("load, kind", [(load_questions, "questions"), (load_corpus, "documents")])
def test_generated_files_are_read_or_refused_in_one_line(tmp_path, load, kind, generated_cases):
    rng, read, refused = random.Random(7), 0, 0
    for number in range(generated_cases):
        ending = rng.choice([".jsonl", ".jsonl", ".jsonl.gz", ".parquet"])
        path, rows = tmp_path / f"file{number}{ending}", [generated(rng, kind) for _ in range(rng.randint(1, 2))]
        if ending == ".parquet":
            try:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            except (pyarrow.ArrowException, UnicodeError, OverflowError, ValueError):
                continue  # rows that have no common type
        else:
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
        path.write_bytes(damaged(path.read_bytes(), rng))
        try:
            found = load(path)
        except InputError as error:
            refused += 1
            assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 1000, error
            assert any(word in str(error) for word in (
                "field '", "JSON", "object", "UTF", "gzip", "parquet", "damaged", f"no {kind}", "binary", "archive")), error
        else:
            read += 1
            assert found and json.dumps([vars(item) for item in found], ensure_ascii=False).encode()
            if kind == "questions":
                assert len({question.key for question in found}) == len(found)
    assert read > 2 and refused > 2


def test_a_small_parquet_file_does_not_fill_the_memory(tmp_path, monkeypatch):
    path, rows = str(tmp_path / "q.parquet"), 3000
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q" * 50_000] * rows}), path, compression="zstd")
    assert pathlib.Path(path).stat().st_size < 10_000
    before = pyarrow.total_allocated_bytes()
    found = row_files.read_rows(path)
    next(found)
    assert pyarrow.total_allocated_bytes() - before < 20 << 20
    assert sum(1 for _ in found) == rows - 1
    monkeypatch.setattr(row_files, "MAX_BATCH", 1 << 20)
    with pytest.raises(InputError, match="q.parquet, behind row 0: 64 rows take 3 MB, more than 1; write shorter texts"):
        next(row_files.read_rows(path))
