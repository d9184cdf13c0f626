"""What int8 weights cost and save: mean KL(bf16 || int8) of the next token, bytes, decoding speed.

    python benchmarks/quant.py                                        # the carried simulator and two random models
    python benchmarks/quant.py --checkpoint FOLDER --text FILE        # a model of your own on a text of your own

The carried simulator reads the prompts and documents that it was trained to write; random models read random tokens,
which is the harder case: their distributions hold no certainty that rounding leaves alone. Needs jax, flax, optax,
numpy; safetensors, tokenizers and transformers for checkpoints.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.models import DecoderConfig, forward, init_params, load_hf
from zsjax.models.quant import num_bytes, quantize
from zsjax.sampling.decode import generate

RANDOM = {"random, D 896, 6 layers": dict(embed_dim=896, num_layers=6, num_heads=14, num_kv_heads=2, head_dim=64,
                                          mlp_dim=4864),
          "random, D 2048, 2 layers": dict(embed_dim=2048, num_layers=2, num_heads=16, num_kv_heads=2, head_dim=128,
                                           mlp_dim=11008)}


def measure(name, config, params, tokens, valid):
    """Prints one line. tokens int32[B, T], valid bool[B, T]."""
    config = dataclasses.replace(config, dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    int8 = quantize(params)
    forwards = jax.jit(forward, static_argnums=1)
    p, q = (jax.nn.log_softmax(forwards(x, config, tokens, valid=valid)) for x in (params, int8))
    kl = np.asarray((jnp.exp(p) * (p - q)).sum(-1))[valid]
    flips = np.asarray(p.argmax(-1) != q.argmax(-1))[valid]
    entropy = -np.asarray((jnp.exp(p) * p).sum(-1))[valid]
    lengths, speeds = valid.sum(1).astype(np.int32), []
    for x in (params, int8):
        def run(x=x):
            return np.asarray(generate(x, config, tokens, lengths, key=jax.random.key(0), max_new_tokens=32).tokens)

        run()
        start = time.process_time()
        run()
        speeds.append(time.process_time() - start)
    print(json.dumps({
        "model": name, "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "bytes_of_bf16": round(num_bytes(int8) / num_bytes(params), 4), "mean_kl_nats": float(f"{kl.mean():.3g}"),
        "p99_kl": float(f"{np.quantile(kl, 0.99):.3g}"), "argmax_flips": float(f"{flips.mean():.3g}"),
        "entropy_nats": round(float(entropy.mean()), 3), "tokens": int(valid.sum()),
        "decode_time_of_bf16": round(speeds[1] / speeds[0], 2)}), flush=True)


def carried_simulator():
    """(config, params, tokens, valid): the tiny world's simulator on requests of its training worlds."""
    from zsjax import config as configuration
    from zsjax.run import build
    from zsjax.search.engine import SearchContext
    from zsjax.search.simulator.requests import Requests

    experiment = pathlib.Path(__file__).parents[1] / "experiments" / "tiny_world.py"
    settings = configuration.resolve(configuration.load_experiment(str(experiment)))
    tokenizer = build.tokenizer(settings)
    model, params = build.model(settings.simulator, tokenizer, seed=0, path="asset:tiny_world/simulator")
    simulator = build.simulator(settings, model, params, tokenizer)
    questions = build.questions(settings, settings.data.train, 32)
    contexts = [SearchContext(question, noisy=bool(i % 2)) for i, question in enumerate(questions)]
    queries = [question.metadata["queries"][0] for question in questions]
    written = simulator.search(queries, contexts, k=settings.search.num_documents)
    rows = []
    for question, query, context, documents in zip(questions, queries, contexts, written, strict=True):
        (asked, asked_length), (gold, gold_length) = simulator.encode_questions([question])
        tokens, length = simulator.prompts(Requests(
            question=(asked, asked_length), answers=(gold, gold_length),
            query=simulator.encode_queries([query]), noisy=np.array([context.noisy]),
            question_key=np.zeros(1, np.uint32), active=np.ones(1, bool)))
        text = "".join(document.text + "\n" for document in documents)
        rows.append(np.asarray(tokens)[0, :int(length[0])].tolist() + tokenizer.encode(text))
    return model, params, *padded(rows)


def padded(rows):
    size = max(map(len, rows))
    valid = np.arange(size) < np.array([len(row) for row in rows])[:, None]
    tokens = np.zeros((len(rows), size), np.int32)
    tokens[valid] = np.concatenate(rows)
    return tokens, valid


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--text", help="what the checkpoint reads; random tokens without it")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    shape, rng = (options.rows, options.tokens), np.random.default_rng(0)
    if options.checkpoint:
        config, params = load_hf(options.checkpoint, dtype="bfloat16")
        tokens = rng.integers(0, config.vocab_size, shape).astype(np.int32)
        if options.text:
            from zsjax.data import load_tokenizer

            ids = load_tokenizer(options.checkpoint).encode(pathlib.Path(options.text).read_text())
            tokens = np.resize(np.array(ids, np.int32), shape)
        measure(options.checkpoint, config, params, tokens, np.ones(shape, bool))
        return
    measure("carried simulator, its own requests", *carried_simulator())
    for name, fields in RANDOM.items():
        config = DecoderConfig(vocab_size=32000, rope_theta=1e6, **fields)
        tokens = rng.integers(0, config.vocab_size, shape).astype(np.int32)
        # Twice the usual deviation: logits spread as a trained model's do instead of all being alike.
        params = jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, init_params(config, jax.random.key(0)))
        measure(name, config, params, tokens, np.ones(shape, bool))


if __name__ == "__main__":
    main()
