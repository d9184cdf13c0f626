"""The pieces of a decoder as pure functions: RMS norm, rotary embedding, gated mlp, linear.

Letters: B rows, T tokens, D model, H query heads, K kv heads, h head size, F mlp, V vocabulary.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp

from zsjax.models.architecture import ACTIVATIONS, DecoderConfig, RopeScaling
from zsjax.models.operands import transposed

__all__ = ["DecoderConfig", "Int8Heads", "Int8Matrix", "RopeScaling", "embed", "gated_mlp", "linear", "matmul", "rms_norm",
           "rope_frequencies", "rotary_angles", "rotate"]


@flax.struct.dataclass
class Int8Matrix:
    """A matrix values * scale, in place of an array of weights; made by `zsjax.models.quant`.

    Attributes:
      values: int8[i, o].
      scale: float32[1, o] or [i, 1].
    """

    values: jax.Array
    scale: jax.Array

    @property
    def T(self) -> "Int8Matrix":
        return Int8Matrix(self.values.T, self.scale.T)

    def dequantize(self, dtype) -> jax.Array:
        """The whole matrix [i, o]."""
        return (self.values * self.scale).astype(dtype)


@flax.struct.dataclass
class Int8Heads:
    """Keys or values of a layer as values * scale, in place of an array [B, K, S, h]; made by `zsjax.models.quant`.

    Attributes:
      values: int8[B, K, S, h].
      scale: float32[B, K, S], one for each row, head and position.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def rms_norm(x, weight, *, eps, offset=0.0):
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last axis, in float32, returned in x's dtype."""
    return _rms_norm(eps, offset, x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rms_norm(eps, offset, x, weight):
    return _rms_norm_forward(eps, offset, x, weight)[0]


def _factors(weight, offset):
    """float32: 1 + w in bfloat16 would lose digits of w."""
    weight = weight.astype(jnp.float32)
    return offset + weight if offset else weight


def _rms_norm_forward(eps, offset, x, weight):
    y = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (_factors(weight, offset) * (y * scale)).astype(x.dtype), (x, weight, scale)


def _rms_norm_backward(eps, offset, residuals, d_out):
    """With n = x * scale and d_n = d_out * (offset + weight): d_x = scale * (d_n - n * mean(d_n * n)). Autodiff keeps n."""
    x, weight, scale = residuals
    d_out, normed = d_out.astype(jnp.float32), x.astype(jnp.float32) * scale
    d_normed = d_out * _factors(weight, offset)
    d_x = scale * (d_normed - normed * jnp.mean(d_normed * normed, axis=-1, keepdims=True))
    d_weight = (d_out * normed).sum(axis=range(x.ndim - 1))
    return d_x.astype(x.dtype), d_weight.astype(weight.dtype)


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def rope_frequencies(config: DecoderConfig, *, sliding: bool = False):
    """(inverse frequencies float32[h/2] in radians per position, factor on cos and sin), of the layers with a window or of
    the others."""
    h, theta, s = config.head_dim, config.rope_theta, config.rope_scaling
    if sliding and config.sliding_rope_theta is not None:
        theta, s = config.sliding_rope_theta, config.sliding_rope_scaling
    freqs = [theta ** (-i / h) for i in range(0, h, 2)]
    if s is None:
        return jnp.array(freqs, jnp.float32), 1.0
    if s.kind == "linear":
        return jnp.array([f / s.factor for f in freqs], jnp.float32), 1.0
    if s.kind == "llama3":
        def stretch(f):
            wavelengths = s.original_max_position * f / (2 * math.pi)
            if wavelengths < s.low_freq_factor:
                return f / s.factor
            if wavelengths > s.high_freq_factor:
                return f
            smooth = (wavelengths - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
            return (1 - smooth) * f / s.factor + smooth * f
        return jnp.array([stretch(f) for f in freqs], jnp.float32), 1.0
    if s.kind == "yarn":
        def dimension(rotations):
            return h * math.log(s.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(theta))
        low, high = dimension(s.beta_fast), dimension(s.beta_slow)
        if s.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, h - 1)
        high = high + 0.001 if low == high else high
        ramp = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(h // 2)]
        freqs = [f / s.factor * r + f * (1 - r) for f, r in zip(freqs, ramp, strict=True)]
        factor = s.attention_factor
        if factor is None:
            factor = 0.1 * math.log(s.factor) + 1.0 if s.factor > 1 else 1.0
        return jnp.array(freqs, jnp.float32), factor
    raise ValueError(f"unknown rope scaling {s.kind!r}")


def rotary_angles(config: DecoderConfig, positions, *, sliding: bool = False):
    """(cos, sin) float32[B, T, h/2] of int32[B, T] positions, of the layers with a window or of the others."""
    freqs, factor = rope_frequencies(config, sliding=sliding)
    angles = positions[..., None].astype(jnp.float32) * freqs
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


@jax.custom_vjp
def rotate(x, cos, sin):
    """Turns the pairs (i, i + h/2) of x[B, N, T, h] by the angles of [B, T, h/2]. Hugging Face's convention.

    The angles get no gradient.
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    cos, sin = cos[:, None], sin[:, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


# Backward it turns the other way. Autodiff pads and adds what is sliced here.
rotate.defvjp(lambda x, cos, sin: (rotate(x, cos, sin), (cos, sin)),
              lambda angles, d_out: (rotate(d_out, angles[0], -angles[1]), None, None))


def matmul(x, matrix, *, turned: bool = False):
    """x[..., i] @ matrix[i, o], an array or an `Int8Matrix` with a scale an output; operands in x's dtype, float32 out.

    turned: the matrix is the transpose of the stored array [o, i].

    A float32 result also makes bfloat16 products fast on CPU (3x, measured).
    """
    if isinstance(matrix, Int8Matrix):
        # Tied to x: XLA would convert every matrix before a decoding loop and keep the copies. On CPU it drops barriers
        # early, and keeps them (measured: as many bytes as without int8).
        x, values = jax.lax.optimization_barrier((x, matrix.values))
        return matmul(x, values, turned=turned) * matrix.scale[0]
    # Rows in one dimension: with two, XLA on CPU transposes an operand of the weights' gradient, and that product runs at
    # half its speed (measured).
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype.itemsize < 4 and len(rows) > 1:
        return _narrow_product(rows, matrix).reshape(*x.shape[:-1], matrix.shape[1])
    matrix = matrix.astype(x.dtype)
    if len(rows) == 1 and len(matrix) % 2 == 0 and not turned:
        y = jax.lax.platform_dependent(rows, matrix, cpu=_halved_product, default=_product)
    else:
        y = _product(rows, matrix)
    return y.reshape(*x.shape[:-1], matrix.shape[1])


def _product(rows, matrix):
    return jnp.matmul(rows, matrix, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _narrow_product(rows, matrix):
    """`_product` of rows in 16 bits with a matrix of any dtype. Its gradients are products in 16 bits too.

    Autodiff's would be products in float32, because the result's gradient is. Two thirds of a training step would then run
    at half a GPU's bfloat16 rate or less, on twice the bytes (an H100's step reached 0.52 of the rate). The matrix's
    gradient is rounded only to the matrix's dtype.
    """
    return _product(rows, matrix.astype(rows.dtype))


def _narrow_product_backward(operands, d_out):
    rows, matrix = operands
    d_out = d_out.astype(rows.dtype)
    d_rows = _product(d_out, transposed(matrix.astype(rows.dtype)))
    if not jnp.issubdtype(matrix.dtype, jnp.floating):  # int8 has none
        return d_rows.astype(rows.dtype), None
    return d_rows.astype(rows.dtype), _product(transposed(rows), d_out).astype(matrix.dtype)


_narrow_product.defvjp(lambda rows, matrix: (_narrow_product(rows, matrix), (rows, matrix)), _narrow_product_backward)


def _halved_product(row, matrix):
    """Of one row, as two half rows: XLA on CPU then reads the matrix 1.2 to 1.5 times as fast (measured).

    For a transpose of a stored array it would be a copy, and is not needed.
    """
    halves = row.reshape(2, 1, -1), matrix.reshape(2, -1, matrix.shape[1])
    return jnp.einsum("pbi,pio->pbo", *halves, preferred_element_type=jnp.float32).sum(axis=0)


def embed(matrix, tokens, dtype):
    """Rows of [V, D], an array or an `Int8Matrix` with a scale a row, in `dtype`."""
    if isinstance(matrix, Int8Matrix):
        return (matrix.values[tokens] * matrix.scale[tokens]).astype(dtype)
    return _rows_of(matrix, tokens).astype(dtype)


@jax.custom_vjp
def _rows_of(matrix, tokens):
    """matrix[tokens], whose gradient is added up in float32.

    XLA adds up a look-up's gradient in the matrix's dtype: in bfloat16 a token that occurs 16,384 times counts 256 times.
    """
    return matrix[tokens]


def _rows_of_forward(matrix, tokens):
    return matrix[tokens], (matrix, tokens)


def _rows_of_backward(saved, gradient):
    matrix, tokens = saved
    total = jnp.zeros(matrix.shape, jnp.promote_types(matrix.dtype, jnp.float32)).at[tokens].add(gradient)
    return total.astype(matrix.dtype), None


_rows_of.defvjp(_rows_of_forward, _rows_of_backward)


def linear(params, x):
    """x[..., i] @ kernel[i, o] (+ bias[o]) (+ x @ lora_a[i, r] @ lora_b[r, o]), accumulated in float32, in x's dtype."""
    y = matmul(x, params["kernel"])
    if "bias" in params:
        y = y + params["bias"].astype(jnp.float32)
    if "lora_a" in params:
        y = y + matmul(matmul(x, params["lora_a"]).astype(x.dtype), params["lora_b"])
    return y.astype(x.dtype)


def gated_mlp(params, x, activation: str):
    """down(f(gate(x)) * up(x)), the middle in float32; f is one of `ACTIVATIONS`."""
    gate, up = linear(params["gate_proj"], x), linear(params["up_proj"], x)
    inner = ACTIVATIONS[activation](gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return linear(params["down_proj"], inner.astype(x.dtype))
