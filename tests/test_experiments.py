"""Every experiment validates, and its `:smoke` runs every stage from the command line."""

import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests import golden_runs
from tests.environment import one_device
from zsjax.config import ConfigError, from_json, load_experiment, resolve
from zsjax.data import load_questions
from zsjax.data.assets import asset_path
from zsjax.errors import UserError
from zsjax.models import load_hf
from zsjax.monitor.catalog import find_metric, is_step_metric
from zsjax.monitor.writer import read_jsonl
from zsjax.rewards import normalize_answer

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
# The hard world's run is the tiny world's with two bases to make first, two minutes; tests/tiny_world has what differs.
SMOKES = [pytest.param(name, marks=pytest.mark.slow) if name == "hard_world" else name for name in EXPERIMENTS]


def load(name, arg=""):
    return load_experiment(str(ROOT / "experiments" / f"{name}.py") + (f":{arg}" if arg else ""))


def launch(*arguments):
    """Runs the launcher as a user does: one process, the machine's own devices."""
    command = [sys.executable, "-m", "zsjax.launch", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=one_device(), capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_validates(name):
    whole, smoke = resolve(load(name)), resolve(load(name, "smoke"))
    assert whole.name == smoke.name == name
    assert smoke.train.steps == 2 < whole.train.steps
    assert {"train", "evaluate", "report"} <= set(smoke.stages) == set(whole.stages)


def test_real_questions_of_ones_own_models_leave_the_toys_limits():
    toy, smoke = load("real_questions"), load("real_questions", "policy=here,chat,smoke")
    config = load("real_questions", "policy=here,simulator=there,chat")
    assert (config.policy.dtype, config.simulator.dtype, config.simulator.param_dtype) == ("bfloat16",) * 3
    assert config.prompts.chat and config.prompts.simulator_chat and not toy.prompts.simulator_chat
    assert (config.optimizer.learning_rate, config.rollout.max_tokens, config.rollout.max_turns) == (1e-6, 4096, 4)
    assert config.train.steps == 200 and load("real_questions", "policy=here,steps=7").train.steps == 7
    assert smoke.rollout.max_tokens < toy.rollout.max_tokens == 704 and toy.train.steps == 20
    resolve(config, files=False)


def test_gemma_s_later_stages_start_from_a_warm_start_alone(tmp_path):
    """A folder with no tuned simulator gets one; a folder with one gives it."""
    config = load("gemma_search", f"model=here,start={tmp_path}")
    assert config.stages == ("collect", "tune_simulator", "train", "evaluate", "report") and config.simulator.init == "here"
    assert config.policy.init == str(tmp_path / "models" / "warm_start") and "episodes" not in config.warm_start
    (tmp_path / "models" / "simulator").mkdir(parents=True)
    (tmp_path / "episodes.jsonl").touch()
    config = load("gemma_search", f"model=here,start={tmp_path}")
    assert config.stages[0] == "train" and config.simulator.init == str(tmp_path / "models" / "simulator")
    assert config.warm_start.episodes == str(tmp_path / "episodes.jsonl")
    assert load("gemma_search", f"model=here,start={tmp_path},engine=bm25").simulator.init == "here"
    assert load("gemma_search", "model=here").stages[0] == "warm_start"


def test_no_evaluation_question_of_gemma_s_is_trained_on_in_other_words():
    def words(name, split):
        questions = load_questions(ROOT / "experiments" / "data" / "search_qa" / f"{name}.jsonl.gz", split=split)
        return [set(normalize_answer(question.question).split()) for question in questions]

    train, held_out, unsupported = words("questions", "train"), words("questions", "eval"), words("unsupported", "train")
    assert (len(train), len(held_out), len(unsupported)) == (1793, 465, 693)
    learned = train + unsupported
    assert not [asked for asked in held_out for other in learned if len(asked & other) > 0.75 * len(asked | other)]


def test_questions_without_evidence_need_a_simulator_that_is_tuned(tmp_path):
    with pytest.raises(UserError, match="questions=unsupported needs start=DIR"):
        load("gemma_search", "model=m,questions=unsupported")
    (tmp_path / "models" / "simulator").mkdir(parents=True)
    data = load("gemma_search", f"model=m,questions=unsupported,start={tmp_path}").data
    assert data.train.endswith("unsupported.jsonl.gz") and data.supervised_share == 0  # all of them are played
    assert data.eval.endswith("questions.jsonl.gz#eval")
    with pytest.raises(UserError, match="questions=unsupported needs"):
        load("gemma_search", f"model=m,questions=unsupported,engine=bm25,start={tmp_path}")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """name -> folder of that experiment's `:smoke`, run once."""
    folders = {}

    def run(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            done = launch("--config", f"experiments/{name}.py:smoke", "--workdir", folders[name])
            assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return folders[name]

    return run


@pytest.mark.parametrize("name", SMOKES)
def test_smoke_runs_every_stage(name, smoke):
    workdir = smoke(name)
    config = from_json((workdir / "config.json").read_text())

    lines = read_jsonl(workdir / "metrics.jsonl")
    logged = {name for line in lines for name in line} - {"step", "stage", "baseline"}
    assert not {name for name in logged if find_metric(name) is None}, "metrics that no METRICS describes"
    lines = [line for line in lines if line["stage"] == "train"]
    assert [line["step"] for line in lines] == [1, 2]
    steered = {name for line in lines for name in line if not name.startswith("alarm/")} - {"step", "stage"}
    assert not {name for name in steered if not is_step_metric(name, config.reward.terms)}  # health.alarms may name them
    for line in lines:
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float)), line
        assert 0 <= line["reward"] <= 1 and line["nonfinite"] == 0
        assert line["searches"] > 0 and line["document_tokens"] > 0 and line["response_tokens"] > 0
        # The trainer's forward and the sampler's, cached and compiled apart, tell the same log-probs.
        assert line["sampler_gap_max"] < 1e-3
    assert "eval/em" in lines[-1]

    table = json.loads((workdir / "evaluation.json").read_text())
    assert {row["name"].split(",")[0] for row in table} >= {"before training", "after training"}
    for row in table:
        assert 0 <= row["em"] <= row["f1"] <= 1 and row["em_se"] <= 0.5
    before = [row for row in table if row["name"] == "before training" and row.get("data_set") != "all"]
    assert sum(row["n"] for row in before) == config.data.eval_limit

    report = (workdir / "report.html").read_text()
    assert name in report and "before training" in report and "<svg" in report
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", report)  # self-contained
    records = read_jsonl(sorted((workdir / "trajectories").glob("train_*.jsonl"))[-1])
    roles = {segment["role"] for record in records for segment in record["segments"]}
    assert roles >= {"prompt", "policy", "template", "document"}


