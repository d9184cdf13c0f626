"""Decoding steps of a full batch against the floor of memory, on one accelerator.

    python benchmarks/gpu_decode.py --shape 3b --rows 64 256 --context 2048 [--live 1024] [--mixed]

Random weights and a cache that is full already: nothing is prefilled. A step is a token of every row: `extend`, the
logits, a draw. The floor is the bytes of the weights and of the live cache over the bandwidth that a copy reaches (bytes
read and written), or the operations over the rate of a large product where that is longer. --mixed: contexts from an
eighth of --context up to it, evenly, in a cache that has room for --context; --live: all of so many tokens there.
--without-command-buffers: the first case again with every kernel launched by itself. All cases are compiled at once, in
threads, before the first is timed. Prints a JSON line a case.
"""

import argparse
import concurrent.futures
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
    parser.add_argument("--live", type=int, help="tokens that a row holds; --context if left out")
    parser.add_argument("--without-command-buffers", action="store_true")
    options = parser.parse_args()
    config = dataclasses.replace(SHAPES[options.shape], dtype=options.dtype)
    params = jax.jit(lambda key: init_params(config, key, options.dtype))(jax.random.key(0))
    cases = [(rows, {}) for rows in options.rows]
    if options.without_command_buffers:
        cases.insert(1, (options.rows[0], {"xla_gpu_graph_min_graph_size": 1_000_000}))
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as threads:
        lowered = [(rows, choices, lower(options, config, params, rows)) for rows, choices in cases]
        compiled = [(rows, choices, threads.submit(timed_compile, program, choices)) for rows, choices, program in lowered]
    flops, bandwidth = limits(options.dtype)[0], copy_bandwidth()
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "shape": options.shape,
                      "tflops": round(flops / 1e12, 2), "copy_gb_per_s": round(bandwidth / 1e9, 1)}), flush=True)
    for rows, choices, program in compiled:
        line = {"shape": options.shape, "rows": rows, "command_buffers": not choices}
        try:
            line |= measure(options, config, params, rows, program, flops, bandwidth)
        except Exception as error:  # out of memory, an unknown option: the next case may run
            line |= {"error": str(error).splitlines()[0][:300]}
        print(json.dumps(line), flush=True)


def timed_compile(program, choices):
    start = time.perf_counter()
    return program.compile(choices or None), time.perf_counter() - start


def lengths_of(options, rows):
    """int32[rows], tokens that each row holds."""
    if options.mixed:
        return np.linspace(options.context // 8, options.context, rows).astype(np.int32)
    return np.full(rows, options.live or options.context, np.int32)


def lower(options, config, params, rows, place=lambda shapes: shapes, platforms=None):
    """The lowered program of `options.steps` steps of all rows: (params, cache, lengths, key) -> (hidden, cache)."""
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
        _, hidden, cache = jax.lax.while_loop(lambda carry: carry[0] < options.steps, step, (0, hidden, cache))
        return hidden, cache

    shapes = lambda: (init_cache(config, rows, options.context + options.steps), jnp.zeros(rows, jnp.int32), jax.random.key(0))
    cache, lengths, key = place(jax.eval_shape(shapes))
    jitted = jax.jit(decode, donate_argnums=1)
    return jitted.trace(params, cache, lengths, key).lower(lowering_platforms=platforms)


def measure(options, config, params, rows, program, flops, bandwidth):
    """What one case took, against its floor."""
    compiled, compile_s = program.result()
    steps, lengths = options.steps, lengths_of(options, rows)
    cache = init_cache(config, rows, options.context + steps)

    def call():
        nonlocal cache
        hidden, cache = compiled(params, cache, lengths, jax.random.key(0))
        hidden.block_until_ready()

    call()
    seconds = sorted(seconds_of(call) for _ in range(options.repeats))[options.repeats // 2] / steps
    seen = float(lengths.sum()) + rows * (steps + 1) / 2
    work = floor.writing(config, rows, 1, 0) + floor.Work(
        4 * config.num_layers * config.num_heads * config.head_dim * seen, seen * floor.cache_token_bytes(config))
    return {"context": options.context, "live": round(float(lengths.mean())), "ms_a_step": round(1e3 * seconds, 3),
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
