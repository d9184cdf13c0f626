"""The objective of an update: the policy's loss and further terms, such as the KL to the reference and the entropy.

An objective is a list of `Term`s (name, coefficient, function). The first is the policy's loss. With the mask
roles == POLICY and sums over the whole batch, however it is cut, the objective is

    loss_sum / weight + sum over the other terms of coefficient * mean(term)

with means of the loss's reduction. `zsjax.rl.step_programs` makes optimizer steps of it.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zsjax.config.named import Registry, entry_of
from zsjax.errors import InputError
from zsjax.models import decoder
from zsjax.rl import losses, roles
from zsjax.rl.logprobs import token_logprobs
from zsjax.types import Metric

METRICS = (
    Metric("entropy", "of the policy's next token", "nats per token", 0.0, healthy="falls slowly and stays above 0.01",
           alarm="the policy hardly chooses any more", chart="Entropy", curve="entropy"),
    Metric("kl", "k3 estimate of the KL to the reference, whatever algorithm.kl_kind is", "nats per token",
           healthy="rises slowly", chart="KL to the starting policy", curve="kl", read_by=("adaptive KL coefficient",)),
    Metric("ratio_mean", "probability ratio of the policy and the policy before the step", "ratio", 0.0, healthy="near 1"),
    Metric("approx_kl", "k3 estimate of the KL of the step's updates", "nats per token", 0.0),
    Metric("clip_fraction", "tokens whose gradient the clip cuts off", "share of tokens", 0.0, 1.0, healthy="below 0.3"),
    Metric("dual_clip_fraction", "tokens whose loss algorithm.dual_clip bounds", "share of tokens", 0.0, 1.0),
    Metric("term/*", "a further term of the objective, without its coefficient", chart="Terms of the objective"),
)
LOSSES = Registry("loss")
OBJECTIVE_TERMS = Registry("term of the objective")


@dataclasses.dataclass(frozen=True)
class Term:
    """A summand of an objective.

    Attributes:
      name, coefficient: of the term, in metrics and in the sum.
      function: (batch: TokenBatch, logprobs float32[B, T], *, loss_mask, entropy float32[B, T]) -> float[B, T], minimised
        at each token; values where the mask is False are dropped. The policy's loss returns (loss_sum, weight, info)
        instead, and also takes `values` and `reduction`, see `make_update`.
    """

    name: str
    coefficient: float
    function: Callable


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective over the rows of any part of a batch, as `zsjax.rl.step_programs` takes it.

    Attributes:
      loss_sum: (params, batch, scale, coef) -> (loss_sum, {"weight": ..., "metrics": {name: (sum, weight)}}). coef: None,
        or float32[], a coefficient that changes from step to step. scale: None, or the quotient of `weigh`.
      weigh: None where loss and terms have the same weight. Else batch -> (weight of the loss, weight of the terms),
        without the model. Terms are multiplied by the quotient of both over the whole batch, `scale`.
      defaults: values of the info's entries that metrics may lack.
    """

    loss_sum: Callable
    weigh: Callable | None = None
    defaults: dict = dataclasses.field(default_factory=dict)


def loss_weight(loss_mask, reduction):
    """float32[]: the weight of every registered loss and term, from the mask alone; see `losses.aggregate`."""
    return losses.aggregate(jnp.ones_like(loss_mask, jnp.float32), loss_mask=loss_mask, reduction=reduction)[1]


@LOSSES("ppo_clip", help="clipped surrogate (zsjax.rl.losses.ppo_clip)", masked_only=True,
        reads=("clip_low", "clip_high", "dual_clip", "sampler_clip"))
def ppo_clip_loss(batch, logprobs, *, loss_mask, entropy=None, values=None, sampler_clip=0.0, **hyper):
    """`losses.ppo_clip` of a TokenBatch; hyper: clip_low, clip_high, dual_clip, sampler_clip, reduction."""
    del entropy, values
    return losses.ppo_clip(logprobs, batch.old_logprobs, batch.advantages, loss_mask=loss_mask,
                           token_weights=_sampler_weights(batch, loss_mask, sampler_clip), **hyper)


@LOSSES("gspo", help="one clipped ratio a sequence (zsjax.rl.losses.gspo)", masked_only=True,
        reads=("clip_low", "clip_high", "sampler_clip"))
