"""Products of narrow activations: what their gradients are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.hlo import optimised
from zsjax.models.layers import embed, linear, matmul
from zsjax.models.operands import transposed
from zsjax.models.quant import quantize_matrix
from zsjax.plan import hlo

KEYS = jax.random.split(jax.random.key(0), 3)
X, W = jax.random.normal(KEYS[0], (2, 8, 32)), jax.random.normal(KEYS[1], (32, 64))


def loss(x, w):
    return (matmul(x, w) ** 2).sum()


def products(function, *args):
    """The dtypes of the operands of all products in a function's trace."""
    found = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append({str(x.aval.dtype) for x in equation.invars})
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    look(inner)

    look(jax.make_jaxpr(function)(*args).jaxpr)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradients_are_products_in_the_activations_dtype(dtype):
    found = products(jax.grad(loss, (0, 1)), X.astype(dtype), W)
    assert len(found) == 3 and all(dtypes == {dtype} for dtypes in found)


def compiled_products(function, *args):
    """The dtypes of the operands of all products in the compiled program."""
    module = hlo.read(optimised(jax.jit(function).lower(*args)).as_text())
    return [tuple(lines[name].shapes[0].dtype for name in line.operands) for lines in module.computations.values()
            for line in lines.values() if line.opcode == "dot"]


def test_gradients_are_as_narrow_as_the_product_once_they_are_compiled():
    """XLA on CPU widens the operands of products that it does not have in 16 bits."""
    x, w = (jax.random.normal(KEYS[0], shape) for shape in ((192, 128), (128, 256)))
    forward = compiled_products(matmul, x.astype(jnp.bfloat16), w)
    assert len(forward) == 1
    assert compiled_products(jax.grad(loss, (0, 1)), x.astype(jnp.bfloat16), w) == 3 * forward


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 63, 64, 96, 128, 130])
def test_transposed_is_the_transpose(rows):
    x = jax.random.normal(KEYS[0], (rows, 5)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(transposed(x), x.T)


def test_gradients_in_16_bits_are_near_and_the_matrix_keeps_its_dtype():
    d_x, d_w = jax.grad(loss, (0, 1))(X.astype(jnp.bfloat16), W)
    want_x, want_w = jax.grad(loss, (0, 1))(X, W)
    assert d_x.dtype == jnp.bfloat16 and d_w.dtype == jnp.float32
    for found, want in ((d_x, want_x), (d_w, want_w)):
        assert np.abs(found.astype(jnp.float32) - want).max() < 0.02 * np.abs(want).max()
    assert (d_w != d_w.astype(jnp.bfloat16)).any()  # not rounded


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_frequent_tokens_gradient_does_not_saturate(dtype):
    tokens = jnp.where(jnp.arange(4096).reshape(2, 2048) % 4 == 0, 3, 1)
    got = jax.grad(lambda matrix: embed(matrix, tokens, dtype).astype(jnp.float32).sum())(jnp.ones((5, 2), dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.array([0, 3072, 0, 1024, 0])[:, None] * np.ones(2))


def test_activations_get_a_gradient_through_an_int8_matrix_and_through_adapters_beside_it():
    int8 = quantize_matrix(W, 0)
    d_x = jax.grad(lambda x: loss(x, int8))(X.astype(jnp.bfloat16))
    want = jax.grad(loss)(X, int8.dequantize(jnp.float32))
    assert np.abs(d_x.astype(jnp.float32) - want).max() < 0.02 * np.abs(want).max()
    adapters = {"lora_a": W[:, :4], "lora_b": W[:4]}
    gradients = jax.grad(lambda pair: linear({"kernel": int8, **pair}, X.astype(jnp.bfloat16)).astype(jnp.float32).sum())(
        adapters)
    assert all((x != 0).any() and x.dtype == jnp.float32 for x in gradients.values())
