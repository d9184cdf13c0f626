"""Bytes on each device: exact figures follow from shapes and shardings, the others are estimated from saved residuals.

A step has three phases. Parameters, moments, reference and simulator are there in all of them. The peak is these and the
largest phase's own. Residuals, which the backward pass keeps of the forward pass, come from tracing the model at
one device's share of heads, mlp and rows. The compiler decides which temporaries live at once, so that these figures are
estimates. `zsjax.plan.aot` asks the compiler.
"""

import collections
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from zsjax.models import lora, quant
from zsjax.models.attention import block_size, choose_cached
from zsjax.models.cache import cache_dtype, init_cache
from zsjax.models.decoder import cast_matrices, hidden_states, param_specs, specs_of
from zsjax.models.placement import param_shardings
from zsjax.models.value import init_value
from zsjax.parallel import constrain
from zsjax.parallel.mesh import DECODE_RULES, TRAIN_RULES, replicated
from zsjax.plan.setup import PlanSetup
from zsjax.plan.topology import tracing_for
from zsjax.rl.algorithms import needs_reference
from zsjax.rl.logprobs import positions_at_a_time
from zsjax.rl.optimizer import make_optimizers
from zsjax.rollout.state import PREFILL_CHUNK
from zsjax.search.rerank import init_reranker

ALWAYS, ROLLOUT, SCORE, UPDATE, VALUE_UPDATE = "always", "rollout", "score", "update", "value update"
_POLICY = ("policy parameters", "adapters", "frozen policy parameters, also the reference")
_VALUE = ("value parameters", "value optimizer state")
# Program of `zsjax.plan.aot`, see `program_kind` -> figures that are its arguments; others of ALWAYS are added to its bytes.
ARGUMENTS = {"update": (*_POLICY, "optimizer state"), "apply": ("policy parameters", "adapters", "optimizer state"),
             "score": _POLICY, "rollout": ("simulator parameters",), "value score": _VALUE[:1], "value update": _VALUE,
             "value apply": _VALUE, "reranker": ("reranker and its optimizer state",)}
# Program -> the phase whose bytes its own are estimated as.
ESTIMATES = {"update": UPDATE, "score": SCORE, "rollout": ROLLOUT, "value update": VALUE_UPDATE}


@dataclasses.dataclass(frozen=True)
class Figure:
    """Bytes on one device, in one phase or always; exact, or estimated."""

    name: str
    phase: str
    bytes: int
    exact: bool


def footprint(setup: PlanSetup) -> list[Figure]:
    """Everything of size that a device holds while a step runs, at the longest rows that the config allows."""
    config, figures = setup.config, []

    def add(name, phase, size, exact=True):
        figures.append(Figure(name, phase, int(size), exact))

    trained, frozen = policy_shapes(setup)
    cut = policy_shardings(setup, setup.mesh)
    weights = local_bytes(trained, cut[0])
    optimizers = make_optimizers(config)
    add("policy parameters" if frozen is None else "adapters", ALWAYS, weights)
    add("optimizer state", ALWAYS, _optimizer_bytes(setup, optimizers[0], trained, cut[0]))
    if frozen is not None:
        add("frozen policy parameters, also the reference", ALWAYS, local_bytes(frozen, cut[1]))
    elif needs_reference(config.algorithm):
        add("reference parameters", ALWAYS, weights)
    if config.algorithm.value_model:
        value, places = value_shapes(setup), value_shardings(setup, setup.mesh)
        add("value parameters", ALWAYS, local_bytes(value, places))
        add("value optimizer state", ALWAYS, _optimizer_bytes(setup, optimizers[1], value, places))
    if config.search.rerank.candidates:
        state = jax.eval_shape(lambda: init_reranker(config.search.rerank))
        add("reranker and its optimizer state", ALWAYS, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))
    _add_rollout(add, setup)
    _add_score(add, setup)
    _add_update(add, setup, UPDATE, trained, cut[0])
    if config.algorithm.value_model:
        _add_update(add, setup, VALUE_UPDATE, value, places)
    return figures


def rollout_name(capacity: int) -> str:
    """The name of a rollout's program for one of several sizes of the policy's cache."""
    return f"rollout, {capacity} slots"


def program_kind(program: str) -> str:
    """The program's key in `ARGUMENTS` and `ESTIMATES`: that of a rollout is the same for all sizes of the cache."""
    return program.split(",")[0]


