"""The value model is the decoder's trunk with another head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.models.decoder import ParamSpec, hidden_states, init_params
from zsjax.models.layers import DecoderConfig
from zsjax.models.value import init_value, value_forward, value_param_specs

CONFIG = DecoderConfig(vocab_size=40, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
                       tie_embeddings=False)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


def test_the_tree_is_the_trunk_and_a_float32_head(params):
    bf16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    value = init_value(CONFIG, bf16, jax.random.key(1), scale=1.0)
    specs = value_param_specs(CONFIG)
    shapes = jax.tree.map(lambda s: s.shape, specs, is_leaf=lambda x: isinstance(x, ParamSpec))
    assert jax.tree.map(jnp.shape, value) == shapes and "lm_head" not in value
    assert value["value_head"].dtype == jnp.float32 and value["embed_tokens"].dtype == jnp.bfloat16
    assert 0.5 < np.std(value["value_head"]) * 4 < 1.5


def test_values_read_the_prefix_and_nothing_else(params):
    value = init_value(CONFIG, params, jax.random.key(1), scale=1.0)
    forward = jax.jit(value_forward, static_argnums=1)
    tokens = jax.random.randint(jax.random.key(2), (3, 9), 0, 40)
    valid = jnp.arange(9) < jnp.array([9, 4, 6])[:, None]
    values = forward(value, CONFIG, tokens, valid=valid)
    assert values.shape == (3, 9) and values.dtype == jnp.float32
    hidden = hidden_states(params, CONFIG, tokens, valid=valid)
    np.testing.assert_allclose(values, hidden @ value["value_head"][:, 0], atol=1e-6)
    changed = forward(value, CONFIG, tokens.at[:, 5].add(1) % 40, valid=valid)
    np.testing.assert_array_equal(changed[:, :5], values[:, :5])
    assert np.abs(changed - values)[0, 5:].min() > 1e-4


def test_the_first_values_are_zero_and_the_head_learns(params):
    value = init_value(CONFIG, params, jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (2, 5), 0, 40)
    assert not np.any(value_forward(value, CONFIG, tokens))

    def loss(p):
        return jnp.mean((value_forward(p, CONFIG, tokens, remat=True) - 1) ** 2)

    grads = jax.grad(loss)(value)
    assert np.abs(grads["value_head"]).max() > 0
    better = jax.tree.map(lambda p, g: p - 0.05 * g, value, grads)
    assert loss(better) < loss(value)


def test_the_trunk_is_a_copy(params):
    value = init_value(CONFIG, params, jax.random.key(1))
    jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(value)
    assert np.isfinite(params["embed_tokens"]).all()
