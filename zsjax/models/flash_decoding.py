"""One query a row against the live slots of a cache, on NVIDIA GPUs: a Triton kernel by way of Pallas.

Flash-Decoding (Dao et al. 2023, pytorch.org/blog/flash-decoding): the live blocks of a row are split among programs that
each keep a running softmax, and the parts are added up afterwards. Einsums read the whole capacity of a cache and write
and read all scores; this reads what is live, once, and stores no scores.
"""

import functools
import math

import jax
import jax.numpy as jnp

from zsjax.models.layers import Int8Heads

BLOCK = 64  # slots of a step
QUERIES = 16  # the least rows that Triton's product takes: the query heads of a kv head, padded
PROGRAMS = 512  # aimed at: a few for each of about 132 multiprocessors
NEG_INF = -1e30


def flash_decode(q, k, v, lengths, window: int | None = None, *, interpret: bool = False):
    """softmax(q k^T / sqrt(h)) v of one query a row, over the slots s < lengths[b] and s >= lengths[b] - window.

    Args:
      q: [B, K, G, h]; G at most 16, h a power of 2 from 16 to 128.
      k, v: [B, K, S, h] arrays, or `Int8Heads` whose scales multiply the scores and the weights.
      lengths: int32[B]; the output of a row of 0 is finite and meaningless.
      window: None or int, slots.
      interpret: run on any platform, slowly: for tests.

    Returns:
      float32[B, K, G, h].
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (B, K, G, h), S = q.shape, k.shape[2]
    splits = max(1, min(PROGRAMS // (B * K), -(-S // (2 * BLOCK)), 16))
    int8 = isinstance(k, Int8Heads)

    def whole(*shape):
        return pl.BlockSpec((None, None, *shape), lambda b, n, s: (b, n, *[0] * len(shape)))

    arrays = (k.values, v.values, k.scale, v.scale) if int8 else (k, v)

    def part(*shape):
        return pl.BlockSpec((None, None, None, *shape), lambda b, n, s: (b, n, s, *[0] * len(shape)))

    out, top, total = pl.pallas_call(
        functools.partial(_part, pl=pl, triton=triton, splits=splits, window=window, int8=int8),
        grid=(B, K, splits),
        in_specs=[pl.BlockSpec((None,), lambda b, n, s: (b,)), whole(G, h), *[whole(*x.shape[2:]) for x in arrays]],
        out_specs=[part(G, h), part(G), part(G)],
        out_shape=[jax.ShapeDtypeStruct((B, K, splits, G, h), jnp.float32)]
        + [jax.ShapeDtypeStruct((B, K, splits, G), jnp.float32)] * 2,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret, name="flash_decode",
    )(lengths, q, *arrays)
    if splits == 1:
        return out[:, :, 0] / jnp.maximum(total[:, :, 0], 1e-30)[..., None]
    weights = jnp.exp(top - top.max(axis=2, keepdims=True))
    return (out * weights[..., None]).sum(axis=2) / jnp.maximum((total * weights).sum(axis=2), 1e-30)[..., None]


def _part(length_ref, q_ref, k_ref, v_ref, *refs, pl, triton, splits, window, int8):
    """A program's share of a row's live blocks: sums of exp(scores - top) v and of exp(scores - top), and top."""
    scales, (out_ref, top_ref, total_ref) = refs[:-3], refs[-3:]
    (G, h), length = q_ref.shape, length_ref[...]
    first = 0 if window is None else jnp.maximum(length - window, 0)
    begin, end = first // BLOCK, (length + BLOCK - 1) // BLOCK
    share = (end - begin + splits - 1) // splits
    start = begin + pl.program_id(2) * share
    heads = jnp.arange(QUERIES) < G
    q = triton.load(q_ref.at[pl.ds(0, QUERIES), :], mask=heads[:, None], other=0.0)

    def step(number, carry):
        out, top, total = carry
        block = pl.ds(number * BLOCK, BLOCK)
        slots = number * BLOCK + jnp.arange(BLOCK)
        live = (slots < length) & (slots >= first)

        def load(ref):
            return triton.load(ref.at[block, :], mask=live[:, None], other=0).astype(q.dtype)

        scores = triton.dot(q, load(k_ref).T) / math.sqrt(h)
        if int8:
            scores *= triton.load(scales[0].at[block], mask=live, other=0.0)[None]
        scores = jnp.where(live[None], scores, NEG_INF)
        higher = jnp.maximum(top, scores.max(axis=1))
        weights, kept = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
        total = total * kept + weights.sum(axis=1)
        if int8:
            weights *= triton.load(scales[1].at[block], mask=live, other=0.0)[None]
        return out * kept[:, None] + triton.dot(weights.astype(q.dtype), load(v_ref)), higher, total

    zeros = jnp.zeros(QUERIES, jnp.float32)
    out, top, total = jax.lax.fori_loop(start, jnp.minimum(start + share, end), step, (
        jnp.zeros((QUERIES, h), jnp.float32), zeros + NEG_INF, zeros))
    triton.store(out_ref.at[pl.ds(0, QUERIES), :], out, mask=heads[:, None])
    triton.store(top_ref.at[pl.ds(0, QUERIES)], top, mask=heads)
    triton.store(total_ref.at[pl.ds(0, QUERIES)], total, mask=heads)
