"""Causal grouped-query attention: one contract, one reference ("xla"), and the kernels of two platforms.

    xla      einsums and a softmax, on every platform; whole rows in blocks of queries, whose weights the backward pass
             computes again; also for queries against a cache, unless `choose_cached` returns "flash"
    flash    zsjax.models.flash_decoding, for queries against a cache on NVIDIA GPUs
    cudnn    jax.nn.dot_product_attention's flash attention on NVIDIA GPUs, for whole rows
    splash   jax.experimental.pallas.ops.tpu.splash_attention on TPUs, for whole rows

On a mesh each device runs a kernel on its own rows and heads.

`choose` decides once per platform and model and logs it. A kernel that was asked for by name and cannot run is an error.
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from zsjax.errors import InputError
from zsjax.models.cache import placed, when
from zsjax.models.flash_decoding import flash_decode
from zsjax.models.layers import Int8Heads
from zsjax.parallel.constrain import Target, cut_over, free_axes, parts_of, platform, target

NEG_INF = -1e30  # finite: a row without any visible key gives an average, never NaN
SPLASH_BLOCK = 128  # tokens, and numbers of a head: the kernel's tile
MIN_BLOCK, MAX_BLOCKS = 128, 8  # "xla": queries of a block, blocks of a row (unrolled)


def attend(q, k, v, *, kv_lengths, window=None, kernel: str = "xla"):
    """softmax(q k^T / sqrt(h)) v over the keys a query may see: whole rows.

    Query t sees keys s <= t, s < kv_lengths[b] and, with a window, s > t - window. Scores and softmax are float32.

    Args:
      q: [B, H, T, h].
      k, v: [B, K, T, h]; head i of q reads head i // (H / K).
      kv_lengths: int32[B], tokens of each row.
      window: None or int, tokens.
      kernel: what `choose` returned.

    Returns:
      [B, T, H * h], in q's dtype. Outputs of queries at or beyond their row's length are finite and meaningless.
    """
    B, H, T, h = q.shape
    if kernel == "xla":
        return _xla_rows(q, k, v, window).reshape(B, T, H * h)
    of_device = functools.partial({"cudnn": _cudnn, "splash": _splash}[kernel], window=window)
    return _by_device(of_device, q, k, v, kv_lengths).reshape(B, T, H * h)


def _operands(*arrays):
    """What batched products take: on CPU those of bf16 with a float32 result do not exist."""
    return [x.astype(jnp.float32 if platform() == "cpu" else arrays[0].dtype) for x in arrays]


def _xla_rows(q, k, v, window):
    """[B, T, H, h]. Keys beyond a row's length come after all its queries: lengths are not needed."""
    (B, H, T, h), dtype = q.shape, q.dtype
    q, k, v = _operands(q, k, v)
    return _causal(window, q.reshape(B, k.shape[1], -1, T, h), k, v).reshape(B, T, H, h).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _causal(window, q, k, v):
    """[B, T, K, G, h] of q [B, K, G, T, h] and k, v [B, K, T, h], all of one dtype; block after block of queries.

    A block reads the keys up to its last query: little more than half of the scores are computed, one block at a time. As in
    FlashAttention (arXiv 2307.08691, section 3.1, without its blocks of keys), only the log-normalisers are kept for the
    backward pass, which computes the scores again. (Within one program XLA on CPU may keep the forward's scores.)
    """
    return _causal_forward(window, q, k, v)[0]


