"""What one GPU reaches, in one process: decoding against the bandwidth, training against the speed of products.

    python benchmarks/gpu.py [--seconds 160] [--parts attention decode training update] [--toy]

Programs are compiled in threads, the most telling ones first, and timed when all are compiled or --seconds are nearly over.
A line of JSON is printed as soon as it is known; a part that fails prints its error. Models have the published shapes but
few layers, because most of the time goes to the compiler: a layer takes the difference between two depths over that of their
layers. Beside each time stands what `zsjax.plan.program` predicts from the compiled program at the bandwidth and the
product rate measured in the same run.
"""

import argparse
import concurrent.futures
import dataclasses
import glob
import json
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import floor
import jax
import jax.numpy as jnp
import numpy as np
from rollout import SHAPES

from zsjax.config.fields import OptimizerConfig
from zsjax.models.attention import attend, attend_cached
from zsjax.models.cache import init_cache
from zsjax.models.decoder import extend, init_params, logits_of, num_params
from zsjax.plan.program import read_program
from zsjax.plan.targets import CHIPS
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.steps import make_update
from zsjax.sampling.logits import row_keys, sample
from zsjax.types import POLICY, PROMPT, TokenBatch

LOOP = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE"
BEGAN, OUTPUTS = time.perf_counter(), {}
CHOICES = {"default": {}, "none": {"xla_gpu_enable_command_buffer": ""}, "loop": {"xla_gpu_enable_command_buffer": LOOP}}


def say(**line):
    print(json.dumps({"at_s": round(time.perf_counter() - BEGAN, 1)} | line), flush=True)


@dataclasses.dataclass
class Case:
    """A program to time.

    Attributes:
      call: of the compiled program, makes a function that runs it once and waits.
      facts: of (seconds, chip), adds to the line.
      steps: turns of a loop that a run is divided by.
      turns: of loops whose number the compiler does not know.
    """

    name: dict
    lower: object
    call: object
    facts: object = lambda seconds, chip: {}
    buffers: str = "default"
    steps: int = 1
    turns: int = 1
    compiled: object = None


def random_array(shape, dtype, scale=0.02):
    """Of one block of normal numbers, again and again: nothing is compiled."""
    block = (scale * np.random.default_rng(0).standard_normal(2**18)).astype(dtype)
    return jax.device_put(np.resize(block, shape))


def random_params(config, dtype):
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))
    return jax.tree.map(lambda x: random_array(x.shape, x.dtype), shapes)


def machine():
    """A chip as measured: bytes/s of a copy, read and written, and FLOP/s of a product of random bf16 numbers."""
    n, size = (8192, 2**28) if jax.default_backend() != "cpu" else (512, 2**22)
    x, y = random_array((n, n), jnp.bfloat16, 1.0), jnp.ones(size, jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x))
    add = jax.jit(lambda y: y + 1, donate_argnums=0)

    def rate(call, work):
        """The best of a few, ten calls each, so that their launches overlap with what runs."""
        best = 0.0
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(10):
                out = call()
            out.block_until_ready()
            best = max(best, 10 * work / (time.perf_counter() - start))
        return best

    def copy():
        nonlocal y
        y = add(y)
        return y

    flops, bandwidth = rate(lambda: product(x), 2 * n**3), rate(copy, 8 * size)
    say(measured="limits", tflops=round(flops / 1e12, 1), copy_gb_per_s=round(bandwidth / 1e9, 1))
    return dataclasses.replace(CHIPS["h100"], flops=flops, bandwidth=bandwidth, reached=1.0)


def decoding(config, rows, capacity, steps):
    """The jitted (params, cache, lengths, key) -> (hidden, cache): `steps` tokens of every row, the cache donated."""
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

    return jax.jit(decode, donate_argnums=1)


def decode_cases(shape, toy):
    """Steps of decoding at two depths, with either attention, command buffers or not."""
    many, few, steps = 8, 2, 32
    # [(layers, rows, capacity, live, attention, command buffers)]
    wanted = [(many, 64, 2048, 2048, "xla", "default"), (many, 64, 2048, 2048, "auto", "default"),
              (few, 64, 2048, 2048, "xla", "default"), (many, 64, 2048, 2048, "auto", "loop"),
              (many, 8, 2048, 2048, "auto", "default"), (many, 64, 2048, 2048, "auto", "none"),
              (few, 64, 2048, 2048, "auto", "default"), (many, 8, 2048, 2048, "xla", "default"),
              (many, 1, 2048, 2048, "auto", "default"), (many, 64, 4096, 1024, "auto", "default")]
    if toy:
        many, few, steps = 2, 1, 8
        wanted = [(2, 4, 64, 64, "xla", "default"), (1, 4, 64, 32, "auto", "default")]
    config = dataclasses.replace(SHAPES[shape], num_layers=many, dtype="bfloat16")
    params = random_params(config, "bfloat16")
    for layers, rows, capacity, live, kernel, buffers in wanted:
        own = dataclasses.replace(config, num_layers=layers, attention=kernel)
        cut, lengths = {**params, "layers": params["layers"][:layers]}, np.full(rows, live, np.int32)

        def lower(own=own, cut=cut, rows=rows, slots=capacity + steps, lengths=lengths):
            cache = jax.eval_shape(lambda: init_cache(own, rows, slots))
            return decoding(own, rows, slots, steps).lower(cut, cache, lengths, jax.random.key(0))

        def call(compiled, own=own, cut=cut, rows=rows, slots=capacity + steps, lengths=lengths):
            cache, key = init_cache(own, rows, slots), jax.random.key(0)

            def run():
                nonlocal cache
                hidden, cache = compiled(cut, cache, lengths, key)
                hidden.block_until_ready()

            return run

        def facts(seconds, chip, own=own, rows=rows, live=live):
            seen = rows * (live + (steps + 1) / 2)
            work = floor.writing(own, rows, 1, 0) + floor.Work(
                4 * own.num_layers * own.num_heads * own.head_dim * seen, seen * floor.cache_token_bytes(own))
            return {"of_floor": round(work.floor(chip.flops, chip.bandwidth) / seconds, 3),
                    "gb_a_step": round(work.bytes / 1e9, 3)}

        yield Case(dict(part="decode", shape=shape, layers=layers, rows=rows, capacity=capacity, live=live, attention=kernel,
                        command_buffers=buffers), lower, call, facts, buffers, steps)


