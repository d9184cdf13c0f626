"""Optimizer steps: (params, opt_state, batch) -> (params, opt_state, info), for reinforcement and supervision.

    score = make_score(model_config, chunk=256)
    old_logprobs, _ = score(params, tokens, attention_mask(roles))
    update = make_update(model_config, "ppo_clip", optimizer, chunk=256, kl_coef=0.001)
    params, opt_state, info = update(params, opt_state, batch)

Microbatches and what a step does with sums, weights and NaN are in `zsjax.rl.accumulate`.
"""

import jax
import jax.numpy as jnp

from zsjax.errors import InputError
from zsjax.models import decoder
from zsjax.rl import losses, roles
from zsjax.rl.accumulate import packed_step, slices, trained_alone, whole_step
from zsjax.rl.credit import load_function
from zsjax.rl.logprobs import token_logprobs
from zsjax.rl.optimizer import make_optimizer

__all__ = ["LOSSES", "gspo_loss", "load_loss", "make_optimizer", "make_packed_update", "make_score",
           "make_supervised_update", "make_update", "ppo_clip_loss"]


def ppo_clip_loss(batch, logprobs, *, loss_mask, entropy=None, values=None, sampler_clip=0.0, **hyper):
    """`losses.ppo_clip` of a TokenBatch; hyper: clip_low, clip_high, dual_clip, sampler_clip, reduction."""
    del entropy, values
    return losses.ppo_clip(logprobs, batch.old_logprobs, batch.advantages, loss_mask=loss_mask,
                           token_weights=_sampler_weights(batch, loss_mask, sampler_clip), **hyper)


def gspo_loss(batch, logprobs, *, loss_mask, entropy=None, values=None, sampler_clip=0.0, **hyper):
    """`losses.gspo` of a TokenBatch; hyper: clip_low, clip_high, sampler_clip, reduction."""
    del entropy, values
    return losses.gspo(logprobs, batch.old_logprobs, batch.advantages, loss_mask=loss_mask,
                       token_weights=_sampler_weights(batch, loss_mask, sampler_clip), **hyper)


def _sampler_weights(batch, loss_mask, limit):
    if not limit:
        return None
    return losses.truncated_weights(batch.old_logprobs, batch.behavior_logprobs, loss_mask=loss_mask, limit=limit)


POLICY_INFO = {"clip_fraction": 0.0, "kl": 0.0}  # what is told where neither loss nor reference tells it
LOSSES = {"ppo_clip": ppo_clip_loss, "gspo": gspo_loss}


def load_loss(name):
    """The loss of a name in `LOSSES`, or of "package.module:function"; ValueError if there is none."""
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        raise InputError(f"unknown loss {name!r}: one of {sorted(LOSSES)} or 'package.module:function'")
    return load_function(name, "loss")


def _model_logprobs(params, config, tokens, valid, **options):
    remat = options.pop("remat")
    hidden = decoder.hidden_states(params, config, tokens, valid=valid, remat=remat)
    return token_logprobs(hidden, decoder.unembedding(params, config), tokens, num_ids=config.num_ids, **options)


def make_score(model_config, *, chunk, temperature=1.0, remat="none", microbatch_rows=0):
    """Returns the jitted score(params, tokens int32[B, T], valid bool[B, T]) -> (logprobs, entropy) float32[B, T].

    Nats, of each token given those before it under softmax(logits / temperature), by the forward that training uses;
    0 at position 0 and where `valid` is False. `microbatch_rows` > 0 runs that many rows at a time: the training
    update's number makes the ratio of the first update 1 to the last bit on CPU.
    """

    def rows(params, tokens, valid):
        out = _model_logprobs(params, model_config, tokens, valid, remat=remat, chunk=chunk, temperature=temperature)
        return jax.tree.map(lambda x: jnp.where(valid, x, 0), out)

    @jax.jit
    def score(params, tokens, valid):
        B, T = tokens.shape
        if not 0 < microbatch_rows < B:
            return rows(params, tokens, valid)
        out = jax.lax.map(lambda part: rows(params, *part), slices((tokens, valid), microbatch_rows))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, T), out)

    return score


