"""The positional bias makes layer-0 heads look back by a fixed offset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.models.decoder import init_params
from zsjax.models.layers import DecoderConfig, linear, rms_norm, rotary_angles, rotate
from zsjax.tiny_world.positional import positional_bias_init

CONFIG = DecoderConfig(vocab_size=50, embed_dim=32, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=16, mlp_dim=48)


def test_head_h_attends_h_plus_one_back():
    params = positional_bias_init(init_params(CONFIG, jax.random.key(0)), CONFIG, jax.random.key(1))
    T = 40
    tokens = jax.random.randint(jax.random.key(2), (1, T), 0, CONFIG.vocab_size)
    layer = params["layers"][0]
    x = rms_norm(params["embed_tokens"][tokens], layer["input_layernorm"], eps=CONFIG.rms_eps)
    cos, sin = rotary_angles(CONFIG, jnp.arange(T)[None])

    def heads(name, n):
        return rotate(linear(layer["attn"][name], x).reshape(1, T, n, -1).swapaxes(1, 2), cos, sin)

    q, k = heads("q_proj", CONFIG.num_heads), jnp.repeat(heads("k_proj", CONFIG.num_kv_heads), 4, axis=1)
    scores = q[0] @ k[0].swapaxes(-1, -2) / np.sqrt(CONFIG.head_dim)
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf), axis=-1)
    for head in range(CONFIG.num_heads):
        rows = np.arange(head + 1, T)
        assert np.all(np.asarray(weights[head].argmax(axis=-1))[rows] == rows - head - 1), head
        assert weights[head][rows, rows - head - 1].min() > 0.5, head


def test_only_layer_0_attention_changes_and_the_input_survives():
    params = init_params(CONFIG, jax.random.key(0))
    before = jax.tree.map(np.array, params)
    new = positional_bias_init(params, CONFIG, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params, before)
    same = jax.tree.map(lambda a, b: a is b, params, new)
    changed = {jax.tree_util.keystr(path) for path, s in jax.tree_util.tree_leaves_with_path(same) if not s}
    name = "['layers'][0]['attn']"
    assert changed == {f"{name}{p}" for p in ("['q_proj']['kernel']", "['q_proj']['bias']", "['k_proj']['kernel']",
                                              "['k_proj']['bias']", "['o_proj']['kernel']")}


def test_architectures_without_the_biases_are_refused():
    for options, word in ((dict(qkv_bias=False), "qkv_bias"), (dict(qk_norm=True), "qk_norm")):
        config = DecoderConfig(**{**CONFIG.__dict__, **options})
        with pytest.raises(ValueError, match=word):
            positional_bias_init(init_params(config, jax.random.key(0)), config)
