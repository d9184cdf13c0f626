"""The passes that a step makes over its batch: scoring, values, updates; over whole arrays or over packed parts.

Which of the two is a matter of shapes, not of meaning (tests hold them equal): whole arrays are cut to one of few widths,
packed parts (train.microbatch_tokens) waste less on short rows and bound the memory. Each width or rung is a program of
its own. All of them are compiled at a pass's first call, by an empty batch of each shape, and none in the middle of a run.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from zsjax.parallel import hosts
from zsjax.parallel.constrain import on, row_shards
from zsjax.parallel.mesh import reshard, row_sharding
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

    Batches are as wide as config.rollout.max_tokens or less. They and what is scored are numpy, whole and the same on
    every host; each host feeds the mesh its own rows.
    """

    logprobs: Callable
    values: Callable
    update: Callable
    update_value: Callable


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted functions of a step, not yet on a mesh: `make_passes` runs them, a plan compiles them ahead of time.

    Attributes:
      score, value_score: see `make_score`, `make_value_score`.
      update, update_value: see `make_update`, `make_value_update`; where `packed`, `make_packed_update`. update_value is
        None without a value optimizer.
      packed: whether updates take a list of parts (train.microbatch_tokens).
    """

    score: Callable
    value_score: Callable
    update: Callable
    update_value: Callable | None
    packed: bool


def make_programs(config, model_config, *, loss, optimizer, value_optimizer=None, assemble=trained_alone) -> Programs:
    """The programs of a run's config; arguments as of `make_passes`."""
    algorithm, options = config.algorithm, config.train
    # One length for the whole run: the batch's own would change from step to step.
    reduction = algorithm.reduction
    if reduction == "fixed_length":
        reduction = ("fixed_length", config.rollout.max_tokens)
    # Bounds that a loss of one's own may not know are given to it only where they are set.
    hyper = dict(clip_low=algorithm.clip_low, clip_high=algorithm.clip_high)
    bounds = dict(dual_clip=algorithm.dual_clip, sampler_clip=algorithm.sampler_clip)
    hyper |= {name: bound for name, bound in bounds.items() if bound}
    in_loss = algorithm.kl_in == "loss"
    objective = dict(chunk=options.logprob_chunk, temperature=config.rollout.temperature, remat=options.remat,
                     kl_coef=algorithm.kl_coef if in_loss else 0.0, kl_kind=algorithm.kl_kind if in_loss else "k3",
                     entropy_coef=algorithm.entropy_coef, reduction=reduction, invert_mask=algorithm.invert_mask,
                     assemble=assemble, **hyper)
    packed, rows = options.microbatch_tokens > 0, 0 if options.microbatch_tokens else options.microbatch_rows
    score = make_score(model_config, chunk=options.logprob_chunk, temperature=config.rollout.temperature,
                       remat=options.remat, microbatch_rows=rows)
    update_value = value_optimizer and make_value_update(
        model_config, value_optimizer, clip=config.value.clip, reduction=reduction, remat=options.remat,
        microbatch_rows=rows, packed=packed)
    update = make_packed_update if packed else functools.partial(make_update, microbatch_rows=rows)
    return Programs(score, make_value_score(model_config, microbatch_rows=rows),
                    update(model_config, loss, optimizer, **objective), update_value, packed)


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
    made = make_programs(config, model_config, loss=loss, optimizer=optimizer, value_optimizer=value_optimizer,
                         assemble=assemble)
    options, packed = config.train, made.packed
    score, value_score, update_value, update = (function and on(mesh, function) for function in (
        made.score, made.value_score, made.update_value, made.update))
    place = lambda batch: reshard(batch, row_sharding(mesh))

    longest, cut = config.rollout.max_tokens, dict(budget=options.microbatch_tokens, multiple=row_shards(mesh))
    rungs, widths = packing.ladder(longest), packing.widths(longest)

    def parts_of(batch):
        """(the parts of a batch, an empty one of each shape that there may be)."""
        lengths, B = np.asarray(roles.attention_mask(batch.roles)).sum(axis=1), len(batch.roles)
        if packed:
            return packing.pack(lengths, max_length=longest, **cut), packing.empty_parts(rungs, **cut)
        width = next(width for width in widths if width >= lengths.max())
        return [packing.Part(np.arange(B), B, width)], packing.empty_parts(widths, num_rows=B)

    def scoring(function):
        first = _first_of_its_kind()

        def scored(params, batch):
            def one(part):
                cut = packing.take(batch, part)
                return hosts.fetch(function(params, *place((cut.tokens, roles.attention_mask(cut.roles)))))

            parts, empty = parts_of(batch)
            if first(params):
                for part in empty:
                    one(part)
            return packing.put_back(parts, [one(part) for part in parts], batch.tokens.shape)

        return scored

    def updating(update):
        first = _first_of_its_kind()

        def updated(params, opt_state, batch, *given):
            def step(params, opt_state, parts):
                cuts = [place(packing.take(batch, part)) for part in parts]
                return update(params, opt_state, cuts if packed else cuts[0], *given)

            parts, empty = parts_of(batch)
            if first(batch, *given):  # a batch without rows has no weight: the step changes nothing
                for several in [empty] if packed else [[part] for part in empty]:
                    params, opt_state, _ = step(params, opt_state, several)
            return step(params, opt_state, parts)

        return updated

    return Passes(scoring(lambda *arguments: score(*arguments)[0]), scoring(value_score), updating(update),
                  update_value and updating(update_value))


def _first_of_its_kind():
    """A function that says whether it sees arguments of this structure, and as many rows, for the first time."""
    known = set()

    def first(*arguments):
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, len(leaves[0])
        new = kind not in known
        known.add(kind)
        return new

    return first
