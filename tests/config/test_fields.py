"""What each field says of itself is there, right, and checked."""

import math
import typing

import huggingface_hub
import ml_collections
import pytest

from zsjax.config import Config, ConfigError, load_experiment, resolve
from zsjax.config.declare import EFFECTS, Range, leaves
from zsjax.run import build

SHAPE = dict(embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
GOOD = dict(policy=dict(init="random", shape=SHAPE), search=dict(engine="bm25"))
FIELDS = leaves(Config)


def problems_of(overrides, config=GOOD, **options) -> dict[str, str]:
    """{field: message} of what `resolve` refuses."""
    with pytest.raises(ConfigError) as caught:
        resolve(config, overrides, **options)
    assert all("\n" not in str(problem) for problem in caught.value.problems)
    return {problem.field: str(problem) for problem in caught.value.problems}


def kinds_of(kind) -> set:
    """bool, int, float, ... of an annotation with None, lists and dicts in it."""
    return {inner for arg in typing.get_args(kind) for inner in kinds_of(arg)} or {kind}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_it_is(name):
    spec, default = FIELDS[name].spec, FIELDS[name].default
    assert spec.help and spec.effect in EFFECTS and not (spec.last_bits and spec.effect not in ("how", "later"))
    if kinds_of(FIELDS[name].kind) & {int, float}:
        assert spec.range and math.isfinite(spec.range.low) and math.isfinite(spec.range.high), "a number without a range"
        assert all(item in spec.range for item in (default if isinstance(default, tuple) else (default,))
                   if item is not None)
    if spec.choices:
        assert set(default if isinstance(default, tuple) else [default]) <= set(spec.known())


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "-1e30", "9" * 40])
def test_no_number_may_be_nonsense(text):
    fields = {name: text for name, leaf in FIELDS.items() if leaf.spec.range}
    assert set(problems_of(fields)) >= set(fields) and len(fields) > 100


def test_ranges():
    half_open = Range.parse("(0, 1]")
    assert [x in half_open for x in (0, 1e-9, 1, 1.1, math.nan)] == [False, True, True, False, False]
    assert str(half_open) == "above 0, up to 1" and str(Range.parse("[0, 1)")) == "0 up to, but not, 1"
    assert str(Range.parse("[1, 1e9]")) == "1 or more, at most 1,000,000,000"


@pytest.mark.parametrize("field, value, said", [
    ("seed", "-1", "too small"), ("seed", "99999999999999999999", "too large"),
    ("cost.search", "-1", "dollars"), ("cost.search", "nan", "not a number"),
    ("train.eval_questions", "-0", "1 or more"),
    ("mesh.data", "0", "not a size"), ("mesh.data", "-2", "-1 or more"),
    ("curriculum.values", "0.1,nan", "0 to 1"), ("policy.lora.targets", "q_proj,x_proj", "gate_proj"),
    ("health.alarms", "{'entorpy': [0.1, None]}", "did you mean entropy?"),
    ("health.alarms", "{'entropy': [0.5, 0.1]}", "wrong way round"),
    ("health.alarms", "{'entropy': [1e400, None]}", "finite"),
    ("health.alarms", "{'reward/em': [0.1, None]}", "not a metric"),  # no such term in this run
    ("health.best_metric", "eval/nonsense", "eval/em"),
    ("reward.terms", "{'f1': 1e300}", "weight of 'f1'"), ("reward.terms", "{'math:pi': 1}", "function"),
    ("algorithm.advantage", "math:pi", "function"), ("algorithm.loss", "sys:exit:x", "sys:exit:x"),
    ("policy.init", "s3://bucket/model", "copy it here"), ("tokenizer", "gs://bucket/tokenizer", "copy it here"),
    ("data.train", "https://host/q.jsonl", "copy it here"), ("search.index_dir", "gs://bucket/i", "copy it here"),
    ("data.train", "x" * 5000 + ".jsonl", "no such file"), ("prompts.policy", "x" * 5000, "File name too long"),
    ("data.benchmarks", "{'nq': 3}", "'nq'"), ("data.benchmarks.nq", "gs://b/nq.jsonl", "copy it here"),
    ("search.remote.url", "host:8000", "http://HOST:PORT"), ("search.remote.url", "http://h:99999", "http://HOST:PORT"),
    ("search.remote.key_env", "sk-1234", "environment variable"),
    ("search.document_format", "{i:03d} {text}", "slots"), ("search.document_format", "{i}. {title}", "no slot {text}"),
    ("world", "{'entities': -1}", "not a count"), ("world", "{'share_first': 2}", "not a share"),
    ("world", "{'shuffle_documents': 1}", "neither True nor False"),
    ("policy.shape.num_layers", "99999999999", "not a size"), ("policy.shape.vocab_size", "true", "not a size"),
])
def test_what_is_refused(field, value, said):
    found = problems_of({field: value})
    name = field if field in found else field.rpartition(".")[0]  # a key of a dict field
    if field == "policy.init":
        name = field if "copy" in found[field] else name
        found = {name: found[name]}  # beside it: a shape of a model that is not random
    assert said in found[name] and len(found) == 1, found


@pytest.mark.parametrize("name, said", [("gs://bucket/model", "copy it here"), ("nomodule:f", "nomodule"),
                                        ("json:nofunction", "nofunction"), ("json:__name__", "function"),
                                        ("hf:Qwen", "OWNER/NAME"), ("nowhere/model", "no file or folder")])
def test_names_of_embedders(name, said):
    assert said in problems_of({"search.embedder": name, "search.eval_engine": "dense"})["search.embedder"]
    with pytest.raises((FileNotFoundError, ValueError)):
        build.embedder(resolve({"search": {"embedder": name}}, check=False))


