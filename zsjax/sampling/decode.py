"""Continuing prompts: one compiled program reads them into a cache and samples until every row has stopped."""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from zsjax.models.cache import grow, init_cache
from zsjax.models.decoder import DecoderConfig, cast_matrices, decoding_params, extend, logits_of
from zsjax.sampling.logits import row_keys, sample


@flax.struct.dataclass
class GenerateOutput:
    """What `generate` returns.

    Attributes:
      tokens: int32[B, max_new_tokens], 0 beyond the length.
      lengths: int32[B], new tokens, the stop token included.
      logprobs: float32[B, max_new_tokens], nats, under softmax(logits / temperature), 0 beyond the length.
    """

    tokens: jax.Array
    lengths: jax.Array
    logprobs: jax.Array


class PromptRows(NamedTuple):
    """tokens int32[B, P], lengths int32[B] and row_ids int32[B] of `generate`."""

    tokens: jax.Array
    lengths: jax.Array
    row_ids: jax.Array


def generate(params, config: DecoderConfig, tokens, lengths, *, key, max_new_tokens: int, temperature=1.0,
             top_k: int = 0, top_p: float = 1.0, stop_ids=(), row_ids=None) -> GenerateOutput:
    """Samples a continuation of every prompt.

    The draw of a row's token at position t (its prompt begins at 0) depends on (key, row id, t) only. So a row's
    continuation does not depend on the other rows: it is bit-identical at equal shapes, with the same tokens at others.

    Args:
      params, config: the decoder.
      tokens: int32[B, P], right-padded prompts.
      lengths: int32[B], 1 .. P.
      key: typed key or raw uint32[2].
      max_new_tokens: the most new tokens of a row; a static shape.
      temperature: float32[] or [B], traced; 0 is greedy.
      top_k, top_p: see `zsjax.sampling.logits.sample`; static.
      stop_ids: a row ends after writing one of these tokens.
      row_ids: int32[B], the rows' names in the random stream; None is 0 .. B-1.

    Returns:
      GenerateOutput.

    Raises:
      ValueError: shapes that do not fit, max_new_tokens < 1, bad top_k or top_p.
    """
    tokens, lengths = jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)
    if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
        raise ValueError(f"tokens must be [B, P] and lengths [B], got {tokens.shape} and {lengths.shape}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    row_ids = jnp.arange(tokens.shape[0]) if row_ids is None else row_ids
    prompts = PromptRows(tokens, lengths, jnp.asarray(row_ids, jnp.int32))
    return _generate(params, config, prompts, key, jnp.asarray(temperature, jnp.float32),
                     jnp.asarray(tuple(stop_ids), jnp.int32), max_new_tokens=max_new_tokens, top_k=top_k, top_p=top_p)


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "top_k", "top_p"))
def _generate(params, config, prompts: PromptRows, key, temperature, stop_ids, *, max_new_tokens, top_k=0, top_p=1.0):
    tokens, lengths, row_ids = prompts
    B, P = tokens.shape
    params = (cast_matrices if B == 1 else decoding_params)(params, config)  # a single row gains nothing by a turned head

    def draw(hidden, positions):
        """(token, log-prob, whether it stops) of each row from hidden [B, D] of the token before."""
        keys = row_keys(key, row_ids, positions)
        new, logprobs = sample(logits_of(params, config, hidden), keys, temperature=temperature, top_k=top_k,
                               top_p=top_p)
        return new, logprobs, (new[:, None] == stop_ids).any(axis=-1)

    # The prompt attends within its own P slots; the rest of the cache is appended afterwards, one copy.
    cache = init_cache(config, B, P)
    hidden, cache = extend(params, config, tokens, lengths, cache)
    cache = grow(cache, P + max_new_tokens - 1)
    # Only the last position's hidden state is unembedded: [B, P, V] never exists.
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    token, logprob, stopped = draw(last, lengths)
    out_tokens = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(token)
    out_logprobs = jnp.zeros((B, max_new_tokens), jnp.float32).at[:, 0].set(logprob)

    def unfinished(carry):
        step, _, stopped, *_ = carry
        return (step < max_new_tokens) & ~stopped.all()

    def body(carry):
        step, token, stopped, count, cache, out_tokens, out_logprobs = carry
        live = ~stopped
        hidden, cache = extend(params, config, token[:, None], live.astype(jnp.int32), cache)
        new, logprob, stops = draw(hidden[:, 0], lengths + step)

        def write(out, column):
            column = jnp.where(live, column, 0).astype(out.dtype)[:, None]
            return jax.lax.dynamic_update_slice(out, column, (jnp.int32(0), step))

        return (step + 1, jnp.where(live, new, token), stopped | stops, count + live, cache,
                write(out_tokens, new), write(out_logprobs, logprob))

    carry = (jnp.int32(1), token, stopped, jnp.ones(B, jnp.int32), cache, out_tokens, out_logprobs)
    _, _, _, count, _, out_tokens, out_logprobs = jax.lax.while_loop(unfinished, body, carry)
    return GenerateOutput(out_tokens, count, out_logprobs)
