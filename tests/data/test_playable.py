"""What cannot be played is found before anything is computed, in training and evaluation alike."""

import json
import logging

import pytest

from zsjax.config import ConfigError, load_experiment, resolve
from zsjax.data.playable import keep_playable
from zsjax.data.questions import draw_questions
from zsjax.errors import InputError
from zsjax.evaluation.baselines import PROMPT_TOKENS
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.run import build, pipeline
from zsjax.types import Question

SMOKE = "experiments/real_questions.py:smoke"
LONG = "Who " + "wrote this very long book " * 120 + "?"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count=12, **changed):
    items = [{"id": f"q{i}", "question": f"Who wrote book {i}?", "golden_answers": ["Jo"]} for i in range(count)]
    for name, change in changed.items():
        items[int(name[1:])] |= change
    return items


def config(**overrides):
    return resolve(load_experiment(SMOKE), {name.replace("__", "."): str(value) for name, value in overrides.items()})


def test_bounds_and_reasons(caplog):
    def encode(text):
        return list(text.encode()) + [0] * 10

    questions = [Question("fits", "a" * 90, ("x",)), Question("long", "a" * 91, ("x",)),
                 Question("wide", "\u00e4" * 46, ("x",)), Question("none", "q", ("The", "!!", ""))]
    options = dict(max_prompt_tokens=100, source="data.train = 'f'")
    reasons = "3 of 4 questions.*'long' .a prompt of 101 tokens.*'wide'.*102.*'none' .no gold"
    with pytest.raises(InputError, match=reasons) as caught:
        keep_playable(questions, encode, overlong="error", **options)
    assert "\n" not in str(caught.value) and "data.overlong='drop'" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert keep_playable(questions, encode, overlong="drop", **options) == questions[:1]
    assert "3 of 4" in caplog.text and "'wide'" in caplog.text
    with pytest.raises(InputError, match="1 of 1"):
        keep_playable(questions[1:2], encode, overlong="drop", **options)


@pytest.mark.parametrize("stages, side", [("train", "train"), ("train", "eval"), ("evaluate", "eval")])
def test_a_run_stops_before_its_first_step(tmp_path, stages, side):
    good, bad = write(tmp_path / "good.jsonl", rows()), write(tmp_path / "bad.jsonl", rows(_7={"question": LONG}))
    files = {"train": good, "eval": good, side: bad}
    with pytest.raises(InputError, match=f"data.{side} = .*bad.jsonl.*1 of .* 'q7' .a prompt of"):
        pipeline.run(config(data__train=files["train"], data__eval=files["eval"], train__eval_questions=12, stages=stages),
                     tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").read_text().strip()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_baselines_longer_prompt_counts_beyond_the_tokens_that_its_budget_has_more():
    question, c = [Question("q", "Who wrote it?", ("x",))], config(prompts__policy="plain")
    tokenizer = build.tokenizer(c)
    size = len(PolicyTemplate.load("search_agent").encode(tokenizer, "Who wrote it?")) - PROMPT_TOKENS
    assert size > len(PolicyTemplate.load("plain").encode(tokenizer, "Who wrote it?"))
    c = config(prompts__policy="plain", rollout__max_prompt_tokens=size)
    assert build.playable(c, question, "f", tokenizer, baselines=["search_agent"]) == question
    c = config(prompts__policy="plain", rollout__max_prompt_tokens=size - 1)
    assert build.playable(c, question, "f", tokenizer) == question
    with pytest.raises(InputError, match="a prompt of"):
        build.playable(c, question, "f", tokenizer, baselines=["search_agent"])


def test_overlong_is_checked():
    with pytest.raises(ConfigError, match="data.overlong = 'cut'"):
        config(data__overlong="cut")


def test_a_limit_is_a_sample_that_seeds_do_not_change(tmp_path):
    path = write(tmp_path / "q.jsonl", [row | {"metadata": {"half": i // 200}} for i, row in enumerate(rows(400))])
    taken = build.questions(config(seed=0), path, 64)
    assert {question.metadata["half"] for question in taken} == {0, 1} and len(taken) == 64
    assert build.questions(config(seed=5), path, 64) == taken  # or runs could not be compared
    ids = [int(question.id[1:]) for question in taken]
    assert ids == sorted(ids) and set(build.questions(config(), path, 16)[0].id) <= {*"q0123456789"}
    everything = build.questions(config(), path)
    assert {q.id for q in draw_questions(everything, 16)} < {q.id for q in taken}
    assert draw_questions(everything, 400) == everything


def test_the_tiny_worlds_questions_stay_the_first():
    c = resolve(load_experiment("experiments/tiny_world.py:smoke"))
    everything = build.questions(c, c.data.eval)
    assert build.questions(c, c.data.eval, 16) == everything[:16] and all(q.key == q.id for q in everything)


def test_benchmarks_that_count_alike_keep_apart(tmp_path):
    files = {name: write(tmp_path / f"{name}.jsonl", rows(3)) for name in ("nq", "popqa")}
    questions = build.benchmarks(config(data__benchmarks=files))
    assert [question.key for question in questions[::3]] == ["nq:q0", "popqa:q0"]
    assert len({question.identity for question in questions}) == 6 and questions[0].id == "q0"


def test_readmes_benchmark_command_evaluates_every_question():
    assert resolve(load_experiment("experiments/real_questions.py"), files=False).data.eval_limit is None
