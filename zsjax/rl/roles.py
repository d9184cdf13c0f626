"""Masks from roles. A token's role is written when the token is written; every mask is derived from it, here.

    PROMPT PROMPT POLICY POLICY TEMPLATE DOCUMENT DOCUMENT TEMPLATE POLICY PAD     roles
      .      .      x      x       .        .        .        .       x     .      loss_mask
      x      x      x      x       x        x        x        x       x     .      attention_mask
      .      x      .      .       x        x        x        x       .     .      inverted_mask (an ablation)
"""

import jax.numpy as jnp

from zsjax.types import PAD, POLICY


def loss_mask(roles):
    """bool[B, T] of int8[B, T] roles: True at the tokens the policy sampled, the only ones that are trained on."""
    return jnp.asarray(roles) == POLICY


def attention_mask(roles):
    """bool[B, T] of int8[B, T] roles: True at every token of a row, False at its padding."""
    return jnp.asarray(roles) != PAD


def inverted_mask(roles):
    """bool[B, T] of int8[B, T] roles: True at every token that the policy did not write.

    An ablation (`AlgorithmConfig.invert_mask`): training on these must fail to learn. Position 0 is left out, as
    nothing predicts a row's first token.
    """
    mask = attention_mask(roles) & ~loss_mask(roles)
    return mask & (jnp.arange(mask.shape[-1]) > 0)
