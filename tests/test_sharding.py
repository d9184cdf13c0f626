"""Meshes, rules, and that 8 devices compute what one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.config import MeshConfig
from zsjax.models.decoder import forward, init_params
from zsjax.models.layers import DecoderConfig
from zsjax.sampling import decode
from zsjax.sampling.decode import generate
from zsjax.sharding import DECODE_RULES, TRAIN_RULES, make_mesh, param_shardings, reshard, row_sharding

CONFIG = DecoderConfig(vocab_size=64, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)


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


@pytest.mark.parametrize("sizes", [dict(data=8), dict(fsdp=4, tensor=2)])
def test_decoding_gathers_nothing(params, sizes):
    """Rows and heads stay where they are: the devices only add up partial products and agree on the end."""
    mesh = make_mesh(sizes)
    rows = [jax.device_put(x, row_sharding(mesh)) for x in (*_batch(), np.arange(8))]
    hlo = decode._generate.lower(
        reshard(params, param_shardings(CONFIG, mesh, DECODE_RULES)), CONFIG, rows[0], rows[1], jax.random.key(0),
        jnp.float32(1), jnp.array([5, 9]), rows[2], max_new_tokens=10, top_k=0, top_p=1.0).compile().as_text()
    assert "all-reduce(" in hlo
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f"{collective}(" not in hlo and f"{collective}-start(" not in hlo


def test_load_hf_places_shards(params, tmp_path):
    from zsjax.models.hf import load_hf, save_hf

    save_hf(tmp_path / "model", CONFIG, params)
    mesh = make_mesh(dict(fsdp=4, tensor=2))
    config, loaded = load_hf(tmp_path / "model", mesh=mesh)
    for array, sharding in zip(jax.tree.leaves(loaded), jax.tree.leaves(param_shardings(config, mesh, TRAIN_RULES))):
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
    with pytest.raises(ValueError, match="num_kv_heads=2 is not a multiple of mesh.tensor=4"):
        param_shardings(CONFIG, mesh, TRAIN_RULES)
    whole = param_shardings(CONFIG, mesh, {**TRAIN_RULES, "kv_heads": None})
    assert whole["layers"][0]["attn"]["k_proj"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp", None)
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
