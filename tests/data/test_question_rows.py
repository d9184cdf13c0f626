"""Rows as the field's files have them, and keys that keep questions apart."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from zsjax.data import load_questions
from zsjax.data.question_rows import question_of, with_unique_keys
from zsjax.errors import InputError
from zsjax.types import Question

SEARCH_R1 = {"id": "test_0", "question": "Who wrote Emma?", "golden_answers": ["Jane Austen"], "data_source": "nq",
             "prompt": [{"role": "user", "content": "Answer. Question: Who wrote Emma?\n"}], "ability": "fact-reasoning",
             "reward_model": {"ground_truth": {"target": ["Jane Austen"]}, "style": "rule"},
             "extra_info": {"index": 0, "split": "test"}, "metadata": None}
VERL = {name: SEARCH_R1[name] for name in ("data_source", "prompt", "ability", "reward_model", "extra_info")}


def test_search_r1_and_zerosearch_rows():
    assert question_of(SEARCH_R1, "f") == Question("test_0", "Who wrote Emma?", ("Jane Austen",),
                                                   {"split": "test", "data_set": "nq"})


def test_rows_of_verl_have_their_question_in_the_prompt():
    assert question_of(VERL, "f") == Question("test_0", "Who wrote Emma?", ("Jane Austen",),
                                              {"split": "test", "data_set": "nq"})
    asked = VERL | {"extra_info": {"index": 7, "question": "Who wrote Dune?", "answer": "Herbert"},
                    "reward_model": {"ground_truth": None}}
    assert question_of(asked, "f") == Question("7", "Who wrote Dune?", ("Herbert",), {"data_set": "nq"})


def test_parquet_as_search_r1_writes_it(tmp_path):
    rows = [SEARCH_R1, SEARCH_R1 | {"golden_answers": None, "question": "Who wrote Dune?", "metadata": {"hops": 2},
                                    "reward_model": {"ground_truth": {"target": ["Herbert", None]}, "style": "rule"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    first, second = load_questions(tmp_path / "test.parquet")
    assert first.golden_answers == ("Jane Austen",) and second.golden_answers == ("Herbert",)
    assert (first.id, second.id) == ("test_0", "test_0") and first.key != second.key
    assert "hops" not in first.metadata and second.metadata["hops"] == 2


@pytest.mark.parametrize("row, golds", [
    ({"golden_answers": np.array(["a", "b"], object)}, ("a", "b")),
    ({"golden_answers": [["a"], np.array(["b"])]}, ("a", "b")),
    ({"golden_answers": ["a", "", None, 1945, 2.0]}, ("a", "1945", "2")),
    ({"reward_model": {"ground_truth": {"target": np.array(["a", "b"])}}}, ("a", "b")),
    ({"reward_model": {"ground_truth": "72"}}, ("72",)),
    ({"reward_model": {"ground_truth": ["a"]}}, ("a",)),
    ({"golden_answers": None, "answer": "a", "answer_aliases": ["b", "a"]}, ("a", "b")),  # MuSiQue
    ({"answer": ["a", "b"]}, ("a", "b")),  # NQ-open
    ({"possible_answers": json.dumps(["politician", "pol"])}, ("politician", "pol")),  # PopQA
    ({"Answer": {"Value": "V", "Aliases": ["W"]}}, ("V", "W")),  # TriviaQA
    ({"answers": {"text": ["a"], "answer_start": [3]}}, ("a",)),  # SQuAD
    ({"golden_answers": ["cut \ud83d"]}, ("cut \ufffd",)),
    ({"golden_answers": [" "]}, ()),  # not played, but not a broken file either
    ({"golden_answers": []}, ()), ({"golden_answers": None}, ()), ({"answer": float("nan")}, ()),
    ({"golden_answers": [None]}, ()),
    ({"answers": {"text": [], "answer_start": []}}, ()),  # SQuAD 2.0
    ({"reward_model": {"ground_truth": {"target": []}}}, ()),
    ({"golden_answers": "a"}, ("a",)), ({"golden_answers": '["a", "b"]'}, ("a", "b")),
])
def test_forms_of_gold_answers(row, golds):
    assert question_of({"id": 1, "question": "q", **row}, "f").golden_answers == golds


@pytest.mark.parametrize("metadata, wanted", [
    (None, {}), (float("nan"), {}), ([("a", 1), ("b", None)], {"a": 1}), (["x", "y"], {"items": ["x", "y"]}),
    ({"queries": None, "deep": {"a": None, "b": [None, np.int64(3)]}}, {"deep": {"b": [None, 3]}}),
    ('{"hops": 2}', {"hops": 2}), ("", {}),
    ({"at": np.datetime64("2020-01-01"), "raw": b"x"}, {"at": "2020-01-01", "raw": "x"}),
])
def test_metadata(metadata, wanted):
    question = question_of({"id": "1", "question": "q", "golden_answers": ["x"], "metadata": metadata}, "f")
    assert question.metadata == wanted and json.dumps(question.metadata)


@pytest.mark.parametrize("row, field", [
    ({"question": "q", "golden_answers": ["x"]}, "id"), ({"id": True, "question": "q", "golden_answers": ["x"]}, "id"),
    ({"id": "1", "question": ["q"], "golden_answers": ["x"]}, "question"),
    ({"id": "1", "golden_answers": ["x"]}, "question"),
    ({"id": "1", "question": "q", "golden_answers": [True]}, "golden_answers"),
    ({"id": "1", "question": "q"}, "golden_answers"),
    ({"id": "1", "question": "q", "reward_model": {"ground_truth": {"numbers": [1]}}}, "reward_model"),
    ({"id": "1", "question": "q", "golden_answers": ["x"], "metadata": "words"}, "metadata"),
])
def test_what_cannot_be_read_is_named(row, field):
    with pytest.raises(InputError, match=f"^f, line 3: field '{field}'") as caught:
        question_of(row, "f, line 3")
    assert "\n" not in str(caught.value)


def test_numbers_of_pandas_are_ids():
    for id in (3, 3.0, np.int64(3)):
        assert question_of({"id": id, "question": "q", "golden_answers": ["x"]}, "f").id == "3"


def test_repeated_ids_get_keys_of_their_own():
    questions = [Question(id, text, ("x",)) for id, text in (("a", "1"), ("a", "2"), ("a#2", "3"), ("b", "4"), ("a", "1"))]
    unique = with_unique_keys(questions)
    assert [question.id for question in unique] == ["a", "a", "a#2", "b", "a"]
    keys = [question.key for question in unique]
    assert len(set(keys)) == 5 and keys[0] == "a" and keys[2:4] == ["a#2", "b"]
    assert with_unique_keys(unique) == unique
