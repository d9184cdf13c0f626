"""Ahead-of-time compilation of a step's programs for TPUs or NVIDIA GPUs, on a machine without one.

    python -m zsjax.plan.aot config.json v5e:16

prints one JSON line a program, see `measure`, or {"program", "error"}. The compiler's plug-in must not be loaded where other
work is done: hence a process of its own (`zsjax.plan.compile_programs`).
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zsjax import config as configuration
from zsjax.models import lora
from zsjax.parallel.constrain import on
from zsjax.parallel.mesh import TRAIN_RULES, local_mesh, make_mesh, replicated, row_sharding
from zsjax.plan import memory
from zsjax.plan.program import read_program
from zsjax.plan.rollout_programs import lower_reranker, rollout_programs, with_shardings
from zsjax.plan.setup import PlanSetup, driven_by_host, make_setup
from zsjax.plan.targets import PlanTarget, read_target
from zsjax.plan.topology import devices_of, tracing_for
from zsjax.rl.algorithms import needs_reference
from zsjax.rl.objective import load_loss
from zsjax.rl.optimizer import make_optimizers
from zsjax.rl.passes import make_programs
from zsjax.types import TokenBatch


def main(path: str, target: str):
    setup = make_setup(configuration.from_json(pathlib.Path(path).read_text()), read_target(target))
    for name, lower in programs(setup, devices_of(setup.target)).items():
        try:
            with tracing_for(setup.target):
                compiled = lower().compile()
                line = {"program": name} | measure(compiled) | counts(compiled, setup.target.chip)
        except Exception as error:  # its text says by how much a program does not fit
            line = {"program": name, "error": str(error).strip()[:600]}
        print(json.dumps(line), flush=True)


def measure(compiled) -> dict[str, int]:
    """Bytes on one device by the compiler's count."""
    stats = compiled.memory_analysis()
    return {"arguments": stats.argument_size_in_bytes, "outputs": stats.output_size_in_bytes,
            "aliased": stats.alias_size_in_bytes, "temporaries": stats.temp_size_in_bytes,
            "code": stats.generated_code_size_in_bytes}


def counts(compiled, chip) -> dict:
    """What the program's text says of one device.

    Returns:
      {"flops": of products in all turns of all loops, None where their number is unknown;
       "phases": [{"name", "turns", "times", "kernels", "bytes", "flops", "exchanged", "seconds", "floor", "copies",
                   "copied", "widened"}], see `zsjax.plan.program.Phase`}.
      Seconds are predicted. Copies are those of `Phase.copies`, in number and bytes; "widened" are the bytes of those from
      a smaller dtype. Phases that move and multiply next to nothing are left out.
    """
    program = read_program(compiled.as_text())
    return {"flops": program.flops, "phases": [_figures(phase, chip) for phase in program.phases
                                               if max(phase.bytes, sum(phase.flops.values())) > 1e6]}


def _figures(phase, chip) -> dict:
    copies, floor = phase.copies(), phase.floor
    name = "outside of loops" if phase.name == "program" else phase.scope or phase.name
    return {"name": name, "turns": phase.turns, "times": phase.times, "kernels": len(phase.kernels),
            "bytes": phase.bytes, "flops": phase.flops, "exchanged": phase.exchanged, "seconds": phase.seconds(chip),
            "floor": {"bytes": floor.bytes, "flops": dict(floor.flops), "seconds": phase.floor_seconds(chip)},
            "copies": len(copies), "copied": sum(kernel.copied for kernel in copies),
            "widened": sum(kernel.copied for kernel in copies if kernel.widened)}


