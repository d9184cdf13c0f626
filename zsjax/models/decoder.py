"""A decoder (Qwen2, Qwen3, Llama, Gemma 3) as pure functions over a nested dict of arrays.

Parameters follow Hugging Face's names: `layers` is a list, and `params["layers"][0]["attn"]["q_proj"]["kernel"]` is
Hugging Face's `model.layers.0.self_attn.q_proj.weight`, transposed to [in, out] because few-row products are up to
twice as fast in that layout.

Two ways to read tokens: `hidden_states` sees whole rows at once (training, scoring); `extend` appends tokens to a
cache (prefill and decoding, one token or many). They agree within float error, which the tests hold.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from zsjax.models.attention import attend, attend_cached, choose, choose_cached
from zsjax.models.cache import KVCache, init_cache
from zsjax.models.layers import DecoderConfig, Int8Matrix, embed, gated_mlp, linear, matmul, rms_norm, rotary_angles, rotate
from zsjax.parallel.constrain import constrain, platform
from zsjax.types import PADDING_LOGIT

__all__ = ["DecoderConfig", "ParamSpec", "param_specs", "specs_of", "init_params", "num_params", "cast_matrices",
           "decoding_params", "forward", "hidden_states", "unembedding", "logits_of", "extend", "init_cache"]


# Names of remat -> what the backward pass keeps of a layer's forward pass; it computes the rest again.
REMAT = {
    "layers": None,  # nothing but the layer's input
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),  # attention is not run twice
    "matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # only what is cheap is run twice
}


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Shape and logical axes of one parameter; `init` is "normal", "ones" or "zeros"."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = "normal"


def param_specs(config: DecoderConfig) -> dict[str, Any]:
    """The tree of parameters as `ParamSpec`s. Logical axes: embed heads kv_heads mlp vocab."""
    D, F, V = config.embed_dim, config.mlp_dim, config.vocab_size
    q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def norm(size):
        return ParamSpec((size,), (None,), "zeros" if config.norm_offset else "ones")

    def dense(shape, axes, bias=False):
        spec = {"kernel": ParamSpec(shape, axes)}
        if bias:
            spec["bias"] = ParamSpec(shape[-1:], axes[-1:], "zeros")
        return spec

    def layer():
        attn = {
            "q_proj": dense((D, q_dim), ("embed", "heads"), config.qkv_bias),
            "k_proj": dense((D, kv_dim), ("embed", "kv_heads"), config.qkv_bias),
            "v_proj": dense((D, kv_dim), ("embed", "kv_heads"), config.qkv_bias),
            "o_proj": dense((q_dim, D), ("heads", "embed")),
        }
        if config.qk_norm:
            attn["q_norm"] = norm(config.head_dim)
            attn["k_norm"] = norm(config.head_dim)
        around_mlp = ("pre_feedforward_layernorm", "post_feedforward_layernorm") if config.post_norms else ()
        return {
            "input_layernorm": norm(D),
            "attn": attn,
            "post_attention_layernorm": norm(D),
            **{name: norm(D) for name in around_mlp},
            "mlp": {
                "gate_proj": dense((D, F), ("embed", "mlp")),
                "up_proj": dense((D, F), ("embed", "mlp")),
                "down_proj": dense((F, D), ("mlp", "embed")),
            },
        }

    specs = {
        "embed_tokens": ParamSpec((V, D), ("vocab", "embed")),
        "layers": [layer() for _ in range(config.num_layers)],
        "norm": norm(D),
    }
    if not config.tie_embeddings:
        specs["lm_head"] = dense((D, V), ("embed", "vocab"))
    return specs


def _is_spec(x):
    return isinstance(x, ParamSpec)


def specs_of(params, config: DecoderConfig):
    """`ParamSpec`s of given parameters: `param_specs`, with adapters (zsjax.models.lora) and int8 matrices
    (zsjax.models.quant) where the parameters have them."""
    def of(given, spec):
        if isinstance(given, Int8Matrix):
            def cut(x):
                axes = zip(spec.axes, x.shape, strict=True)
                return ParamSpec(x.shape, tuple(axis if n > 1 else None for axis, n in axes))

            return Int8Matrix(cut(given.values), cut(given.scale))
        if isinstance(given, list):
            return [of(*pair) for pair in zip(given, spec, strict=True)]
        if not isinstance(given, dict):
            return spec
        specs = {name: of(x, spec[name]) for name, x in given.items() if name not in ("lora_a", "lora_b")}
        if "lora_a" in given:
            inputs, outputs = spec["kernel"].axes
            specs |= {"lora_a": ParamSpec(given["lora_a"].shape, (inputs, None)),
                      "lora_b": ParamSpec(given["lora_b"].shape, (None, outputs))}
        return specs

    return of(params, param_specs(config))


def init_params(config: DecoderConfig, key, dtype=jnp.float32):
    """Random parameters: normal with deviation 0.02, residual outputs scaled by (2L)^-1/2 (GPT-2); norms scale by one."""
    specs = param_specs(config)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(specs, is_leaf=_is_spec)
    keys = jax.random.split(key, len(leaves))

    def init(path, spec, key):
        if spec.init == "zeros":
            return jnp.zeros(spec.shape, dtype)
        if spec.init == "ones":
            return jnp.ones(spec.shape, dtype)
        name = jax.tree_util.keystr(path)
        scale = 0.02 / math.sqrt(2 * config.num_layers) if "o_proj" in name or "down_proj" in name else 0.02
        return (scale * jax.random.normal(key, spec.shape, jnp.float32)).astype(dtype)

    return treedef.unflatten([init(p, s, k) for (p, s), k in zip(leaves, keys, strict=True)])


def num_params(config: DecoderConfig) -> int:
    """Number of parameters; a tied unembedding counts once."""
    specs = jax.tree.leaves(param_specs(config), is_leaf=_is_spec)
    return sum(math.prod(s.shape) for s in specs)


def cast_matrices(params, config: DecoderConfig):
    """Kernels and embeddings in config.dtype, cast once before a loop instead of at every use in it.

    Every use casts them anyway: results are the same to the last bit. Norms, biases and int8 matrices are not cast.
    """
    dtype, is_int8 = jnp.dtype(config.dtype), lambda x: isinstance(x, Int8Matrix)
    return jax.tree.map(lambda x: x if is_int8(x) or x.ndim != 2 else x.astype(dtype), params, is_leaf=is_int8)


def decoding_params(params, config: DecoderConfig):
    """Parameters for a decoding loop, made once before it: `cast_matrices`, and on CPU a transposed copy of a tied
    unembedding, [D, V], and the embedding as it is.

    XLA on CPU multiplies 8 to 32 rows with [D, V] 1.2 (float32) to 3 times (bfloat16) as fast as with the transpose of
    [V, D], and one row equally fast (measured). It looks up rows of 16 bits in a float32 copy of the whole embedding. On
    accelerators both products are equally fast, and the copy would cost memory.
    """
    embedding, params = params["embed_tokens"], cast_matrices(params, config)
    if platform() != "cpu" or isinstance(embedding, Int8Matrix):
        return params
    head = params["lm_head"] if "lm_head" in params else {"kernel": params["embed_tokens"].T}
    return {**params, "embed_tokens": embedding, "lm_head": head}


def _embed(params, config, tokens):
    table = constrain(params["embed_tokens"], "vocab", None)  # gathered over fsdp before the look-up, not after
    x = embed(table, tokens, config.dtype)
    if config.embed_scale != 1.0:
        x = x * jnp.asarray(config.embed_scale, x.dtype)
    return constrain(x, "rows", None, None)


def _split_heads(x, num_heads):
    B, T, _ = x.shape
    return x.reshape(B, T, num_heads, -1).swapaxes(1, 2)


def _norm(params, config, x):
    return rms_norm(x, params, eps=config.rms_eps, offset=config.norm_offset)


def _angles(config, positions):
    """{whether a layer has a window: its (cos, sin)}; without the key True, those of False are for all layers."""
    kinds = (False,) if config.sliding_rope_theta is None else (False, True)
    return {kind: rotary_angles(config, positions, sliding=kind) for kind in kinds}


def _layer(params, config: DecoderConfig, window: int | None, x, angles, read_kv):
    """One decoder layer. angles: of `_angles`. read_kv: (q, k, v) -> attention's output; it stores the new k and v."""
    cos, sin = angles.get(window is not None, angles[False])
    y = _norm(params["input_layernorm"], config, x)
    attn = params["attn"]
    q = _split_heads(linear(attn["q_proj"], y), config.num_heads)
    k = _split_heads(linear(attn["k_proj"], y), config.num_kv_heads)
    v = _split_heads(linear(attn["v_proj"], y), config.num_kv_heads)
    if config.qk_norm:
        q = _norm(attn["q_norm"], config, q)
        k = _norm(attn["k_norm"], config, k)
    # Attention divides scores by h^1/2. The rotation, in float32, applies another scale.
    factor = 1.0 if config.query_scale is None else config.query_scale * math.sqrt(config.head_dim)
    rotated = rotate(q, cos, sin) if factor == 1.0 else rotate(q, cos * factor, sin * factor)
    out = read_kv(rotated, rotate(k, cos, sin), v)
    out = linear(attn["o_proj"], checkpoint_name(out.astype(x.dtype), "attention"))
    if not config.post_norms:
        x = x + out
        return x + gated_mlp(params["mlp"], _norm(params["post_attention_layernorm"], config, x), config.activation)
    x = x + _norm(params["post_attention_layernorm"], config, out)
    out = gated_mlp(params["mlp"], _norm(params["pre_feedforward_layernorm"], config, x), config.activation)
    return x + _norm(params["post_feedforward_layernorm"], config, out)


