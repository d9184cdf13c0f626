"""Decoding steps of a full batch against the floor of memory, on one accelerator.

    python benchmarks/gpu_decode.py --shape 3b --rows 64 256 --context 2048 [--mixed]

Random weights and a cache that is full already: nothing is prefilled. A step is a token of every row: `extend`, the
logits, a draw. The floor is the bytes of the weights and of the live cache over the bandwidth that a copy reaches (bytes
read and written), or the operations over the rate of a large product where that is longer. --mixed: contexts from an
eighth of --context up to it, evenly, in a cache that has room for --context. Prints a JSON line a case.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import floor
import jax
import jax.numpy as jnp
import numpy as np
from limits import limits, seconds_of
from rollout import SHAPES

from zsjax.models import init_params
from zsjax.models.cache import init_cache
from zsjax.models.decoder import extend, logits_of
from zsjax.sampling.logits import row_keys, sample


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="3b", choices=SHAPES)
    parser.add_argument("--rows", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--mixed", action="store_true")
    options = parser.parse_args()
    config = dataclasses.replace(SHAPES[options.shape], dtype=options.dtype)
    params = jax.jit(lambda key: init_params(config, key, options.dtype))(jax.random.key(0))
    flops, bandwidth = limits(options.dtype)[0], copy_bandwidth()
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "shape": options.shape,
                      "tflops": round(flops / 1e12, 2), "copy_gb_per_s": round(bandwidth / 1e9, 1)}), flush=True)
    for rows in options.rows:
        try:
            print(json.dumps(measure(options, config, params, rows, flops, bandwidth)), flush=True)
        except jax.errors.JaxRuntimeError as error:  # out of memory: the next case may fit
            print(json.dumps({"rows": rows, "error": str(error).splitlines()[0][:200]}), flush=True)


def measure(options, config, params, rows, flops, bandwidth):
    context, steps = options.context, options.steps
    lengths = np.full(rows, context, np.int32)
    if options.mixed:
        lengths = np.linspace(context // 8, context, rows).astype(np.int32)

    def decode(params, cache, lengths, key):
        def step(carry):
            number, hidden, cache = carry
            keys = row_keys(key, jnp.arange(rows), cache.lengths)
            token, _ = sample(logits_of(params, config, hidden), keys, temperature=1.0)
            hidden, cache = extend(params, config, token[:, None], jnp.ones(rows, jnp.int32), cache)
            return number + 1, hidden[:, 0], cache

        # Every call begins at the same lengths; what the last one wrote behind them is overwritten.
        cache = cache.replace(lengths=lengths)
        hidden = jnp.zeros((rows, config.embed_dim), config.dtype)
        _, hidden, cache = jax.lax.while_loop(lambda carry: carry[0] < steps, step, (0, hidden, cache))
        return hidden, cache

    start = time.perf_counter()
    cache = init_cache(config, rows, context + steps)
    compiled = jax.jit(decode, donate_argnums=1).lower(params, cache, lengths, jax.random.key(0)).compile()
    compile_s = time.perf_counter() - start

    def call():
        nonlocal cache
        hidden, cache = compiled(params, cache, lengths, jax.random.key(0))
        hidden.block_until_ready()

    call()
    seconds = sorted(seconds_of(call) for _ in range(options.repeats))[options.repeats // 2] / steps
    seen = float(lengths.sum()) + rows * (steps + 1) / 2
    work = floor.writing(config, rows, 1, 0) + floor.Work(
        4 * config.num_layers * config.num_heads * config.head_dim * seen, seen * floor.cache_token_bytes(config))
    return {"rows": rows, "context": context, "mixed": options.mixed, "ms_a_step": round(1e3 * seconds, 3),
            "tokens_per_s": round(rows / seconds, 1), "gb_a_step": round(work.bytes / 1e9, 3),
            "gb_per_s": round(work.bytes / seconds / 1e9, 1), "of_floor": round(work.floor(flops, bandwidth) / seconds, 3),
            "bound_by": "memory" if work.bytes / bandwidth > work.flops / flops else "products",
            "compile_s": round(compile_s, 1),
            "temporary_gb": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 3)}


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy, the best of a few."""
    size = 2**28 if jax.default_backend() != "cpu" else 2**25
    x = jnp.ones(size, jnp.float32)
    # In place: a fresh buffer's first touch is what one would measure on CPU.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = add(x)

    def call():
        nonlocal x
        x = add(x)
        x.block_until_ready()

    call()
    return 2 * 4 * size / min(seconds_of(call) for _ in range(9))


if __name__ == "__main__":
    main()