def block_size(T: int) -> int:
    """Queries of a block, for rows of T tokens."""
    return min(T, max(MIN_BLOCK, -(-T // MAX_BLOCKS)))


def _blocks(T, window):
    """(queries, keys) slices of each block: its queries, and the keys that they see."""
    for start in range(0, T, block_size(T)):
        stop = min(start + block_size(T), T)
        yield slice(start, stop), slice(0 if window is None else max(0, start - window + 1), stop)


def _block_scores(window, q, k, queries, keys):
    """float32[B, K, G, n, s] of a block, NEG_INF where a key is not seen; and its queries as rows [B, K, G * n, h]."""
    q = q[:, :, :, queries]
    # The group is folded into the rows of one product a kv head: 2.7x faster on CPU than a 5-letter einsum.
    rows = q.reshape(*q.shape[:2], -1, q.shape[-1])
    scores = jnp.einsum("bkqh,bksh->bkqs", rows, k[:, :, keys], preferred_element_type=jnp.float32)
    scores = scores.reshape(*q.shape[:4], -1) / math.sqrt(q.shape[-1])
    age = jnp.arange(queries.start, queries.stop)[:, None] - jnp.arange(keys.start, keys.stop)
    return jnp.where((age >= 0) if window is None else (age >= 0) & (age < window), scores, NEG_INF), rows


def _causal_forward(window, q, k, v):
    B, K, G, T, h = q.shape
    outs, normalizers = [], []
    for queries, keys in _blocks(T, window):
        scores, _ = _block_scores(window, q, k, queries, keys)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("bkqs,bksh->bkqh", weights.reshape(B, K, -1, weights.shape[-1]).astype(v.dtype), v[:, :, keys],
                         preferred_element_type=jnp.float32)
        outs.append((out.reshape(B, K, G, -1, h) / total).transpose(0, 3, 1, 2, 4))
        normalizers.append(top + jnp.log(total))
    # Named for remat="attention", which keeps them.
    out = checkpoint_name(jnp.concatenate(outs, axis=1).astype(q.dtype), "attention")
    normalizer = checkpoint_name(jnp.concatenate(normalizers, axis=3), "attention")
    return out, (q, k, v, out, normalizer)


def _causal_backward(window, residuals, d_out):
    """With weights p = exp(scores - normalizer): d_scores = p * (d_out v^T - sum(d_out * out))."""
    q, k, v, out, normalizer = residuals
    B, K, G, T, h = q.shape
    f32 = dict(preferred_element_type=jnp.float32)
    dots = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1).transpose(0, 2, 3, 1)[..., None]
    d_out = d_out.transpose(0, 2, 3, 1, 4)
    d_q, d_k, d_v = [], *(jnp.zeros((B, K, h, T), jnp.float32) for _ in "kv")
    for queries, keys in _blocks(T, window):
        scores, q_rows = _block_scores(window, q, k, queries, keys)
        weights = jnp.exp(scores - normalizer[:, :, :, queries])
        d_rows = d_out[:, :, :, queries].reshape(B, K, -1, h)
        d_weights = jnp.einsum("bkqh,bksh->bkqs", d_rows, v[:, :, keys], **f32).reshape(weights.shape)
        d_scores = weights * (d_weights - dots[:, :, :, queries]) / math.sqrt(h)
        weights, d_scores = (x.reshape(B, K, q_rows.shape[2], -1).astype(q.dtype) for x in (weights, d_scores))
        d_q.append(jnp.einsum("bkqs,bksh->bkqh", d_scores, k[:, :, keys], **f32).reshape(B, K, G, -1, h))
        # Products over the queries give [h, s]: on CPU three times faster than [s, h].
        of_k = jnp.einsum("bkqh,bkqs->bkhs", q_rows, d_scores, **f32)
        of_v = jnp.einsum("bkqh,bkqs->bkhs", d_rows, weights, **f32)
        d_k, d_v = (total.at[..., keys].set(total[..., keys] + x) for total, x in ((d_k, of_k), (d_v, of_v)))
    d_q = jnp.concatenate(d_q, axis=3)
    return d_q.astype(q.dtype), d_k.swapaxes(2, 3).astype(k.dtype), d_v.swapaxes(2, 3).astype(v.dtype)


_causal.defvjp(_causal_forward, _causal_backward)


def attend_cached(q, ks, vs, *, kv_lengths, q_positions, rows=None, window=None, kernel: str = "xla"):
    """softmax(q k^T / sqrt(h)) v over the slots of a cache's layer that a query may see.

    Slot s of row b holds the token at position s. A query at position p sees slots s <= p, s < kv_lengths[b] and, with
    a window, s > p - window. Scores and softmax are float32.

    Args:
      q: [B, H, T, h].
      ks, vs: the layer's segments (`zsjax.models.cache`), [B, K, S, h] each; head i of q reads head i // (H / K).
        `Int8Heads`' values enter the products as they are, and the scales multiply what is small, the scores and the
        weights.
      kv_lengths: int32[B], slots of each row that may be seen; 0 where the row's outputs are not used.
      q_positions: int32[B, T].
      rows: None, or int32[B], the cache's row of each row of q. Beyond the cache's rows, outputs are meaningless.
      window: None or int, tokens.
      kernel: what `choose_cached` returned; "flash" is not used for some rows of a cache whose rows are cut over devices.

    Returns:
      [B, T, H * h], in q's dtype. Outputs of queries at or beyond their row's length are finite and meaningless.
    """
    B, H, T, h = q.shape
    K, dtype = ks[0].shape[1], q.dtype
    G = H // K
    if kernel == "flash" and (rows is None or cut_over("rows", ks[0].shape[0]) is None):
        last = jnp.minimum(q_positions, kv_lengths[:, None] - 1)
        out = _flash(q.reshape(B, K, G * T, h), ks[0], vs[0], jnp.tile(last, (1, G)), rows=rows, window=window)
        return out.reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4).reshape(B, T, H * h)
    (q,) = _operands(q)
    q = q.reshape(B, K, G * T, h)  # as in `_block_scores`

    def of_rows(x):
        """(operand of the product, scale of the result). No float copy of an int8 cache is made."""
        x = x if rows is None else jax.tree.map(lambda x: x.at[rows].get(mode="clip"), x)
        return (x.values, x.scale[:, :, None]) if isinstance(x, Int8Heads) else (x, 1.0)

    def scores_of(k, first):
        k, scale = of_rows(k)
        slots = first + jnp.arange(k.shape[2])
        scores = jnp.einsum("bkqh,bksh->bkqs", q, k.astype(q.dtype), preferred_element_type=jnp.float32)
        scores = scores * scale / math.sqrt(h)
        visible = (slots <= q_positions[:, :, None]) & (slots < kv_lengths[:, None, None])
        if window is not None:
            visible &= slots > q_positions[:, :, None] - window
        scores = jnp.where(visible[:, None, None], scores.reshape(B, K, G, T, -1), NEG_INF)
        return scores.reshape(B, K, G * T, -1)

    def mixed(weights, v):
        v, scale = of_rows(v)
        return jnp.einsum("bkqs,bksh->bkqh", (weights * scale).astype(q.dtype), v.astype(q.dtype),
                          preferred_element_type=jnp.float32)

    def further(first, k, v, carry):
        """The running softmax with one more segment (Milakov and Gimelshein 2018). A segment without a visible slot
        changes nothing, to the last bit: a row does not depend on the other rows' lengths."""
        highest, total, out = carry
        scores = scores_of(k, first)
        top = jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
        weights, kept = jnp.exp(scores - top), jnp.exp(highest - top)
        return top, total * kept + weights.sum(axis=-1, keepdims=True), out * kept + mixed(weights, v)

    if len(ks) == 1:
        scores = scores_of(ks[0], 0)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        out = mixed(weights / weights.sum(axis=-1, keepdims=True), vs[0])
    else:
        zeros = jnp.zeros((B, K, G * T, 1), jnp.float32)
        carry = further(0, ks[0], vs[0], (zeros + NEG_INF, zeros, jnp.zeros((B, K, G * T, h), jnp.float32)))
        for (first, k), v in list(zip(placed(ks), vs, strict=True))[1:]:
            carry = when(kv_lengths.max() > first, functools.partial(further, first, k, v), carry)
        _, total, out = carry
        out = out / total
    return out.reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4).astype(dtype).reshape(B, T, H * h)


