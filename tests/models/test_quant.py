"""int8 weights: half the bytes, the same call sites, nearly the same distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax import config as configuration
from zsjax.config import ConfigError, ModelConfig
from zsjax.models import forward, init_params, lora, num_params
from zsjax.models.decoder import cast_matrices, unembedding
from zsjax.models.families import PRESETS
from zsjax.models.layers import DecoderConfig
from zsjax.models.quant import dequantize, num_bytes, quantize, quantize_matrix
from zsjax.run import build
from zsjax.sampling.decode import generate

CONFIG = DecoderConfig(vocab_size=60, embed_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=96)
TOKENS = jax.random.randint(jax.random.key(5), (4, 12), 0, 60)


@pytest.fixture(scope="module", params=["tied", "untied"])
def model(request):
    config = dataclasses.replace(CONFIG, tie_embeddings=request.param == "tied")
    return config, jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, init_params(config, jax.random.key(0)))


def test_rounding_is_to_the_nearest_of_255_steps_an_output():
    matrix = jax.random.normal(jax.random.key(1), (30, 7)) * jnp.arange(7)  # a column of zeros among them
    quantized = quantize_matrix(matrix, axis=0)
    step = np.abs(matrix).max(axis=0) / 127
    assert quantized.values.dtype == jnp.int8 and quantized.scale.shape == (1, 7)
    assert (np.abs(quantized.dequantize(jnp.float32) - matrix) <= 0.5001 * step).all()
    np.testing.assert_array_equal(np.abs(quantized.values).max(axis=0), [0] + [127] * 6)


def test_every_call_site_computes_with_the_dequantized_matrix(model):
    config, params = model
    quantized = quantize(params)
    rounded = dequantize(quantized)
    assert np.abs(rounded["embed_tokens"] - params["embed_tokens"]).max() > 0
    exact = forward(rounded, config, TOKENS)
    np.testing.assert_allclose(forward(quantized, config, TOKENS), exact, atol=2e-5)
    np.testing.assert_allclose(unembedding(quantized, config)[0], unembedding(rounded, config)[0], atol=1e-7)
    assert jax.tree.map(lambda x: x.dtype, cast_matrices(quantized, config)) == jax.tree.map(lambda x: x.dtype, quantized)
    options = dict(key=jax.random.key(2), max_new_tokens=6)
    lengths = jnp.array([12, 3, 7, 5])
    np.testing.assert_array_equal(generate(quantized, config, TOKENS, lengths, **options).tokens,
                                  generate(rounded, config, TOKENS, lengths, **options).tokens)
    adapters = ModelConfig().lora
    adapters = dataclasses.replace(adapters, rank=2)
    attached = lora.attach(quantized, lora.init_adapters(config, adapters, jax.random.key(0)), adapters)
    np.testing.assert_allclose(forward(attached, config, TOKENS), exact, atol=2e-5)


def test_the_distribution_hardly_changes(model):
    config, params = model
    p, q = (jax.nn.log_softmax(forward(x, config, TOKENS)) for x in (params, quantize(params)))
    kl = float((jnp.exp(p) * (p - q)).sum(-1).mean())
    assert 0 < kl < 2e-3 and jnp.exp(p).max(-1).mean() > 3 / 60


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Llama-3.2-3B", "Qwen2.5-7B"])
def test_bytes(name):
    config = PRESETS[name]
    shapes = jax.eval_shape(lambda: quantize(init_params(config, jax.random.key(0), jnp.bfloat16)))
    assert num_bytes(shapes) <= 0.55 * 2 * num_params(config)


def test_only_the_simulator_that_plays_is_quantized(model):
    config, params = model
    playing = dataclasses.make_dataclass("Playing", ["params"])(params)
    assert build.frozen(ModelConfig(), playing) is playing
    frozen = build.frozen(ModelConfig(quantize="int8"), playing)
    assert num_bytes(frozen.params) < 0.3 * num_bytes(params)
    assert {x.dtype for x in jax.tree.leaves(playing.params)} == {jnp.dtype("float32")}
    with pytest.raises(ConfigError, match="policy.quantize.*no gradient"):
        configuration.resolve({"policy": {"quantize": "int8"}})
