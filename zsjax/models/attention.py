"""Causal grouped-query attention: one contract, one reference ("xla"), and the kernels of two platforms.

    xla      einsums and a softmax; runs everywhere; also what reads a cache, token by token, on every platform
    cudnn    jax.nn.dot_product_attention's flash attention on NVIDIA GPUs, for whole rows
    splash   jax.experimental.pallas.ops.tpu.splash_attention on one TPU core, for whole rows

`choose` decides once per platform and model and logs it. A kernel that was asked for by name and cannot run is an error.
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp

from zsjax.models.layers import Int8Heads

NEG_INF = -1e30  # finite: a row without any visible key gives an average, never NaN
SPLASH_BLOCK = 128  # tokens, and lanes of a head: what the kernel's tiles divide


def attend(q, k, v, *, kv_lengths, q_positions=None, window=None, kernel: str = "xla"):
    """softmax(q k^T / sqrt(h)) v over the keys a query may see.

    Slot s of row b holds the token at position s. A query at position p sees slots s <= p, s < kv_lengths[b] and, with
    a window, s > p - window. Scores and softmax are float32.

    Args:
      q: [B, H, T, h].
      k, v: [B, K, S, h]; head i of q reads head i // (H / K). With q_positions they may be `Int8Heads`: their values
        enter the products as they are, and the scales multiply what is small, the scores and the weights.
      kv_lengths: int32[B], live slots of each row.
      q_positions: int32[B, T]; None is 0 .. T-1 with T = S: whole rows.
      window: None or int, tokens.
      kernel: what `choose` returned. It serves whole rows; q_positions are always served by "xla".

    Returns:
      [B, T, H * h], in q's dtype. Queries at or beyond their row's length get rubbish, finite; nothing may read it.
    """
    if q_positions is None and kernel != "xla":
        out = {"cudnn": _cudnn, "splash": _splash}[kernel](q, k, v, kv_lengths, window)
    else:
        out = _xla(q, k, v, kv_lengths, jnp.arange(q.shape[2])[None] if q_positions is None else q_positions, window)
    B, H, T, h = q.shape
    return out.reshape(B, T, H * h)


def _xla(q, k, v, kv_lengths, q_positions, window):
    """[B, T, H, h]."""
    B, H, T, h = q.shape
    K, S = k.shape[1], k.shape[2]
    G, dtype = H // K, q.dtype
    (k, k_scale), (v, v_scale) = ((x.values, x.scale[:, :, None]) if isinstance(x, Int8Heads) else (x, None)
                                  for x in (k, v))
    if jax.default_backend() == "cpu":
        # Batched bf16 products with a float32 result do not exist there.
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    # The group is folded into the rows of one product a kv head: 2.7x faster on CPU than a 5-letter einsum.
    q = q.reshape(B, K, G * T, h)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k.astype(q.dtype), preferred_element_type=jnp.float32) / math.sqrt(h)
    if k_scale is not None:
        scores = scores * k_scale  # [B, K, 1, S]
    slots = jnp.arange(S)
    visible = (slots <= q_positions[:, :, None]) & (slots < kv_lengths[:, None, None])
    if window is not None:
        visible &= slots > q_positions[:, :, None] - window
    scores = scores.reshape(B, K, G, T, S)
    scores = jnp.where(visible[:, None, None], scores, NEG_INF)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    weights = weights.reshape(B, K, G * T, S)
    if v_scale is not None:
        weights = weights * v_scale
    out = jnp.einsum("bkqs,bksh->bkqh", weights.astype(q.dtype), v.astype(q.dtype), preferred_element_type=jnp.float32)
    return out.reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4).astype(dtype)


def _cudnn(q, k, v, lengths, window):
    """[B, T, H, h]."""
    # A row without tokens would be a softmax over nothing.
    lengths = jnp.maximum(lengths, 1).astype(jnp.int32)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
                                        local_window_size=None if window is None else (window - 1, 0),
                                        implementation="cudnn")


def _splash(q, k, v, lengths, window, interpret: bool = False):
    """[B, T, H, h]. Rows and heads are padded with zeros to the kernel's tiles, which changes nothing."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (B, H, T, h), K = q.shape, k.shape[1]
    size = -(-T // SPLASH_BLOCK) * SPLASH_BLOCK
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, size - T), (0, -h % SPLASH_BLOCK)))
    shape = (size, size)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    kernel = splash.make_splash_mqa_single_device(splash.MultiHeadMask([mask] * (H // K)), interpret=interpret)
    # Padding is a segment of its own: nothing else sees it, and its queries see each other rather than nothing.
    segments = (jnp.arange(size) < lengths[:, None]).astype(jnp.int32)
    row = lambda q, k, v, segment: jax.vmap(kernel, (0, 0, 0, None))(q, k, v, splash.SegmentIds(segment, segment))
    q = (pad(q) * (1 / math.sqrt(h))).reshape(B, K, H // K, size, -1)
    out = jax.vmap(row)(q, pad(k), pad(v), segments)
    return out.reshape(B, H, size, -1)[:, :, :T, :h].swapaxes(1, 2).astype(v.dtype)


def choose(config) -> str:
    """The kernel for whole rows of a `DecoderConfig` on this machine: "xla", "cudnn" or "splash".

    Raises:
      ValueError: `config.attention` names a kernel that cannot run here; the message says why.
    """
    return _choose(config.attention, config.dtype, config.head_dim)


@functools.cache  # so that it is logged once
def _choose(wanted: str, dtype: str, head_dim: int) -> str:
    device = jax.devices()[0]
    native = {"gpu": "cudnn", "tpu": "splash"}.get(device.platform, "xla")
    obstacle = "" if wanted == "xla" else _obstacle(native if wanted == "auto" else wanted, device, dtype, head_dim)
    if wanted == "auto":
        chosen = "xla" if obstacle else native
        reason = f", because {native} {obstacle}" if obstacle else ""
    elif obstacle:
        raise ValueError(f"attention={wanted!r} {obstacle}; set it to 'auto' or 'xla'")
    else:
        chosen, reason = wanted, ", as configured"
    cached = "" if chosen == "xla" else "; cached decoding: xla"
    logging.info("attention on %s: %s%s%s", device.device_kind, chosen, reason, cached)
    return chosen


def _obstacle(kernel, device, dtype, head_dim) -> str:
    """Why a kernel cannot run, "" if it can."""
    if kernel == "xla":
        return ""
    if kernel == "cudnn":
        if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
            return f"needs an NVIDIA GPU, this is {device.device_kind}"
        if dtype not in ("bfloat16", "float16"):
            return f"computes in bfloat16 or float16, not in {dtype}"
        if head_dim % 8 or head_dim > 128:
            return f"needs a head_dim that is a multiple of 8 up to 128, not {head_dim}"
        return ""
    if kernel == "splash":
        if device.platform != "tpu":
            return f"needs a TPU, this is {device.device_kind}"
        if jax.device_count() > 1:
            return f"is not partitioned over devices yet, and there are {jax.device_count()}"
        return ""
    return "is unknown: there are auto, xla, cudnn, splash"
