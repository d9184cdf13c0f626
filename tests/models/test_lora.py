"""Adapters: what they compute, that they alone are trained, and that merging changes nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from zsjax import config as configuration
from zsjax.config import ConfigError, LoraConfig
from zsjax.models import forward, init_params, load_hf, lora
from zsjax.models.decoder import ParamSpec
from zsjax.models.layers import DecoderConfig
from zsjax.models.placement import param_shardings
from zsjax.parallel.mesh import TRAIN_RULES, make_mesh
from zsjax.rl.steps import make_supervised_update
from zsjax.run import pipeline
from zsjax.run.export import export
from zsjax.run.stages.context import Run

CONFIG = DecoderConfig(vocab_size=40, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)
LORA = LoraConfig(rank=2, alpha=6.0, targets=("q_proj", "o_proj", "down_proj"))
TOKENS = jax.random.randint(jax.random.key(5), (2, 8), 0, 40)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, init_params(CONFIG, jax.random.key(0)))


def random_adapters(lora_config=LORA):
    adapters = lora.init_adapters(CONFIG, lora_config, jax.random.key(1))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapters)


def test_fresh_adapters_change_nothing_and_copy_nothing(params):
    adapters = lora.init_adapters(CONFIG, LORA, jax.random.key(1))
    whole = lora.attach(params, adapters, LORA)
    np.testing.assert_array_equal(forward(whole, CONFIG, TOKENS), forward(params, CONFIG, TOKENS))
    ours = {id(x) for x in jax.tree.leaves(params)}
    assert sum(id(x) in ours for x in jax.tree.leaves(whole)) == len(ours)
    assert "lora_a" not in params["layers"][0]["attn"]["q_proj"]
    assert set(whole["layers"][1]["mlp"]["down_proj"]) == {"kernel", "lora_a", "lora_b"}
    assert "lora_a" not in whole["layers"][0]["attn"]["k_proj"]


def test_attached_equals_merged_and_the_formula(params):
    adapters = random_adapters()
    merged = lora.merge(params, adapters, LORA)
    pair = adapters["layers"][1]["attn"]["q_proj"]
    kernel, a, b = map(np.asarray, (params["layers"][1]["attn"]["q_proj"]["kernel"], pair["a"], pair["b"]))
    expected = kernel + 3 * a @ b
    np.testing.assert_allclose(merged["layers"][1]["attn"]["q_proj"]["kernel"], expected, atol=1e-6)
    attached = forward(lora.attach(params, adapters, LORA), CONFIG, TOKENS)
    np.testing.assert_allclose(attached, forward(merged, CONFIG, TOKENS), atol=1e-5)
    assert np.abs(attached - forward(params, CONFIG, TOKENS)).max() > 0.1
    assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_adapters_alone_are_trained(params):
    optimizer, adapters = optax.adam(1e-2), random_adapters()

    def whole(adapters, frozen):
        return lora.attach(frozen, adapters, LORA)

    update = make_supervised_update(CONFIG, optimizer, chunk=8, microbatch_rows=1, assemble=whole)
    state, before = optimizer.init(adapters), jax.tree.map(np.asarray, params)
    assert sum(x.size for x in jax.tree.leaves(state)) < 2 * sum(x.size for x in jax.tree.leaves(adapters)) + 2
    start, weights, seen = jax.tree.map(np.asarray, adapters), np.ones((2, 8), np.float32), []
    for _ in range(12):
        adapters, state, info = update(adapters, state, (TOKENS, weights, weights > 0), None, params)
        seen.append(float(info["loss"]))
    assert seen[-1] < seen[0] - 0.3
    jax.tree.map(lambda old, new: np.testing.assert_(np.abs(old - new).max() > 0), start, adapters)
    jax.tree.map(np.testing.assert_array_equal, params, before)  # nothing was donated or changed


def test_adapters_are_cut_as_their_kernels():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    cut = param_shardings(CONFIG, mesh, TRAIN_RULES, lora.adapter_specs(CONFIG, LORA))["layers"][0]
    assert cut["attn"]["q_proj"]["a"].spec == P("fsdp", None) and cut["attn"]["q_proj"]["b"].spec == P(None, "tensor")
    assert cut["mlp"]["down_proj"]["a"].spec == P("tensor", None)
    shapes = jax.tree.map(lambda s: s.shape, lora.adapter_specs(CONFIG, LORA), is_leaf=lambda x: isinstance(x, ParamSpec))
    assert shapes == jax.tree.map(jnp.shape, lora.init_adapters(CONFIG, LORA, jax.random.key(0)))


def test_wrong_targets_are_named():
    for fields, words in ((dict(targets=("q_proj", "lm_head")), "policy.lora.targets"), (dict(rank=-1), "policy.lora.rank")):
        with pytest.raises(ConfigError, match=words):
            configuration.resolve({"policy": {"lora": dict(dict(rank=1), **fields)}})
    with pytest.raises(ValueError, match="lora.targets"):
        lora.init_adapters(CONFIG, dataclasses.replace(LORA, targets=("lm_head",)), jax.random.key(0))


def test_a_run_trains_adapters_and_exports_them_merged(tmp_path):
    """The whole path: the loop, its checkpoint, and `export` of a run that has not ended yet."""
    config = configuration.resolve(dict(
        stages=("train",), search=dict(engine="empty", eval_engine="empty"), prompts=dict(policy="tiny_world"),
        policy=dict(init="random", lora=dict(rank=2), shape=dict(
            embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)),
        rollout=dict(max_turns=1, max_turn_tokens=4, max_tokens=64, max_prompt_tokens=40),
        optimizer=dict(learning_rate=1e-2), algorithm=dict(advantage="reinforce", entropy_coef=1.0),
        train=dict(steps=2, questions_per_step=8, group_size=1, logprob_chunk=16, eval_questions=8, checkpoint_every=1)))
    pipeline.run(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[1]["kl"] > 1e-6  # the reference is what it was
    _, saved = load_hf(tmp_path / "run" / "models" / "policy")
    (tmp_path / "run" / "models" / "policy").rename(tmp_path / "gone")  # as if the run were still going on
    export(config, tmp_path / "run", tmp_path / "out")
    _, exported = load_hf(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, exported, saved)
    _, start = Run(config, tmp_path / "other", None, "").policy()
    changed = [np.abs(a - b).max() > 0 for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(saved), strict=True)]
    assert sum(changed) == 7  # the seven projections of the layer
