"""The programs of a rollout and of the reranker, lowered for devices that are not there."""

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.parallel.constrain import ROWS, row_shards
from zsjax.parallel.mesh import replicated, row_sharding
from zsjax.plan import memory
from zsjax.plan.setup import PlanSetup
from zsjax.rollout.compiled import Inputs, Static, compiled_program
from zsjax.rollout.environment import environment, tables
from zsjax.rollout.growing_cache import GrowingRollout
from zsjax.search.rerank import Seen, init_reranker, make_reranker_update


def rollout_programs(setup: PlanSetup, mesh) -> dict:
    """Name -> a function that lowers one host's part of the rollout: its devices, its questions.

    With rollout.capacities of 2 or more there is a program for each size of the policy's cache, "rollout, N slots": the
    first begins the rollout, the others go on from its state.

    Args:
      mesh: of the host's devices.
    """
    engine, config = setup.engine, setup.config
    env = environment(setup.policy, engine.tokenizer, config, config.train.group_size)
    static, given = Static(env, setup.schedule, engine), (_inputs(setup, env, mesh), _questions(setup, mesh))
    if config.rollout.capacities == 1:
        return {"rollout": lambda: compiled_program(static, mesh).lower(*given)}
    growing = GrowingRollout(static, mesh, config.rollout.capacities)
    smallest, *larger = setup.capacities

    def further(capacity):
        prompts, loop, *_ = jax.eval_shape(growing.first(smallest), *given)
        cache = jax.eval_shape(growing.grow(capacity), loop.state.cache)
        prompts, loop = (_by_rows(tree, mesh) for tree in (prompts, loop.replace(state=loop.state.replace(cache=cache))))
        return growing.further.lower(*given, prompts, loop)

    return {memory.rollout_name(smallest): lambda: growing.first(smallest).lower(*given)} | {
        memory.rollout_name(capacity): lambda capacity=capacity: further(capacity) for capacity in larger}


def lower_reranker(setup: PlanSetup, device):
    """The update of the reranker, which one device computes on the whole step's episodes."""
    config, here = setup.config, jax.sharding.SingleDeviceSharding(device)
    search, rollout = config.search, config.rollout
    B = config.train.questions_per_step * config.train.group_size
    turns, shown, size = rollout.max_turns, search.num_documents, search.max_document_tokens

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct((B, *shape), np.dtype(dtype), sharding=here)

    seen = Seen(of("int32", turns, shown, size), of("int32", turns, shown),
                (of("int32", turns, search.max_query_tokens), of("int32", turns)),
                (of("int32", rollout.max_prompt_tokens), of("int32")))
    state = jax.eval_shape(lambda: init_reranker(search.rerank))
    state = with_shardings(state, jax.tree.map(lambda _: here, state))
    return make_reranker_update(search.rerank.learning_rate).lower(state, seen, of("float32"), of("int32"), of("bool"))


def with_shardings(shapes, shardings):
    """Shapes with their shardings."""
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


def _by_rows(shapes, mesh):
    """Rows over the mesh, and the kv heads of caches over its tensor axis where they divide."""
    def place(path, x):
        in_cache = any(getattr(key, "name", "") == "cache" for key in path) and x.ndim > 2
        heads = ("tensor",) if in_cache and x.shape[1] % mesh.shape["tensor"] == 0 else ()
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ROWS, *heads))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(place, shapes)


def _questions(setup: PlanSetup, mesh) -> dict:
    engine, rows = setup.engine, row_sharding(mesh)
    count = setup.questions * row_shards(mesh)

    def ids(*shape):
        return jax.ShapeDtypeStruct((count, *shape), jnp.int32, sharding=rows)

    return {
        "prompts": ids(setup.config.rollout.max_prompt_tokens), "prompt_lengths": ids(), "turn": ids(), "group_id": ids(),
        "question": (ids(engine.max_question_tokens), ids()), "answers": (ids(engine.max_answer_tokens), ids()),
        "question_key": jax.ShapeDtypeStruct((count,), jnp.uint32, sharding=rows),
    }


def _inputs(setup: PlanSetup, env, mesh) -> Inputs:
    engine, everywhere, rerank = setup.engine, replicated(mesh), setup.config.search.rerank

    def decoding(shapes, model):
        return with_shardings(memory.decoding_shapes(shapes, model), memory.decoding_shardings(shapes, model, mesh))

    def whole(tree, shape=lambda shape: shape):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape(x.shape), x.dtype, sharding=everywhere), tree)

    def wide(table, model):  # a stand-in's tables, as wide as the model's vocabulary
        known = engine.tokenizer.vocab_size
        return whole(table, lambda shape: tuple(model.vocab_size if n == known else n for n in shape))

    scalar = whole(jax.ShapeDtypeStruct((), jnp.float32))
    reranker = whole(jax.eval_shape(lambda: init_reranker(rerank)).weights) if rerank.candidates else None
    return Inputs(decoding(memory.whole_policy(setup), setup.policy),
                  decoding(memory.frozen_simulator(setup), setup.simulator),
                  wide(tables(engine.tokenizer, setup.policy, env.actions), setup.policy),
                  wide(engine.tables, setup.simulator), scalar, scalar, whole(jax.eval_shape(lambda: jax.random.key(0))),
                  reranker)
