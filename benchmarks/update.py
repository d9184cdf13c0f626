"""One GRPO update: tokens/s, peak memory and share of the matmul limit, against torch and tunix, alternating in one run.

    taskset -c 0 python benchmarks/update.py --peers torch,torch-mkl,tunix --tunix-python VENV/bin/python
    python benchmarks/update.py --shape 3b --rows 8 --length 4096 --dtype bfloat16 --remat layers --peers none

The update of `zsjax.rl.steps` on a TokenBatch (half of each row prompt, half policy; clipped ratio, k3 to a reference,
token mean, clip by global norm, AdamW in float32), and the same from the same checkpoint on the same numbers in
    torch      transformers' model with SDPA, torch.optim.AdamW
    torch-mkl  the same on CPU with MKL told that it runs on an Intel CPU, without which it takes a slow path on AMD's
    torch-mkl-kept  and with logits of the responses alone (logits_to_keep), as ours; the others have them of all tokens
    tunix      its Qwen2, its grpo_loss_fn and its Trainer's compiled step, in an environment of its own
`loss` and `grad_norm` of the first step are printed to show that the work is the same. Each side is a process that makes
one step when it is told to, so the sides take turns and only one runs. `NAME:n` cuts a torch peer's batch into microbatches
of n rows, --microbatch-rows ours; several numbers are several sides.

On CPU everything runs on one thread and times are the process's CPU time, which another process on the core does not
lengthen (`cpu_share` says what share of the core a side had); memory is the peak resident set. On a GPU they are wall
time and the allocator's peak. `of_the_limit` is the time that 6 FLOP a weight and token, causal attention and the head
take at the measured speed of a matrix product, over the time it took; nothing computed twice counts. bfloat16 means
bfloat16 products with float32 weights (torch: autocast).

Needs jax, flax, optax, numpy; safetensors, torch and transformers for peers, and gcc for torch-mkl.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEARNING_RATE, KL_COEF, CLIP, MAX_NORM = 1e-6, 1e-3, 0.2, 1.0
MKL_IS_INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=["toy", "small", "0.5b", "0.6b", "3b"])
    parser.add_argument("--layers", type=int, help="ours alone: a model of so many of the shape's layers")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--peers", default="none", help="none, or names of the sides above, separated by commas")
    parser.add_argument("--tunix-python", default=sys.executable, help="interpreter that imports tunix")
    parser.add_argument("--microbatch-rows", type=int, nargs="+", default=[0])
    parser.add_argument("--chunk", type=int, default=256, help="positions that have logits at a time")
    parser.add_argument("--remat", default="none", help="ours: a name in decoder.REMAT; torch: any but none checkpoints")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def problem(rows, length, vocab_size):
    """tokens int32[B, T], response bool[T], advantages float32[B], and float32 old and reference log-probs of any token."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, vocab_size, (rows, length)).astype(np.int32)
    old = -np.log(np.float32(vocab_size))  # about what a random model gives
    return tokens, np.arange(length) >= length // 2, rng.normal(size=rows).astype(np.float32), old, old + 0.01


# ---- workers: each returns (step: () -> (loss, grad_norm), peak bytes on an accelerator or None, facts)


def zsjax(options, microbatch_rows):
    sys.path.insert(0, str(ROOT))
    import jax
    import jax.numpy as jnp

    from zsjax.config.fields import OptimizerConfig
    from zsjax.models import DecoderConfig, init_params, num_params, save_hf
    from zsjax.models.families import PRESETS
    from zsjax.rl.optimizer import make_optimizer
    from zsjax.rl.steps import make_update
    from zsjax.types import POLICY, PROMPT, TokenBatch

    small = DecoderConfig(vocab_size=8192, embed_dim=512, num_layers=8, num_heads=8, num_kv_heads=2, head_dim=64,
                          mlp_dim=1408, rope_theta=1e6)
    shapes = {"small": small, "0.5b": PRESETS["Qwen2.5-0.5B"], "3b": PRESETS["Qwen2.5-3B"], "0.6b": PRESETS["Qwen3-0.6B"],
              "toy": dataclasses.replace(small, vocab_size=512, embed_dim=64, num_layers=2, head_dim=8, mlp_dim=176)}
    config = dataclasses.replace(shapes[options.shape], dtype=options.dtype)
    if options.layers:
        config = dataclasses.replace(config, num_layers=options.layers)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    if not list(pathlib.Path(options.folder).iterdir()) and options.peers != "none":
        save_hf(options.folder, config, params)
    tokens, response, advantages, old, ref = problem(options.rows, options.length, config.vocab_size)

    def every(x):
        return jnp.broadcast_to(jnp.asarray(x, jnp.float32), tokens.shape)

    batch = TokenBatch(
        tokens=jnp.asarray(tokens), roles=jnp.asarray(np.where(response, POLICY, PROMPT) + 0 * tokens, jnp.int8),
        behavior_logprobs=every(old), old_logprobs=every(old), ref_logprobs=every(ref), returns=None, values=None,
        advantages=every(advantages[:, None]), rewards=every(0), group_id=jnp.arange(len(tokens)),
        row_valid=jnp.ones(len(tokens), bool))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant", clip_norm=MAX_NORM), 1)
    update = make_update(config, "ppo_clip", optimizer, microbatch_rows=microbatch_rows, chunk=options.chunk,
                         remat=options.remat, kl_coef=KL_COEF, clip_low=CLIP, clip_high=CLIP)
    state = [params, jax.jit(optimizer.init)(params)]
    del params

    def step():
        *state[:], info = update(*state, batch)
        return float(info["loss"]), float(info["grad_norm"])

    embedding = config.vocab_size * config.embed_dim
    weights = num_params(config) - (0 if config.tie_embeddings else embedding)
    attention = config.num_layers * config.num_heads * config.head_dim * options.length  # causal: half of the scores
    device = jax.devices()[0]
    facts = {"device": device.device_kind, "jax": jax.__version__, "parameters": num_params(config),
             "flop": 6 * (weights + attention) * tokens.size, "limit": product_limit(options.dtype)}
    return step, lambda: (device.memory_stats() or {}).get("peak_bytes_in_use"), facts


