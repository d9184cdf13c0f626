"""Evaluation: every question counts, samples are averaged by question, and runs are compared question by question."""

import json

import numpy as np
import pytest

from zsjax import evaluate, types
from zsjax.data.question_metadata import data_set_of, label_of
from zsjax.errors import InputError, UserError
from zsjax.evaluation import baselines, compare, tables
from zsjax.types import Episodes, Question

QUESTIONS = [Question(f"q{i}", "?", ("Rome",), {"data_set": "nq" if i < 4 else "popqa"}) for i in range(7)]


class Played:
    """A rollout whose policy answers "Rome" where it should, and notes what it was asked."""

    class tokenizer:
        decode = staticmethod(lambda ids: "<answer> Rome </answer>" if 1 in ids else "<answer> Oslo </answer>")

    def __init__(self):
        self.asked = []

    def place(self, params):
        return params

    def __call__(self, params, questions, *, noise, key, temperature, group_ids):
        B = len(questions)
        self.asked.append([q.id for q in questions])
        right = np.array([int(q.id[1:]) % 2 for q in questions])
        zeros = np.zeros((B, 1), np.int8)
        return Episodes(tokens=right[:, None], roles=np.full((B, 1), types.POLICY), behavior_logprobs=zeros,
                        length=np.ones(B, int), status=np.full(B, types.ANSWERED), num_searches=np.zeros(B, int),
                        noisy=np.zeros((B, 1, 1), bool), search_status=zeros, query_span=np.zeros((B, 1, 2), int),
                        documents_span=np.zeros((B, 1, 2), int), episode_id=group_ids, group_id=group_ids)


@pytest.mark.parametrize("batch_rows", [1, 3, 7, 64])
def test_every_question_counts_once(batch_rows):
    import jax

    rollout = Played()
    records = evaluate.play_samples(rollout, None, QUESTIONS, key=jax.random.key(0), samples=2, batch_rows=batch_rows,
                                    temperature=0.5)
    assert [(r["id"], r["sample"]) for r in records] == [(q.id, s) for s in range(2) for q in QUESTIONS]
    assert {len(batch) for batch in rollout.asked} == {batch_rows}
    rows = evaluate.summarize("x", records, QUESTIONS)
    assert [(row["data_set"], row["n"], row["samples"], row["em"]) for row in rows] == [
        ("nq", 4, 2, 0.5), ("popqa", 3, 2, pytest.approx(1 / 3))]
    # Two samples that agree are no more evidence than one: the error is over questions.
    assert rows[0]["em_se"] == pytest.approx(np.std([0, 1, 0, 1], ddof=1) / 2)
    with pytest.raises(ValueError, match="13 records of 7"):
        evaluate.summarize("x", records[:-1], QUESTIONS)


def records_of(values, data_set="nq"):
    return [{"id": str(i), "data_set": data_set, "em": v, "f1": v, "contains": v} for i, v in enumerate(values)]


def test_paired_bootstrap_equals_the_normal_interval_of_the_differences():
    rng = np.random.default_rng(0)
    a = rng.random(400)
    b = np.clip(a + rng.normal(0.03, 0.2, 400), 0, 1)
    result = evaluate.paired_bootstrap(records_of(a), records_of(b))
    error = (b - a).std() / 20
    assert result["difference"] == pytest.approx((b - a).mean()) and result["n"] == 400
    assert result["low"] == pytest.approx((b - a).mean() - 1.96 * error, abs=0.1 * error)
    assert result["high"] == pytest.approx((b - a).mean() + 1.96 * error, abs=0.1 * error)
    # Pairing matters: shuffled, the same scores say much less.
    shuffled = evaluate.paired_bootstrap(records_of(a), records_of(rng.permutation(b)))
    assert shuffled["high"] - shuffled["low"] > 1.5 * (result["high"] - result["low"])
    assert evaluate.paired_bootstrap(records_of(a), records_of(a))["p"] == 1.0
    assert evaluate.paired_bootstrap(records_of(np.zeros(99)), records_of(np.ones(99)))["p"] == 0.0
    # The order of the records is of no importance, and the same seed gives the same answer.
    assert evaluate.paired_bootstrap(records_of(a)[::-1], records_of(b))["difference"] == pytest.approx(result["difference"])


