"""The passes that a step makes over its batch: scoring, values, updates; over whole arrays or over packed parts.

Both give the same result (tests/rl/test_packing.py). Whole arrays are cut to one of few widths. Packed parts
(train.microbatch_tokens) waste less on short rows and bound the memory. Each width, or length bucket of parts, has its own
program. All are compiled at a pass's first call, before it runs: no later step compiles.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from zsjax.config.named import entry_of
from zsjax.parallel import hosts
from zsjax.parallel.constrain import on, row_shards
from zsjax.parallel.mesh import reshard, row_sharding
from zsjax.rl import packing, roles
from zsjax.rl.executable import Executable, kind_of
from zsjax.rl.objective import load_loss, make_terms, reads_mask_only
from zsjax.rl.step_programs import trained_alone
from zsjax.rl.steps import make_packed_update, make_score, make_update
from zsjax.rl.value_steps import make_value_score, make_value_update


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted functions of a step, not yet on a mesh: `Passes` runs them, a plan compiles them ahead of time.

    Attributes:
      score, value_score: see `make_score`, `make_value_score`.
      scored: int8[B, T] roles -> bool[B, T], the tokens whose log-probs a step reads: `score` computes no others.
      update, update_value: see `make_update`, `make_value_update`; where `packed`, `make_packed_update`. update_value is
        None without a value optimizer.
      packed: whether updates take a list of parts (train.microbatch_tokens).
    """

    score: Callable
    scored: Callable
    value_score: Callable
    update: Callable
    update_value: Callable | None
    packed: bool


def make_programs(config, model_config, *, loss, optimizer, value_optimizer=None, assemble=trained_alone) -> Programs:
    """Makes the programs of a run.

    Args:
      config: train, rollout, algorithm and value are read.
      model_config: DecoderConfig of the policy.
      loss: a name or a function, see `make_update`.
      optimizer, value_optimizer: optax transformations.
      assemble: of the policy, see `make_update`.
    """
    algorithm, options = config.algorithm, config.train
    # One length for the whole run: the batch's own changes from step to step.
    reduction = algorithm.reduction
    if reduction == "fixed_length":
        reduction = ("fixed_length", config.rollout.max_tokens)
    # A loss that does not say what it reads may not know the last two: it gets those that are set.
    reads = entry_of(loss if callable(loss) else load_loss(loss)).reads or (
        "clip_low", "clip_high", *(name for name in ("dual_clip", "sampler_clip") if getattr(algorithm, name)))
    hyper = {name: getattr(algorithm, name) for name in reads}
    in_loss = algorithm.kl_in == "loss"
    objective = dict(chunk=options.logprob_chunk, temperature=config.rollout.temperature, remat=options.remat,
                     kl_coef=algorithm.kl_coef if in_loss else 0.0, kl_kind=algorithm.kl_kind if in_loss else "k3",
                     entropy_coef=algorithm.entropy_coef, terms=algorithm.terms, reduction=reduction,
                     invert_mask=algorithm.invert_mask, assemble=assemble, **hyper)
    packed, rows = options.microbatch_tokens > 0, 0 if options.microbatch_tokens else options.microbatch_rows
    update_value = value_optimizer and make_value_update(
        model_config, value_optimizer, clip=config.value.clip, reduction=reduction, remat=options.remat,
        microbatch_rows=rows, packed=packed)
    update = make_packed_update if packed else functools.partial(make_update, microbatch_rows=rows)
    # Where the inverted mask trains, the policy's own tokens are still what the metrics speak of.
    sparse = reads_mask_only(make_terms(loss, terms=algorithm.terms)) and not algorithm.invert_mask
    return Programs(
        score=policy_score(config, model_config), scored=roles.loss_mask if sparse else roles.attention_mask,
        value_score=make_value_score(model_config, microbatch_rows=rows),
        update=update(model_config, loss, optimizer, **objective), update_value=update_value, packed=packed)


def policy_score(config, model_config):
    """`make_score` of a decoder under the settings by which a run scores its policy, without entropies."""
    options = config.train
    return make_score(model_config, chunk=options.logprob_chunk, temperature=config.rollout.temperature,
                      remat=options.remat, microbatch_rows=0 if options.microbatch_tokens else options.microbatch_rows,
                      with_entropy=False)