def gspo_loss(batch, logprobs, *, loss_mask, entropy=None, values=None, sampler_clip=0.0, **hyper):
    """`losses.gspo` of a TokenBatch; hyper: clip_low, clip_high, sampler_clip, reduction."""
    del entropy, values
    return losses.gspo(logprobs, batch.old_logprobs, batch.advantages, loss_mask=loss_mask,
                       token_weights=_sampler_weights(batch, loss_mask, sampler_clip), **hyper)


def _sampler_weights(batch, loss_mask, limit):
    if not limit:
        return None
    return losses.truncated_weights(batch.old_logprobs, batch.behavior_logprobs, loss_mask=loss_mask, limit=limit)


def load_loss(name: str) -> Callable:
    """The loss of a name in `LOSSES`, or of "package.module:function"; InputError if there is none."""
    return LOSSES.load(name)


@OBJECTIVE_TERMS("kl", unit="nats per token", help="KL to the reference, of algorithm.kl_coef", masked_only=True,
                 needs=("reference",))
def kl_term(batch, logprobs, *, loss_mask, entropy, kind="k3"):
    """`losses.kl_penalty` of a TokenBatch."""
    del entropy

    def safe(x):
        return jnp.where(loss_mask, x, 0)

    return losses.kl_penalty(safe(logprobs), safe(batch.ref_logprobs), kind=kind)


@OBJECTIVE_TERMS("entropy", unit="nats per token", help="minus the entropy, of algorithm.entropy_coef", masked_only=True)
def entropy_term(batch, logprobs, *, loss_mask, entropy):
    """Minus the entropy: a positive coefficient rewards entropy."""
    del batch, logprobs, loss_mask
    return -entropy


def make_terms(loss, *, kl_coef=0.0, kl_kind="k3", entropy_coef=0.0, terms=None, **hyper) -> tuple[Term, ...]:
    """The terms of an objective, the policy's loss first.

    Args:
      loss: a name (see `load_loss`) or a function.
      kl_coef, kl_kind, entropy_coef: see `make_update`.
      terms: None, or {a name in `OBJECTIVE_TERMS` or "package.module:function": coefficient}.
      **hyper: given to the loss.

    Raises:
      InputError: kl_kind "k1" or unknown, an unknown loss or term.
    """
    if kl_kind not in ("k2", "k3"):
        why = ("k1 as a loss has an expected gradient of zero: E[d logprobs] = 0 over the policy's own tokens; use k2 "
               "or k3, or put k1 into the reward") if kl_kind == "k1" else "use k2 or k3"
        raise InputError(f"kl_kind={kl_kind!r}: {why}")
    loss = loss if callable(loss) else load_loss(loss)
    own = [Term(name, coefficient, OBJECTIVE_TERMS.load(name)) for name, coefficient in (terms or {}).items()]
    return (Term("loss", 1.0, _with(loss, **hyper)), Term("entropy", entropy_coef, entropy_term),
            Term("kl", kl_coef, _with(kl_term, kind=kl_kind)), *own)


def reads_mask_only(terms) -> bool:
    """Whether no term reads log-probs or entropies where the loss mask is False, so that none need be computed there."""
    return all(entry_of(term.function).masked_only for term in terms)


def _with(function, **options):
    """The function with these keywords, and with its decorator's entry."""
    return functools.wraps(function)(functools.partial(function, **options))


