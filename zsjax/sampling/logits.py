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


def _gumbel(keys, greedy, V):
    """float32[B, V] Gumbel noise of B keys, 0 where greedy (bool[] or [B, 1])."""

    def drawn():
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (V,), jnp.float32))(keys)
        return jnp.where(greedy, 0.0, noise)

    def of_cpu():
        # Drawn for nothing, it is a fifth of greedy decoding with 262,144 tokens. No cache is in the branches. Elsewhere the
        # noise is fused with what reads it, and a branch would cost each token a wait.
        return jax.lax.cond(jnp.all(greedy), lambda: jnp.zeros((len(keys), V), jnp.float32), drawn)

    return jax.lax.platform_dependent(cpu=of_cpu, default=drawn)


def sample(logits, keys, *, temperature, top_k: int = 0, top_p: float = 1.0):
    """Draws a token of each row from softmax(logits / temperature), cut to top_k and then top_p.

    The draw is argmax(logits / temperature + Gumbel noise). The noise of a token depends on the key and the token only,
    so cutting the tail changes a draw only if the draw would have been in the tail.

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
    noise = _gumbel(keys, greedy, V)
    if top_k or top_p < 1.0:
        values, ids = jax.lax.top_k(scaled, min(top_k or V, V))
        noisy = values + jnp.take_along_axis(noise, ids, axis=-1)
        if top_p < 1.0:
            probs = jax.nn.softmax(values, axis=-1)
            before = jnp.cumsum(probs, axis=-1) - probs
            noisy = jnp.where((before < top_p).at[:, 0].set(True), noisy, -jnp.inf)
        tokens = jnp.take_along_axis(ids, _argmax(noisy)[:, None], axis=-1)[:, 0]
    else:
        tokens = _argmax(scaled + noise)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(scaled, axis=-1)