class Passes:
    """Functions over a TokenBatch of B rows, as wide as config.rollout.max_tokens or less.

    Batches and scores are numpy, whole and the same on every host. Each host feeds the mesh its own rows. Packed parts hold
    no row whose `row_valid` is False: its share of sums and weights is 0, and scores are 0 there.
    """

    def __init__(self, config, mesh, programs: Programs):
        """config: train and rollout are read. mesh: rows are cut over its ("data", "fsdp") axes."""
        self._mesh, self.packed, self._longest = mesh, programs.packed, config.rollout.max_tokens
        self._cut = dict(budget=config.train.microbatch_tokens, multiple=row_shards(mesh))
        self._scored_tokens = programs.scored
        self._score, self._value_score = Executable(programs.score), Executable(programs.value_score)
        self._update, self._update_value = (update if programs.packed else update and Executable(update)
                                            for update in (programs.update, programs.update_value))
        self._ready = set()

    def logprobs(self, params, batch):
        """float32[B, T] under the training forward, 0 where no term of the objective reads them.

        params: of the whole model.
        """
        return self._scored(self._score, params, batch, self._scored_tokens)

    def values(self, value_params, batch):
        """float32[B, T], see `zsjax.rl.value_steps.state_values`."""
        return self._scored(self._value_score, value_params, batch)

    def update(self, params, opt_state, batch, coef=None, frozen=None):
        """(params, opt_state, info), see `make_update`; params and opt_state are donated."""
        return self._updated(self._update, params, opt_state, batch, coef, frozen)

    def update_value(self, value_params, opt_state, batch):
        """(value_params, opt_state, info), see `make_value_update`; value_params and opt_state are donated."""
        return self._updated(self._update_value, value_params, opt_state, batch)

    def _scored(self, program, params, batch, *masks):
        """masks: functions of roles, given to the program behind `roles.attention_mask`."""
        def inputs(part):
            cut = packing.take(batch, part)
            return params, *self._place((cut.tokens, *(mask(cut.roles) for mask in (roles.attention_mask, *masks))))

        self._compile(program, batch, params, arguments=lambda empty: [inputs(part) for part in empty])
        parts, out = self._parts(batch), []
        for part in parts:
            scored = hosts.fetch(on(self._mesh, program)(*inputs(part)))
            out.append(scored[0] if isinstance(scored, tuple) else scored)
        return packing.put_back(parts, out, batch.tokens.shape)

    def _updated(self, program, params, opt_state, batch, *given):
        def arguments(parts):
            cuts = [self._place(packing.take(batch, part)) for part in parts]
            return [(params, opt_state, cut, *given) for cut in ([cuts] if self.packed else cuts)]

        self._compile(program, batch, params, opt_state, *given, arguments=arguments)
        return on(self._mesh, program)(*arguments(self._parts(batch))[0])

    def _compile(self, program, batch, *state, arguments):
        """Compiles a program for every shape of a part, unless this kind of state and batch was there before."""
        kind = program, kind_of(state), len(batch.roles), jax.tree.structure(batch)
        if kind in self._ready:
            return
        self._ready.add(kind)
        for given in arguments(self._empty_parts(len(batch.roles))):
            on(self._mesh, program.compile)(*given)

    def _place(self, tree):
        return reshard(tree, row_sharding(self._mesh))

    def _parts(self, batch):
        lengths, B = np.asarray(roles.attention_mask(batch.roles)).sum(axis=1), len(batch.roles)
        if self.packed:
            rows = np.flatnonzero(batch.row_valid)
            parts = packing.pack(lengths[rows], max_length=self._longest, **self._cut)
            return [dataclasses.replace(part, rows=rows[part.rows]) for part in parts] or self._empty_parts(B)[:1]
        width = next(width for width in packing.widths(self._longest) if width >= lengths.max())
        return [packing.Part(np.arange(B), B, width)]

    def _empty_parts(self, rows: int):
        """A part without rows of each shape that a batch of `rows` rows may have."""
        if self.packed:
            return packing.empty_parts(packing.length_buckets(self._longest), **self._cut)
        return packing.empty_parts(packing.widths(self._longest), num_rows=rows)
