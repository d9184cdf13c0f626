"""The supervised loop: weighted next-token prediction, for base models and for the simulator's tuning.

Batches are a function of the step, so a loop that was killed goes on from its last checkpoint as if nothing had happened.
"""

import logging
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.checkpoint import Checkpointer
from zsjax.config import SupervisedConfig
from zsjax.models import lora as adapters
from zsjax.rl.update import make_optimizer, make_supervised_update
from zsjax.types import TrainState

LOG_EVERY = 10


def train(config: SupervisedConfig, model_config, params, batches: Callable, *, writer, stage: str, directory,
          config_json: str = "{}", measure: Callable | None = None, lora=None, seed: int = 0):
    """Trains a model on rows of tokens.

    Args:
      config: steps, batch shape, optimizer, how often a checkpoint is saved.
      model_config, params: DecoderConfig and the starting parameters.
      batches: step -> (tokens int32[B, T], weights float32[B, T]); a token's weight is that of predicting it, and rows
        end at their last weighted token.
      writer: `zsjax.metrics.Writer`.
      stage: what the metrics' lines are called.
      directory: where checkpoints go; a run that was interrupted there is resumed.
      config_json: kept with the checkpoints.
      measure: params -> dict of floats, called every `checkpoint_every` steps and at the end, outside of the gradient.
      lora: None, or LoraConfig: with a rank, adapters are trained instead of the model and merged at the end.
      seed: of the adapters' start.

    Returns:
      The trained parameters.

    Raises:
      FloatingPointError: a loss or gradient that is not finite.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    adapted, frozen = lora is not None and lora.rank > 0, None
    whole = adapters.assembler(lora)
    if adapted:
        frozen, params = params, adapters.init_adapters(model_config, lora, jax.random.fold_in(jax.random.key(seed), 2**30))
    update = make_supervised_update(model_config, optimizer, chunk=config.logprob_chunk, assemble=whole)
    state = TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))
    checkpoints = Checkpointer(directory, keep=1, config_json=config_json)
    if (restored := checkpoints.restore(state)) is not None:
        _, state, _ = restored
        logging.info("%s: resumed at step %d", stage, int(state.step))
    first = int(state.step)
    writer.truncate(stage, first)
    # The update donates what it is given; the caller's parameters stay his own.
    params, opt_state = jax.tree.map(jnp.copy, (state.params, state.opt_state))
    with writer.progress(stage, total=config.steps, done=first):
        start = time.perf_counter()
        for step in range(first, config.steps):
            tokens, weights = batches(step)
            params, opt_state, info = update(params, opt_state, tokens, weights, row_extent(weights), frozen)
            done = step + 1
            saves = done % config.checkpoint_every == 0 or done == config.steps
            if done % LOG_EVERY == 0 or saves:
                metrics = {name: float(value) for name, value in jax.device_get(info).items()}
                if metrics.pop("nonfinite"):
                    raise FloatingPointError(f"{stage}, step {done}: the loss or its gradient is not finite; the last good "
                                             f"state is in {directory}")
                if saves and measure is not None:
                    metrics |= measure(whole(params, frozen))
                writer.write(done, metrics | {"time/elapsed": time.perf_counter() - start}, stage)
            if saves:
                checkpoints.save(done, TrainState(step=jnp.int32(done), params=params, opt_state=opt_state))
    checkpoints.close()
    return adapters.merge(frozen, params, lora) if adapted else params


def row_extent(weights) -> np.ndarray:
    """bool[B, T]: True up to and with the last weighted token of each row."""
    used = np.asarray(weights) != 0
    return np.flip(np.maximum.accumulate(np.flip(used, axis=1), axis=1), axis=1)