def test_runs_are_compared_by_question(tmp_path):
    for name, part, values in (("one", "before", [0, 0, 1, 1]), ("one", "after", [1, 0, 1, 1]),
                               ("two", "before", [1, 1, 1, 1]), ("three", "after", [1, 1])):
        folder = tmp_path / name / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records_of(values)))
    rows = compare.compare_runs(tmp_path / "one", tmp_path / "two")
    assert [(row["data_set"], row["score"]) for row in rows] == [(d, s) for d in ("all", "nq") for s in evaluate.SCORES]
    assert (rows[0]["first"], rows[0]["second"]) == (0.75, 1.0)
    assert "| all | em | 4 | 0.750 | 1.000 | +0.250 |" in compare.comparison_table(rows)
    with pytest.raises(UserError, match="same questions"):
        compare.compare_runs(tmp_path / "one", tmp_path / "three")
    with pytest.raises(UserError, match="no evaluation"):
        compare.compare_runs(tmp_path / "one", tmp_path / "four")


@pytest.mark.parametrize("change, message", [
    ({"em": None}, "em = None is not a number"), ({"id": None}, "the field id is missing"),
    ({"id": 5}, "id = 5 is not a text"), ({"data_set": []}, "data_set = .* is neither text nor number"),
    ({"golden_answers": [1]}, "golden_answers = .* is not a list of texts"),
    ({"reach": "x"}, "reach = 'x' is not a number")])
def test_a_file_of_something_else_is_not_compared(tmp_path, monkeypatch, change, message):
    (tmp_path / "one" / "evaluation").mkdir(parents=True)
    (tmp_path / "one" / "evaluation" / "after.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in records_of([0, 1])))
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r | c) + "\n" for r, c in zip(
        records_of([0, 1]), ({}, change), strict=True)))
    monkeypatch.chdir(tmp_path)
    for path in ("q.jsonl", tmp_path / "q.jsonl"):
        with pytest.raises(InputError, match=f"q.jsonl, row 2: .*{message}.*name a file of WORKDIR"):
            compare.compare_runs(tmp_path / "one", path)
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "question": "Who?", "golden_answers": ["Jo"]}) + "\n")
    with pytest.raises(InputError, match="q.jsonl, row 1: the field em is missing"):
        compare.compare_runs(tmp_path / "one", "q.jsonl")


def record(**fields):
    return {"queries": ["a"], "num_searches": 1, "tokens": 3, "status": "answered", "em": 1.0, "f1": 1.0, "contains": 1.0,
            **fields}


def table(*metadata, **fields):
    questions = [Question(str(i), "q", ("x",), data) for i, data in enumerate(metadata)]
    return evaluate.summarize("n", [record(**fields)] * len(questions), questions)


def test_metadata_that_parquet_filled_with_nulls():
    rows = table({"queries": ["who"], "hops": 1}, {"queries": None, "hops": None}, {"hops": float("nan"), "data_set": None})
    assert [(row["hops"], row["n"]) for row in rows] == [("all", 2), (1, 1)] and "on_path" not in rows[0]
    assert evaluate.on_path({"queries": ["Who?"]}, Question("1", "q", (), {"queries": "who"})) == (1, 1)
    assert evaluate.on_path({"queries": ["a"]}, Question("1", "q", (), {"queries": [None, "a"]})) == (1, 1)


@pytest.mark.parametrize("value, label", [
    (2.0, 2), (2.5, 2.5), (np.int64(2), 2), (np.array(["nq"]), "nq"), (["nq", None], "nq"), (["a", "b"], "a, b"),
    ({"name": "nq", "n": [1]}, '{"n": [1], "name": "nq"}'), ([["a"], ["b"]], "a, b"), (True, True),
    ([], None), ({}, None), ("", None), (np.array([]), None), (np.float32("nan"), None), ([None], None), (b"x", "b'x'")])
def test_any_metadata_value_has_a_label(value, label):
    assert label_of(value) == label and type(label_of(value)) is type(label)
    json.dumps(table({"data_set": value}))
    rows = tables.paper_table([row for row in table({"data_set": value}) if "data_set" in row])
    assert tables.to_markdown(*rows)


def test_a_search_that_found_nothing_did_not_fail():
    assert table({}, search_status=["empty", "failed", "ok", "invalid_action", "failed"])[0]["failed_searches"] == 2
    votes = [record(answer="x", search_status=["failed"]), record(answer="x", search_status=["ok"])]
    assert evaluate.failed_searches(baselines.vote(votes)) == 1


