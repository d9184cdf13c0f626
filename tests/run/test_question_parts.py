"""Which of the training questions a stage takes: supervised ones and those of reinforcement are disjoint."""

import json

import pytest

from zsjax.config import resolve
from zsjax.errors import UserError
from zsjax.run import build
from zsjax.run.stages.context import Run

ROWS = [{"id": f"q{i}", "question": text, "golden_answers": [gold]} for i, (text, gold) in enumerate(
    [("Which city has springs?", "Bath"), ("Is Bath a city?", "yes"), ("Bath or Rome?", "Rome")] * 200)]


def config(tmp_path, **data):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return resolve({"stages": ["report"], "data": {"train": str(tmp_path / "questions.jsonl"), **data}}, check=False)


def test_reinforcement_never_sees_a_question_that_was_taught(tmp_path):
    both = Run(config(tmp_path), tmp_path, None, "")
    assert len(both.train_questions) == len(both.supervised_questions) == 600
    run = Run(config(tmp_path, supervised_share=0.6), tmp_path, None, "")
    taught, played = ({q.key for q in questions} for questions in (run.supervised_questions, run.train_questions))
    assert not taught & played and len(taught | played) == 600 and len(taught) == pytest.approx(360, abs=40)
    fewer = {q.key for q in build.supervised_questions(config(tmp_path, supervised_share=0.3))}
    assert fewer < taught


def test_questions_that_give_their_answer_away_are_taught_and_not_played(tmp_path):
    settings = config(tmp_path, supervised_share=0.6, leave_out=["yes_no", "named"])
    assert {q.golden_answers for q in build.reinforced_questions(settings)} == {("Bath",)}
    assert {q.golden_answers for q in build.supervised_questions(settings)} == {("Bath",), ("yes",), ("Rome",)}
    assert len(build.reinforced_questions(config(tmp_path, leave_out=["named"]))) == 400
    only_yes = [row for row in ROWS if row["golden_answers"] == ["yes"]]
    settings = config(tmp_path, leave_out=["yes_no"])
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in only_yes))
    with pytest.raises(UserError, match="data.leave_out = .* leave no question to one"):
        build.reinforced_questions(settings)
    with pytest.raises(UserError, match="data.supervised_share = 1e-09 .* leave no question to one"):
        build.supervised_questions(config(tmp_path, supervised_share=1e-9))
