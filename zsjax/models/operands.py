"""Operands of products, in the layout that is fast on the platform."""

import math

from zsjax.parallel.constrain import platform

BLOCK_ROWS = 64  # that `transposed` moves at a time


def transposed(x):
    """[m, n]: the transpose of x [n, m] of any dtype, as an operand of a product.

    XLA on CPU has 16-bit products of operands as they are stored only. It folds a transpose into the product, which then
    runs in float32: at a fifth of the rate, on a CPU with AMX (measured, benchmarks/RESULTS.md). It does not fold one that
    moves blocks of rows. An odd number of rows has no such blocks, and keeps the slow product.
    """
    n, m = x.shape
    block = math.gcd(n, BLOCK_ROWS)
    block = block // 2 if block == n else block
    if platform() != "cpu" or x.dtype.itemsize != 2 or block < 2:
        return x.T
    return x.reshape(n // block, block, m).transpose(2, 0, 1).reshape(m, n)