def attention_cases(toy):
    """One layer's attention of single queries against a cache, 20 times."""
    H, K, h, turns = (4, 2, 16, 3) if toy else (16, 2, 128, 20)
    kernels = ("xla",) if toy else ("xla", "flash")
    for rows, capacity, live in [(4, 64, 32)] if toy else [(64, 2048, 2048), (64, 4096, 1024), (1, 2048, 2048)]:
        for kernel in kernels:
            def attention(q, k, v, lengths, kernel=kernel):
                def turn(_, q):
                    return attend_cached(q, (k,), (v,), kv_lengths=lengths, q_positions=lengths[:, None] - 1,
                                         kernel=kernel).reshape(q.shape).astype(q.dtype)

                return jax.lax.fori_loop(0, turns, turn, q)

            def arrays(rows=rows, capacity=capacity, live=live):
                cache = random_array((rows, K, capacity, h), jnp.bfloat16, 1.0)
                return random_array((rows, H, 1, h), jnp.bfloat16, 1.0), cache, cache + 0, np.full(rows, live, np.int32)

            def facts(seconds, chip, size=rows * K * live * h * 4):
                return {"of_bandwidth": round(size / seconds / chip.bandwidth, 3)}

            yield Case(dict(part="attention", rows=rows, capacity=capacity, live=live, kernel=kernel),
                       lambda attention=attention, arrays=arrays: jax.jit(attention).lower(*jax.eval_shape(arrays)),
                       lambda compiled, arrays=arrays: runner(compiled, arrays()), facts, "default", turns)


def training_cases(toy):
    """Whole rows' attention, forward and backward: cuDNN against einsums."""
    B, H, K, T, h = (2, 4, 2, 64, 16) if toy else (8, 16, 2, 2048, 128)
    for kernel in ("xla",) if toy else ("cudnn", "xla"):
        def total(q, k, v, kernel=kernel):
            return attend(q, k, v, kv_lengths=jnp.full(B, T), kernel=kernel).astype(jnp.float32).sum()

        def arrays():
            return [random_array((B, heads, T, h), jnp.bfloat16, 1.0) for heads in (H, K, K)]

        flop = 14 * B * H * T * T * h / 2

        def facts(seconds, chip, flop=flop):
            return {"of_products": round(flop / seconds / chip.flops, 3)}

        yield Case(dict(part="training", T=T, rows=B, kernel=kernel, backward=True),
                   lambda total=total: jax.jit(jax.grad(total, (0, 1, 2))).lower(*jax.eval_shape(arrays)),
                   lambda compiled: runner(compiled, arrays()), facts)


