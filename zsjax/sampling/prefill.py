"""Reads many tokens into a cache, chunk by chunk up to the longest row, inside one compiled program."""

import jax
import jax.numpy as jnp

from zsjax.models.cache import KVCache
from zsjax.models.decoder import DecoderConfig, extend


def prefill(params, config: DecoderConfig, tokens, count, cache: KVCache, hidden, *, chunk: int, batch: int | None = None):
    """Appends the first count[b] of tokens[b] to the cache and keeps each row's last hidden state.

    The loops do not run at all when every count is 0: a `while_loop` that may run zero times is the "if" here, because a
    `cond` would copy the cache (jax#38145).

    Args:
      params, config: the decoder.
      tokens: int32[B, N].
      count: int32[B], 0 .. N.
      cache: at least max(cache.lengths + count) slots, or the tokens beyond are lost.
      hidden: [B, D], which rows with count 0 keep.
      chunk: tokens of a pass; a static shape.
      batch: rows of a pass; a static shape. A small batch saves work when few of many rows have something to read. None,
        or B and more: all rows in every pass.

    Returns:
      (hidden [B, D] of each row's last token, the longer cache).
    """
    B = tokens.shape[0]
    if batch is None or batch >= B:
        return _read(params, config, tokens, count, cache, hidden, chunk, None)

    def some_rows(carry):
        left, hidden, cache = carry
        rows = first_rows(left > 0, batch)
        taken = left.at[rows].get(mode="fill", fill_value=0)
        states, cache = _read(params, config, tokens.at[rows].get(mode="clip"), taken, cache,
                              hidden.at[rows].get(mode="clip"), chunk, rows)
        return left.at[rows].set(0, mode="drop"), hidden.at[rows].set(states, mode="drop"), cache

    _, hidden, cache = jax.lax.while_loop(lambda carry: carry[0].any(), some_rows, (count, hidden, cache))
    return hidden, cache


def first_rows(wanted, size: int):
    """int32[size]: the first True positions of bool[B], in order, then different numbers from B on.

    Scatters with mode "drop" ignore the latter.
    """
    B = wanted.shape[0]
    order = jnp.argsort(~wanted, stable=True)[:size].astype(jnp.int32)
    return jnp.where(wanted[order], order, B + jnp.arange(size, dtype=jnp.int32))


def _read(params, config, tokens, count, cache, hidden, chunk, rows):
    B, N = tokens.shape
    chunk = min(chunk, N)
    tokens = jnp.pad(tokens, ((0, 0), (0, -N % chunk)))
    longest = count.max()

    def body(carry):
        start, hidden, cache = carry
        piece = jax.lax.dynamic_slice_in_dim(tokens, start, chunk, axis=1)
        taken = jnp.clip(count - start, 0, chunk)
        states, cache = extend(params, config, piece, taken, cache, rows)
        last = jnp.take_along_axis(states, jnp.maximum(taken - 1, 0)[:, None, None], axis=1)[:, 0]
        return start + chunk, jnp.where((taken > 0)[:, None], last, hidden), cache

    _, hidden, cache = jax.lax.while_loop(lambda carry: carry[0] < longest, body, (jnp.int32(0), hidden, cache))
    return hidden, cache