def test_an_embedder_of_the_hub_is_fetched_by_its_name(monkeypatch):
    asked = []

    def fetch(name, **_):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(FileNotFoundError, match="no network"):
        build.embedder(resolve(GOOD, {"search.embedder": "hf:Qwen/Qwen3-Embedding-0.6B", "search.eval_engine": "dense"}))
    assert asked[0] == "Qwen/Qwen3-Embedding-0.6B"


def test_a_base_for_the_tiny_world_needs_its_corpus():
    stages = {"stages": "pretrain_simulator", "pretrain_simulator.steps": "1", "data.corpus": "mine.jsonl"}
    assert "drop the stage" in problems_of(stages, files=False)["data.corpus"]


def test_an_empty_file_of_questions(tmp_path):
    (tmp_path / "q.jsonl").touch()
    assert "empty" in problems_of({"data.eval": str(tmp_path / "q.jsonl")})["data.eval"]


def test_metrics_that_alarms_may_watch():
    alarms = {"share_answered": [0.1, None], "reward/f1": [None, 1], "value/loss": [None, 9], "time/rollout": [None, 9],
              "eval/em_2_hop": [0.1, None]}
    resolve(GOOD | {"health": {"alarms": alarms, "best_metric": "eval/em_2_hop"}})
    own = {"algorithm": {"loss": "zsjax.rl.objective:gspo_loss"}, "health": {"alarms": {"mine": [0, None]}}}
    resolve(GOOD | own)  # a loss of one's own tells what it likes


@pytest.mark.parametrize("text, read", [
    ("[{'name': 'scale_by_adam', 'b1': 0.9}]", ({"name": "scale_by_adam", "b1": 0.9},)),
    ("[dict(name='x')]", None), ("[{'name': 'clip', 'max_delta': 1}, {'name': 'lion', 'learning_rate': 'schedule'}]", (
        {"name": "clip", "max_delta": 1}, {"name": "lion", "learning_rate": "schedule"}))])
def test_lists_of_dicts_on_the_command_line(text, read):
    if read is None:
        assert "give a dict" in problems_of({"optimizer.chain": text})["optimizer.chain"]
    else:
        assert resolve(GOOD, {"optimizer.chain": text}).optimizer.chain == read


def test_values_on_the_command_line_are_literals():
    config = resolve(GOOD, {
        "curriculum.schedule": "step", "curriculum.values": "(0.1, 0.2)", "curriculum.boundaries": "7",
        "stages": "['train', 'report']", "seed": "0x10", "name": "'7'", "rollout.max_tokens": "1_024",
        "health.alarms": "{'entropy': [1e-3, None], 'grad_norm': [None, 5]}", "world.entities": "12"})
    assert config.curriculum.values == (0.1, 0.2) and config.curriculum.boundaries == (7,) and config.seed == 16
    assert config.stages == ("train", "report") and config.name == "7" and config.rollout.max_tokens == 1024
    assert config.health.alarms == {"entropy": [1e-3, None], "grad_norm": [None, 5]} and config.world == {"entities": 12}
    assert resolve(GOOD, {"stages": "train, report"}).stages == ("train", "report")


def test_a_key_of_a_dict_leaves_the_fields_other_keys():
    alarms = resolve(GOOD, {"health.alarms.entropy": "[0.5, None]"}).health.alarms
    assert alarms == Config().health.alarms | {"entropy": [0.5, None]}


def test_a_field_of_a_group_leaves_the_groups_other_defaults():
    assert Config().value.optimizer.learning_rate == 1e-5
    assert resolve(GOOD, {"value.optimizer.b1": "0.8"}).value.optimizer.learning_rate == 1e-5


@pytest.mark.parametrize("config, field", [
    ([], "config"), (7, "config"), ({1: 2}, "1"), ({"reward": {"terms": {"f1": {1, 2}}}}, "reward.terms"),
    ({"health": {"alarms": {"entropy": [math.nan, None]}}}, "health.alarms"), ({"train": {"steps": 10**400}}, "train.steps"),
    ({"optimizer": {"learning_rate": 10**400}}, "optimizer.learning_rate")])
def test_what_an_experiment_returns_is_a_config(config, field):
    assert field in problems_of({}, config)


def test_an_experiment_that_returns_nothing_is_told(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def get_config(arg=None):\n    c = dict()\n")
    from zsjax.config import UserError

    with pytest.raises(UserError, match="returns nothing"):
        load_experiment(str(path))


def test_an_experiment_that_is_not_here_is_a_carried_one(tmp_path, monkeypatch):
    from zsjax.config import UserError

    monkeypatch.chdir(tmp_path)
    assert load_experiment("experiments/tiny_world.py:smoke").name == "tiny_world"
    with pytest.raises(UserError, match="no experiment file experiments/x.py .*there are .*experiments/tiny_world.py"):
        load_experiment("experiments/x.py")
    with pytest.raises(UserError, match="no experiment file setup.py"):  # only experiments are carried
        load_experiment("setup.py")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny_world.py").write_text("def get_config():\n    return dict(name='mine')\n")
    assert load_experiment("experiments/tiny_world.py")["name"] == "mine"


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy")
    c = ml_collections.ConfigDict(GOOD)
    c.train = dict(steps=np.int64(3))
    c.algorithm = dict(normalize=np.bool_(False))
    config = resolve(c.to_dict() | {"curriculum": {"schedule": "step", "values": np.array([0.5, 0.25]), "boundaries": [3]}})
    assert config.train.steps == 3 and config.algorithm.normalize is False and config.curriculum.values == (0.5, 0.25)


def test_the_benchmark_command_of_the_readme_evaluates_every_question():
    assert resolve(load_experiment("experiments/real_questions.py"), files=False).data.eval_limit is None
