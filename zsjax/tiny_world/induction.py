"""An initialisation with which a tiny model learns to read in a few hundred steps: an induction circuit.

To read "relation of subject is ..." from a context, a head must find where the same words stood before and attend to
the word behind them. From a usual random start that takes a tiny model most of its training. A model of 194 k
parameters copied 22 % exactly from 8 facts after 600 steps with `positional_bias_init` alone, and 81 % after 200 steps
with this one. These are starting values of a Qwen2 model; all of them are trained.
"""

import jax
import jax.numpy as jnp

from zsjax.errors import InputError
from zsjax.models.decoder import init_params
from zsjax.models.layers import DecoderConfig, rope_frequencies
from zsjax.tiny_world.positional import positional_bias_init

EMBEDDING = 0.25  # deviation of the embedding
CONTEXT = 0.5  # scale of what layer 0 writes
MATCH = 4.0  # scale of layer 1's queries and keys
COPY = 0.5  # scale of what layer 1 writes
SLOW = 0.05  # radians per token; faster rotary pairs encode distance and are scaled down in the match


def induction_init(config: DecoderConfig, key):
    """Random parameters with an induction circuit of several tokens' memory.

    Layer 0 looks back by 1 .. H tokens (`positional_bias_init`). All its heads read the same projection A of a token,
    and head h writes it through M^(h+1) for one random orthogonal M [D, D]. So the residual at position t holds
    c_t = sum_d M^d A x_(t-d), and the context one token later is the same turned once more:
        c_(t+1) = M c_t + M A x_t - ...
    Layer 1 has queries q_s = P c_s and keys k_t = P M^T c_t. Their product is large where position t follows a context
    like that of s. The layer copies the token at t: its v and o kernels are a projection and its transpose.

    Args:
      config: a shape that `positional_bias_init` accepts, of at least two layers and head_dim <= embed_dim.
      key: of the draws.

    Returns:
      float32 params as `param_specs`: kernels of deviation 1/sqrt(inputs) (residual outputs also times (2L)^-1/2),
      embedding of deviation 0.25, and the above.

    Raises:
      ValueError: one layer only, head_dim > embed_dim, or a shape without q/k biases.
    """
    if config.num_layers < 2:
        raise InputError("induction_init needs two layers: one to look back and one to match")
    if config.head_dim > config.embed_dim:
        raise InputError(f"head_dim={config.head_dim} must be at most embed_dim={config.embed_dim}")
    D, H, K, h = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
    draw_key, *keys = jax.random.split(key, 6)

    def rescale(path, x):
        name = jax.tree_util.keystr(path)
        if "embed_tokens" in name:
            return x * (EMBEDDING / 0.02)
        return x * (x.shape[0] ** -0.5 / 0.02) if "kernel" in name else x

    params = jax.tree_util.tree_map_with_path(rescale, init_params(config, draw_key))
    params = positional_bias_init(params, config)

    def orthogonal(key, *shape):
        return jax.random.orthogonal(key, D, shape)

    turn, write, read = orthogonal(keys[0]), orthogonal(keys[1])[:, :h], orthogonal(keys[2])[:, :h]

    blocks, block = [], write
    for _ in range(H):
        blocks.append(CONTEXT * block.T)
        block = turn @ block
    look_back = params["layers"][0]["attn"]
    look_back = {**look_back, "v_proj": with_kernel(look_back["v_proj"], jnp.tile(read * (D / h) ** 0.5 / 2, (1, K))),
                 "o_proj": with_kernel(look_back["o_proj"], jnp.concatenate(blocks))}

    fast = rope_frequencies(config)[0] > SLOW
    match = MATCH * orthogonal(keys[3], K)[:, :h] * jnp.where(jnp.concatenate([fast, fast]), 0.05, 1)[:, None]
    copy = orthogonal(keys[4], K)[:, :, :h]  # [K, D, h]

    def by_kv_head(x):
        return x.transpose(1, 0, 2).reshape(D, K * h)

    def by_head(x):
        return jnp.repeat(x, H // K, axis=0)  # [K, ...] -> [H, ...]

    attn = params["layers"][1]["attn"]
    attn = {
        "q_proj": with_kernel(attn["q_proj"], by_head(match).transpose(2, 0, 1).reshape(D, H * h)),
        "k_proj": with_kernel(attn["k_proj"], by_kv_head((match @ turn.T).transpose(0, 2, 1))),
        "v_proj": with_kernel(attn["v_proj"], by_kv_head(copy)),
        "o_proj": with_kernel(attn["o_proj"], COPY * by_head(copy.transpose(0, 2, 1)).reshape(H * h, D)),
    }
    layers = [{**params["layers"][0], "attn": look_back}, {**params["layers"][1], "attn": attn}]
    return {**params, "layers": [*layers, *params["layers"][2:]]}


def with_kernel(dense, kernel):
    """The same linear layer with another kernel."""
    return {**dense, "kernel": kernel.astype(dense["kernel"].dtype)}
