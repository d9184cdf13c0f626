import dataclasses
import json
import pathlib
import re

import ml_collections
import pytest

from zsjax import config as configuration
from zsjax.config import Config, ConfigError, UserError, checks, diff, from_json, parse_arg, resolve, to_json
from zsjax.rl.algorithms import preset

# A config whose files all exist, whatever assets are carried: problems found in it are the test's own.
SHAPE = dict(embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)


def good(**fields):
    c = ml_collections.ConfigDict(dict(policy=dict(init="random", shape=SHAPE), search=dict(engine="bm25")))
    c.update(fields)
    return c


def problems_of(config=None, overrides=None) -> dict[str, str]:
    """{field: message} of what `resolve` refuses."""
    with pytest.raises(ConfigError) as caught:
        resolve(good() if config is None else config, overrides)
    assert all(problem.reason and problem.fix for problem in caught.value.problems)
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_parse_arg():
    defaults = dict(engine="simulator", lr=0.1, steps=5, smoke=False, shape=(None, int))
    assert parse_arg(None, **defaults).to_dict() == dict(engine="simulator", lr=0.1, steps=5, smoke=False, shape=None)
    assert parse_arg("bm25", **defaults).engine == "bm25"
    assert parse_arg("bm25,smoke,lr=1e-3,steps=7,shape=3", **defaults).to_dict() == dict(
        engine="bm25", lr=1e-3, steps=7, smoke=True, shape=3)
    assert parse_arg("smoke", **defaults).smoke is True
    assert parse_arg("smoke=false", **defaults).smoke is False
    assert parse_arg("x=1,steps=2", lazy=True, **defaults).x == "1"
    with pytest.raises(ConfigError, match="did you mean steps"):
        parse_arg("stepz=3", **defaults)
    for wrong in ("smoke=yes", "steps=2.5", "lr=fast", "lr=1,nonsense"):
        with pytest.raises(ConfigError):
            parse_arg(wrong, **defaults)
    with pytest.raises(ConfigError) as caught:
        parse_arg("smoke=yes,steps=x,foo=1", **defaults)
    assert len(caught.value.problems) == 3


def test_resolve_reads_types():
    config = resolve(good(stages=["train", "report"], optimizer=dict(learning_rate=1)), {
        "train.steps": "7", "data.eval_limit": "none", "algorithm.normalize": "false", "policy.shape.num_layers": "3",
        "name": "a b", "gates.reading": "0.5"})
    assert config.stages == ("train", "report") and config.train.steps == 7 and config.data.eval_limit is None
    assert config.algorithm.normalize is False and config.policy.shape == {**SHAPE, "num_layers": 3}
    assert isinstance(config.optimizer.learning_rate, float) and config.name == "a b" and config.gates.reading == 0.5
    assert resolve(config) == config


def test_all_problems_at_once():
    found = problems_of(good(train=dict(stepz=1, steps=2.5, group_size=True), algorithm="grpo", wat=1),
                        {"rollout.max_turns": "many", "search.num_documents": "21", "train.steps.x": "1"})
    assert set(found) == {"train.stepz", "train.steps", "train.group_size", "algorithm", "wat", "rollout.max_turns",
                          "search.num_documents", "train.steps.x"}
    assert "did you mean train.steps?" in found["train.stepz"]
    assert "give a whole number" in found["train.steps"] and "2.5" in found["train.steps"]


