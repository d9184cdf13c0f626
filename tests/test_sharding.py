"""Meshes, rules, and that 8 devices compute what one does."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.config import LoraConfig, MeshConfig, OptimizerConfig
from zsjax.models import lora
from zsjax.models.decoder import forward, init_params, specs_of
from zsjax.models.families import PRESETS
from zsjax.models.layers import DecoderConfig
from zsjax.models.placement import for_decoding, param_shardings
from zsjax.models.quant import quantize
from zsjax.parallel.constrain import on
from zsjax.parallel.mesh import DECODE_RULES, TRAIN_RULES, make_mesh, replicated, reshard, row_sharding
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.steps import make_update
from zsjax.sampling import decode
from zsjax.sampling.decode import generate
from zsjax.types import DOCUMENT, PAD, POLICY, PROMPT, TokenBatch

CONFIG = DecoderConfig(vocab_size=64, embed_dim=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, init_params(CONFIG, jax.random.key(0)))


def _batch():
    rng = np.random.default_rng(0)
    return (rng.integers(0, CONFIG.vocab_size, (8, 12)).astype(np.int32),
            np.array([12, 3, 7, 12, 1, 5, 9, 2], np.int32))


@pytest.mark.parametrize("sizes", [dict(data=2, fsdp=2, tensor=2), dict(data=8), dict(fsdp=-1, tensor=2)])
def test_eight_devices_equal_one(params, sizes):
    mesh = make_mesh(sizes)
    tokens, lengths = _batch()
    valid = np.arange(12) < lengths[:, None]
    call = jax.jit(forward, static_argnums=1)
    one = np.asarray(call(params, CONFIG, tokens, valid=valid))
    options = dict(key=jax.random.key(7), max_new_tokens=10, stop_ids=(5, 9))
    alone = generate(params, CONFIG, tokens, lengths, **options)
    assert len(set(np.asarray(alone.lengths))) > 1

    cut = reshard(params, param_shardings(CONFIG, mesh, TRAIN_RULES))
    gate = cut["layers"][0]["mlp"]["gate_proj"]["kernel"]
    assert gate.addressable_shards[0].data.size == gate.size // (mesh.shape["fsdp"] * mesh.shape["tensor"])
    rows = row_sharding(mesh)
    tokens, lengths, valid = (jax.device_put(x, rows) for x in (tokens, lengths, valid))
    many = call(cut, CONFIG, tokens, valid=valid)
    assert len(many.sharding.device_set) == 8
    np.testing.assert_allclose(np.asarray(many), one, atol=1e-5)

    whole = reshard(cut, param_shardings(CONFIG, mesh, DECODE_RULES))
    out = generate(whole, CONFIG, tokens, lengths, **options)
    np.testing.assert_array_equal(np.asarray(out.tokens), np.asarray(alone.tokens))
    np.testing.assert_array_equal(np.asarray(out.lengths), np.asarray(alone.lengths))
    np.testing.assert_allclose(np.asarray(out.logprobs), np.asarray(alone.logprobs), atol=1e-5)


ADAM = make_optimizer(OptimizerConfig(learning_rate=1e-3, weight_decay=0.1), 10)
UPDATE = make_update(CONFIG, "ppo_clip", ADAM, chunk=4, microbatch_rows=8, kl_coef=0.1)


@functools.cache
def _token_batch():
    rng = np.random.default_rng(0)
    B, T = 16, 12
    row = np.array([PROMPT] * 2 + [POLICY] * 3 + [DOCUMENT] * 3 + [POLICY] * 4, np.int8)
    roles = np.where(np.arange(T) < rng.integers(6, T + 1, B)[:, None], row, PAD)
    logprobs = np.where(roles == POLICY, -5 * rng.random((B, T)), 0).astype(np.float32)
    return TokenBatch(
        tokens=rng.integers(0, CONFIG.vocab_size, (B, T)).astype(np.int32), roles=roles, behavior_logprobs=logprobs,
        old_logprobs=logprobs, ref_logprobs=logprobs, advantages=rng.normal(size=(B, T)).astype(np.float32),
        returns=None, values=None, rewards=np.zeros((B, T), np.float32), group_id=np.arange(B) // 2,
        row_valid=np.ones(B, bool))


def _three_updates(params, mesh):
    """(parameters after three updates on the mesh, HLO of the update)."""
    params = reshard(jax.tree.map(jnp.copy, params), param_shardings(CONFIG, mesh, TRAIN_RULES))
    state = jax.tree.map(lambda x: x if x.ndim else reshard(x, replicated(mesh)), ADAM.init(params))
    batch = reshard(_token_batch(), row_sharding(mesh))
    before = jax.tree.map(lambda x: x.sharding, (params, state))
    hlo = on(mesh, lambda *a: UPDATE.lower(*a).compile().as_text())(params, state, batch)
    for _ in range(3):
        params, state, info = on(mesh, UPDATE)(params, state, batch)
    assert float(info["grad_norm"]) > 0.1 and not float(info["nonfinite"])
    # Parameters and Adam's moments stay where the rules put them, or the second update would compile again.
    for x, sharding in zip(jax.tree.leaves((params, state)), jax.tree.leaves(before), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    return jax.device_get(params), hlo


@pytest.mark.parametrize("sizes", [dict(data=2, fsdp=2, tensor=2), dict(fsdp=8), dict(data=2, tensor=4)])
def test_three_updates_on_eight_devices_equal_those_on_one(params, sizes):
    one, _ = _three_updates(params, make_mesh({}, jax.devices()[:1]))
    assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(params), strict=True)) > 1e-3
    many, hlo = _three_updates(params, make_mesh(sizes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, many)
    if "tensor" not in sizes:
        # Layers are gathered and their gradients added up; activations, which have rows and positions, stay.
        moved = re.findall(r"= f32\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|reduce-scatter)\(", hlo)
        assert moved and all(shape.count(",") < 2 for shape in moved), moved


@pytest.mark.parametrize("sizes", [dict(data=8), dict(fsdp=4, tensor=2)])
def test_decoding_gathers_nothing(params, sizes):
    """Rows and heads stay where they are: the devices only add up partial products and agree on the end."""
    mesh = make_mesh(sizes)
    rows = [jax.device_put(x, row_sharding(mesh)) for x in (*_batch(), np.arange(8))]
    hlo = decode._generate.lower(
        reshard(params, param_shardings(CONFIG, mesh, DECODE_RULES)), CONFIG, decode.PromptRows(*rows),
        jax.random.key(0), jnp.float32(1), jnp.array([5, 9]), max_new_tokens=10).compile().as_text()
    assert "all-reduce(" in hlo
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f"{collective}(" not in hlo and f"{collective}-start(" not in hlo


def test_load_hf_places_shards(params, tmp_path):
    from zsjax.models.checkpoints.hf import load_hf, save_hf

    save_hf(tmp_path / "model", CONFIG, params)
    mesh = make_mesh(dict(fsdp=4, tensor=2))
    config, loaded = load_hf(tmp_path / "model", mesh=mesh)
    places = jax.tree.leaves(param_shardings(config, mesh, TRAIN_RULES))
    for array, sharding in zip(jax.tree.leaves(loaded), places, strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), jax.device_get(params))
    save_hf(tmp_path / "again", config, loaded)  # gathers
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors").read_bytes()


def test_mesh_sizes():
    assert make_mesh(MeshConfig()).shape == {"data": 8, "fsdp": 1, "tensor": 1}
    assert make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2)).shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert make_mesh({}, devices=jax.devices()[:1]).shape == {"data": 1, "fsdp": 1, "tensor": 1}
    for bad in (dict(data=3, fsdp=-1), dict(data=4), dict(data=-1, fsdp=-1), dict(data=0), dict(rows=8)):
        with pytest.raises(ValueError):
            make_mesh(bad)


def test_axes_that_do_not_divide_are_named():
    mesh = make_mesh(dict(data=2, tensor=4))
    whole = param_shardings(CONFIG, mesh, TRAIN_RULES)["layers"][0]["attn"]  # 2 kv heads: all of them everywhere
    assert whole["k_proj"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp", None)
    assert whole["q_proj"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    with pytest.raises(ValueError, match="num_heads=4 is not a multiple of mesh.tensor=8"):
        param_shardings(CONFIG, make_mesh(dict(tensor=8)), TRAIN_RULES)
    with pytest.raises(ValueError, match="unknown logical axis"):
        param_shardings(CONFIG, mesh, {"hedas": "tensor"})
    with pytest.raises(ValueError, match="the mesh has axes"):
        param_shardings(CONFIG, mesh, {"heads": "tensro"})


def test_reshard_keeps_values(params):
    mesh = make_mesh(dict(fsdp=4, tensor=2))
    there = reshard(params, param_shardings(CONFIG, mesh, TRAIN_RULES))
    back = reshard(there, jax.tree.map(lambda x: x.sharding, params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), jax.device_get(params))
    assert jnp.asarray(back["norm"]).sharding == params["norm"].sharding


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_a_tensor_axis_or_says_why_not(name):
    config = PRESETS[name]
    for size in (2, 4, 8):
        mesh = make_mesh(dict(data=-1, tensor=size))
        if config.num_heads % size:
            with pytest.raises(ValueError, match=f"num_heads={config.num_heads} is not a multiple of mesh.tensor={size}"):
                param_shardings(config, mesh, TRAIN_RULES)
            continue
        attn = param_shardings(config, mesh, TRAIN_RULES)["layers"][0]["attn"]
        assert attn["q_proj"]["kernel"].spec[1] == "tensor"
        assert attn["v_proj"]["kernel"].spec[1] == ("tensor" if config.num_kv_heads % size == 0 else None)


def test_for_decoding_is_whole_over_fsdp_and_in_the_dtype_of_use(params):
    mesh = make_mesh(dict(fsdp=4, tensor=2))
    cut = reshard(params, param_shardings(CONFIG, mesh, TRAIN_RULES))
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    ready = for_decoding(cut, config, mesh)
    gate, norm = ready["layers"][0]["mlp"]["gate_proj"]["kernel"], ready["norm"]
    assert gate.addressable_shards[0].data.size == gate.size // 2 and gate.dtype == jnp.bfloat16
    assert norm.dtype == jnp.float32
    np.testing.assert_array_equal(gate, params["layers"][0]["mlp"]["gate_proj"]["kernel"].astype(jnp.bfloat16))
    assert for_decoding(ready, config, mesh) is ready
    assert for_decoding(params, config, None) is params


@pytest.mark.parametrize("kind", ["adapters", "int8"])
def test_adapters_and_int8_matrices_lie_as_the_matrices_they_change(params, kind):
    mesh, adapters = make_mesh(dict(fsdp=4, tensor=2)), LoraConfig(rank=2)
    # Small adapters: with large ones a change of 1e-7 in the weights moves a logit by 3e-5, more than the tolerance.
    pairs = jax.tree.map(lambda x: x + 0.01, lora.init_adapters(CONFIG, adapters, jax.random.key(1)))
    tree = lora.attach(params, pairs, adapters) if kind == "adapters" else quantize(params)
    cut = reshard(tree, param_shardings(CONFIG, mesh, TRAIN_RULES, specs_of(tree, CONFIG)))
    ready = for_decoding(cut, CONFIG, mesh)
    assert for_decoding(ready, CONFIG, mesh) is ready
    gate, down = (ready["layers"][0]["mlp"][name] for name in ("gate_proj", "down_proj"))
    if kind == "adapters":
        halved, whole = (gate["kernel"], gate["lora_b"], down["lora_a"]), (gate["lora_a"], down["lora_b"])
    else:
        halved, whole = (gate["kernel"].values, gate["kernel"].scale, down["kernel"].values), (down["kernel"].scale,)
    assert all(x.addressable_shards[0].data.size == x.size // 2 for x in halved)
    assert all(x.addressable_shards[0].data.size == x.size for x in whole)
    tokens, _ = _batch()
    one = jax.jit(forward, static_argnums=1)(tree, CONFIG, tokens)
    many = on(mesh, jax.jit(forward, static_argnums=1))(ready, CONFIG, jax.device_put(tokens, row_sharding(mesh)))
    np.testing.assert_allclose(np.asarray(many), one, atol=1e-5)


def test_copies_of_bfloat16_weights_lie_as_the_weights(params):
    mesh = make_mesh(dict(fsdp=4, tensor=2))
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    cut = reshard(narrow, param_shardings(CONFIG, mesh, TRAIN_RULES))
    state = ADAM.init(cut)
    for x, copy in zip(jax.tree.leaves(cut), jax.tree.leaves(state.master), strict=True):
        assert copy.dtype == jnp.float32 and copy.sharding.is_equivalent_to(x.sharding, x.ndim)
