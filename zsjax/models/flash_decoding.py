"""Queries against the live slots of a cache, on NVIDIA GPUs: a Triton kernel by way of Pallas.

Flash-Decoding (Dao et al. 2023, pytorch.org/blog/flash-decoding): the live blocks of a row are split among programs. Each
keeps a running softmax, and the parts are added up afterwards. Einsums read the whole capacity of a cache, and write and
read all scores: 10.7 GB a layer for 128 tokens of 320 rows of Qwen2.5-3B with 4,096 slots. This kernel stores no scores.
"""

import functools
import math

import jax
import jax.numpy as jnp

from zsjax.models.layers import Int8Heads

BLOCK = 64  # slots of a step
QUERIES = 16, 128  # of a program: the fewest rows that Triton's product takes, and as in jax.experimental.pallas.ops.gpu
PROGRAMS = 512  # aimed at: a few for each of about 132 multiprocessors
NEG_INF = -1e30


def flash_decode(q, k, v, last, *, rows=None, window: int | None = None, interpret: bool = False):
    """softmax(q k^T / sqrt(h)) v of n queries a row and kv head, over the slots last - window < s <= last of each query.

    Args:
      q: [B, K, n, h]; h a power of 2 from 16 to 128.
      k, v: [R, K, S, h] arrays, or `Int8Heads` whose scales multiply the scores and the weights.
      last: int32[B, n], the last slot that a query sees; the output of a query that sees none is finite and meaningless.
      rows: int32[B], the row of k and v that each row of q reads; None where these are the same.
      window: None or int, slots.
      interpret: run on any platform, slowly: for tests.

    Returns:
      [B, K, n, h] in q's dtype.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (B, K, n, h), (R, _, S, _) = q.shape, k.shape
    block = min(max(QUERIES[0], 1 << (n - 1).bit_length()), QUERIES[1])
    blocks = -(-n // block)
    splits = max(1, min(PROGRAMS // (B * K * blocks), -(-S // (2 * BLOCK)), 16))
    arrays = (k.values, v.values, k.scale, v.scale) if isinstance(k, Int8Heads) else (k, v)
    chosen = () if rows is None else (jnp.clip(rows, 0, R - 1),)  # an array of all rows would be a kernel more a layer

    def whole(*shape):
        return pl.BlockSpec((None, None, *shape), lambda b, i, s: (b, i, *[0] * len(shape)))

    def part(*shape):  # of a program's split
        return pl.BlockSpec((None, None, None, *shape), lambda b, i, s: (b, i, jax.lax.rem(s, splits), *[0] * len(shape)))

    sums = [jax.ShapeDtypeStruct((B, K, splits, *shape), jnp.float32) for shape in ((n, h), (n,), (n,))]
    found = pl.pallas_call(
        functools.partial(_part, pl=pl, triton=triton, block=block, splits=splits, window=window, chosen=bool(chosen)),
        grid=(B, K, blocks * splits),
        in_specs=[pl.BlockSpec((None, n), lambda b, i, s: (b, 0)), whole(n, h),
                  *[pl.BlockSpec(x.shape, lambda b, i, s, x=x: (0,) * x.ndim) for x in arrays],
                  *[pl.BlockSpec((None,), lambda b, i, s: (b,)) for _ in chosen]],
        out_specs=[whole(n, h)] if splits == 1 else [part(n, h), part(n), part(n)],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype)] if splits == 1 else sums,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4 if block <= 64 else 8,
                                                                     num_stages=3 if block <= 16 else 2),
        interpret=interpret, name="flash_decode",
    )(jnp.minimum(last, S - 1), q, *arrays, *chosen)
    if splits == 1:
        return found[0]
    out, top, total = found
    weights = jnp.exp(top - top.max(axis=2, keepdims=True))
    out = (out * weights[..., None]).sum(axis=2) / jnp.maximum((total * weights).sum(axis=2), 1e-30)[..., None]
    return out.astype(q.dtype)


def _part(last_ref, q_ref, *refs, pl, triton, block, splits, window, chosen):
    """A program's share of its queries' live blocks: sums of exp(scores - top) v and of exp(scores - top), and top; without
    splits their quotient."""
    count = len(refs) - (1 if splits == 1 else 3)
    (k_ref, v_ref, *scales), out_refs = refs[:count], refs[count:]
    row = scales.pop()[...] if chosen else pl.program_id(0)
    (n, h), head = q_ref.shape, pl.program_id(1)
    start = jax.lax.div(pl.program_id(2), splits) * block
    queries, real = pl.ds(start, block), start + jnp.arange(block) < n
    last = triton.load(last_ref.at[queries], mask=real, other=-1)
    beyond = last.max() + 1
    first = 0 if window is None else jnp.maximum(jnp.where(last >= 0, last, beyond).min() - window + 1, 0)
    begin, end = first // BLOCK, (beyond + BLOCK - 1) // BLOCK
    share = (end - begin + splits - 1) // splits
    begin += jax.lax.rem(pl.program_id(2), splits) * share
    q = triton.load(q_ref.at[queries, :], mask=real[:, None], other=0.0)

    def step(number, carry):
        out, top, total = carry
        slots = number * BLOCK + jnp.arange(BLOCK)
        live = (slots < beyond) & (slots >= first)
        seen = slots[None] <= last[:, None]
        if window is not None:
            seen &= slots[None] > last[:, None] - window

        def load(ref):
            at = ref.at[row, head, pl.ds(number * BLOCK, BLOCK), :]
            return triton.load(at, mask=live[:, None], other=0).astype(q.dtype)

        def scale(ref):  # of an int8 cache
            return triton.load(ref.at[row, head, pl.ds(number * BLOCK, BLOCK)], mask=live, other=0.0)[None]

        scores = triton.dot(q, load(k_ref).T) / math.sqrt(h)
        if scales:
            scores *= scale(scales[0])
        scores = jnp.where(seen, scores, NEG_INF)
        higher = jnp.maximum(top, scores.max(axis=1))
        weights, kept = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
        total = total * kept + weights.sum(axis=1)
        if scales:
            weights *= scale(scales[1])
        return out * kept[:, None] + triton.dot(weights.astype(q.dtype), load(v_ref)), higher, total

    zeros = jnp.zeros(block, jnp.float32)
    out, top, total = jax.lax.fori_loop(begin, jnp.minimum(begin + share, end), step, (
        jnp.zeros((block, h), jnp.float32), zeros + NEG_INF, zeros))
    if splits == 1:
        out = (out / jnp.maximum(total, 1e-30)[:, None]).astype(q.dtype)
    triton.store(out_refs[0].at[queries, :], out, mask=real[:, None])
    for ref, value in zip(out_refs[1:], (top, total), strict=False):  # none without splits
        triton.store(ref.at[queries], value, mask=real)