def _layers(params, config):
    """(parameters, the window or None) of each layer."""
    return [(layer, config.sliding_window if index in config.sliding_layers else None)
            for index, layer in enumerate(params["layers"])]


def hidden_states(params, config: DecoderConfig, tokens, *, positions=None, valid=None, remat="none"):
    """Final hidden states of whole rows, after the last norm.

    Args:
      params: as `param_specs`.
      tokens: int32[B, T], right-padded.
      positions: int32[B, T] or None for 0 .. T-1, used by the rotary embedding only; causality follows the order.
      valid: bool[B, T] or None; True for a prefix of each row. Hidden states at invalid positions are meaningless.
      remat: "none" keeps all activations for the backward pass; a name in `REMAT` recomputes some of a layer's.

    Returns:
      [B, T, D] in config.dtype.

    Raises:
      KeyError: an unknown remat.
    """
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T)) if positions is None else positions
    kernel = choose(config)
    lengths = jnp.full(B, T) if valid is None else valid.sum(axis=1)
    angles = _angles(config, positions)
    x = _embed(params, config, tokens)

    @functools.partial(jax.jit, static_argnums=2)  # within the caller's program: layers of a kind are traced once
    def layer(params, x, window):
        def read_kv(q, k, v):
            return attend(q, k, v, kv_lengths=lengths, window=window, kernel=kernel)

        return constrain(_layer(params, config, window, x, angles, read_kv), "rows", None, None)

    if remat not in (False, "none"):
        layer = jax.checkpoint(layer, static_argnums=2, policy=REMAT["layers" if remat is True else remat])
    for layer_params, window in _layers(params, config):
        x = layer(layer_params, x, window)
    return _norm(params["norm"], config, x)


