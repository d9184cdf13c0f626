"""What a run's folder allows: which changes of a config a run that began accepts."""

import json
import logging
import os

import pytest

from zsjax.config import (
    ConfigError,
    UserError,
    check_resume,
    from_json,
    load_experiment,
    resolve,
    to_json,
    withdraw_config,
    write_config,
)
from zsjax.parallel.files import write_text

SMOKE = load_experiment("experiments/real_questions.py:smoke")


def config(**overrides):
    return resolve(SMOKE, {name.replace("__", "."): str(value) for name, value in overrides.items()}, files=False)


def edit(folder, change):
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("changes", [
    dict(data__benchmarks={"nq": "nq.jsonl"}), dict(data__eval="other.jsonl"), dict(data__eval_limit=3),
    dict(search__eval_engine="empty"), dict(evaluate__samples=3, evaluate__temperature=0.7),
    dict(evaluate__baselines="direct,rag"), dict(cost__search=0.5), dict(train__eval_every=1, train__eval_questions=3),
    dict(evaluate__baselines="trajectory_sft", trajectory_sft__steps=5, trajectory_sft__optimizer__b2=0.95),
    # Engines that only evaluate: what they read decides nothing that was trained.
    dict(search__eval_engine="dense", search__embedder="json:loads"),
    dict(search__eval_engine="chat", search__remote__url="http://h:1", search__remote__model="m"),
    dict(search__remote__timeout=3, search__remote__concurrency=2, search__remote__key_env="KEY"),
    dict(mesh__data=1, rollout__rows=4, rollout__capacities=2, train__microbatch_rows=4, train__remat="layers"),
    dict(policy__attention="xla", search__index_dir="/elsewhere", health__patience=9, gates__leak=0.1, name="x"),
    dict(stages="evaluate,report"), dict(rollout__max_prompt_tokens=400, rollout__max_tokens=600),
    dict(tune_simulator__max_tokens=256),
])
def test_what_may_follow_a_run(tmp_path, changes):
    write_config(tmp_path, config())
    write_config(tmp_path, config(**changes))
    assert from_json((tmp_path / "config.json").read_text()) == config(**changes)


@pytest.mark.parametrize("changes, refused", [
    (dict(optimizer__learning_rate=0.1), "optimizer.learning_rate"), (dict(seed=1), "seed"),
    (dict(train__minibatches=2), "train.minibatches"), (dict(simulator__quantize="int8"), "simulator.quantize"),
    (dict(rollout__max_tokens=900, algorithm__reduction="fixed_length"), "rollout.max_tokens"),  # the loss divides by it
    (dict(rollout__max_prompt_tokens=300), "rollout.max_prompt_tokens"),  # a limit is raised, not lowered
    (dict(search__engine="dense", search__embedder="json:loads"), "search.embedder"),
    (dict(reward__terms={"f1": 1.0, "em": 1.0}), "reward.terms.em"), (dict(prompts__chat="true"), "prompts.chat"),
])
def test_what_needs_a_folder_of_its_own(tmp_path, changes, refused):
    write_config(tmp_path, config())
    with pytest.raises(ConfigError) as caught:
        write_config(tmp_path, config(**changes))
    assert refused in [problem.field for problem in caught.value.problems]
    assert from_json((tmp_path / "config.json").read_text()) == config()


@pytest.mark.parametrize("began, then, there, allowed", [
    ("warm_start", "warm_start,collect,tune_simulator,train", "models/warm_start", True),
    ("warm_start", "warm_start,collect,tune_simulator", "models/policy", False),
    ("collect,train", "warm_start,collect,train", "", True), ("train", "warm_start,train", "checkpoints/train/3", False),
    ("train", "warm_start,train", "models/policy", False), ("train", "pretrain,train", "checkpoints/warm_start/3", False),
    ("train", "collect,train", "checkpoints/tune_simulator/1", False), ("collect", "warm_start", "", False),
    ("warm_start,train", "train", "models/warm_start", True),
    ("warm_start,train", "train", "checkpoints/warm_start", False)])
def test_a_stage_may_be_added_until_something_was_made_without_it(tmp_path, began, then, there, allowed):
    phases = {f"{name}__steps": 1 for name in ("pretrain", "warm_start", "tune_simulator")}
    write_config(tmp_path, config(stages=began, collect__queries="question", **phases))
    if there:
        (tmp_path / there).mkdir(parents=True)
        (tmp_path / there / "config.json").write_text("{}")
    later = config(stages=then, collect__queries="question", **phases)
    if allowed:
        write_config(tmp_path, later)
    else:
        with pytest.raises(ConfigError, match="stages.*began with"):
            write_config(tmp_path, later)


