"""The int8 cache: rounded once when written, read without being dequantised, the same call sites."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hlo import cache_sized_results, optimised
from tests.small_decoders import CONFIG, VARIANTS, extend_logits, make_params
from tests.small_models import PARAMS, POLICY, QUESTIONS, TOKENIZER, Library, make_config, searching
from zsjax import types
from zsjax.config import ConfigError, resolve
from zsjax.models.cache import cache_dtype, copy_rows, grow, init_cache
from zsjax.models.decoder import forward
from zsjax.models.quant import num_bytes, quantize_heads
from zsjax.parallel.constrain import on
from zsjax.parallel.mesh import make_mesh
from zsjax.rollout import make_rollout
from zsjax.sampling.prefill import prefill


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(0, 2**31), st.floats(-30, 30))
def test_rounding_is_to_the_nearest_of_255_steps_a_position(seed, exponent):
    x = np.random.default_rng(seed).normal(size=(2, 3, 4, 8)).astype(np.float32) * np.float32(10.0**exponent)
    x[0, 0, 0] = 0
    found = quantize_heads(jnp.array(x))
    assert found.values.dtype == jnp.int8 and found.scale.shape == x.shape[:3] and found.shape == x.shape
    step = np.abs(x).max(axis=-1).astype(np.float64) / 127
    back = np.asarray(found.values, np.float64) * np.asarray(found.scale, np.float64)[..., None]
    assert (np.abs(back - x) <= 0.5001 * step[..., None]).all()


def read(params, config, tokens, dtype, pieces):
    """Logits of all tokens, read in pieces."""
    cache, out, step = init_cache(config, len(tokens), tokens.shape[1], dtype), [], jax.jit(extend_logits, static_argnums=1)
    for piece in np.split(tokens, np.cumsum(pieces)[:-1], axis=1):
        logits, cache = step(params, config, piece, jnp.full(len(tokens), piece.shape[1]), cache)
        out.append(logits)
    return np.concatenate(out, axis=1), cache


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_near_the_dense_ones_and_do_not_depend_on_the_chunks(name):
    config, params = VARIANTS[name], make_params(VARIANTS[name])
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (4, 20)).astype(np.int32)
    dense = np.asarray(jax.jit(forward, static_argnums=1)(params, config, tokens))
    found, cache = read(params, config, tokens, jnp.int8, [8, 1, 1, 10])
    other, _ = read(params, config, tokens, jnp.int8, [1, 8, 10, 1])
    np.testing.assert_allclose(found, other, atol=1e-5)
    # A norm behind attention and MLP makes their error as large as their output.
    bound = 0.06 if config.post_norms else 0.05
    assert 1e-4 < np.abs(found - dense).max() < bound * dense.std()
    exact, plain = read(params, config, tokens, jnp.float32, [8, 1, 1, 10])
    assert np.abs(exact - dense).max() < 1e-5
    per_head = (config.head_dim + 4) / (4 * config.head_dim)
    assert num_bytes(cache.k) == pytest.approx(per_head * num_bytes(plain.k))


def test_repeated_grown_and_gathered_rows_go_on_alike(segments):
    params, dtype = make_params(CONFIG), jnp.int8
    prompt = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]], jnp.int32)

    @jax.jit
    def shared(params):
        hidden = jnp.zeros((2, CONFIG.embed_dim))
        _, cache = prefill(params, CONFIG, prompt, jnp.array([5, 3]), init_cache(CONFIG, 2, 5, dtype), hidden, chunk=2,
                           batch=1)
        cache = copy_rows(init_cache(CONFIG, 4, 8, dtype), jnp.arange(4), grow(cache, 6), jnp.array([0, 0, 1, 1]))
        return extend_logits(params, CONFIG, jnp.array([[7], [8], [7], [8]]), jnp.ones(4, jnp.int32), cache)

    logits, cache = shared(params)
    np.testing.assert_array_equal(cache.lengths, [6, 6, 4, 4])
    for row, tokens in enumerate(([3, 1, 4, 1, 5, 7], [3, 1, 4, 1, 5, 8], [9, 2, 6, 7], [9, 2, 6, 8])):
        alone, _ = read(params, CONFIG, np.array([tokens], np.int32), dtype, [len(tokens)])
        np.testing.assert_allclose(logits[row, 0], alone[0, -1], atol=1e-5)


def test_it_is_written_in_place():
    B, S = 7, 40
    cache = init_cache(CONFIG, B, S, jnp.int8)

    def step(params, tokens, cache):
        def body(i, cache):
            return extend_logits(params, CONFIG, tokens, jnp.ones(B, jnp.int32), cache)[1]

        return jax.lax.fori_loop(0, S, body, cache)

    call = jax.jit(step, donate_argnums=2)
    compiled = optimised(call.lower(make_params(CONFIG), jnp.zeros((B, 1), jnp.int32), cache))
    inside, found = cache_sized_results(compiled.as_text(), B * CONFIG.num_kv_heads * S * CONFIG.head_dim)
    # On CPU, whose products have no int8 operand, XLA writes the values of a layer out as floats, k and v, one pass each.
    copies = [line for line in found if "s8[" in line]
    assert inside and not copies, copies
    assert len(found) <= 2 * CONFIG.num_layers and all("convert" in line or "f32[" in line for line in found), found
    _, scales = cache_sized_results(compiled.as_text(), B * CONFIG.num_kv_heads * S)
    assert not [line for line in scales if "f32[7,2,40]" in line and "multiply" not in line], scales
    assert compiled.memory_analysis().alias_size_in_bytes >= num_bytes((cache.k, cache.v))


def test_scales_are_cut_as_their_heads_are():
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    cache = on(mesh, jax.jit(lambda: init_cache(CONFIG, 8, 16, jnp.int8)))()
    values, scale = cache.k[0][0].values.sharding.spec, cache.k[0][0].scale.sharding.spec
    assert tuple(values)[:2] == tuple(scale)[:2] == (("data", "fsdp"), "tensor")


@pytest.mark.parametrize("compiled", [True, False])
def test_rollouts(simulator, compiled):
    config = make_config(rows=3, prefill_batch=2)
    config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, cache_dtype="int8"))
    engine = dataclasses.replace(simulator, cache_dtype="int8") if compiled else Library()
    rollout = make_rollout(POLICY, engine, TOKENIZER, config, group_size=2, sampler=searching())
    played = jax.device_get(rollout.play(PARAMS, QUESTIONS[:3], noise=0.5, key=jax.random.key(3)))
    episodes, work = played.episodes, played.work
    said = episodes.roles == types.POLICY
    logits = forward(PARAMS, POLICY, episodes.tokens, valid=episodes.roles != types.PAD)[:, :-1]
    dense = jnp.take_along_axis(jax.nn.log_softmax(logits), episodes.tokens[:, 1:, None], 2)[:, :, 0]
    dense = np.pad(dense, ((0, 0), (1, 0)))
    gap = np.abs(episodes.behavior_logprobs - dense)[said]
    assert 0 < gap.mean() < 1e-2 and (episodes.num_searches > 0).all()
    row = 2 * POLICY.num_layers * POLICY.num_kv_heads * episodes.tokens.shape[1] * (POLICY.head_dim + 4) + 4
    assert work.policy_cache[0] == work.policy_rows[0] * row


def test_configs_name_it():
    assert resolve({"simulator": {"cache_dtype": "int8"}}, check=False).simulator.cache_dtype == "int8"
    assert cache_dtype(CONFIG, "int8") == jnp.int8 and cache_dtype(CONFIG, "model") == jnp.float32
    with pytest.raises(ConfigError, match="policy.cache_dtype"):
        resolve({"policy": {"cache_dtype": "fp8"}})