def update_cases(toy):
    """A GRPO update with AdamW in float32, of the published shapes with few layers."""
    for shape, layers, rows, T in [("toy", 1, 2, 64)] if toy else [("3b", 4, 8, 2048)]:
        config = dataclasses.replace(SHAPES[shape], num_layers=layers, dtype="bfloat16")
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6, schedule="constant", clip_norm=1.0), 1)
        update = make_update(config, "ppo_clip", optimizer, chunk=256, kl_coef=1e-3, clip_low=0.2, clip_high=0.2)

        def batch(config=config, rows=rows, T=T):
            def each(x):
                return np.full((rows, T), x, np.float32)

            tokens = np.random.default_rng(0).integers(3, config.vocab_size, (rows, T)).astype(np.int32)
            roles = np.broadcast_to(np.where(np.arange(T) < T // 2, PROMPT, POLICY).astype(np.int8), (rows, T))
            return jax.device_put(TokenBatch(
                tokens=tokens, roles=roles, behavior_logprobs=each(-12), old_logprobs=each(-12), ref_logprobs=each(-12),
                returns=None, values=None, advantages=each(1), rewards=each(0), group_id=np.arange(rows, dtype=np.int32),
                row_valid=np.ones(rows, bool)))

        def lower(update=update, config=config, batch=batch, optimizer=optimizer):
            shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
            return update.lower(shapes, jax.eval_shape(optimizer.init, shapes), batch())

        def call(compiled, config=config, batch=batch, optimizer=optimizer):
            params, batch = random_params(config, "float32"), batch()

            def zeros(x):
                return jax.device_put(np.zeros(x.shape, x.dtype))

            state = jax.tree.map(zeros, jax.eval_shape(optimizer.init, params))

            def run():
                nonlocal params, state
                params, state, info = compiled(params, state, batch)
                info["loss"].block_until_ready()
                return float(info["loss"]), float(info["nonfinite"])

            return run

        def facts(seconds, chip, config=config, rows=rows, T=T):
            attention = config.num_layers * config.num_heads * config.head_dim * T
            flop = 6 * (num_params(config) + attention) * rows * T
            return {"of_products": round(flop / seconds / chip.flops, 3), "tokens_per_s": round(rows * T / seconds)}

        yield Case(dict(part="update", shape=shape, layers=layers, rows=rows, length=T), lower, call, facts,
                   turns=max(T // 2 // 256, 1))  # chunks of positions that have logits: those of the responses


def runner(compiled, arrays):
    return lambda: jax.block_until_ready(compiled(*arrays))


def compile_case(case):
    start = time.perf_counter()
    try:
        case.compiled = case.lowered.compile(CHOICES[case.buffers] or None)
        say(compiled=case.name, compile_s=round(time.perf_counter() - start, 1))
    except Exception as error:
        say(failed=case.name, error=str(error).splitlines()[0][:300])


def measure(case, chip, repeats=5):
    line = dict(case.name)
    run = case.call(case.compiled)
    out = run()
    if line["part"] == "attention":  # both kernels give the same
        key = (line["rows"], line["capacity"])
        other = OUTPUTS.setdefault(key, np.asarray(out, np.float32))
        line["difference"] = float(np.abs(np.asarray(out, np.float32) - other).max() / np.abs(other).max())
    if line["part"] == "update":
        line["loss"], line["nonfinite"] = out
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / case.steps)
    seconds = sorted(times)[repeats // 2]
    line |= {"ms": round(1e3 * seconds, 4), "spread_ms": [round(1e3 * min(times), 4), round(1e3 * max(times), 4)]}
    try:
        program = read_program(case.compiled.as_text())
        phases = [(program.loops[0], 1)] if case.steps > 1 else [
            (phase, phase.turns or case.turns) for phase in program.phases]
        line |= {"kernels": sum(turns * len(phase.kernels) for phase, turns in phases),
                 "predicted_gb": round(sum(turns * phase.bytes for phase, turns in phases) / 1e9, 3),
                 "predicted_ms": round(1e3 * sum(turns * phase.seconds(chip) for phase, turns in phases), 4)}
    except Exception as error:
        line |= {"unread": repr(error)[:200]}
    say(**line, **case.facts(seconds, chip))
    return run, seconds


def profile(case, run):
    """Prints the microseconds of each kernel in one turn, summed by name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        path, = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
        totals = {}
        for plane in data.planes:
            if "GPU" not in plane.name:
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    count, spent = totals.get(event.name, (0, 0.0))
                    totals[event.name] = count + 1, spent + event.duration_ns
    rows = sorted(totals.items(), key=lambda item: -item[1][1])[:45]
    say(profile=case.name, us_a_step={name[:60]: [count, round(ns / case.steps / 1e3, 2)] for name, (count, ns) in rows})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=160)
    parser.add_argument("--parts", nargs="*", default=["decode", "update", "attention", "training"])
    parser.add_argument("--shape", default="3b", choices=SHAPES)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    say(device=jax.devices()[0].device_kind, jax=jax.__version__, platform=jax.default_backend())
    chip = machine()
    makers = {"decode": lambda: decode_cases("toy" if options.toy else options.shape, options.toy),
              "attention": lambda: attention_cases(options.toy), "training": lambda: training_cases(options.toy),
              "update": lambda: update_cases(options.toy)}
    threads, cases, jobs = concurrent.futures.ThreadPoolExecutor(12), [], []
    for part in options.parts:
        try:
            for case in makers[part]():
                case.lowered = case.lower()
                cases.append(case)
                jobs.append(threads.submit(compile_case, case))
        except Exception as error:
            say(failed=part, error=repr(error)[:500])
        say(lowered=part)

    def left():
        return options.seconds - (time.perf_counter() - BEGAN)

    concurrent.futures.wait(jobs, timeout=max(left() - 30, 1))
    say(compiled=sum(case.compiled is not None for case in cases), of=len(cases))
    for case in cases:
        if case.compiled is None or left() < 3:
            say(left_out=case.name)
            continue
        try:
            run, _ = measure(case, chip)
            if case.name["part"] == "decode" and case.name["rows"] in (64, 4) and case.buffers == "default" and left() > 10:
                profile(case, run)
        except Exception as error:
            say(failed=case.name, error=repr(error)[:500])
    say(done=True)
    sys.stdout.flush()
    os._exit(0)  # threads may still compile


if __name__ == "__main__":
    main()
