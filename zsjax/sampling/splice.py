"""Ragged rows of tokens put together on the device: dense, right-padded, static shapes, no host.

B rows, T, N or `size` tokens. A row is dense from 0 to its length. All functions may be used under jit, vmap and
inside loops, and work for any dtype (tokens, roles, log-probabilities).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def concatenate(pieces: Sequence, *, size: int) -> tuple[jax.Array, jax.Array]:
    """Each row's pieces, one after the other.

    Args:
      pieces: in order, each either (tokens [B, N_i], lengths int32[B]), of which the first lengths[b] of row b count,
        or a 1-D array or list of ids, the same for all rows. At least one is of the first kind (it tells B).
      size: tokens per returned row.

    Returns:
      (tokens [B, size], 0 beyond the length; lengths int32[B]). What does not fit into `size` is dropped and lengths
      are cut to `size`: a caller that must not lose anything gives the sum of the N_i.

    Raises:
      ValueError: no piece tells how many rows there are.
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
        # A gather and a select per piece: there are few pieces, and a scatter is the slow one of the two everywhere.
        values = jnp.take_along_axis(tokens, jnp.clip(offset, 0, tokens.shape[1] - 1), axis=1)
        result = jnp.where((offset >= 0) & (offset < lengths[:, None]), values.astype(dtype), result)
        start = start + lengths
    return result, jnp.minimum(start, size)


def append(row: jax.Array, lengths: jax.Array, piece: jax.Array, piece_lengths: jax.Array) -> jax.Array:
    """`row` with the first piece_lengths[b] entries of row b of `piece` written at lengths[b].

    Writes N entries a row, not T, and in place where `row` is a loop's carry. What falls beyond T is dropped: callers
    that track lengths cut them to T.

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
    # Every dropped entry has a place of its own beyond the row, so that indices are unique and XLA need not serialise.
    at = jnp.where(wanted, lengths[:, None].astype(jnp.int32) + offset, size + count + offset)
    values = jnp.broadcast_to(piece, (rows, count)).astype(row.dtype)
    return row.at[jnp.arange(rows)[:, None], at].set(values, mode="drop", unique_indices=True)


def take_span(tokens: jax.Array, start: jax.Array, stop: jax.Array, *, size: int) -> tuple[jax.Array, jax.Array]:
    """Each row's tokens [start, stop), moved to the front.

    Args:
      tokens: [B, T].
      start, stop: int32[B], with 0 <= start and stop <= T; stop <= start is an empty span.
      size: tokens per returned row; a longer span is cut.

    Returns:
      (tokens [B, size], 0 beyond the length; lengths int32[B]).
    """
    lengths = jnp.clip(stop - start, 0, size).astype(jnp.int32)
    offset = jnp.arange(size, dtype=jnp.int32)[None, :]
    values = jnp.take_along_axis(tokens, jnp.clip(start[:, None] + offset, 0, tokens.shape[1] - 1), axis=1)
    return jnp.where(offset < lengths[:, None], values, 0).astype(tokens.dtype), lengths
