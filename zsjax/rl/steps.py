"""Scores and optimizer steps: (params, opt_state, batch) -> (params, opt_state, info), for policy and supervision.

    score = make_score(model_config)
    old_logprobs, _ = score(params, tokens, attention_mask(roles), loss_mask(roles))
    update = make_update(model_config, "ppo_clip", optimizer, kl_coef=0.001)
    params, opt_state, info = update(params, opt_state, batch)

`zsjax.rl.step_programs` makes steps of objectives, over whole batches and over parts.
"""

from zsjax.rl.objective import (
    gspo_loss,
    load_loss,
    make_terms,
    model_logprobs,
    policy_objective,
    ppo_clip_loss,
    supervised_objective,
)
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.step_programs import PackedStep, over_microbatches, trained_alone, whole_step

# The second line has names of zsjax.rl.update, as this module was called until version 0.1.
__all__ = ["make_packed_update", "make_score", "make_supervised_update", "make_update",
           "gspo_loss", "load_loss", "make_optimizer", "ppo_clip_loss"]


def make_score(model_config, *, chunk=0, temperature=1.0, remat="none", microbatch_rows=0, with_entropy=True):
    """Returns the jitted score(params, tokens int32[B, T], valid bool[B, T], wanted=None) -> (logprobs, entropy).

    float32[B, T], nats, of each token given those before it under softmax(logits / temperature), by the forward that
    training uses; 0 at position 0 and where `wanted` (bool[B, T]; None: `valid`) is False: no logits are computed there.
    Entropy is None without `with_entropy`. `microbatch_rows` > 0 runs that many rows at a time: the training update's
    number makes the ratio of the first update 1 to the last bit on CPU.
    """

    def rows(params, tokens, valid, wanted=None):
        wanted = valid if wanted is None else valid & wanted
        return model_logprobs(params, model_config, tokens, valid, remat=remat, chunk=chunk, temperature=temperature,
                              with_entropy=with_entropy, wanted=wanted)

    return over_microbatches(rows, microbatch_rows)


def make_update(model_config, loss, optimizer, *, microbatch_rows=0, assemble=trained_alone, **options):
    """Makes one optimizer step of reinforcement learning on the objective of `zsjax.rl.objective`.

    Args:
      model_config: DecoderConfig of the policy.
      loss: a name (see `load_loss`) or a function (batch: TokenBatch, logprobs float32[B, T], *, loss_mask, entropy,
        values, reduction, **loss_hyper) -> (loss_sum, weight, info dict name -> (sum, weight)). It is called on one
        microbatch of rows, which may hold a part of a group. Its weight gets no gradient. Where there are other terms (KL,
        entropy), the weight must not depend on the logprobs: it is also computed at old_logprobs, before the gradient.
      optimizer: an optax.GradientTransformation, see `make_optimizer`.
      microbatch_rows: rows at a time; 0 is all. Must divide the batch's rows.
      assemble: (params, frozen) -> the decoder's parameters, where a part of the model is trained (LoRA).
      chunk: positions per chunk of `token_logprobs`; 0 follows from bytes.
      temperature: the sampling temperature of the rollout.
      remat: what the backward pass computes again, see `decoder.hidden_states`.
      kl_coef, kl_kind: KL to `batch.ref_logprobs` as a loss, "k2" or "k3".
      entropy_coef: > 0 rewards entropy.
      terms: further terms, name -> coefficient; see `zsjax.rl.objective.Term`.
      reduction: see `losses.aggregate`; the bare name "fixed_length" means ("fixed_length", T).
      invert_mask: an ablation that trains on every token but the policy's; the caller broadcasts the advantages.
      **loss_hyper: given to the loss.

    Returns:
      update(params, opt_state, batch: TokenBatch, coef=None, frozen=None) -> (params, opt_state, info), jitted, with
      params and opt_state donated. A coef float32[] replaces kl_coef (an adaptive one). frozen is a pytree for `assemble`,
      without a gradient. info is a dict of float32[]:
        loss: all terms; grad_norm: before clipping; weight: the loss's.
        entropy, kl: nats per token; kl is k3, and 0 without ref_logprobs.
        ratio_mean, approx_kl, clip_fraction: clip_fraction is 0 unless the loss gives it.
        "term/NAME": of further terms.
        nonfinite: 1 if loss or gradient was not finite. params and opt_state are then unchanged, as with a weight of 0.
        weight_mismatch: 1 if the loss's weight depends on the logprobs and must not. Nothing is changed then.
        and the entries of the loss's info.

    Raises:
      InputError: kl_kind "k1" or unknown, an unknown loss or term; while tracing, a term that lacks what it needs.
      ValueError: while tracing, rows that microbatch_rows does not divide.
    """
    return whole_step(_objective(model_config, loss, **options), optimizer, microbatch_rows, assemble=assemble)


def make_packed_update(model_config, loss, optimizer, *, assemble=trained_alone, **options):
    """`make_update` over parts of different shapes, driven from the host: see `zsjax.rl.packing`.

    Args:
      model_config, loss, optimizer, assemble, **options: as `make_update`. A reduction "fixed_length" needs its length,
        since parts have several: ("fixed_length", n).

    Returns:
      update(params, opt_state, parts: list of TokenBatch, coef=None, frozen=None) -> (params, opt_state, info): the step
      that `make_update` makes of all parts in one batch, see `step_programs.PackedStep`.
    """
    if options.get("reduction") == "fixed_length":
        raise ValueError("parts have several lengths: give reduction=('fixed_length', n)")
    return PackedStep(_objective(model_config, loss, **options), optimizer, assemble=assemble)


def _objective(model_config, loss, *, chunk=0, temperature=1.0, remat="none", reduction="token_mean", invert_mask=False,
               **options):
    return policy_objective(model_config, make_terms(loss, **options), chunk=chunk, temperature=temperature, remat=remat,
                            reduction=reduction, invert_mask=invert_mask)


def make_supervised_update(model_config, optimizer, *, chunk=0, remat="none", microbatch_rows=0, packed=False,
                           assemble=trained_alone):
    """Makes one optimizer step of weighted next-token prediction, -sum(w_t log p(token_t)) / sum(w_t).

    Args:
      model_config, optimizer, chunk, remat, microbatch_rows, assemble: as `make_update`.
      packed: the step takes a list of parts, as `make_packed_update`.

    Returns:
      update(params, opt_state, (tokens int32[B, T], weights float32[B, T], valid bool[B, T]), coef=None, frozen=None) ->
      (params, opt_state, info), with params and opt_state donated. weights[b, t] >= 0 is the weight of predicting
      tokens[b, t]; it is ignored at position 0 and where `valid` (a prefix of each row) is False. info: loss (nats per
      unit of weight), grad_norm, weight, nonfinite; what holds for them in `make_update` holds here.
    """
    objective = supervised_objective(model_config, chunk=chunk, remat=remat)
    if packed:
        return PackedStep(objective, optimizer, assemble=assemble)
    return whole_step(objective, optimizer, microbatch_rows, assemble=assemble)
