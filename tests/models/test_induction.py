"""The induction start finds, before any training, where the present context stood before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.models import decoder
from zsjax.models.layers import DecoderConfig
from zsjax.tiny_world.induction import induction_init

CONFIG = DecoderConfig(vocab_size=300, embed_dim=64, num_layers=3, num_heads=8, num_kv_heads=2, head_dim=16, mlp_dim=64)


def second_layer_attention(params, tokens):
    """float32[B, H, T, T] of layer 1."""
    seen = {}
    order = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    angles = decoder._angles(CONFIG, order)
    x = params["embed_tokens"][tokens]
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))

    def read(q, k, v):
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, jnp.repeat(k, 4, axis=1)) / 4
        seen["weights"] = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        out = jnp.einsum("bhqk,bhkd->bqhd", seen["weights"], jnp.repeat(v, 4, axis=1))
        return out.reshape(*tokens.shape, -1)

    for index in range(2):
        x = decoder._layer(params["layers"][index], CONFIG, None, x, angles, read)
    return seen["weights"]


def test_layer_1_looks_behind_the_same_context():
    rng = np.random.default_rng(0)
    params = induction_init(CONFIG, jax.random.key(0))
    chunk = rng.integers(0, 300, (16, 24))
    tokens = jnp.asarray(np.concatenate([chunk, chunk], axis=1), jnp.int32)  # the second half repeats the first
    weights = np.asarray(second_layer_attention(params, tokens))
    queries = np.arange(24 + 9, 47)  # where all the heads of layer 0 look into the second half
    behind = weights[:, :, queries, queries - 24 + 1].mean(axis=(1, 2))
    same = weights[:, :, queries, queries - 24].mean(axis=(1, 2))
    assert behind.mean() > 5 / 40 and (behind > 2 * same).mean() > 0.9


def test_it_is_a_start_of_the_same_architecture():
    params = induction_init(CONFIG, jax.random.key(0))
    specs = decoder.param_specs(CONFIG)
    shapes = jax.tree.map(lambda s: s.shape, specs, is_leaf=lambda x: isinstance(x, decoder.ParamSpec))
    assert jax.tree.map(jnp.shape, params) == shapes
    other = induction_init(CONFIG, jax.random.key(1))

    def kernel(p):
        return p["layers"][1]["attn"]["q_proj"]["kernel"]

    assert not np.allclose(kernel(params), kernel(other))
    assert np.isfinite(decoder.forward(params, CONFIG, jnp.ones((1, 8), jnp.int32))).all()


def test_shapes_that_cannot_have_it_are_refused():
    for options, word in (({"num_layers": 1}, "two layers"), ({"qkv_bias": False}, "qkv_bias"),
                          ({"head_dim": 128}, "head_dim=128")):
        with pytest.raises(ValueError, match=word):
            induction_init(DecoderConfig(**{**CONFIG.__dict__, **options}), jax.random.key(0))
