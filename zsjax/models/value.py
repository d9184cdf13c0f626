"""The value model: a decoder's trunk with a scalar head, V(tokens[:, :t + 1]) at position t.

    value_params = init_value(config, params, key)      # the trunk of the policy, or of any other checkpoint
    values = value_forward(value_params, config, tokens, valid=valid)

The trunk has the decoder's tree without the unembedding: functions that shard, save or cast a decoder's parameters take
a value model's too.
"""

import math

import jax
import jax.numpy as jnp

from zsjax.models.decoder import hidden_states
from zsjax.models.layers import DecoderConfig

__all__ = ["init_value", "value_forward"]


def init_value(config: DecoderConfig, params, key, *, scale: float = 0.0) -> dict:
    """A value model on a copy of a decoder's trunk.

    Args:
      config: of the decoder.
      params: the policy's, or another checkpoint's (`load_hf`); `lm_head` is not needed. They are copied, so that updates
        of both models may donate theirs.
      key: PRNG key of the head.
      scale: deviation of the head's weights times D^1/2. With 0 all first values are 0, and the first advantages depend on
        rewards alone.

    Returns:
      dict: the trunk in its own dtypes and `value_head` float32[D, 1].
    """
    trunk = {name: jax.tree.map(jnp.copy, leaf) for name, leaf in params.items() if name != "lm_head"}
    head = scale / math.sqrt(config.embed_dim) * jax.random.normal(key, (config.embed_dim, 1), jnp.float32)
    return trunk | {"value_head": head}


def value_forward(value_params, config: DecoderConfig, tokens, *, valid=None, remat: bool = False):
    """Values of the states that a row's tokens lead to.

    Args:
      value_params: as `init_value` returns.
      config: DecoderConfig of the trunk.
      tokens: int32[B, T], right-padded.
      valid: bool[B, T] or None; True for a prefix of each row.
      remat: recompute each layer in the backward pass.

    Returns:
      float32[B, T] in the reward's unit; [b, t] has read tokens[b, :t + 1], token t included. Meaningless where
      `valid` is False. Gradients flow into trunk and head.
    """
    hidden = hidden_states(value_params, config, tokens, valid=valid, remat=remat)
    # The head is float32 whatever the trunk is: returns are regressed, and bf16 has three digits.
    return (hidden.astype(jnp.float32) @ value_params["value_head"].astype(jnp.float32))[..., 0]