@pytest.mark.parametrize("field, value, fix", [
    ("stages", "train,trian", "name some of"),
    ("stages", "report,train", "in the order"),
    ("stages", "pretrain,train", "pretrain"),
    ("tokenizer", "asset:nix", "asset:"),
    ("tokenizer", "/no/such/folder", "check the path"),
    ("policy.shape", "{'embed_dim': 32}", "num_layers"),
    ("policy.shape.num_kv_heads", "3", "multiple"),
    ("policy.shape.layers", "3", "known"),
    ("policy.dtype", "float64", "one of"),
    ("data.train", "questions.csv", ".jsonl"),
    ("data.eval", "nowhere.jsonl", "check the path"),
    ("data.eval", "tiny_world:eval#test", "give tiny_world:eval"),
    ("data.corpus", "tfds:nq", "a path"),
    ("data.benchmarks", "{'a.b': 'x.jsonl'}", "names without"),
    ("evaluate.samples", "3", "evaluate.temperature"),
    ("evaluate.baselines", "direct,oracle", "tree_search"),
    ("collect.label", "oracle", "contains"),
    ("search.rerank.candidates", "3", "or 0"),
    ("search.rerank.candidates", "21", "or 0"),
    ("search.rerank.buckets", "0", "1 or more"),
    ("world", "{'entites': 3}", "entities"),
    ("prompts.policy", "nowhere.txt", "tiny_world"),
    ("search.engine", "google", "bm25, chat, dense"),
    ("search.eval_engine", "mixed", "bm25, chat"),
    ("search.reveal_gold", "sometimes", "on_target"),
    ("search.mix.real", "simulator", "bm25"),
    ("search.remote.budget", "-1", "0 or more"),
    ("search.num_documents", "0", "1 to 20"),
    ("search.top_p", "0", "above 0"),
    ("search.document_format", "{title}: {body}", "{i}, {title}, {text}"),
    ("rollout.max_tokens", "600", "640 or more"),
    ("rollout.temperature", "0", "above 0"),
    ("curriculum.schedule", "exponential", "zero_search"),
    ("curriculum.end", "1.5", "0 to 1"),
    ("algorithm.advantage", "gea", "grpo"),
    ("algorithm.advantage", "no.such:thing", "package.module:function"),
    ("algorithm.kl_in", "prompt", "reward"),
    ("algorithm.kl_target", "0.1", "kl_coef"),
    ("algorithm.dual_clip", "0.9", "more than 1"),
    ("algorithm.refill_rounds", "2", "drop_equal_groups"),
    ("algorithm.mask", "short", "truncated"),
    ("reward.terms", "{'f2': 1.0}", "retry_helped"),
    ("reward.terms", "{'f1': 'much'}", "finite number"),
    ("reward.terms", "{}", "at least one"),
    ("reward.overlong_to", "10", "overlong_from"),
    ("curriculum.schedule", "steep", "adaptive"),
    ("curriculum.decay", "1.0", "not, 1"),
    ("search.noise_per", "word", "document"),
    ("health.alarms", "{'entropy': 3}", "two numbers"),
    ("health.patience", "0", "1 or more"),
    ("train.remat", "everything", "matmuls"),
    ("train.keep", "best", "search_depth"),
    ("train.keep_fraction", "0.5", "reward_spread"),
    ("train.epochs", "0", "1 or more"),
    ("value.optimizer.b2", "1.5", "not, 1"),
    ("algorithm.loss", "no.such:thing", "package.module:function"),
    ("algorithm.loss", "zsjax.types:PAD", "function"),
    ("algorithm.kl_kind", "k1", "k2 or k3"),
    ("algorithm.reduction", "mean", "token_mean"),
    ("optimizer.schedule", "poly", "cosine"),
    ("optimizer.learning_rate", "nan", "above 0"),
    ("train.steps", "-1", "1 or more"),
    ("train.group_size", "1", "2 or more"),
    ("train.minibatches", "7", "divisor of 320"),
    ("train.microbatch_rows", "7", "divisor of 320"),
    ("mesh.data", "7", "divisor of 320"),
    ("gates.useful", "2", "0 to 1"),
])
def test_impossible_values(field, value, fix):
    found = problems_of(overrides={field: value})
    name = field if field in found else field.rpartition(".")[0]  # a field inside a dict is told as the dict
    if field == "stages" and "pretrain" in value:
        name = "pretrain.steps"
    assert fix in found[name], found
    assert len(found) == 1, found


def test_a_simulator_loses_no_documents():
    found = problems_of(overrides={"search.eval_engine": "simulator", "evaluate.drop_best": "0.3"})
    assert "set it to 0" in found["evaluate.drop_best"]
    real = {"search.eval_engine": "bm25", "evaluate.drop_best": "0.3", "train.steps": "-1"}
    assert set(problems_of(overrides=real)) == {"train.steps"}
    resolve(good(simulator=dict(init="random", shape=SHAPE)),
            {"search.eval_engine": "simulator", "evaluate.drop_best": "0.3", "stages": "train"})


def test_pairs_need_a_label_that_gives_both_kinds():
    changes = {"collect.pairs": "true", "collect.label": "answer"}
    assert "never both" in problems_of(overrides=changes)["collect.pairs"]
    resolve(good(), changes | {"collect.label": "contains"})


@pytest.mark.parametrize("engine, field, fix", [
    ("http", "search.remote.url", "http://HOST:PORT"),
    ("chat", "search.remote.url", "http://HOST:PORT"),
    ("chat", "search.remote.model", "the name that the server uses"),
    ("serpapi", "search.remote.key_env", "SERPAPI_API_KEY"),
    ("dense", "search.embedder", "package.module:function"),
])
def test_what_engines_need(engine, field, fix, monkeypatch):
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    for which in ("search.engine", "search.eval_engine"):
        assert fix in problems_of(overrides={which: engine})[field]


