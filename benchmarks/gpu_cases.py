"""The programs of benchmarks/gpu.py: how each is lowered, called, and what it must at least do."""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import floor
import jax
import jax.numpy as jnp
import numpy as np
from rollout import SHAPES

from zsjax.config.fields import OptimizerConfig
from zsjax.models.attention import attend, attend_cached
from zsjax.models.cache import init_cache
from zsjax.models.decoder import init_params, num_params
from zsjax.plan.decode_loop import make_decode_loop
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.steps import make_update
from zsjax.types import POLICY, PROMPT, TokenBatch


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


def decode_cases(shape, toy, short=False):
    """Steps of decoding at two depths and several numbers of rows; unless `short`, with either attention, command buffers or
    not."""
    many, few, steps = 8, 2, 32
    # [(layers, rows, capacity, live, attention, command buffers)]
    wanted = [(many, 64, 2048, 2048, "xla", "default"), (many, 64, 2048, 2048, "auto", "default"),
              (few, 64, 2048, 2048, "xla", "default"), (many, 64, 2048, 2048, "auto", "loop"),
              (many, 8, 2048, 2048, "auto", "default"), (many, 64, 2048, 2048, "auto", "none"),
              (few, 64, 2048, 2048, "auto", "default"), (many, 8, 2048, 2048, "xla", "default"),
              (many, 1, 2048, 2048, "auto", "default"), (many, 64, 4096, 1024, "auto", "default"),
              (many, 128, 2048, 2048, "auto", "default")]
    if short:
        wanted = [case for case in wanted if case[2:] == (2048, 2048, "auto", "default")]
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
            return make_decode_loop(own, rows, steps).lower(cut, cache, lengths, jax.random.key(0))

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
    for shape, layers, rows, T in [("toy", 1, 2, 64)] if toy else [("3b", 4, 8, 2048), ("0.6b", 8, 8, 2048)]:
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
