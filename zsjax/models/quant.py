"""int8 weights for a model that is only read, such as the frozen simulator, and int8 caches: half of bfloat16's bytes.

Symmetric, rounded to nearest. Weights have one float32 scale for each output of a product (LLM.int8(), arXiv 2208.07339,
section 2.1, without its outlier columns; activations keep their dtype), cached keys and values one for each row, head and
position (KVQuant, arXiv 2401.18079, calls it per token), so that a token's numbers are rounded once, when it is written,
whatever stands beside it. The products themselves run in the activations' dtype: int8 is how things are stored and read.
benchmarks/quant.py measures what that changes in the next-token distribution, benchmarks/quant_rollouts.py in episodes.
"""

import jax
import jax.numpy as jnp

from zsjax.models.layers import Int8Heads, Int8Matrix

__all__ = ["dequantize", "num_bytes", "quantize", "quantize_heads"]


def quantize_matrix(matrix, axis: int) -> Int8Matrix:
    """matrix[i, o] with one scale for each slice along the other axis: scale = max |w| / 127 over `axis`."""
    matrix = matrix.astype(jnp.float32)
    scale = jnp.abs(matrix).max(axis=axis, keepdims=True) / 127
    values = jnp.round(matrix / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return Int8Matrix(values, scale)


def quantize_heads(x) -> Int8Heads:
    """x[B, K, N, h] with scale = max |x| / 127 over h; |values * scale - x| <= scale / 2."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis=-1) / 127
    return Int8Heads(jnp.round(x / jnp.where(scale > 0, scale, 1)[..., None]).astype(jnp.int8), scale)


def quantize(params):
    """The decoder's parameters with every kernel and the embedding as `Int8Matrix`; norms and biases stay.

    Wherever parameters go (`forward`, `extend`, `generate`, a `Simulator`), these can go. They are not trained: an
    int8 array has no gradient. A tree with adapters is merged first (`zsjax.models.lora.merge`).
    """
    one = jax.jit(quantize_matrix, static_argnames="axis")  # matrix by matrix: no second copy of the model

    def leaf(path, x):
        if x.ndim != 2:
            return x
        # A product's outputs: the columns of a kernel, but the rows of an embedding, which is looked up by row and, when
        # tied, transposed for the logits.
        return one(x, axis=1 if path[-1] == jax.tree_util.DictKey("embed_tokens") else 0)

    return jax.tree_util.tree_map_with_path(leaf, params)


def dequantize(params, dtype=jnp.float32):
    """The tree of float arrays that quantised `params` represent."""

    def is_int8(x):
        return isinstance(x, Int8Matrix)

    return jax.tree.map(lambda x: x.dequantize(dtype) if is_int8(x) else x, params, is_leaf=is_int8)


def num_bytes(params) -> int:
    """Bytes of all arrays, scales included."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