def grown_from(setup: PlanSetup, program: str) -> int:
    """Bytes of the smaller cache that there still is when the arguments of a rollout's program are made; 0 for others."""
    sizes = setup.capacities
    smaller = {rollout_name(size): before for before, size in zip(sizes, sizes[1:], strict=False)}.get(program)
    if smaller is None:
        return 0
    return cache_bytes(setup, setup.policy, setup.schedule.sizes(setup.rollout_rows)[0], smaller)


def peak(figures: list[Figure]) -> dict[str, int]:
    """Phase -> bytes at once, with what is always there."""
    total = collections.Counter()
    for figure in figures:
        total[figure.phase] += figure.bytes
    return {phase: total[phase] + total[ALWAYS] for phase in (ROLLOUT, SCORE, UPDATE, VALUE_UPDATE)
            if phase != VALUE_UPDATE or total[phase]}


def param_shapes(model, dtype):
    """The tree of parameters as jax.ShapeDtypeStruct."""
    return _shapes(param_specs(model), dtype)


def _shapes(specs, dtype):
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype)), specs,
                        is_leaf=lambda x: hasattr(x, "axes"))


def policy_shapes(setup: PlanSetup):
    """(what is trained, what is frozen) of the policy: all of it and None, or adapters and all of it."""
    adapters, whole = setup.config.policy.lora, param_shapes(setup.policy, setup.config.policy.param_dtype)
    return (_shapes(lora.adapter_specs(setup.policy, adapters), "float32"), whole) if adapters.rank else (whole, None)


def policy_shardings(setup: PlanSetup, mesh):
    """Shardings of `policy_shapes` in training."""

    def place(specs=None):
        return param_shardings(setup.policy, mesh, TRAIN_RULES, specs)

    adapters = setup.config.policy.lora
    return (place(lora.adapter_specs(setup.policy, adapters)), place()) if adapters.rank else (place(), None)


def value_shapes(setup: PlanSetup):
    """The value model as `init_value` makes it of the whole policy: the trunk in its dtype, a float32 head."""
    policy = param_shapes(setup.policy, setup.config.policy.param_dtype)
    return jax.eval_shape(lambda params: init_value(setup.policy, params, jax.random.key(0)), policy)


def value_shardings(setup: PlanSetup, mesh):
    """Its shardings: the trunk as the policy, the head everywhere."""
    places = {name: where for name, where in param_shardings(setup.policy, mesh, TRAIN_RULES).items() if name != "lm_head"}
    return places | {"value_head": replicated(mesh)}


def whole_policy(setup: PlanSetup):
    """The policy as it is scored and played, adapters attached."""
    return jax.eval_shape(lora.assembler(setup.config.policy.lora), *policy_shapes(setup))


def frozen_simulator(setup: PlanSetup):
    """The simulator as it plays, with its `quantize`."""
    shapes = param_shapes(setup.simulator, setup.config.simulator.param_dtype)
    return shapes if setup.config.simulator.quantize == "none" else jax.eval_shape(quant.quantize, shapes)


def decoding_shapes(shapes, model):
    """A model as `for_decoding` gives it: matrices in the dtype that they are used in."""
    return jax.eval_shape(lambda params: cast_matrices(params, model), shapes)


def decoding_shardings(shapes, model, mesh, rules=DECODE_RULES):
    """Its shardings then."""
    return param_shardings(model, mesh, rules, specs_of(shapes, model))


def local_bytes(shapes, shardings) -> int:
    """Bytes of a tree of shapes on one device."""

    def size(x, where):
        return math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, shapes, shardings)))


def moment_shardings(state, cut, mesh):
    """Shardings of an optimizer's state: arrays of a parameter as the parameter, counters everywhere."""
    places = [(jax.tree_util.keystr(path), where) for path, where in jax.tree_util.tree_flatten_with_path(cut)[0]]

    def place(path, leaf):
        name = jax.tree_util.keystr(path)
        return next((where for end, where in places if leaf.ndim and name.endswith(end)), replicated(mesh))

    return jax.tree_util.tree_map_with_path(place, state)


def _optimizer_bytes(setup, optimizer, trained, cut):
    state = jax.eval_shape(optimizer.init, trained)
    return local_bytes(state, moment_shardings(state, cut, setup.mesh))


