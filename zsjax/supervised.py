"""The supervised loop: weighted next-token prediction, for base models and for the simulator's tuning.

Batches are a function of the step, so a killed loop resumes exactly from its last checkpoint.
"""

import logging
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.config.fields import SupervisedConfig
from zsjax.errors import NonFiniteUpdate
from zsjax.models import lora as adapters
from zsjax.models.placement import param_shardings
from zsjax.parallel import stops
from zsjax.parallel.checkpoint import Checkpointer
from zsjax.parallel.constrain import on, row_shards
from zsjax.parallel.mesh import TRAIN_RULES, replicated, reshard, row_sharding
from zsjax.rl import packing
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.steps import make_supervised_update
from zsjax.types import Metric, TrainState

LOG_EVERY = 10
METRICS = (
    Metric("time/elapsed", "since the phase began, or began again after a kill", "seconds", 0.0, read_by=("costs",)),
    Metric("reading_*", "tiny world: exact answers with this number of facts told", "share of questions", 0.0, 1.0),
)


def fit(config: SupervisedConfig, model_config, params, batches: Callable, *, writer, stage: str, directory,
          config_json: str = "{}", measure: Callable | None = None, lora=None, seed: int = 0, mesh=None):
    """Trains a model on rows of tokens.

    Args:
      config: steps, batch shape, packing, optimizer, how often a checkpoint is saved.
      model_config, params: DecoderConfig and the starting parameters.
      batches: step -> (tokens int32[B, T], weights float32[B, T]); a token's weight is the weight of its log-prob, and a
        row ends at its last weighted token.
      writer: `zsjax.monitor.writer.Writer`.
      stage: name of the metrics' lines.
      directory: of the checkpoints; an interrupted run in it is resumed.
      config_json: kept with the checkpoints.
      measure: params -> dict of floats for the metrics, called every `checkpoint_every` steps and at the end.
      lora: None, or LoraConfig: with a rank, adapters are trained instead of the model and merged at the end.
      seed: of the adapters' start.
      mesh: None, or a mesh, of one host or many: rows are cut over its ("data", "fsdp") axes, parameters and optimizer
        state by `TRAIN_RULES`.

    Returns:
      The trained parameters, on the mesh.

    Raises:
      NonFiniteUpdate: the loss or its gradient of a step is not finite; the state before that step is saved.
    """
    mesh = None if mesh is None or mesh.size == 1 else mesh
    optimizer = make_optimizer(config.optimizer, config.steps)
    adapted, frozen = lora is not None and lora.rank > 0, None
    whole = adapters.assembler(lora)
    params = place(params, model_config, mesh)
    if adapted:
        start = adapters.init_adapters(model_config, lora, jax.random.fold_in(jax.random.key(seed), 2**30))
        frozen, params = params, place(start, model_config, mesh, adapters.adapter_specs(model_config, lora))
    update = on(mesh, make_supervised_update(
        model_config, optimizer, chunk=config.logprob_chunk, remat=config.remat, packed=config.microbatch_tokens > 0,
        assemble=whole))
    state = on_mesh(0, params, optimizer.init(params), mesh)
    checkpoints = Checkpointer(directory, keep=2, config_json=config_json, before=writer.flush)
    if (restored := checkpoints.restore(state)) is not None:
        _, state, _ = restored
        logging.info("%s: resumed at step %d", stage, int(state.step))
    first = int(state.step)
    writer.truncate(stage, first)
    # The update donates its arguments; the caller keeps the parameters. Nobody keeps the optimizer's state.
    params, opt_state = jax.tree.map(jnp.copy, state.params), state.opt_state
    del state
    in_flight = (first, False)  # (step, whether it was left out)

    def check():
        """Waits for the step in flight. One that is not finite changed nothing: the state is still the one before it."""
        step, left_out = in_flight
        if left_out:
            checkpoints.save(step - 1, on_mesh(step - 1, params, opt_state, mesh))
            raise NonFiniteUpdate(f"{stage}, step {step}: the loss or its gradient is not finite; "
                                  f"{checkpoints.whereabouts()}. Lower the learning rate or check the data")

    # A signal waits until the last checkpoint is written as well.
    with writer.progress(stage, total=config.steps, done=first), stops.deferred(), checkpoints:
        start = time.perf_counter()
        for step in range(first, config.steps):
            if stops.requested():
                check()
                checkpoints.save(step, on_mesh(step, params, opt_state, mesh))
                raise stops.stopped(checkpoints.whereabouts())
            parts = cut(*batches(step), config.microbatch_tokens, mesh)
            given = parts if config.microbatch_tokens else parts[0]
            check()  # a step that waits in line would hold its gradient's memory already
            params, opt_state, info = update(params, opt_state, given, None, frozen)
            done = step + 1
            in_flight = done, info.pop("nonfinite")
            saves = done % config.checkpoint_every == 0 or done == config.steps
            if done % LOG_EVERY == 0 or saves:
                check()
                metrics = {name: float(value) for name, value in jax.device_get(info).items()}
                if saves and measure is not None:
                    metrics |= measure(whole(params, frozen))
                writer.write(done, metrics | {"time/elapsed": time.perf_counter() - start}, stage)
            if saves:
                checkpoints.save(done, on_mesh(done, params, opt_state, mesh))
    return adapters.merge(frozen, params, lora) if adapted else params


def place(params, model_config, mesh, specs=None):
    """Parameters as training on a mesh shards them. specs: see `param_shardings`."""
    if mesh is None:
        return params
    return reshard(params, param_shardings(model_config, mesh, TRAIN_RULES, specs))


def on_mesh(step: int, params, opt_state, mesh) -> TrainState:
    """The state after `step` steps. Its counters are on the mesh as the parameters are, or no program could read both, and
    many hosts could not save them."""
    state = TrainState(step=jnp.int32(step), params=params, opt_state=opt_state)
    return state if mesh is None else jax.tree.map(lambda x: x if x.ndim else reshard(x, replicated(mesh)), state)


def cut(tokens, weights, budget: int, mesh) -> list:
    """The parts of a batch on the mesh, each (tokens, weights, valid) of some rows: packed by a budget of tokens, or one
    part of all rows, filled with rows of weight 0 until they divide over the mesh."""
    valid, shards = row_extent(weights), row_shards(mesh)
    (B, T), lengths = tokens.shape, valid.sum(axis=1)
    parts = (packing.pack(lengths, budget=budget, max_length=T, multiple=shards) if budget else
             [packing.Part(np.arange(B), -(-B // shards) * shards, T)])
    batches = [packing.take((tokens, weights, valid), part) for part in parts]
    return batches if mesh is None else [reshard(batch, row_sharding(mesh)) for batch in batches]


def row_extent(weights) -> np.ndarray:
    """bool[B, T]: True up to the last weighted token of each row, itself included."""
    used = np.asarray(weights) != 0
    return np.flip(np.maximum.accumulate(np.flip(used, axis=1), axis=1), axis=1)