def programs(setup: PlanSetup, devices) -> dict:
    """{"update", "score", "rollout", ...} -> a function that lowers the program for the devices, as `train` calls it.

    With a value model there are "value score" and "value update". With train.microbatch_tokens an update is that of the
    longest part, and "apply" ("value apply") is the optimizer's step. With search.rerank there is "reranker", its update.
    Rollouts are those of `rollout_programs`; one that the host drives has no program, see `not_counted`.
    """
    config, algorithm = setup.config, setup.config.algorithm
    mesh = make_mesh(config.mesh, devices)
    rows = row_sharding(mesh)
    cut = memory.policy_shardings(setup, mesh)
    trained, frozen = with_shardings(memory.policy_shapes(setup), cut)
    optimizers = make_optimizers(config)
    made = make_programs(config, setup.policy, loss=load_loss(algorithm.loss), optimizer=optimizers[0],
                         value_optimizer=optimizers[1], assemble=lora.assembler(config.policy.lora))
    coef = None
    if algorithm.kl_target and algorithm.kl_in == "loss":
        coef = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))

    def moments(optimizer, params, places):
        state = jax.eval_shape(optimizer.init, params)
        return with_shardings(state, memory.moment_shardings(state, places, mesh))

    def lower(function, *given):
        return on(mesh, function.lower)(*given)

    def updates(function, prefix, *given):
        """An update in one program or, of parts, in two."""
        batch_rows = setup.micro_rows(setup.update_rows) * setup.shards if made.packed else setup.minibatch_rows
        given = (*given[:2], _batch(config, batch_rows, rows), *given[2:])
        if not made.packed:
            return {f"{prefix}update": lambda: lower(function, *given)}
        return {f"{prefix}{name}": lambda name=name: lower(function, *given)[name] for name in ("update", "apply")}

    def score(function, params, masks=1):
        count = setup.micro_rows(setup.scored_rows) if made.packed else setup.scored_rows
        tokens = _batch(config, count * setup.shards, rows).tokens
        mask = jax.ShapeDtypeStruct(tokens.shape, np.dtype(bool), sharding=rows)
        return lower(function, params, tokens, *[mask] * masks)

    def score_policy():
        policy = memory.whole_policy(setup)
        params = with_shardings(policy, memory.decoding_shardings(policy, setup.policy, mesh, TRAIN_RULES))
        return score(made.score, params, masks=2)

    found = updates(made.update, "", trained, moments(optimizers[0], trained, cut[0]), coef, frozen)
    found["score"] = score_policy
    if algorithm.value_model:
        places = memory.value_shardings(setup, mesh)
        value = with_shardings(memory.value_shapes(setup), places)
        found |= {"value score": lambda: score(made.value_score, value)}
        found |= updates(made.update_value, "value ", value, moments(optimizers[1], value, places))
    if config.search.rerank.candidates:
        found["reranker"] = lambda: lower_reranker(setup, devices[0])
    return found | ({} if driven_by_host(setup) else rollout_programs(setup, host_mesh(setup.target, mesh)))


def host_mesh(target: PlanTarget, mesh: Mesh) -> Mesh:
    """`local_mesh` of a mesh of the target's devices, made of the devices of a slice of its size.

    The TPU's compiler refuses exchanges on a part of a larger slice whose numbers of devices have gaps, such as 0, 1, 4, 5.
    """
    local = local_mesh(mesh)
    if local.size == mesh.size:
        return mesh
    devices = devices_of(dataclasses.replace(target, devices=local.size))
    return Mesh(np.asarray(devices).reshape(local.devices.shape), local.axis_names)


def _batch(config, count: int, rows) -> TokenBatch:
    T = config.rollout.max_tokens

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct((count, *shape), np.dtype(dtype), sharding=rows)

    logprobs = of("float32", T)
    reference = logprobs if needs_reference(config.algorithm) else None
    valued = logprobs if config.algorithm.value_model else None
    return TokenBatch(tokens=of("int32", T), roles=of("int8", T), behavior_logprobs=logprobs, old_logprobs=logprobs,
                      ref_logprobs=reference, advantages=logprobs, returns=valued, values=valued, rewards=logprobs,
                      group_id=of("int32"), row_valid=of("bool"),
                      extra={name: logprobs for name in config.algorithm.scorers})


if __name__ == "__main__":
    main(*sys.argv[1:])