def _flash(q, k, v, last, *, rows=None, window=None, interpret: bool = False):
    """`flash_decode` by each device on its own rows and kv heads. Rows that are chosen are not cut."""
    kernel = functools.partial(flash_decode, window=window, interpret=interpret)
    if not (free := free_axes()):
        return kernel(q, k, v, last, rows=rows)
    cut = cut_over("rows", len(q)) if rows is None else None
    heads, chosen = PartitionSpec(cut, cut_over("kv_heads", q.shape[1])), () if rows is None else (rows,)

    def of_device(q, k, v, last, *chosen):
        return kernel(q, k, v, last, rows=chosen[0] if chosen else None)

    return jax.shard_map(of_device, in_specs=(heads, heads, heads, PartitionSpec(cut), *[PartitionSpec()] * len(chosen)),
                         out_specs=heads, axis_names=set(free), check_vma=False)(q, k, v, last, *chosen)


def _cudnn(q, k, v, lengths, *, window):
    """[B, T, H, h]."""
    # A row without tokens would have a softmax over no keys.
    lengths = jnp.maximum(lengths, 1).astype(jnp.int32)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
                                        local_window_size=None if window is None else (window - 1, 0),
                                        implementation="cudnn")


def _by_device(kernel, q, k, v, lengths):
    """kernel(q, k, v, lengths) -> [B, T, H, h], by each device of the caller's mesh on its own rows and heads.

    XLA does not partition a kernel.
    """
    if not (free := free_axes()):
        return kernel(q, k, v, lengths)
    H, K = q.shape[1], k.shape[1]
    rows, heads, parts = cut_over("rows", len(q)), cut_over("heads", H), parts_of("heads", H)
    # Where there are fewer kv heads than devices, a kv head is on each device that has query heads of it.
    k, v = (jnp.repeat(x, parts // math.gcd(K, parts), axis=1) for x in (k, v))
    of_heads, of_rows = PartitionSpec(rows, heads), PartitionSpec(rows)
    return jax.shard_map(kernel, in_specs=(of_heads, of_heads, of_heads, of_rows), axis_names=set(free), check_vma=False,
                         out_specs=PartitionSpec(rows, None, heads))(q, k, v, lengths)


def _splash(q, k, v, lengths, *, window, interpret: bool = False):
    """Tokens and heads are padded with zeros to the kernel's tiles, which does not change the result."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (B, H, T, h), K = q.shape, k.shape[1]
    size = -(-T // SPLASH_BLOCK) * SPLASH_BLOCK

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, size - T), (0, -h % SPLASH_BLOCK)))

    shape = (size, size)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    kernel = splash.make_splash_mqa_single_device(splash.MultiHeadMask([mask] * (H // K)), interpret=interpret)
    # Padding is a segment of its own: other tokens do not see it, and its queries see at least themselves.
    segments = (jnp.arange(size) < lengths[:, None]).astype(jnp.int32)

    def row(q, k, v, segment):
        return jax.vmap(kernel, (0, 0, 0, None))(q, k, v, splash.SegmentIds(segment, segment))

    q = (pad(q) * (1 / math.sqrt(h))).reshape(B, K, H // K, size, -1)
    out = jax.vmap(row)(q, pad(k), pad(v), segments)
    return out.reshape(B, H, size, -1)[:, :, :T, :h].swapaxes(1, 2).astype(v.dtype)


def choose(config) -> str:
    """The kernel for whole rows of a `DecoderConfig` on the target: "xla", "cudnn" or "splash".

    Raises:
      ValueError: `config.attention` names a kernel that cannot run there; the message says why.
    """
    return _choose(config.attention, config.dtype, config.head_dim, target())


def choose_cached(config, rows: int, tokens: int = 1) -> str:
    """The kernel for the next `tokens` of each of `rows` rows against their cache, on the target: "flash" or "xla".

    Measured with one token on an H100 (benchmarks/RESULTS.md): with few rows and kv heads the einsums are faster, 16 against
    22 microseconds a layer at 1 row of 2 kv heads; at 8 rows the kernel is.
    """
    where, h = target(), config.head_dim
    if config.attention == "xla" or (where.capability or (0, 0)) < (8, 0) or config.dtype not in ("bfloat16", "float16"):
        return "xla"
    K = config.num_kv_heads
    fits = config.num_heads // K <= 16 and h in (16, 32, 64, 128)
    # The cache is not copied for devices that would share a kv head.
    cut = {*(cut_over("rows", rows) or ()), *(cut_over("kv_heads", K) or ())}
    whole = all(size == 1 or name in cut for name, size in free_axes().items())
    of_device = rows * K // (parts_of("rows", rows) * parts_of("kv_heads", K))
    return "flash" if fits and whole and of_device * tokens >= 16 else "xla"


@functools.cache  # so that it is logged once
def _choose(wanted: str, dtype: str, head_dim: int, target: Target) -> str:
    native = {"gpu": "cudnn", "tpu": "splash"}.get(target.platform, "xla")
    obstacle = "" if wanted == "xla" else _obstacle(native if wanted == "auto" else wanted, target, dtype, head_dim)
    if wanted == "auto":
        chosen = "xla" if obstacle else native
        reason = f", because {native} {obstacle}" if obstacle else ""
    elif obstacle:
        raise InputError(f"attention={wanted!r} {obstacle}; set it to 'auto' or 'xla'")
    else:
        chosen, reason = wanted, ", as configured"
    logging.info("attention of whole rows on %s: %s%s", target.kind, chosen, reason)
    return chosen


def _obstacle(kernel, target: Target, dtype, head_dim) -> str:
    """Why a kernel cannot run, "" if it can."""
    if kernel == "xla":
        return ""
    if kernel == "cudnn":
        if target.capability is None:
            return f"needs an NVIDIA GPU{' of a known kind' if target.platform == 'gpu' else ''}, this is {target.kind}"
        if dtype not in ("bfloat16", "float16"):
            return f"computes in bfloat16 or float16, not in {dtype}"
        largest = 256 if target.capability >= (9, 0) else 128
        if head_dim % 8 or head_dim > largest:
            return f"needs a head_dim that is a multiple of 8 up to {largest}, not {head_dim}"
        return ""
    if kernel == "splash":
        if target.platform != "tpu":
            return f"needs a TPU, this is {target.kind}"
        return ""
    return "is unknown: there are auto, xla, cudnn, splash"
