"""What this machine can do, measured: FLOP/s of a large matrix product, bytes/s of reading memory."""

import time

import jax
import jax.numpy as jnp
import numpy as np


def clock():
    """Seconds: of the process's CPU time on CPU, which other processes on the core do not lengthen; of the wall else."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def seconds_of(call):
    start = clock()
    call()
    return clock() - start


def limits(dtype) -> tuple[float, float]:
    """(FLOP/s of a large product, bytes/s of reading an array), the best of a few tries."""
    # Far beyond a CPU's last cache; an accelerator needs more to be timed at all.
    size = 2**26 if jax.default_backend() == "cpu" else 2**28
    x, big = jnp.ones((2048, 2048), dtype), jnp.ones(size, jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    # Each row its own sum: one long sum is bound by its additions.
    read = jax.jit(lambda x: x.reshape(-1, 2048).sum(axis=0))
    calls = [lambda: product(x).block_until_ready(), lambda: read(big).block_until_ready()]
    if jax.default_backend() == "cpu":
        host = np.ones(size, np.float32)
        calls.append(lambda: np.dot(host, host))  # reads once, at what BLAS can
    for call in calls:
        call()
    best = [min(seconds_of(call) for _ in range(5)) for call in calls]
    return 2 * 2048**3 / best[0], big.nbytes / min(best[1:])
