"""An initialisation with which tiny models learn to read: each layer-0 head attends a fixed number of tokens back.

Copying from context takes two heads: one finds the previous token, the other matches on it. From a usual random start
a tiny model spends most of its training on the first. Biases on q and k give it from the start, and the architecture
stays the same.
"""

import jax.numpy as jnp

from zsjax.errors import InputError
from zsjax.models.layers import DecoderConfig, rope_frequencies

STRENGTH = 5.0  # length of each rotary pair of the bias; the peak score is STRENGTH^2 * sqrt(h) / 2


def positional_bias_init(params, config: DecoderConfig, key=None):
    """Makes head h of layer 0 attend to the token h + 1 back.

    Every k bias becomes the same vector b: STRENGTH in the first half of the head, 0 in the second, which is one rotary
    pair (STRENGTH, 0) a frequency. The q bias of head h is b rotated back by h + 1 positions. With rotary embeddings a
    key d tokens back then scores

        STRENGTH^2 / sqrt(h_size) * sum_i cos((d - h - 1) frequency_i)

    which is largest at d = h + 1. All k heads share b, so this works with grouped queries. The layer's q and k kernels
    are scaled by 0.3, because content would outweigh position at first. Its o kernel is doubled.

    Args:
      params: as `param_specs`; not modified.
      config: with `qkv_bias` and without `qk_norm`.
      key: unused; all initialisers take one.

    Returns:
      New params. All arrays but those of layer 0's attention are the given ones.

    Raises:
      ValueError: the architecture has no q/k biases, or normalises q and k, which removes the bias's strength.
    """
    del key
    if not config.qkv_bias:
        raise InputError("positional_bias_init needs biases on q and k: config.qkv_bias is False")
    if config.qk_norm:
        raise InputError("positional_bias_init does not work with config.qk_norm: the norm undoes the bias's strength")
    freqs, _ = rope_frequencies(config)
    back = (1.0 + jnp.arange(config.num_heads))[:, None] * freqs  # [H, h/2], radians
    q_bias = STRENGTH * jnp.concatenate([jnp.cos(back), -jnp.sin(back)], axis=-1)
    k_bias = STRENGTH * (jnp.arange(config.head_dim) < config.head_dim // 2)
    attn = params["layers"][0]["attn"]

    def with_bias(name, bias):
        old = attn[name]
        return {"kernel": (0.3 * old["kernel"]).astype(old["kernel"].dtype), "bias": bias.astype(old["bias"].dtype)}

    o_kernel = attn["o_proj"]["kernel"]
    new = {
        **attn,
        "q_proj": with_bias("q_proj", q_bias.reshape(-1)),
        "k_proj": with_bias("k_proj", jnp.tile(k_bias, config.num_kv_heads)),
        "o_proj": {**attn["o_proj"], "kernel": (2 * o_kernel).astype(o_kernel.dtype)},
    }
    return {**params, "layers": [{**params["layers"][0], "attn": new}, *params["layers"][1:]]}
