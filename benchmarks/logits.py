r"""Seconds and peak memory of log-probs at Gemma's vocabulary, 262,144 tokens: by chunk, and by the tokens that are wanted.

    python benchmarks/logits.py [--rows 8] [--tokens 256] [--embed 64] [--wanted 0.25]

Each line is a process of its own. Seconds are the processor's, of all threads, so that other programs on the machine count
little. `score` is a forward pass, `gradient` the backward pass with it.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

VOCABULARY = 262144
CASES = {  # name -> chunk, whether only the wanted tokens are computed
    "chunk 256, the default before, all tokens": (256, False),
    "chunk 32, all tokens": (32, False),
    "chunk 32, wanted tokens of each row": (32, True),
    "256 MiB, all tokens": (0, False),
    "256 MiB, wanted tokens": (0, True),
}


def measure(options, chunk, only_wanted, kind):
    """{"seconds", "gigabytes"}: of the best of two calls, and beyond what the process had before them."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from zsjax.rl.logprobs import token_logprobs

    B, T, D = options.rows, options.tokens, options.embed
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    unembed = jnp.asarray(rng.normal(size=(D, VOCABULARY)) * 0.1, jnp.float32)
    tokens = jnp.asarray(rng.integers(0, VOCABULARY, (B, T)), jnp.int32)
    wanted = jnp.asarray(rng.random((B, T)) < options.wanted)

    def total(hidden, unembed):
        logprobs, _ = token_logprobs(hidden, unembed, tokens, chunk=chunk, with_entropy=kind == "gradient",
                                     wanted=wanted if only_wanted else None)
        return jnp.where(wanted, logprobs, 0).sum()

    function = total if kind == "score" else jax.grad(total, (0, 1))
    program = jax.jit(function).lower(hidden, unembed).compile()
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(2):
        start = time.process_time()
        jax.block_until_ready(program(hidden, unembed))
        seconds.append(time.process_time() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(min(seconds), 2), "gigabytes": round((after - before) / 1e6, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 8), ("tokens", 256), ("embed", 64), ("wanted", 0.25)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--case", help="one line, in this process")
    parser.add_argument("--kind", choices=("score", "gradient"), default="score")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options, *CASES[options.case], options.kind)))
        return
    for case in CASES:
        for kind in ("score", "gradient"):
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--case", case, "--kind", kind],
                                  capture_output=True, text=True, check=True)
            print(json.dumps({"case": case, "kind": kind} | json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main()
