"""Small decoders of several families, with random parameters."""

import dataclasses

import jax

from zsjax.models.decoder import extend, init_params, logits_of
from zsjax.models.layers import DecoderConfig

CONFIG = DecoderConfig(vocab_size=50, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=48)
VARIANTS = {
    "qwen2": CONFIG,
    "qwen3_window": DecoderConfig(**{**CONFIG.__dict__, "qkv_bias": False, "qk_norm": True, "model_type": "qwen3",
                                     "sliding_window": 7, "sliding_layers": (1,)}),
    "gemma3": dataclasses.replace(CONFIG, qkv_bias=False, qk_norm=True, norm_offset=1.0, post_norms=True, embed_scale=6.0,
                                  activation="gelu_tanh", query_scale=0.3, sliding_window=7, sliding_layers=(0,),
                                  sliding_rope_theta=300.0, model_type="gemma3_text"),
}


def make_params(config, seed=0):
    # Larger than the usual start, so that logits have a deviation of about one.
    return jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, init_params(config, jax.random.key(seed)))


def extend_logits(params, config, tokens, count, cache):
    hidden, cache = extend(params, config, tokens, count, cache)
    return logits_of(params, config, hidden), cache