def test_weights_from_a_folder_bring_their_shape():
    assert set(problems_of(overrides={"policy.init": "/no/such/folder"})) == {"policy.init", "policy.shape"}


def test_good_configs_pass():
    resolve(good())
    resolve(good(), {"algorithm.loss": "zsjax.rl.objective:ppo_clip_loss", "mesh.data": "4", "train.minibatches": "2"})


def test_an_update_has_rows():
    with pytest.raises(ConfigError, match="train.keep_fraction.*leaves none of 12 rows"):
        resolve(good(train=dict(questions_per_step=3, group_size=4, keep="search_depth", keep_fraction=0.04)))


def test_devices():
    config = resolve(good())
    assert checks.find_device_problems(config, 8) == []
    (problem,) = [p for p in checks.find_device_problems(config, 7) if p.field.startswith("train")]
    assert "320 rows" in problem.reason and "multiple of 7" in problem.fix
    tensor = dataclasses.replace(config, mesh=configuration.MeshConfig(data=2, tensor=3))
    assert [p.field for p in checks.find_device_problems(tensor, 8)] == ["mesh.data"]
    tensor = dataclasses.replace(config, mesh=configuration.MeshConfig(data=-1, tensor=8))
    (problem,) = checks.find_device_problems(tensor, 8)
    assert problem.field == "mesh.tensor" and "the 4 heads of policy.init" in problem.reason
    (problem,) = checks.find_device_problems(resolve(good(train=dict(microbatch_rows=4))), 8)
    assert problem.field == "train.microbatch_rows" and "multiple of 8" in problem.fix
    kept = resolve(good(train=dict(questions_per_step=4, group_size=4, keep="reward_spread", keep_fraction=0.75)))
    (problem,) = checks.find_device_problems(kept, 8)
    assert problem.field == "train.questions_per_step" and "12 rows a minibatch" in problem.reason
    # 5 questions a step fill no 8 devices evenly: rollouts fill up, only rows of an update must divide.
    assert not checks.find_device_problems(resolve(good(train=dict(questions_per_step=5, group_size=8))), 8)


@pytest.mark.parametrize("fields, field", [
    (dict(whiten=True), "algorithm.whiten"), (dict(advantage="reinforce_plus_plus"), "algorithm.advantage"),
    (dict(sampler_clip=2.0), "algorithm.sampler_clip")])
def test_the_inverted_mask_trains_on_tokens_that_have_an_advantage(fields, field):
    resolve(good(algorithm=fields))
    resolve(good(algorithm=dict(invert_mask=True)))
    assert set(problems_of(good(algorithm=dict(invert_mask=True, **fields)))) == {field}


def test_a_simulators_document_has_room_for_its_newline():
    simulated = dict(simulator=dict(init="random", shape=SHAPE), search=dict(engine="simulator", max_document_tokens=1))
    assert "2 or more" in problems_of(good(**simulated))["search.max_document_tokens"]
    resolve(good(search=dict(engine="bm25", max_document_tokens=1)))


def test_the_policy_makes_an_update():
    config = good(train=dict(steps=5), algorithm=dict(value_model=True, advantage="gae"), value=dict(warmup_steps=5))
    assert "fewer than train.steps" in problems_of(config)["value.warmup_steps"]


@pytest.mark.parametrize("name, whole", [("reinforce", True), ("ppo", True), ("rloo", False), ("dr_grpo", False)])
def test_groups_of_equal_reward_are_dropped_only_where_they_teach_nothing(name, whole):
    """whole: the baseline is of the batch or a model, so that a group of equal rewards has a gradient."""
    config = good(algorithm=preset(name, drop_equal_groups=True))
    if whole:
        assert "'rloo' or 'grpo'" in problems_of(config)["algorithm.drop_equal_groups"]
    else:
        resolve(config)


