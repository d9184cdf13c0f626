"""tunix's sampler on its own Qwen2, run in an environment of its own (see benchmarks/rollout.py --tunix-python).

It knows `decode` and `fixed`. Every length of prompt is a program of its own; the first run of a workload compiles them.
"""

import importlib.metadata
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as model_lib
from tunix.models.qwen2 import params as params_lib

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from turns import serve


class Numbers:
    """A tokenizer whose texts are ids with blanks between them; its end is never drawn."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def bos_id(self):
        return 0  # none is added

    def eos_id(self):
        return -1

    def pad_id(self):
        return 0


def main():
    options = json.loads(sys.argv[1])
    dtype = jnp.dtype(options["dtype"])
    hf = json.loads((pathlib.Path(options["checkpoint"]) / "config.json").read_text())
    head_dim = hf["hidden_size"] // hf["num_attention_heads"]
    config = model_lib.ModelConfig(
        num_layers=hf["num_hidden_layers"], vocab_size=hf["vocab_size"], embed_dim=hf["hidden_size"],
        hidden_dim=hf["intermediate_size"], num_heads=hf["num_attention_heads"], head_dim=head_dim,
        num_kv_heads=hf["num_key_value_heads"], norm_eps=hf["rms_norm_eps"],
        rope_theta=int(hf["rope_parameters"]["rope_theta"] if "rope_parameters" in hf else hf["rope_theta"]),
        use_tied_embedding=hf["tie_word_embeddings"], dtype=dtype, param_dtype=dtype)
    model = params_lib.create_model_from_safe_tensors(options["checkpoint"], config, dtype=dtype)
    rng = np.random.default_rng(0)

    def sampler(capacity):
        return sampler_lib.Sampler(model, Numbers(), sampler_lib.CacheConfig(
            cache_size=capacity, num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=head_dim))

    def continued(sampler, rows, new):
        out = sampler([" ".join(map(str, row)) for row in rows], max_generation_steps=new, max_prompt_length=rows.shape[1],
                      temperature=1.0, top_p=1.0, seed=0, eos_tokens=[-1])
        tokens = np.stack([np.asarray(row)[:new] for row in out.tokens])
        if tokens.shape != (len(rows), new):
            raise RuntimeError(f"{tokens.shape} new tokens, wanted {(len(rows), new)}")
        return np.maximum(tokens, 3)

    def random_ids(rows, size):
        return rng.integers(3, config.vocab_size, (rows, size))

    def decode(w):
        prompts, own = random_ids(w["batch"], w["prompt"]), sampler(w["prompt"] + w["new"])

        def run():
            continued(own, prompts, w["new"])
            return {"tokens": w["batch"] * w["new"]}

        return run

    def fixed(w):
        prompts, simulator_prompts = (random_ids(w["batch"], w[name]) for name in ("prompt", "simulator_prompt"))
        policy = sampler(w["prompt"] + w["turns"] * (w["turn_tokens"] + w["document_tokens"]))
        simulator = sampler(w["simulator_prompt"] + w["document_tokens"])

        def run():
            ids = prompts
            for _ in range(w["turns"]):
                ids = np.concatenate([ids, continued(policy, ids, w["turn_tokens"])], 1)
                ids = np.concatenate([ids, continued(simulator, simulator_prompts, w["document_tokens"])], 1)
            return {"tokens": w["batch"] * w["turns"] * w["turn_tokens"]}

        return run

    def prepare(w):
        run = {"decode": decode, "fixed": fixed}[w["kind"]](w)
        run()
        return run

    serve({"jax": jax.__version__, "tunix": importlib.metadata.version("google-tunix"),
           "device": jax.devices()[0].device_kind}, prepare)


if __name__ == "__main__":
    main()
