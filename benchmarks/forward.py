"""Prefill and decoding, tokens/s, against transformers on the same checkpoint, alternating in one run.

    taskset -c 0 python benchmarks/forward.py [--preset small] [--dtype bfloat16] [--batches 1 8 32]
    python benchmarks/forward.py --checkpoint FOLDER          # a Hugging Face folder of your own

Both read the same prompts greedily, without a stop token. `prefill` is the time of generating one token; `decode` is what
the further tokens take, divided by their number. On CPU everything runs on one thread and times are the process's CPU
time, which another process on the core does not lengthen (`cpu` says what share of the core the run had); on a GPU they
are wall time. `of the limit` is the time that the work would take at the measured speed of a matrix product or of
reading memory, whichever is longer (named), over the time it took.

Needs jax, flax, optax, numpy; torch, transformers and safetensors for the peer, which is left out without them.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false "
                               "intra_op_parallelism_threads=1").strip()

import jax
import numpy as np
from limits import limits, seconds_of

from zsjax.models import DecoderConfig, init_params, load_hf, num_params, save_hf
from zsjax.models.families import PRESETS
from zsjax.sampling.decode import generate

SMALL = DecoderConfig(vocab_size=8192, embed_dim=512, num_layers=8, num_heads=8, num_kv_heads=2, head_dim=64, mlp_dim=1408,
                      rope_theta=1e6)


def ours(config, params, prompts):
    lengths = np.full(len(prompts), prompts.shape[1], np.int32)

    def run(new):
        out = generate(params, config, prompts, lengths, key=jax.random.key(0), max_new_tokens=new, temperature=0.0)
        return np.asarray(out.tokens)

    return run


def theirs(folder, dtype, prompts):
    import torch
    import transformers

    cpu = jax.default_backend() == "cpu"
    if cpu:
        torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype),
                                                              attn_implementation="sdpa")
    model = model.eval().to("cpu" if cpu else "cuda")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0

    def run(new):
        with torch.inference_mode():
            ids = torch.tensor(prompts, dtype=torch.long, device=model.device)
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
        return out[:, prompts.shape[1]:].cpu().numpy()

    return run


def work(config, params, batch, prompt, new):
    """{"prefill" | "decode": (FLOP, bytes read)}, the decode's for all `new` steps."""
    embedding = params["embed_tokens"]
    tied = config.tie_embeddings
    matrices = num_params(config) - config.vocab_size * config.embed_dim * (1 if tied else 2)
    head = config.vocab_size * config.embed_dim
    item, attention = embedding.dtype.itemsize, 4 * config.num_layers * config.num_heads * config.head_dim
    weights = sum(x.nbytes for x in jax.tree.leaves(params)) - (0 if tied else embedding.nbytes)
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * item  # bytes a token
    seen = sum(prompt + i for i in range(1, new + 1))
    return {"prefill": (batch * (2 * matrices * prompt + attention * prompt * prompt / 2 + 2 * head), weights),
            "decode": (batch * (2 * (matrices + head) * new + attention * seen), weights * new + batch * cache * seen)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a Hugging Face folder; without it a random one is made")
    parser.add_argument("--preset", default="small", help=f"shape of the random one: small, {', '.join(PRESETS)}")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=32, help="tokens decoded after the first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, temporary)


def measure(options, temporary):
    versions = None if options.no_peer else peer_versions()
    folder = options.checkpoint
    if folder is None:
        shape = SMALL if options.preset == "small" else PRESETS[options.preset]
        params, config = init_params(shape, jax.random.key(0), options.dtype), shape
        config = DecoderConfig(**{**shape.__dict__, "dtype": options.dtype})
        if versions:
            folder = save_hf(pathlib.Path(temporary) / "model", config, params)
    if folder is not None:
        config, params = load_hf(folder, dtype=options.dtype)
    flops, bandwidth = limits(options.dtype)
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "peer": versions, "parameters": num_params(config),
                      "dtype": options.dtype, "prompt": options.prompt, "new": options.new,
                      "gflops_limit": round(flops / 1e9, 1), "gb_s_limit": round(bandwidth / 1e9, 1)}), flush=True)
    rng = np.random.default_rng(0)
    for batch in options.batches:
        prompts = rng.integers(3, config.vocab_size, (batch, options.prompt)).astype(np.int32)
        runs = {"zsjax": ours(config, params, prompts)}
        if versions:
            runs["transformers"] = theirs(folder, options.dtype, prompts)
        needed = work(config, params, batch, options.prompt, options.new)
        least = {phase: (of_phase[0] / flops, of_phase[1] / bandwidth) for phase, of_phase in needed.items()}
        for line in compare(runs, batch, options, least):
            print(json.dumps({"batch": batch} | line), flush=True)


def peer_versions():
    """torch's and transformers' versions in words, None where they are not installed."""
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"no peer: {error}", file=sys.stderr)
        return None
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def compare(runs, batch, options, least):
    """Lines on runs in turn: {name: new tokens -> tokens}; least: {phase: (seconds by FLOPs, seconds by bytes)}."""
    tokens = {name: run(options.new + 1) for name, run in runs.items()}  # compiles and warms up
    for run in runs.values():
        run(1)
    times, began = {name: {"one": [], "all": []} for name in runs}, (time.perf_counter(), time.process_time())
    for _ in range(options.repeats):
        for name, run in runs.items():
            times[name]["one"].append(seconds_of(functools.partial(run, 1)))
            times[name]["all"].append(seconds_of(functools.partial(run, options.new + 1)))
    cpu = (time.process_time() - began[1]) / (time.perf_counter() - began[0])
    rates = {}
    for name, found in times.items():
        one, all_ = statistics.median(found["one"]), statistics.median(found["all"])
        for phase, seconds, count in (("prefill", one, options.prompt), ("decode", all_ - one, options.new)):
            by_flops, by_bytes = least[phase]
            rates[phase, name] = batch * count / seconds
            yield {"phase": phase, "who": name, "tokens_per_s": round(rates[phase, name], 1),
                   "of_the_limit": round(max(by_flops, by_bytes) / seconds, 3),
                   "limit": "matmul" if by_flops > by_bytes else "memory", "cpu": round(cpu, 2)}
    if "transformers" in runs:
        yield {"same_tokens": round(float(np.mean(tokens["zsjax"] == tokens["transformers"])), 3), **{
            f"{phase}_ratio": round(rates[phase, "zsjax"] / rates[phase, "transformers"], 2)
            for phase in ("prefill", "decode")}}


if __name__ == "__main__":
    main()
