"""A starting point from which tiny models learn to read: layer-0 heads that look back by a fixed offset.

Copying from context takes a head that finds the token before and another that matches on it. From a usual random start
a tiny model spends most of its training discovering the first; biases on q and k give it for free, without a change
to the architecture, so that only the matching has to be learned.
"""

import jax.numpy as jnp

from zsjax.errors import InputError
from zsjax.models.layers import DecoderConfig, rope_frequencies

STRENGTH = 5.0  # length of each rotary pair of the bias; the peak score is STRENGTH^2 * sqrt(h) / 2


def positional_bias_init(params, config: DecoderConfig, key=None):
    """Makes head h of layer 0 attend to the token h + 1 back.

    Every k bias becomes the same vector b (STRENGTH in the first half of the head, 0 in the second: one rotary pair
    (STRENGTH, 0) a frequency). The q bias of head h is b turned back by h + 1 positions, so that rotary embedding makes
    the score of a key d back

        STRENGTH^2 / sqrt(h_size) * sum_i cos((d - h - 1) frequency_i)

    which is largest at d = h + 1. As b is the same for every k head this works with grouped queries. Layer-0 q and k
    kernels shrink to 0.3, so that content does not drown the position at first, and the layer's o kernel doubles.

    Args:
      params: as `param_specs`; not modified.
      config: with `qkv_bias` and without `qk_norm`.
      key: unused (nothing is random); accepted so that all initialisers look alike.

    Returns:
      New params that share every array but those of layer 0's attention.

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