def test_nothing_to_evaluate_on_is_an_error():
    with pytest.raises(UserError, match="no questions"):
        evaluate.play(Played(), None, [], key=None, batch_rows=2)


def test_repeated_ids_are_two_questions():
    """Files joined end to end number their questions from 0 each; paired by id alone, two would be one."""
    texts = ["Emma?", "Dune?", "Emma?", "Dune?"]  # the second half: samples
    a = [{"id": "test_0", "question": text, "sample": i // 2, "em": score} for i, (text, score) in
         enumerate(zip(texts, (0.0, 1.0, 0.0, 1.0), strict=True))]
    b = [row | {"em": 1.0} for row in a]
    result = evaluate.paired_bootstrap(a, b)
    assert (result["n"], result["first"]) == (2, 0.5)
    assert evaluate.paired_bootstrap(a[::-1], b)["difference"] == result["difference"]
    same = [{"id": "0", "question": "Emma?", "em": score} for score in (0.0, 1.0)]  # the very same row twice
    assert evaluate.paired_bootstrap(same, same)["n"] == 2
    with pytest.raises(UserError, match="same questions"):
        evaluate.paired_bootstrap(a, [row | {"question": "Other?"} for row in b])


def test_scores_are_also_those_of_questions_that_give_nothing_away():
    """A policy that says yes to whatever asks for it gains 0.5 on all questions, and nothing on open ones."""
    asked = ("Is it so?", "yes", "nq"), ("Who?", "Jo", "nq"), ("Jo or Al?", "Al", "popqa"), ("Is it?", "yes", "popqa")
    questions = [Question(text, text, (gold,), {"data_set": name}) for text, gold, name in asked]

    def records(scores):
        return [record(id=q.id, question=q.question, golden_answers=list(q.golden_answers), reach=1.0, em=score, f1=score,
                       contains=score, **data_set_of(q)) for q, score in zip(questions, scores, strict=True)]

    sides = records([0, 1, 1, 0]), records([1, 1, 1, 1])
    rows = evaluate.summarize("n", sides[0], questions, total=True)
    assert [(evaluate.name_of_group(row), row["n"], row["em"]) for row in rows[-4:]] == [
        ("all", 4, 0.5), ("all, open answers", 1, 1.0), ("all, named answers", 1, 1.0), ("all, yes_no answers", 2, 0.0)]
    assert not any("answers" in row for row in evaluate.summarize("n", sides[0], questions))
    compared = compare.compare_records(*sides)
    found = {(evaluate.name_of_group(row), row["score"]): row["difference"] for row in compared}
    assert found["all", "f1"] == 0.5 and found["all, open answers", "f1"] == found["all, open answers", "reach"] == 0
    assert found["all, yes_no answers", "f1"] == 1
    assert "| all, open answers | f1 | 1 | 1.000 |" in compare.comparison_table(compared)
    assert len(tables.our_rows(rows)) == 2  # the published table has data sets alone


def test_seeds_of_a_side_are_averaged_by_question(tmp_path):
    for name, values in (("one", [0, 0, 1, 1]), ("two", [1, 1, 1, 0]), ("three", [1, 0, 1, 1]), ("four", [1, 1])):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        (tmp_path / name / "evaluation" / "after.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in records_of(values)))
    row, *_ = compare.compare_runs(tmp_path / "one", tmp_path / "two", second_seeds=[tmp_path / "three"])
    assert (row["n"], row["first"], row["second"]) == (4, 0.5, 0.75)
    assert all(f"/{name} " in row["second_policy"] for name in ("two", "three"))
    plain = evaluate.paired_bootstrap(records_of([0, 0, 1, 1]), records_of([1, 0.5, 1, 0.5]))
    assert (row["low"], row["high"]) == (plain["low"], plain["high"])  # as of the means: no question counts twice
    both, *_ = compare.compare_runs(tmp_path / "one", tmp_path / "two", first_seeds=[tmp_path / "three"])
    assert (both["first"], both["second"]) == (0.625, 0.75)
    with pytest.raises(UserError, match="four did not answer the questions of"):
        compare.compare_runs(tmp_path / "one", tmp_path / "two", second_seeds=[tmp_path / "four"])