@pytest.mark.parametrize("name", SMOKES)
def test_smoke_gives_the_golden_run(name, smoke):
    """A change that moves a number on purpose writes the file anew (`python -m tests.golden_runs`) and says why."""
    found = golden_runs.differences(golden_runs.read(name), golden_runs.of_run(smoke(name)))
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_golden_run_makes_an_update(name):
    """Where all rewards are equal, a golden run holds reinforcement to nothing."""
    lines = [line for line in golden_runs.read(name)["metrics"] if line["stage"] == "train"]
    assert any(line["groups_with_signal"] > 0 and line["grad_norm"] > 1e-3 for line in lines)


def test_a_golden_run_tells_what_moved():
    golden = {"platform": "a", "metrics": [{"loss": 0.5, "stage": "train"}], "evaluation": [{"em": 0.25, "n": 4}]}
    moved = {"platform": "a", "metrics": [{"loss": 0.5 + 1e-9, "stage": "train", "new": 1.0}], "evaluation": [{"n": 4}]}
    assert golden_runs.differences(golden, golden) == []
    assert [line.partition(":")[0] for line in golden_runs.differences(golden, moved)] == ["metrics line 1, loss",
                                                                                         "evaluation line 1, em"]
    elsewhere = {**moved, "platform": "b", "evaluation": [{"em": 0.26, "n": 4}]}
    assert golden_runs.differences(golden, elsewhere) == []
    assert golden_runs.differences(golden, {**elsewhere, "metrics": [{"stage": "train"}]})
    assert golden_runs.differences(golden, {**elsewhere, "evaluation": [{"em": 0.25, "n": 5}]})
    assert golden_runs.differences(golden, {**golden, "metrics": []})


def test_real_questions_search_in_the_simulator_and_learn_from_a_reward(smoke):
    workdir = smoke("real_questions")
    config = from_json((workdir / "config.json").read_text())
    lines = read_jsonl(workdir / "metrics.jsonl")
    records = [r for file in sorted((workdir / "trajectories").glob("*.jsonl")) for r in read_jsonl(file)]
    assert any(record["queries"] and "ok" in record["search_status"] for record in records)
    # Without any reward GRPO has no gradient, and the smoke would be one of forward passes only.
    assert any(line["groups_with_signal"] > 0 and line["grad_norm"] > 1e-3 for line in lines)
    folders = asset_path(config.policy.init), workdir / "models" / "policy"
    start, trained = (np.asarray(load_hf(folder)[1]["embed_tokens"], np.float32) for folder in folders)
    assert 0 < np.abs(start - trained).max() < 0.1


def test_real_questions_takes_files_and_names_those_that_are_missing():
    arg = "policy=nowhere/model,data=nowhere/questions.jsonl,corpus=nowhere/paragraphs.jsonl.gz,chat"
    with pytest.raises(ConfigError) as error:
        resolve(load("real_questions", arg))
    fields = {problem.field for problem in error.value.problems}
    assert fields >= {"tokenizer", "policy.init", "simulator.init", "data.train", "data.eval", "data.eval_corpus"}