def test_a_run_of_an_earlier_version_goes_on_where_new_fields_have_their_defaults(tmp_path, caplog):
    def older(tree):
        del tree["rollout"]["capacities"], tree["cost"], tree["health"]["alarms"]
        del tree["value"]["optimizer"]["learning_rate"]
        tree["train"]["gone"] = 1
        tree["world_of_old"] = {"a": {"b": 2}}

    write_config(tmp_path, config())
    edit(tmp_path, older)
    with caplog.at_level(logging.INFO):
        assert from_json((tmp_path / "config.json").read_text()) == config()
        write_config(tmp_path, config())
    assert "train.gone" in caplog.text and "world_of_old" in caplog.text
    edit(tmp_path, older)
    with pytest.raises(ConfigError, match="value.optimizer.learning_rate"):
        write_config(tmp_path, config(value__optimizer__learning_rate=1e-3))


def test_a_renamed_field_keeps_its_value_and_an_experiment_is_told_the_new_name(tmp_path):
    def older(tree):
        tree["rollout"]["busy"] = tree["rollout"].pop("decode_threshold")

    write_config(tmp_path, config(rollout__decode_threshold=0.25))
    edit(tmp_path, older)
    assert from_json((tmp_path / "config.json").read_text()) == config(rollout__decode_threshold=0.25)
    with pytest.raises(ConfigError, match="rollout.busy.*its name is rollout.decode_threshold now"):
        config(rollout__busy=0.25)


def test_a_change_of_the_last_bits_is_one_line(tmp_path, caplog):
    write_config(tmp_path, config())
    with caplog.at_level(logging.INFO):
        write_config(tmp_path, config(mesh__data=1, name="other"))
    assert [record.getMessage() for record in caplog.records] == [
        "mesh.data was -1 and is 1: results may differ in their last bits"]


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*; make room") as caught:
        write_config(tmp_path / "file" / "run", config())
    assert str(caught.value).count("cannot write") == 1


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"train": 5}', '{"seed": "x"}', "[" * 100_000, "\udcff\udcfe"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="config.json is not JSON of a config") as caught:
        write_config(tmp_path, config())
    assert not isinstance(caught.value, ConfigError)


def test_a_folder_is_not_an_address():
    with pytest.raises(UserError, match="local folder"):
        write_config("gs://bucket/run", config())


@pytest.mark.parametrize("made, kept", [("", False), ("searches.jsonl", True), ("models/base/config.json", True),
                                        ("checkpoints/train/4/x", True), ("episodes.jsonl", True),
                                        ("trajectories/train_000001.jsonl", False), ("metrics.jsonl", True),
                                        ("events.tb", False)])
def test_a_run_that_computed_nothing_binds_nobody(tmp_path, made, kept):
    write_config(tmp_path, config())
    (tmp_path / "metrics.jsonl").touch()
    if made:
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text("x")
    withdraw_config(tmp_path)
    assert (tmp_path / "config.json").exists() == kept


def test_a_run_that_was_killed_before_its_first_result_binds_nobody(tmp_path):
    from zsjax.run import pipeline

    write_config(tmp_path, config(seed=1))  # and then it was killed
    pipeline.run(config(stages="report"), tmp_path)
    assert from_json((tmp_path / "config.json").read_text()) == config(stages="report")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "train"}\n')
    with pytest.raises(ConfigError, match="seed"):
        pipeline.run(config(stages="report", seed=1), tmp_path)


@pytest.mark.parametrize("left, kept", [("", "old"), ("evaluation/before.jsonl", "new"), ("models/policy/x", "new")])
def test_a_command_that_fails_before_its_first_result_leaves_the_config_as_it_was(tmp_path, monkeypatch, left, kept):
    from zsjax.run import pipeline

    def fail(run):
        if left:
            write_text(tmp_path / left, "x")
        raise UserError("a corpus cannot be read")

    configs = {name: config(stages="report", data__eval=f"{name}.jsonl") for name in ("old", "new")}
    write_config(tmp_path, configs["old"])
    write_text(tmp_path / "metrics.jsonl", '{"step": 1, "stage": "train"}\n')
    os.utime(tmp_path / "metrics.jsonl", (1, 1))
    monkeypatch.setitem(pipeline.STAGES, "report", fail)
    with pytest.raises(UserError, match="corpus"):
        pipeline.run(configs["new"], tmp_path)
    assert from_json((tmp_path / "config.json").read_text()) == configs[kept]


def test_questions_that_are_too_long_may_be_dropped_later_and_not_refused_later():
    dropped, refused = (config(data__overlong=value) for value in ("drop", "error"))
    check_resume(refused, dropped, "runs/x")
    with pytest.raises(ConfigError, match="overlong"):
        check_resume(dropped, refused, "runs/x")


def test_the_change_that_a_failed_start_advises_is_accepted(tmp_path):
    from zsjax.run import pipeline

    (tmp_path / "q.jsonl").write_text('{"id": "1", "question": "Who?"}\n')  # no answers
    bad = config(data__train=tmp_path / "q.jsonl", stages="train")
    with pytest.raises((ValueError, UserError)):
        pipeline.run(bad, tmp_path / "run")
    write_config(tmp_path / "run", config(stages="train"))
    assert to_json(config(stages="train")) == (tmp_path / "run" / "config.json").read_text()
