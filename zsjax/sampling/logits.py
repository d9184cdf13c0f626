"""Draws a token of each row from logits, with keys that belong to the row and not to the batch."""

import jax
import jax.numpy as jnp


def row_keys(key, row_ids, positions):
    """A key for each row, fold_in(fold_in(key, row_ids[b]), positions[b]).

    A draw with it depends on (key, row, position) only, never on the batch.

    Args:
      key: typed key or raw uint32[2].
      row_ids: int32[B], names of the rows, such as episode ids.
      positions: int32[B], position within the row of the token to be drawn.

    Returns:
      B keys of the kind given.
    """
    return jax.vmap(lambda row, position: jax.random.fold_in(jax.random.fold_in(key, row), position))(row_ids, positions)


def _argmax(x):
    """int32[B], the lowest index of the maximum of x[B, V].

    Two plain reductions: XLA's argmax is one reduction of pairs, which CPUs do not vectorise (3x the time of a whole
    draw at V = 1,000 to 150,000, measured).
    """
    V = x.shape[-1]
    at_maximum = x == x.max(axis=-1, keepdims=True)
    return jnp.where(at_maximum, jnp.arange(V, dtype=jnp.int32), V - 1).min(axis=-1)


def sample(logits, keys, *, temperature, top_k: int = 0, top_p: float = 1.0):
    """Draws a token of each row from softmax(logits / temperature), cut to top_k and then top_p.

    The draw is argmax(logits / temperature + Gumbel noise). The noise of a token depends on the key and the token only,
    so cutting the tail changes a draw only if the draw would have been in the tail. Of many tokens without a cut, a block
    is drawn and then a token in it (`_draw_in_two`), from the same distribution with other noise.

    Args:
      logits: float32[B, V].
      keys: B keys; see `row_keys`.
      temperature: float32[] or [B], may be traced; 0 is greedy: argmax, the lowest id of equals.
      top_k: keep the k largest; 0 keeps all. Of equal logits the lower ids are kept.
      top_p: keep the smallest set of most probable tokens (after top_k, renormalised) whose probabilities sum to at
        least top_p; computed exactly, by sorting. At least one token is kept.

    Returns:
      (tokens int32[B], logprobs float32[B] in nats). The log-probs are of softmax(logits / temperature) before top_k and
      top_p, and of softmax(logits) at temperature 0.

    Raises:
      ValueError: top_k < 0 or top_p outside (0, 1].
    """
    if top_k < 0 or not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_k must be >= 0 and top_p in (0, 1], got top_k={top_k}, top_p={top_p}")
    V = logits.shape[-1]
    temperature = jnp.asarray(temperature, jnp.float32)
    temperature = temperature[..., None] if temperature.ndim else temperature
    greedy = temperature <= 0
    scaled = logits.astype(jnp.float32) / jnp.where(greedy, 1.0, temperature)
    blocks = _num_blocks(V)
    if top_k or top_p < 1.0:
        tokens = _draw_cut(scaled, _noise(keys, V, greedy), top_k or V, top_p)
    elif blocks > 1:
        return _draw_in_two(scaled, keys, greedy, blocks)
    else:
        tokens = _argmax(scaled + _noise(keys, V, greedy))
    return tokens, _at(scaled, tokens) - jax.nn.logsumexp(scaled, axis=-1)


def _num_blocks(V: int) -> int:
    """The largest power of two that divides V, at most 512; 1 for small V, and where that power is below 16.

    A power of two, so that the blocks of a vocabulary can be sharded over devices as the vocabulary is. Small vocabularies
    draw as they did in stored runs.
    """
    blocks = min(V & -V, 512)
    return blocks if V >= 16_384 and blocks >= 16 else 1


def _noise(keys, V: int, greedy):
    """Gumbel noise float32[B, V], 0 where greedy."""
    return jnp.where(greedy, 0.0, jax.vmap(lambda key: jax.random.gumbel(key, (V,), jnp.float32))(keys))


def _at(x, places):
    """x[b, places[b]], float32[B]."""
    return jnp.take_along_axis(x, places[:, None], axis=-1)[:, 0]


def _draw_cut(scaled, noise, top_k: int, top_p: float):
    """int32[B], drawn from the top_k and then top_p of scaled[B, V] with noise[B, V]."""
    values, ids = jax.lax.top_k(scaled, min(top_k, scaled.shape[-1]))
    noisy = values + jnp.take_along_axis(noise, ids, axis=-1)
    if top_p < 1.0:
        probs = jax.nn.softmax(values, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        noisy = jnp.where((before < top_p).at[:, 0].set(True), noisy, -jnp.inf)
    return _at(ids, _argmax(noisy)).astype(jnp.int32)


def _draw_in_two(scaled, keys, greedy, blocks: int):
    """A block of tokens by its probability, then a token by its probability in the block.

    Noise is hashed, so that noise for each token of a large vocabulary is six sevenths of a draw on a CPU (64 rows of
    262,144). A block's log of summed exponentials is part of the log-prob anyway.

    Args:
      scaled: float32[B, V], logits over temperature.
      keys: B keys.
      greedy: bool[] or [B, 1].
      blocks: a number of blocks, which divides V.

    Returns:
      (tokens int32[B], logprobs float32[B]).
    """
    B, V = scaled.shape
    parts = scaled.reshape(B, blocks, V // blocks)
    keys = jax.vmap(jax.random.split)(keys)
    sums = jax.nn.logsumexp(parts, axis=-1)
    block = _argmax(jnp.where(greedy, parts.max(axis=-1), sums + _noise(keys[:, 0], blocks, greedy)))
    inside = jnp.take_along_axis(parts, block[:, None, None], axis=1)[:, 0]
    token = _argmax(inside + _noise(keys[:, 1], V // blocks, greedy))
    return block * (V // blocks) + token, _at(inside, token) - jax.nn.logsumexp(sums, axis=-1)