def test_devices_of_the_simulator():
    simulated = dict(search=dict(engine="simulator"), simulator=dict(init="random", shape=SHAPE))
    config = resolve(good(mesh=dict(simulator_devices=3), **simulated))
    assert checks.find_device_problems(config, 8) == []  # 320 rows over 5
    assert checks.find_device_problems(config, 16, num_hosts=2) == []
    (problem,) = checks.find_device_problems(config, 3)
    assert problem.field == "mesh.simulator_devices" and "leaves none of a host's 3" in problem.reason
    tensor = resolve(good(mesh=dict(data=2, tensor=2, simulator_devices=3, simulator_tensor=3), **simulated))
    heads, size = checks.find_device_problems(tensor, 8)
    assert heads.field == "mesh.simulator_tensor" and "the 4 heads of simulator.init" in heads.reason
    assert size.field == "mesh.data" and "5 devices without the simulator's" in size.reason
    uneven = problems_of(good(mesh=dict(simulator_devices=3, simulator_tensor=2), **simulated))
    assert "mesh.simulator_devices = 3" in uneven["mesh.simulator_tensor"]
    assert "no engine is the simulator" in problems_of(good(mesh=dict(simulator_devices=3)))["mesh.simulator_devices"]


def test_what_many_hosts_cannot_do():
    config = resolve(good(mesh=dict(data=-1, tensor=4)))
    assert not checks.find_device_problems(config, 8, num_hosts=2)
    (problem,) = checks.find_device_problems(config, 8, num_hosts=4)
    assert problem.field == "mesh.tensor" and "host's 2 devices" in problem.reason
    paid = dict(eval_engine="serpapi", remote=dict(key_env="HOME"))
    shared = resolve(good(search=paid, stages=("collect", "train")))
    assert not checks.find_device_problems(shared, 8, num_hosts=2)
    apart = resolve(good(search=paid | dict(remote=paid["remote"] | dict(cache_dir="/tmp/web"))))
    (problem,) = checks.find_device_problems(apart, 8, num_hosts=2)
    assert problem.field == "search.remote.cache_dir" and "relative to the run's folder" in problem.fix
    assert not checks.find_device_problems(apart, 8)


def test_checkpoints_of_the_hub_and_files_that_a_plan_does_not_need():
    config = good(tokenizer="hf:Qwen/Qwen2.5-3B")
    config.policy = dict(init="hf:Qwen/Qwen2.5-3B")
    assert resolve(config).policy.init == "hf:Qwen/Qwen2.5-3B"
    assert "hf:OWNER/NAME" in problems_of(good(tokenizer="hf:Qwen"))["tokenizer"]
    away = good(data=dict(train="nowhere.jsonl"))
    away.policy = dict(init="/nowhere/model")
    assert set(problems_of(away)) == {"policy.init", "data.train"}
    assert resolve(away, files=False).data.train == "nowhere.jsonl"


def test_json_round_trip():
    config = resolve(good(), {"world.entities": "12", "gates.leak": "0.05"})
    assert from_json(to_json(config)) == config
    assert from_json(to_json(Config())) == Config()
    assert json.loads(to_json(config))["stages"] == ["train", "evaluate", "report"]


def test_diff_and_resume(tmp_path):
    old = resolve(good())
    new = resolve(good(), {"train.checkpoint_every": "3", "optimizer.b2": "0.9", "policy.shape.mlp_dim": "96"})
    assert diff(old, new) == {"optimizer.b2": (0.999, 0.9), "policy.shape.mlp_dim": (64, 96),
                              "train.checkpoint_every": (20, 3)}
    configuration.write_config(tmp_path, old)
    configuration.write_config(tmp_path, old)
    configuration.write_config(tmp_path, resolve(good(), {"train.checkpoint_every": "3", "gates.leak": "0.1"}))
    with pytest.raises(ConfigError) as caught:
        configuration.write_config(tmp_path, new)
    assert [p.field for p in caught.value.problems] == ["optimizer.b2", "policy.shape.mlp_dim"]
    assert "0.999" in str(caught.value) and "--workdir" in str(caught.value)
    # A field of an earlier version that no longer exists is named, too.
    earlier = json.loads(to_json(old)) | {"train": {**json.loads(to_json(old))["train"], "gone": 1}}
    assert diff(json.dumps(earlier), old) == {"train.gone": (1, "(absent)")}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        configuration.write_config(tmp_path, old)


def test_every_field_is_read_somewhere():
    """No stubs: what the config offers, some room or loop reads (checks alone do not count)."""

    package = pathlib.Path(configuration.__file__).parents[1]
    source = "\n".join(path.read_text() for path in package.rglob("*.py")
                       if path.relative_to(package).parts[0] != "config")

    def leaves(cls):
        for field in dataclasses.fields(cls):
            yield from leaves(field.type) if dataclasses.is_dataclass(field.type) else [(cls.__name__, field.name)]

    unread = [(owner, name) for owner, name in leaves(Config)
              if owner != "MeshConfig" and not re.search(rf"\.{name}\b|\"{name}\"", source)]  # mesh axes are read by name
    assert not unread