def make_update(model_config, loss, optimizer, *, microbatch_rows=0, assemble=trained_alone, **options):
    """Makes one optimizer step of reinforcement learning.

    The objective that is minimised, with the mask roles == POLICY and sums over the whole batch, is
      loss_sum / weight + kl_coef * mean(kl_penalty) - entropy_coef * mean(entropy),
    the means taken with the same reduction as the loss.

    Args:
      model_config: DecoderConfig of the policy.
      loss: a name (see `load_loss`) or a function (batch: TokenBatch, logprobs float32[B, T], *, loss_mask, entropy,
        values, reduction, **loss_hyper) -> (loss_sum, weight, info dict name -> (sum, weight)). It is called on one
        microbatch of rows; rows of a group need not be in the same one. With KL or entropy terms its weight must
        not depend on the logprobs.
      optimizer: an optax.GradientTransformation, see `make_optimizer`.
      microbatch_rows: rows at a time; 0 is all. Must divide the batch's rows.
      chunk: positions per chunk of `token_logprobs`.
      temperature: the sampling temperature of the rollout.
      remat: what the backward pass computes again, see `decoder.hidden_states`.
      kl_coef, kl_kind: KL to `batch.ref_logprobs` as a loss, "k2" or "k3".
      entropy_coef: > 0 rewards entropy.
      reduction: see `losses.aggregate`; the bare name "fixed_length" stands for ("fixed_length", T).
      invert_mask: an ablation that trains on every token but the policy's; the caller broadcasts the advantages.
      assemble: (params, frozen) -> the decoder's parameters, where what is trained is not the whole model (LoRA).
      **loss_hyper: given to the loss.

    Returns:
      update(params, opt_state, batch: TokenBatch, coef=None, frozen=None) -> (params, opt_state, info), jitted, with
      params and opt_state donated; a coef float32[] takes the place of kl_coef (an adaptive one), frozen is a pytree for
      `assemble`, which gets no gradient. info: dict of float32[]: loss (all terms), grad_norm (before clipping), weight
      (the loss's), entropy and kl (k3, 0 without ref_logprobs) in nats per token, ratio_mean, approx_kl, clip_fraction (0
      unless the loss tells), nonfinite (1 if loss or gradient was not finite: then params and opt_state are unchanged, as
      they are when the weight is 0), and what the loss's info adds.

    Raises:
      ValueError: kl_kind "k1" or unknown, an unknown loss; while tracing, rows that microbatch_rows does not divide, or
        kl_coef without ref_logprobs.
    """
    return whole_step(_objective(model_config, loss, **options), optimizer, microbatch_rows, defaults=POLICY_INFO,
                      assemble=assemble)


def make_packed_update(model_config, loss, optimizer, *, assemble=trained_alone, **options):
    """`make_update` over parts of different shapes, driven from the host: see `zsjax.rl.packing`.

    Args:
      model_config, loss, optimizer, assemble, **options: as `make_update`. A reduction "fixed_length" needs its length,
        since parts have several: ("fixed_length", n).

    Returns:
      update(params, opt_state, parts: list of TokenBatch, coef=None, frozen=None) -> (params, opt_state, info): the step
      that `make_update` makes of all parts in one batch, whatever the cut: sums and weights are added and divided once.
      One compiled program for each shape of a part; params and opt_state are donated.
    """
    if options.get("reduction") == "fixed_length":
        raise ValueError("parts have several lengths: give reduction=('fixed_length', n)")
    return packed_step(_objective(model_config, loss, **options), optimizer, defaults=POLICY_INFO, assemble=assemble)


