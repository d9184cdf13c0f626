"""Programs for GPUs that are not there, whose figures are budgets.

    python -m tests.compiled.programs NAME > tests/compiled/NAME.json

writes the budget of one of `PROGRAMS` anew, from a checkout without changes and an environment with zsjax[plan-gpu].
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.config.fields import OptimizerConfig
from zsjax.models.cache import init_cache
from zsjax.models.decoder import init_params
from zsjax.models.families import PRESETS
from zsjax.models.placement import param_shardings
from zsjax.parallel.constrain import on
from zsjax.parallel.mesh import TRAIN_RULES, make_mesh, replicated, row_sharding
from zsjax.plan.decode_loop import make_decode_loop
from zsjax.plan.memory import moment_shardings
from zsjax.plan.program import read_program
from zsjax.plan.targets import read_target
from zsjax.plan.topology import devices_of, tracing_for
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.steps import make_update
from zsjax.types import TokenBatch


def decode(target, preset):
    """A step of 64 rows: 4,096 slots of a row's cache, all layers."""
    rows, config = 64, dataclasses.replace(PRESETS[preset], dtype="bfloat16")
    place = on_devices(replicated(make_mesh({}, devices_of(target))))
    shapes = jax.eval_shape(lambda: (init_params(config, jax.random.key(0), jnp.bfloat16), init_cache(config, rows, 4096),
                                     jnp.zeros(rows, jnp.int32), jax.random.key(0)))
    return make_decode_loop(config, rows, steps=32).lower(*place(shapes))


def update_3b(target):
    """A GRPO update over eight devices by fsdp: 4 of the 36 layers, 8 rows of 2,048 tokens."""
    B, T, config = 8, 2048, dataclasses.replace(PRESETS["Qwen2.5-3B"], dtype="bfloat16", num_layers=4)
    mesh = make_mesh({"fsdp": target.devices}, devices_of(target))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6, clip_norm=1.0), 10)
    update = make_update(config, "ppo_clip", optimizer, kl_coef=1e-3, remat="layers")
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    places = param_shardings(config, mesh, TRAIN_RULES)
    state = jax.eval_shape(optimizer.init, params)

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct((B, *shape), np.dtype(dtype))

    logprobs = of("float32", T)
    batch = TokenBatch(tokens=of("int32", T), roles=of("int8", T), behavior_logprobs=logprobs, old_logprobs=logprobs,
                       ref_logprobs=logprobs, advantages=logprobs, returns=None, values=None, rewards=logprobs,
                       group_id=of("int32"), row_valid=of("bool"))
    placed = jax.tree.map(place_on, (params, state), (places, moment_shardings(state, places, mesh)))
    return on(mesh, update.lower)(*placed, on_devices(row_sharding(mesh))(batch))


def place_on(shape, sharding):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def on_devices(sharding):
    return lambda tree: jax.tree.map(lambda shape: place_on(shape, sharding), tree)


MODELS = {"decode_3b": "Qwen2.5-3B", "decode_0_5b": "Qwen2.5-0.5B", "decode_0_6b": "Qwen3-0.6B"}
PROGRAMS = {name: (functools.partial(decode, preset=preset), "h100:1") for name, preset in MODELS.items()} | {
    "update_3b": (update_3b, "a100-80gb:8")}


def compiled(name):
    """{"target", "jax", "commit", "figures"} of a program; figures are those of its loops' bodies once."""
    lower, target = PROGRAMS[name]
    target = read_target(target)
    with tracing_for(target):
        program = lower(target).compile()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    return {"target": str(target), "jax": jax.__version__, "commit": commit.strip(),
            "figures": figures(program, target.chip)}


def figures(program, chip) -> dict[str, float]:
    """Kernels, bytes, FLOPs by dtype, exchanges and copies, of what runs outside of loops and of one turn of each loop."""
    phases = read_program(program.as_text()).phases
    copies = [kernel for phase in phases for kernel in phase.copies()]
    found = {"kernels": sum(len(phase.kernels) for phase in phases), "bytes": sum(phase.bytes for phase in phases),
             "predicted_seconds": sum(phase.seconds(chip) for phase in phases),
             "temporaries": program.memory_analysis().temp_size_in_bytes,
             "copied_bytes": sum(kernel.copied for kernel in copies),
             "widened_bytes": sum(kernel.copied for kernel in copies if kernel.widened)}
    for phase in phases:
        for kind, amounts in (("flops", phase.flops), ("exchanged", phase.exchanged)):
            for name, amount in amounts.items():
                found[f"{kind}/{name}"] = found.get(f"{kind}/{name}", 0) + amount
    return found


def grown(found: dict[str, float], budget: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Figure -> (budget, found) of those that are more than 5 % above it; one without a budget has none at all."""
    return {name: (budget.get(name, 0), amount) for name, amount in found.items() if amount > 1.05 * budget.get(name, 0)}


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # the plug-in then looks for no device
    print(json.dumps(compiled(sys.argv[1]), indent=1))
