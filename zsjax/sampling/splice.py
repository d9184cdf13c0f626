"""Splices ragged rows of tokens on the device, with static shapes.

B rows of T, N or `size` tokens, dense from 0 to their length and right-padded. All functions work under jit, vmap and
inside loops, for any dtype (tokens, roles, log-probabilities).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def concatenate(pieces: Sequence, *, size: int) -> tuple[jax.Array, jax.Array]:
    """Each row's pieces, one after the other.

    Args:
      pieces: in order, each either (tokens [B, N_i], lengths int32[B]), or a 1-D array or list of ids that is the same
        for all rows. At least one is of the first kind.
      size: tokens of a returned row.

    Returns:
      (tokens [B, size], 0 beyond the length; lengths int32[B]). Tokens beyond `size` are dropped; the sum of the N_i
      keeps all.

    Raises:
      ValueError: no piece has rows.
    """
    batched = [piece for piece in pieces if isinstance(piece, tuple)]
    if not batched:
        raise ValueError("concatenate needs at least one piece of the form (tokens [B, N], lengths [B])")
    rows = batched[0][0].shape[0]
    dtype = jnp.result_type(*(tokens for tokens, _ in batched))
    at = jnp.arange(size, dtype=jnp.int32)[None, :]
    result = jnp.zeros((rows, size), dtype)
    start = jnp.zeros((rows,), jnp.int32)
    for piece in pieces:
        if isinstance(piece, tuple):
            tokens, lengths = piece
            lengths = jnp.clip(lengths, 0, tokens.shape[1]).astype(jnp.int32)
        else:
            tokens = jnp.asarray(np.asarray(piece), dtype)[None, :]
            lengths = jnp.full((rows,), tokens.shape[1], jnp.int32)
            tokens = jnp.broadcast_to(tokens, (rows, tokens.shape[1]))
        if tokens.shape[1] == 0:
            continue
        offset = at - start[:, None]
        # A gather and a select for each of the few pieces: a scatter is slower on every platform.
        values = jnp.take_along_axis(tokens, jnp.clip(offset, 0, tokens.shape[1] - 1), axis=1)
        result = jnp.where((offset >= 0) & (offset < lengths[:, None]), values.astype(dtype), result)
        start = start + lengths
    return result, jnp.minimum(start, size)


def append(row: jax.Array, lengths: jax.Array, piece: jax.Array, piece_lengths: jax.Array) -> jax.Array:
    """`row` with the first piece_lengths[b] entries of row b of `piece` written at lengths[b].

    Writes N entries of a row, not T, and in place if `row` is a loop's carry. Entries beyond T are dropped; callers cut
    their lengths to T.

    Args:
      row: [B, T], any dtype.
      lengths: int32[B], where the piece begins.
      piece: [B, N], or [N] for the same in all rows.
      piece_lengths: int32[B], or one number.

    Returns:
      [B, T] of row's dtype.
    """
    rows, size = row.shape
    count = piece.shape[-1]
    offset = jnp.arange(count, dtype=jnp.int32)[None, :]
    wanted = offset < jnp.broadcast_to(jnp.asarray(piece_lengths, jnp.int32), (rows,))[:, None]
    # Every dropped entry has an index of its own beyond the row: indices are unique, so XLA need not serialise.
    at = jnp.where(wanted, lengths[:, None].astype(jnp.int32) + offset, size + count + offset)
    values = jnp.broadcast_to(piece, (rows, count)).astype(row.dtype)
    return row.at[jnp.arange(rows)[:, None], at].set(values, mode="drop", unique_indices=True)


def take_span(tokens: jax.Array, start: jax.Array, stop: jax.Array, *, size: int) -> tuple[jax.Array, jax.Array]:
    """Each row's tokens [start, stop), moved to the front.

    Args:
      tokens: [B, T].
      start, stop: int32[B], with 0 <= start and stop <= T; stop <= start is an empty span.
      size: tokens of a returned row; a longer span is cut.

    Returns:
      (tokens [B, size], 0 beyond the length; lengths int32[B]).
    """
    lengths = jnp.clip(stop - start, 0, size).astype(jnp.int32)
    offset = jnp.arange(size, dtype=jnp.int32)[None, :]
    values = jnp.take_along_axis(tokens, jnp.clip(start[:, None] + offset, 0, tokens.shape[1] - 1), axis=1)
    return jnp.where(offset < lengths[:, None], values, 0).astype(tokens.dtype), lengths