def _objective(model_config, loss, *, chunk, temperature=1.0, remat="none", kl_coef=0.0, kl_kind="k3", entropy_coef=0.0,
               reduction="token_mean", invert_mask=False, **loss_hyper):
    """The two parts of a step, over the rows of any part of a batch; see `make_update`.

    Returns:
      weigh(batch) -> (the loss's weight, the penalties' weight), from masks alone, no model is run.
      loss_sum(params, batch, scale, kl_coef) -> (loss_sum, sums), where the penalties are multiplied by scale, the
      quotient of the two weights over the whole batch.
    """
    if kl_kind not in ("k2", "k3"):
        why = ("k1 as a loss has an expected gradient of zero: E[d logprobs] = 0 over the policy's own tokens; use k2 "
               "or k3, or put k1 into the reward") if kl_kind == "k1" else "k2 or k3"
        raise ValueError(f"kl_kind={kl_kind!r}: {why}")
    loss_fn = loss if callable(loss) else load_loss(loss)
    fixed_coef = kl_coef
    masked_alone = loss_fn in LOSSES.values()  # ours look at nothing else; a loss of one's own may

    def mask_of(batch):
        mask = roles.inverted_mask(batch.roles) if invert_mask else roles.loss_mask(batch.roles)
        return mask if batch.row_valid is None else mask & batch.row_valid[:, None]

    def terms(batch, logprobs, entropy, kl_coef):
        """(loss_sum, weight, penalty_sum, penalty_weight, metrics), sums over the rows of `batch`."""
        mask = mask_of(batch)
        how = ("fixed_length", mask.shape[1]) if reduction == "fixed_length" else reduction
        loss_sum, weight, info = loss_fn(batch, logprobs, loss_mask=mask, entropy=entropy, values=None,
                                         reduction=how, **loss_hyper)
        mean = lambda x: losses.aggregate(jax.lax.stop_gradient(x), loss_mask=mask, reduction="token_mean")
        safe = lambda x: jnp.where(mask, x, 0)
        log_ratio = jnp.clip(safe(logprobs) - safe(batch.old_logprobs), -losses.MAX_LOG_RATIO, losses.MAX_LOG_RATIO)
        metrics = {"entropy": mean(entropy), "ratio_mean": mean(jnp.exp(log_ratio)),
                   "approx_kl": mean(jnp.expm1(log_ratio) - log_ratio)}
        penalty = -entropy_coef * entropy
        if batch.ref_logprobs is not None:
            kl = lambda kind: losses.kl_penalty(safe(logprobs), safe(batch.ref_logprobs), kind=kind)
            metrics["kl"] = mean(kl("k3"))
            if kl_coef is not None:
                penalty += kl_coef * kl(kl_kind)
            else:
                penalty += fixed_coef * kl(kl_kind) if fixed_coef else 0
        elif fixed_coef or kl_coef is not None:
            raise ValueError(f"kl_coef={fixed_coef} needs batch.ref_logprobs, which are None")
        penalty_sum, penalty_weight = losses.aggregate(penalty, loss_mask=mask, reduction=how)
        return loss_sum, weight, penalty_sum, penalty_weight, metrics | info

    def weigh(batch):
        # The weights come from masks, so XLA drops the rest of this call.
        _, weight, _, penalty_weight, _ = terms(batch, batch.old_logprobs, jnp.zeros_like(batch.old_logprobs), None)
        return weight, penalty_weight

    def objective(params, batch, scale, kl_coef):
        logprobs, entropy = _model_logprobs(params, model_config, batch.tokens, roles.attention_mask(batch.roles),
                                            remat=remat, chunk=chunk, temperature=temperature,
                                            wanted=mask_of(batch) if masked_alone else None)
        loss_sum, weight, penalty_sum, _, metrics = terms(batch, logprobs, entropy, kl_coef)
        if fixed_coef or entropy_coef or kl_coef is not None:
            loss_sum = loss_sum + scale * penalty_sum
        return loss_sum, {"weight": weight, "metrics": metrics}

    return weigh, objective


def make_supervised_update(model_config, optimizer, *, chunk, remat="none", microbatch_rows=0, packed=False,
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

    def used(batch):
        tokens, weights, valid = batch
        return jnp.where(valid & (jnp.arange(tokens.shape[1]) > 0), weights, 0).astype(jnp.float32)

    def weigh(batch):
        return used(batch).sum(), jnp.float32(0)  # no penalties

    def loss_sum(params, batch, scale, coef):
        del scale, coef
        tokens, _, valid = batch
        weights = used(batch)
        logprobs, _ = _model_logprobs(params, model_config, tokens, valid, remat=remat, chunk=chunk, with_entropy=False,
                                      wanted=weights != 0)
        return -(weights * logprobs).sum(), {"weight": weights.sum(), "metrics": {}}

    if packed:
        return packed_step((weigh, loss_sum), optimizer, assemble=assemble)
    return whole_step((weigh, loss_sum), optimizer, microbatch_rows, assemble=assemble)
