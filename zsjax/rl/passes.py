"""The passes that a step makes over its batch: scoring, values, updates; over whole arrays or over packed parts.

Which of the two is a matter of shapes, not of meaning (tests hold them equal): whole arrays are one compiled program a
length, packed parts (train.microbatch_tokens) waste less on short rows and bound the memory.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from zsjax import hosts, sharding
from zsjax.rl import packing, roles
from zsjax.rl.accumulate import trained_alone
from zsjax.rl.update import make_packed_update, make_score, make_update
from zsjax.rl.value import make_value_score, make_value_update


@dataclasses.dataclass(frozen=True)
class Passes:
    """Functions over a TokenBatch of B rows.

    Attributes:
      logprobs: (params of the whole model, batch) -> float32[B, T] under the training forward.
      values: (value_params, batch) -> float32[B, T], see `zsjax.rl.value.state_values`.
      update: (params, opt_state, batch, coef=None, frozen=None) -> (params, opt_state, info), see `make_update`.
      update_value: (value_params, opt_state, batch) -> (value_params, opt_state, info).

    Batches and what is scored are numpy, whole and the same on every host; each host feeds the mesh its own rows.
    """

    logprobs: Callable
    values: Callable
    update: Callable
    update_value: Callable


def make_passes(config, model_config, mesh, *, loss, optimizer, value_optimizer=None, assemble=trained_alone) -> Passes:
    """The passes of a run.

    Args:
      config: train, rollout, algorithm and value are read.
      model_config: DecoderConfig of the policy.
      mesh: rows lie over its ("data", "fsdp") axes.
      loss: a name or a function, see `make_update`.
      optimizer, value_optimizer: optax transformations.
      assemble: of the policy, see `make_update`.
    """
    algorithm, options = config.algorithm, config.train
    # One length for the whole run: the batch's own would change from step to step.
    reduction = algorithm.reduction
    if reduction == "fixed_length":
        reduction = ("fixed_length", config.rollout.max_tokens)
    # Bounds that a loss of one's own may not know are given to it only where they are set.
    optional = dict(dual_clip=algorithm.dual_clip, sampler_clip=algorithm.sampler_clip)
    hyper = {name: value for name, value in optional.items() if value}
    hyper |= dict(clip_low=algorithm.clip_low, clip_high=algorithm.clip_high)
    in_loss = algorithm.kl_in == "loss"
    objective = dict(chunk=options.logprob_chunk, temperature=config.rollout.temperature, remat=options.remat,
                     kl_coef=algorithm.kl_coef if in_loss else 0.0, kl_kind=algorithm.kl_kind if in_loss else "k3",
                     entropy_coef=algorithm.entropy_coef, reduction=reduction, invert_mask=algorithm.invert_mask,
                     assemble=assemble, **hyper)
    packed, rows = options.microbatch_tokens > 0, 0 if options.microbatch_tokens else options.microbatch_rows
    score = make_score(model_config, chunk=options.logprob_chunk, temperature=config.rollout.temperature,
                       remat=options.remat, microbatch_rows=rows)
    value_score = make_value_score(model_config, microbatch_rows=rows)
    update_value = value_optimizer and make_value_update(
        model_config, value_optimizer, clip=config.value.clip, reduction=reduction, remat=options.remat,
        microbatch_rows=rows, packed=packed)
    update = make_packed_update if packed else functools.partial(make_update, microbatch_rows=rows)
    score, value_score, update_value, update = (function and sharding.on(mesh, function) for function in (
        score, value_score, update_value, update(model_config, loss, optimizer, **objective)))
    place = lambda batch: sharding.reshard(batch, sharding.row_sharding(mesh))

    def scoring(function):
        def scored(params, batch):
            seen = place((batch.tokens, roles.attention_mask(batch.roles)))
            return hosts.fetch(function(params, *seen))

        return scored

    logprobs, values = scoring(lambda *arguments: score(*arguments)[0]), scoring(value_score)
    if not packed:
        on_rows = lambda update: lambda params, opt_state, batch, *given: update(params, opt_state, place(batch), *given)
        return Passes(logprobs, values, on_rows(update), update_value and on_rows(update_value))

    def parts_of(batch):
        return packing.pack(np.asarray(roles.attention_mask(batch.roles)).sum(axis=1), budget=options.microbatch_tokens,
                            max_length=config.rollout.max_tokens, multiple=sharding.row_shards(mesh))

    def over_parts(function):
        def scored(params, batch):
            parts = parts_of(batch)
            out = [function(params, packing.take(batch, part)) for part in parts]
            return packing.put_back(parts, out, batch.tokens.shape)

        return scored

    def in_parts(update):
        def updated(params, opt_state, batch, *given):
            return update(params, opt_state, [place(packing.take(batch, part)) for part in parts_of(batch)], *given)

        return updated

    return Passes(over_parts(logprobs), over_parts(values), in_parts(update), update_value and in_parts(update_value))