def _unembedding(params, config):
    """([D, V], whether it is the transpose of the stored array)."""
    turned = config.tie_embeddings and "lm_head" not in params  # `decoding_params` may have turned it before
    matrix = params["embed_tokens"].T if turned else params["lm_head"]["kernel"]
    return constrain(matrix, None, "vocab"), turned  # gathered over fsdp once, not in every chunk of positions


def unembedding(params, config: DecoderConfig):
    """(The matrix from hidden states to logits, whether it is tied): [V, D] as the embedding is stored, else [D, V]."""
    matrix, turned = _unembedding(params, config)
    matrix = matrix.dequantize(config.dtype) if isinstance(matrix, Int8Matrix) else matrix
    return (matrix.T if turned else matrix), turned


def logits_of(params, config: DecoderConfig, hidden):
    """float32[..., V] logits of [..., D] hidden states, accumulated in float32; padding rows as `config.num_ids` says."""
    matrix, turned = _unembedding(params, config)
    logits = matmul(hidden, matrix, turned=turned)
    if config.num_ids is None:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < config.num_ids, logits, PADDING_LOGIT)


def forward(params, config: DecoderConfig, tokens, *, positions=None, valid=None):
    """Logits float32[B, T, V] of int32[B, T] right-padded tokens; see `hidden_states` for the arguments."""
    return logits_of(params, config, hidden_states(params, config, tokens, positions=positions, valid=valid))


def extend(params, config: DecoderConfig, tokens, count, cache: KVCache, rows=None):
    """Appends the first count[b] of tokens[b] to each row of the cache.

    Args:
      tokens: int32[B, N].
      count: int32[B], 0 .. N; the row's other tokens are not kept, and no kept token sees them.
      cache: capacity for all rows, or the tokens beyond it are lost.
      rows: None, or int32[B] different rows of a cache with more rows than B, to which tokens and count belong.

    Returns:
      (hidden [B, N, D] after the final norm, meaningless from count[b] on; the longer cache).
    """
    N = tokens.shape[1]
    lengths = cache.row_lengths(rows)
    positions = lengths[:, None] + jnp.arange(N)
    kv_lengths = jnp.where(count > 0, lengths + count, 0)  # rows that append nothing need not be read
    # Looked up, so that a decoding loop computes the angles of all slots once. Fused into their use, they would be computed
    # again for every head and layer.
    angles = jax.tree.map(lambda x: x.at[positions].get(mode="clip"), _angles(config, jnp.arange(cache.capacity)))
    x, kernel = _embed(params, config, tokens), choose_cached(config, *tokens.shape)

    @functools.partial(jax.jit, static_argnums=3)  # as in `hidden_states`
    def layer(params, x, cache, window):
        def read_kv(q, k, v):
            nonlocal cache
            cache = cache.write(k, v, rows)
            return attend_cached(q, cache.k[0], cache.v[0], q_positions=positions, kv_lengths=kv_lengths, rows=rows,
                                 window=window, kernel=kernel)

        return _layer(params, config, window, x, angles, read_kv), cache

    for index, (layer_params, window) in enumerate(_layers(params, config)):
        x, written = layer(layer_params, x, cache.layer(index), window)
        cache = cache.with_layer(index, written)
    return _norm(params["norm"], config, x), cache.advance(count, rows)