def policy_objective(model_config, terms, *, chunk=0, temperature=1.0, remat="none", reduction="token_mean",
                     invert_mask=False) -> Objective:
    """The objective of reinforcement learning; terms: of `make_terms`, other arguments: see `make_update`."""
    loss, *penalties = terms
    masked_only = reads_mask_only(terms)
    fixed = {term.name: term.coefficient for term in penalties}

    def mask_of(batch):
        mask = roles.inverted_mask(batch.roles) if invert_mask else roles.loss_mask(batch.roles)
        return mask if batch.row_valid is None else mask & batch.row_valid[:, None]

    def reduction_of(mask):
        return ("fixed_length", mask.shape[1]) if reduction == "fixed_length" else reduction

    def of_loss(batch, logprobs, entropy):
        mask = mask_of(batch)
        return loss.function(batch, logprobs, loss_mask=mask, entropy=entropy, values=None, reduction=reduction_of(mask))

    def weigh(batch):
        mask, none = mask_of(batch), jnp.zeros_like(batch.old_logprobs)
        return of_loss(batch, batch.old_logprobs, none)[1], loss_weight(mask, reduction_of(mask))

    def loss_sum(params, batch, scale, coef):
        mask = mask_of(batch)
        logprobs, entropy = model_logprobs(params, model_config, batch.tokens, roles.attention_mask(batch.roles),
                                           remat=remat, chunk=chunk, temperature=temperature,
                                           wanted=mask if masked_only else None)
        total, weight, info = of_loss(batch, logprobs, entropy)
        given = dict(loss_mask=mask, entropy=entropy)
        metrics = _policy_metrics(batch, logprobs, **given)
        coefficients = fixed if coef is None else fixed | {"kl": coef}
        penalty = None
        for term in penalties:
            coefficient = coefficients[term.name]
            if isinstance(coefficient, int | float) and not coefficient:
                continue
            _check_needs(term, batch)
            value = term.function(batch, logprobs, **given)
            if term.name not in metrics:
                metrics[f"term/{term.name}"] = _mean(value, mask)
            penalty = coefficient * value if penalty is None else penalty + coefficient * value
        if penalty is not None:
            if scale is None and not alike:
                raise InputError("a loss with a weight of its own needs kl_coef > 0 where a coefficient is given")
            penalty, _ = losses.aggregate(penalty, loss_mask=mask, reduction=reduction_of(mask))
            total = total + (penalty if scale is None else scale * penalty)
        return total, {"weight": weight, "metrics": metrics | info}

    # Registered losses have the weight of terms. Another loss may have its own, which matters where there are terms.
    alike = loss.function.__wrapped__ in LOSSES.values()
    return Objective(loss_sum, weigh if any(fixed.values()) and not alike else None,
                     defaults={"clip_fraction": 0.0, "kl": 0.0})


def _mean(x, mask):
    return losses.aggregate(jax.lax.stop_gradient(x), loss_mask=mask, reduction="token_mean")


def _policy_metrics(batch, logprobs, *, loss_mask, entropy):
    def safe(x):
        return jnp.where(loss_mask, x, 0)

    log_ratio = jnp.clip(safe(logprobs) - safe(batch.old_logprobs), -losses.MAX_LOG_RATIO, losses.MAX_LOG_RATIO)
    metrics = {"entropy": _mean(entropy, loss_mask), "ratio_mean": _mean(jnp.exp(log_ratio), loss_mask),
               "approx_kl": _mean(jnp.expm1(log_ratio) - log_ratio, loss_mask)}
    if batch.ref_logprobs is not None:
        metrics["kl"] = _mean(kl_term(batch, logprobs, loss_mask=loss_mask, entropy=entropy, kind="k3"), loss_mask)
    return metrics


def _check_needs(term, batch):
    have = {*batch.extra, *(["reference"] if batch.ref_logprobs is not None else [])}
    for need in entry_of(term.function).needs:
        if need == "reference" and need not in have:
            raise InputError(f"the term {term.name!r} needs batch.ref_logprobs, which are None; set algorithm.track_kl")
        if need not in have:
            raise InputError(f"the term {term.name!r} needs batch.extra[{need!r}], which no scorer gives; "
                             f"name one in algorithm.scorers")


def supervised_objective(model_config, *, chunk=0, remat="none") -> Objective:
    """Weighted next-token prediction over (tokens, weights, valid); see `make_supervised_update`."""

    def loss_sum(params, batch, scale, coef):
        del scale, coef
        tokens, weights, valid = batch
        weights = jnp.where(valid & (jnp.arange(tokens.shape[1]) > 0), weights, 0).astype(jnp.float32)
        logprobs, _ = model_logprobs(params, model_config, tokens, valid, remat=remat, chunk=chunk, with_entropy=False,
                                     wanted=weights != 0)
        return -(weights * logprobs).sum(), {"weight": weights.sum(), "metrics": {}}

    return Objective(loss_sum)


def model_logprobs(params, config, tokens, valid, *, remat, **options):
    """(logprobs, entropy) of `token_logprobs` under a decoder's training forward."""
    hidden = decoder.hidden_states(params, config, tokens, valid=valid, remat=remat)
    matrix, tied = decoder.unembedding(params, config)
    return token_logprobs(hidden, matrix, tokens, num_ids=config.num_ids, tied=tied, **options)