def product_limit(dtype) -> float:
    """FLOP/s of a large product, the best of a few tries."""
    import jax
    import jax.numpy as jnp

    n = 2048 if jax.default_backend() == "cpu" else 8192
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)  # of ones a GPU multiplies faster: they cost less power
    tries = [timed(lambda: product(x).block_until_ready(), jax.default_backend() == "cpu")[1] for _ in range(8)]
    return 2 * n**3 / min(tries)


def torch(options, microbatch_rows):
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu" else "cpu"
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32,
                                                              attn_implementation="sdpa").to(device).train()
    if options.remat != "none":
        model.gradient_checkpointing_enable()
    tokens, response, advantages, old, ref = problem(options.rows, options.length, model.config.vocab_size)
    kept = int(response.sum()) + 1 if options.worker.partition(":")[0].endswith("kept") else tokens.shape[1]
    tokens, mask = torch.tensor(tokens, dtype=torch.long, device=device), torch.tensor(response[1 - kept:], device=device)
    advantages, weight = torch.tensor(advantages, device=device)[:, None], int(response.sum()) * len(tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def loss_of(tokens, advantages):
        with torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            logits = model(tokens, use_cache=False, logits_to_keep=kept).logits
        logits = logits[:, :-1].float()
        logprobs = logits.gather(-1, tokens[:, 1 - kept:, None])[..., 0] - logits.logsumexp(-1)
        ratio = torch.exp(logprobs - old)
        policy = -torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        gap = ref - logprobs
        return ((policy + KL_COEF * (torch.exp(gap) - gap - 1)) * mask).sum() / weight

    def step():
        total = 0.0
        for part in torch.arange(len(tokens), device=device).split(microbatch_rows or len(tokens)):
            loss = loss_of(tokens[part], advantages[part])
            loss.backward()
            total += loss.item()
            del loss
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total, norm.item()

    def peak():
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    return step, peak, {"torch": torch.__version__, "transformers": transformers.__version__}


def tunix(options, microbatch_rows):
    import importlib.metadata

    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from tunix.models.qwen2 import model as qwen2
    from tunix.models.qwen2 import params as qwen2_params
    from tunix.rl import algo_core, trainer
    from tunix.rl.grpo import grpo_learner
    from tunix.sft import peft_trainer

    shape = json.loads((pathlib.Path(options.folder) / "config.json").read_text())
    config = qwen2.ModelConfig(
        num_layers=shape["num_hidden_layers"], vocab_size=shape["vocab_size"], embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"], num_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"], num_kv_heads=shape["num_key_value_heads"],
        rope_theta=int(shape.get("rope_theta") or shape["rope_parameters"]["rope_theta"]), norm_eps=shape["rms_norm_eps"],
        use_tied_embedding=shape["tie_word_embeddings"], dtype=jnp.dtype(options.dtype), param_dtype=jnp.float32)
    model = qwen2_params.create_model_from_safe_tensors(options.folder, config, dtype=jnp.float32)
    tokens, response, advantages, old, ref = problem(options.rows, options.length, config.vocab_size)
    prompt, completion = jnp.asarray(tokens[:, ~response]), jnp.asarray(tokens[:, response])

    def every(x):
        return jnp.full(completion.shape, x, jnp.float32)

    example = grpo_learner.TrainExample(
        prompt_ids=prompt, prompt_mask=jnp.ones_like(prompt), completion_ids=completion, completion_mask=every(1),
        advantages=jnp.asarray(advantages), ref_per_token_logps=every(ref), old_per_token_logps=every(old))
    algorithm = grpo_learner.GRPOConfig(beta=KL_COEF, epsilon=CLIP, num_generations=2)
    algorithm.temperature = 1.0
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(LEARNING_RATE))
    training = trainer.Trainer(model, optimizer, peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=10**6),
                               custom_checkpoint_metadata_fn=dict)
    training.with_loss_fn(lambda model, train_example, algo_config: algo_core.grpo_loss_fn(
        model, train_example, algo_config=algorithm, pad_id=0, eos_id=-1), has_aux=True)
    training.with_gen_model_input_fn(lambda x: {"train_example": x, "algo_config": None})
    train, _ = training.jit_train_and_eval_step(cache_nnx_graph=True)

    def step():
        loss, _, norm = train(example)
        jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
        return float(loss), float(norm)

    def peak():
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    return step, peak, {"tunix": importlib.metadata.version("google-tunix"), "jax": jax.__version__}


