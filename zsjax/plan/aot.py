"""Ahead-of-time compilation of a step's programs for TPUs or NVIDIA GPUs, on a machine without one.

    python -m zsjax.plan.aot config.json v5e:16

prints one JSON line a program: {"program", "arguments", "outputs", "aliased", "temporaries", "code", "flops"} in bytes on
one device and FLOPs, with "phases" as `zsjax.plan.program` counts them, or {"program", "error"}. The compiler's plug-in must
not be loaded where other work is done: hence a process of its own (`zsjax.plan.compile_programs`).
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from zsjax import config as configuration
from zsjax.models import lora
from zsjax.parallel.constrain import on, row_shards
from zsjax.parallel.mesh import TRAIN_RULES, local_mesh, make_mesh, replicated, row_sharding
from zsjax.plan import memory
from zsjax.plan.program import read_program
from zsjax.plan.setup import PlanSetup, make_setup
from zsjax.plan.targets import read_target
from zsjax.plan.topology import devices_of, tracing_for
from zsjax.rl.algorithms import needs_reference
from zsjax.rl.objective import load_loss
from zsjax.rl.optimizer import make_optimizers
from zsjax.rl.passes import make_programs
from zsjax.rollout.compiled import Inputs, Static, compiled_program
from zsjax.rollout.environment import environment, tables
from zsjax.types import TokenBatch


def main(path: str, target: str):
    setup = make_setup(configuration.from_json(pathlib.Path(path).read_text()), read_target(target))
    for name, lower in programs(setup, devices_of(setup.target)).items():
        try:
            with tracing_for(setup.target):
                compiled = lower().compile()
                line = {"program": name} | measure(compiled) | {"phases": phases(compiled, setup.target.chip)}
        except Exception as error:  # its text says by how much a program does not fit
            line = {"program": name, "error": str(error).strip()[:600]}
        print(json.dumps(line), flush=True)


def measure(compiled) -> dict:
    """Bytes and FLOPs on one device by the compiler's count. Without one, FLOPs by the program's text."""
    stats, cost = compiled.memory_analysis(), compiled.cost_analysis()
    flops = cost.get("flops", 0.0) if cost else sum(
        sum(phase.flops.values()) for phase in read_program(compiled.as_text()).phases)
    return {"arguments": stats.argument_size_in_bytes, "outputs": stats.output_size_in_bytes,
            "aliased": stats.alias_size_in_bytes, "temporaries": stats.temp_size_in_bytes,
            "code": stats.generated_code_size_in_bytes, "flops": flops}


def phases(compiled, chip) -> list[dict]:
    """The program outside of its loops, and one turn of each loop, with the predicted seconds on a chip."""
    return [{"name": phase.scope or phase.name, "turns": phase.turns, "kernels": len(phase.kernels), "bytes": phase.bytes,
             "flops": phase.flops, "exchanged": phase.exchanged, "seconds": phase.seconds(chip)}
            for phase in read_program(compiled.as_text()).phases if phase.bytes > 1e6]


def programs(setup: PlanSetup, devices) -> dict:
    """{"update", "score", "rollout", ...} -> a function that lowers the program for the devices, as `train` calls it.

    With a value model there are "value score" and "value update". With train.microbatch_tokens an update is that of the
    longest part, and "apply" ("value apply") is the optimizer's step.
    """
    config, algorithm = setup.config, setup.config.algorithm
    mesh = make_mesh(config.mesh, devices)
    rows = row_sharding(mesh)
    cut = memory.policy_shardings(setup, mesh)
    trained, frozen = _placed(memory.policy_shapes(setup), cut)
    optimizers = make_optimizers(config)
    made = make_programs(config, setup.policy, loss=load_loss(algorithm.loss), optimizer=optimizers[0],
                         value_optimizer=optimizers[1], assemble=lora.assembler(config.policy.lora))
    coef = None
    if algorithm.kl_target and algorithm.kl_in == "loss":
        coef = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))

    def moments(optimizer, params, places):
        state = jax.eval_shape(optimizer.init, params)
        return _placed(state, memory.moment_shardings(state, places, mesh))

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
        params = _placed(policy, memory.decoding_shardings(policy, setup.policy, mesh, TRAIN_RULES))
        return score(made.score, params, masks=2)

    found = updates(made.update, "", trained, moments(optimizers[0], trained, cut[0]), coef, frozen)
    found["score"] = score_policy
    if algorithm.value_model:
        places = memory.value_shardings(setup, mesh)
        value = _placed(memory.value_shapes(setup), places)
        found |= {"value score": lambda: score(made.value_score, value)}
        found |= updates(made.update_value, "value ", value, moments(optimizers[1], value, places))
    return found | ({"rollout": lambda: _lower_rollout(setup, local_mesh(mesh))} if setup.simulator is not None else {})


def _lower_rollout(setup: PlanSetup, mesh):
    """One host's part of the rollout: its devices, its questions."""
    config, engine = setup.config, setup.engine
    tokenizer = engine.tokenizer
    env = environment(setup.policy, tokenizer, config, config.train.group_size)
    everywhere, rows = replicated(mesh), row_sharding(mesh)
    count = setup.questions * row_shards(mesh)
    P = config.rollout.max_prompt_tokens

    def ids(*shape):
        return jax.ShapeDtypeStruct((count, *shape), jnp.int32, sharding=rows)

    questions = {
        "prompts": ids(P), "prompt_lengths": ids(), "turn": ids(), "group_id": ids(),
        "question": (ids(engine.max_question_tokens), ids()), "answers": (ids(engine.max_answer_tokens), ids()),
        "question_key": jax.ShapeDtypeStruct((count,), jnp.uint32, sharding=rows),
    }

    def decoding(shapes, model):
        return _placed(memory.decoding_shapes(shapes, model), memory.decoding_shardings(shapes, model, mesh))

    models = (decoding(memory.whole_policy(setup), setup.policy),
              decoding(memory.frozen_simulator(setup), setup.simulator))

    def wide(table, model):  # a stand-in's tables, as wide as the model's vocabulary

        def sizes(shape):
            return tuple(model.vocab_size if n == tokenizer.vocab_size else n for n in shape)

        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(sizes(x.shape), x.dtype, sharding=everywhere), table)

    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    program = compiled_program(Static(env, setup.schedule, engine), mesh)
    policy_tables = wide(tables(tokenizer, setup.policy, env.actions), setup.policy)
    given = Inputs(*models, policy_tables, wide(engine.tables, setup.simulator), scalar, scalar, key)
    return program.lower(given, questions)


def _placed(shapes, shardings):
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


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