def _add_rollout(add, setup: PlanSetup):
    config = setup.config
    rows, slots = setup.schedule.sizes(setup.rollout_rows)[0], setup.simulator_rows
    batch = config.rollout.prefill_batch or rows

    def decode(shapes, model):
        return local_bytes(decoding_shapes(shapes, model), decoding_shardings(shapes, model, setup.mesh))

    if setup.mesh.size > 1:
        add("policy parameters for decoding", ROLLOUT, decode(whole_policy(setup), setup.policy))
    T = config.rollout.max_tokens
    add("policy cache", ROLLOUT, cache_bytes(setup, setup.policy, rows, T))
    add("prompts' cache, from which rows begin", ROLLOUT,
        setup.questions * cache_bytes(setup, setup.policy, 1, config.rollout.max_prompt_tokens))
    reading = _reading_bytes(setup, setup.policy, batch, rows, T)
    if setup.simulator is not None:
        capacity = setup.engine.prompt_size + setup.reply_steps
        shapes = frozen_simulator(setup)
        whole = decode(shapes, setup.simulator) if setup.mesh.size > 1 else local_bytes(
            shapes, decoding_shardings(shapes, setup.simulator, setup.mesh, {}))
        add("simulator parameters", ALWAYS, whole)
        add("simulator cache", ROLLOUT, cache_bytes(setup, setup.simulator, slots, capacity))
        reading = max(reading, _reading_bytes(setup, setup.simulator, batch, slots, capacity))
    logits = 4 * 4 * rows * setup.policy.vocab_size
    add("activations or attention scores while prompts and documents are read", ROLLOUT, reading, exact=False)
    add("logits and noise of one token a row", ROLLOUT, logits, exact=False)
    # The cache grows between two programs, when there are neither activations nor logits.
    add("the smaller cache while it grows, beyond activations and logits", ROLLOUT,
        max(grown_from(setup, rollout_name(T)) - reading - logits, 0), exact=False)


def _reading_bytes(setup: PlanSetup, model, batch: int, rows: int, keys: int) -> int:
    """While `batch` of `rows` rows read a chunk: what an mlp holds or, without a kernel, scores and these rows' cache."""
    some = min(batch, rows)
    mlp = some * PREFILL_CHUNK * 2 * (model.mlp_dim // setup.tensor + model.embed_dim) * jnp.dtype(model.dtype).itemsize
    with tracing_for(setup.target):
        if model.num_kv_heads % setup.tensor == 0 and choose_cached(model, some, PREFILL_CHUNK) == "flash":
            return mlp
    gathered = some * cache_bytes(setup, model, 1, keys) // model.num_layers if some < rows else 0
    return max(mlp, gathered + 2 * attention_bytes(setup, model, some, PREFILL_CHUNK, keys))


@dataclasses.dataclass(frozen=True)
class _Layers:
    residuals: int  # of all layers, which are alike
    one: int  # of one layer, without remat
    scores: int  # of attention, float32, a block of queries
    gathered: int  # weights gathered for use, without the unembedding
    share: int  # elements of the embedding


def _layers(setup: PlanSetup, rows: int) -> _Layers:
    """Bytes of a training pass over `rows` rows."""
    config, T, model = setup.config, setup.config.rollout.max_tokens, local_model(setup)
    dtype, share = jnp.dtype(config.policy.param_dtype), model.embed_dim * model.vocab_size

    def of(layers, remat):
        return residual_bytes(dataclasses.replace(model, num_layers=layers), rows, T, remat, dtype)

    one, two = of(1, config.train.remat), of(2, config.train.remat)
    per_layer = (local_elements(model) - share * (1 if model.tie_embeddings else 2)) // model.num_layers
    # Two layers at a time, one in use and one on its way, and the embedding before them.
    gathered = (2 * per_layer + share) * dtype.itemsize if setup.mesh.shape["fsdp"] > 1 else 0
    return _Layers(one + (model.num_layers - 1) * (two - one), of(1, "none"),
                   attention_bytes(setup, setup.policy, rows, block_size(T), T), gathered, share)


def _unembedding(setup, layers) -> int:
    """Bytes of it, gathered for use, where it is not the embedding."""
    size = jnp.dtype(setup.config.policy.param_dtype).itemsize
    return 0 if setup.policy.tie_embeddings or not layers.gathered else layers.share * size


def _chunk_logits(setup, rows) -> int:
    tokens, vocab, chunk = setup.config.rollout.max_tokens, local_model(setup).vocab_size, setup.config.train.logprob_chunk
    return 4 * vocab * (rows * min(chunk, tokens) if chunk else positions_at_a_time(rows * tokens, vocab))


def _add_score(add, setup: PlanSetup):
    rows = setup.micro_rows(setup.scored_rows)
    layers = _layers(setup, rows)
    add("weights gathered for use", SCORE, layers.gathered + _unembedding(setup, layers), exact=False)
    add("one layer's activations", SCORE, layers.one, exact=False)
    add("logits of one chunk", SCORE, 2 * _chunk_logits(setup, rows), exact=False)


def _add_update(add, setup: PlanSetup, phase: str, trained, cut):
    """An update of the policy or, in the phase VALUE_UPDATE, of the value model, which has no logits."""
    rows, train = setup.micro_rows(setup.update_rows), setup.config.train
    layers, of_policy = _layers(setup, rows), phase == UPDATE
    add("weights gathered for use", phase, layers.gathered + (_unembedding(setup, layers) if of_policy else 0), exact=False)
    add("residuals kept for the backward pass", phase, layers.residuals, exact=False)
    if train.remat != "none":
        add("one layer's residuals, recomputed", phase, layers.one, exact=False)
    add("attention scores of a block, their gradients", phase, 3 * layers.scores, exact=False)
    if of_policy:
        add("logits of one chunk and their gradient", phase, 3 * _chunk_logits(setup, rows), exact=False)
    add("gradient of the (un)embedding, whole", phase, 4 * layers.share, exact=False)
    float32 = local_bytes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), trained), cut)
    add("gradients, float32", phase, float32)
    if rows < setup.update_rows:
        add("gradients of one microbatch", phase, local_bytes(trained, cut))