WORKERS = {"zsjax": zsjax, "torch": torch, "torch-mkl": torch, "torch-mkl-kept": torch, "tunix": tunix}


def timed(call, cpu):
    """(what it returns, seconds of CPU time if `cpu` else of wall time, CPU seconds, wall seconds)."""
    wall, own = time.perf_counter(), time.process_time()
    out = call()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return out, own if cpu else wall, own, wall


def work(options):
    """A worker: says JSON facts, then makes a step and says what it took for each line it is sent."""
    say, sys.stdout = sys.stdout, sys.stderr

    def tell(**facts):
        return print(json.dumps(facts), file=say, flush=True)

    name, _, rows = options.worker.partition(":")
    step, peak, facts = WORKERS[name](options, int(rows or 0))
    tell(**facts)
    for _ in sys.stdin:
        (loss, grad_norm), _, cpu, wall = timed(step, True)
        accelerator = peak()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tell(cpu=cpu, wall=wall, loss=loss, grad_norm=grad_norm, accelerator=accelerator is not None,
             peak=accelerator or resident)


# ---- the driver


class Side:
    """A worker process; `ask()` makes it take one step and waits for it."""

    def __init__(self, name, options, folder, library):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": (
            os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1").strip()}
        if name.startswith("torch-mkl"):
            environment["LD_PRELOAD"] = str(library)
        python = options.tunix_python if name.startswith("tunix") else sys.executable
        self.name, self.times = name, []
        self.process = subprocess.Popen([python, __file__, *sys.argv[1:], "--worker", name, "--folder", str(folder)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.facts = self.hear()

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        said = self.hear()
        print(json.dumps({"side": self.name, "cpu": round(said["cpu"], 3), "wall": round(said["wall"], 3)}), flush=True)
        return said


def main():
    options = arguments()
    if options.worker:
        return work(options)
    names = [f"zsjax:{rows}" if rows else "zsjax" for rows in options.microbatch_rows]
    names += [] if options.peers == "none" else options.peers.split(",")
    unknown = [name for name in names if name.partition(":")[0] not in WORKERS or name.startswith("tunix:")]
    if unknown:
        raise SystemExit(f"no such side: {', '.join(unknown)}; there are {', '.join(WORKERS)}, and NAME:n but for tunix")
    with tempfile.TemporaryDirectory() as temporary:
        folder, library = pathlib.Path(temporary) / "model", pathlib.Path(temporary) / "intel.so"
        folder.mkdir()
        if any(name.startswith("torch-mkl") for name in names):
            (library.with_suffix(".c")).write_text(MKL_IS_INTEL)
            subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, library.with_suffix(".c")], check=True)
        sides = []
        try:
            for name in names:  # the first one writes the checkpoint
                sides.append(Side(name, options, folder, library))
            measure(options, sides)
        finally:
            for side in sides:
                side.process.kill()


def measure(options, sides):
    facts = sides[0].facts
    print(json.dumps({key: getattr(options, key) for key in ("shape", "layers", "rows", "length", "dtype", "chunk", "remat")}
                     | {"gflops_limit": round(facts["limit"] / 1e9)} | {k: v for s in sides for k, v in s.facts.items()
                                                                      if k not in ("limit", "flop")}), flush=True)
    for side in sides:
        side.first = side.ask()
        if side.name == "tunix":
            side.ask()  # it compiles again in its second step
    for _ in range(options.repeats):
        for side in sides:
            side.times.append(side.ask())
    rows = []
    for side in sides:
        memory = side.times[-1]
        used = [t["wall" if memory["accelerator"] else "cpu"] for t in side.times]
        seconds = statistics.median(used)
        rows.append({
            "side": side.name, "tokens_per_s": round(options.rows * options.length / seconds, 1),
            "seconds": round(seconds, 3), "spread": [round(min(used), 3), round(max(used), 3)],
            "of_the_limit": round(facts["flop"] / facts["limit"] / seconds, 3), "peak_mb": round(memory["peak"] / 1e6),
            "cpu_share": round(sum(t["cpu"] for t in side.times) / sum(t["wall"] for t in side.times), 3),
            "times_ours": round(seconds / rows[0]["seconds"], 2) if rows else 1.0,
            "first_wall_s": round(side.first["wall"], 1), "loss": round(side.first["loss"], 5),
            "grad_norm": round(side.first["grad_norm"], 4)})
        print(json.dumps(rows[-1]), flush=True)
    print("\n| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(x) for x in row.values()) + " |")


if __name__ == "__main__":
    main()
