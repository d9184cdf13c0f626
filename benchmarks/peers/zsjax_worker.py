"""This library: `generate`, and the compiled rollout of `zsjax.rollout` with scripted lengths."""

import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np
from limits import limits
from scripted import scripted_rollout
from turns import serve

from zsjax.models import load_hf
from zsjax.sampling.decode import generate


def main():
    options = json.loads(sys.argv[1])
    config, params = load_hf(options["checkpoint"], dtype=options["dtype"])
    config = dataclasses.replace(config, dtype=options["dtype"])
    rng = np.random.default_rng(0)

    def decode(w):
        prompts = rng.integers(3, config.vocab_size, (w["batch"], w["prompt"])).astype(np.int32)
        lengths = np.full(w["batch"], w["prompt"], np.int32)

        def run():
            out = generate(params, config, prompts, lengths, key=jax.random.key(0), max_new_tokens=w["new"])
            return {"tokens": int(np.asarray(out.lengths).sum())}

        return run

    def rollout(w):
        return scripted_rollout(config, params, w, rng)

    def machine(w):
        return lambda: dict(zip(("flops", "bandwidth"), limits(options["dtype"]), strict=True))

    kinds = {"decode": decode, "fixed": rollout, "realistic": rollout, "limits": machine}

    def prepare(w):
        run = kinds[w["kind"]](w)
        if w["kind"] != "limits":
            run()  # compiles
        return run

    serve({"jax": jax.__version__, "device": jax.devices()[0].device_kind, "platform": jax.default_backend()}, prepare)


if __name__ == "__main__":
    main()