def cache_bytes(setup: PlanSetup, model, rows: int, capacity: int) -> int:
    """Of the cache's `rows` rows on one device."""
    config = setup.config.policy if model is setup.policy else setup.config.simulator
    cache = jax.eval_shape(lambda: init_cache(model, rows, capacity, cache_dtype(model, config.cache_dtype)))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    return size // setup.tensor if model.num_kv_heads % setup.tensor == 0 else size


def attention_bytes(setup: PlanSetup, model, rows: int, queries: int, keys: int) -> int:
    """float32 scores of one layer for the queries that `zsjax.models.attention` has scores of at a time."""
    return 4 * rows * model.num_heads // setup.tensor * queries * keys


def local_model(setup: PlanSetup):
    """The policy as one device of a tensor group computes it: its share of heads, mlp and vocabulary."""
    model, t = setup.policy, setup.tensor
    heads = model.num_heads // t
    kv_heads = model.num_kv_heads // t if model.num_kv_heads % t == 0 else math.gcd(model.num_kv_heads, heads)
    vocab = model.vocab_size // t if model.vocab_size % t == 0 else model.vocab_size
    return dataclasses.replace(model, num_heads=heads, num_kv_heads=kv_heads, mlp_dim=model.mlp_dim // t,
                               vocab_size=vocab)


def local_elements(model) -> int:
    return sum(x.size for x in jax.tree.leaves(param_shapes(model, "float32")))


def residual_bytes(model, rows: int, tokens: int, remat: str, dtype) -> int:
    """What the backward pass of `hidden_states` is given by the forward, beyond the parameters themselves."""
    return _residual_bytes(constrain.target(), model, rows, tokens, remat, jnp.dtype(dtype))


@functools.cache  # takes most of an estimate's time, and advice makes dozens of them
def _residual_bytes(target, model, rows, tokens, remat, dtype):
    params = param_shapes(model, dtype)
    given = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)

    def residuals(params, tokens):
        return jax.tree.leaves(jax.vjp(lambda params: hidden_states(params, model, tokens, remat=remat), params)[1])

    kept = jax.eval_shape(residuals, params, given)
    inputs = collections.Counter((x.shape, x.dtype) for x in [*jax.tree.leaves(params), given])
    total = 0
    for x in kept:
        if inputs[x.shape, x.dtype] > 0:
            inputs[x.shape, x.dtype] -= 1
        else:
            total += x.size * x.dtype.itemsize
    return total
