"""Losses over tokens: arrays in, (sum, weight) out.

A loss returns the sum over its tokens and the weight to divide it by, not the quotient: sums and weights of
microbatches, or of devices, add up to exactly those of the whole batch, which means of means do not.

    loss_sum, weight, info = ppo_clip(logprobs, old_logprobs, advantages, loss_mask=loss_mask(roles))
    kl_sum, _ = aggregate(kl_penalty(logprobs, ref_logprobs, kind="k3"), loss_mask=..., reduction="token_mean")
    loss = (loss_sum + kl_coef * kl_sum) / weight          # zsjax.rl.objective does this

What stands at a masked position (False in `loss_mask`) has no influence on a value or a gradient, even if it is NaN.
That takes two `where`s, one before the arithmetic and one after: with the second alone, the gradient of the branch
not taken is 0 * NaN = NaN (https://docs.jax.dev/en/latest/faq.html, "gradients contain NaN where using where").

Computation is in float32, or float64 if an input is.
"""

import jax
import jax.numpy as jnp

# exp overflows float32 at 88. A ratio of e^80 is clipped like one of e^100, but its gradient is 0 and not 0 * inf.
MAX_LOG_RATIO = 80.0


def _prepare(loss_mask, **arrays):
    """The mask, and each array in one dtype of at least float32, broadcast to [B, T], with 0 where masked."""
    loss_mask = _bool_mask(loss_mask)
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    dtype = jnp.result_type(jnp.float32, *arrays.values())
    out = []
    for name, x in arrays.items():
        x = x.astype(dtype)
        if x.shape not in (loss_mask.shape, (loss_mask.shape[0], 1)):
            raise ValueError(f"{name} has shape {x.shape}; loss_mask has {loss_mask.shape}")
        out.append(jnp.where(loss_mask, x, 0))
    return loss_mask, *out


def _bool_mask(loss_mask):
    loss_mask = jnp.asarray(loss_mask)
    if loss_mask.dtype != jnp.bool_ or loss_mask.ndim != 2:
        raise ValueError(f"loss_mask must be bool[B, T], not {loss_mask.dtype}{list(loss_mask.shape)}; "
                         "zsjax.rl.roles.loss_mask makes it from roles")
    return loss_mask


def aggregate(per_token, *, loss_mask, reduction):
    """Sums a per-token quantity, with the weight that makes the sum a mean.

    With x_bt at the True positions of the mask, n_b of them in row b:
      "token_mean":        sum_bt x_bt,             sum_b n_b
      "sequence_mean":     sum_b (sum_t x_bt) / n_b,  number of rows with n_b > 0
      ("fixed_length", n): sum_bt x_bt,             n * number of rows with n_b > 0
    The last does not depend on how long answers are (Dr. GRPO, arXiv 2503.20783).

    Args:
      per_token: float[B, T], or [B, 1] for the same value at each token of a row; gradients flow through it where the
        mask is True and are exactly 0 elsewhere.
      loss_mask: bool[B, T].
      reduction: one of the above.

    Returns:
      (sum, weight): float32[] each (float64 for float64 input); (0, 0) for a mask without a True.

    Raises:
      ValueError: shapes differ, the mask is not bool, or the reduction is unknown.
    """
    loss_mask, x = _prepare(loss_mask, per_token=per_token)
    counts = loss_mask.sum(axis=1).astype(x.dtype)
    rows = (counts > 0).sum().astype(x.dtype)
    if reduction == "token_mean":
        return x.sum(), counts.sum()
    if reduction == "sequence_mean":
        return (x.sum(axis=1) / jnp.maximum(counts, 1)).sum(), rows
    if isinstance(reduction, tuple | list) and len(reduction) == 2 and reduction[0] == "fixed_length":
        return x.sum(), reduction[1] * rows
    raise ValueError(f"unknown reduction {reduction!r}: 'token_mean', 'sequence_mean' or ('fixed_length', n)")


def ppo_clip(logprobs, old_logprobs, advantages, *, loss_mask, clip_low=0.2, clip_high=0.2, dual_clip=0.0,
             token_weights=None, reduction="token_mean"):
    """Clipped surrogate policy loss.

    With ratio_t = exp(logprobs_t - old_logprobs_t), the loss of a token is
      -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t),
    "Proximal Policy Optimization Algorithms", Schulman et al. 2017 (arXiv 1707.06347), equation 7; different bounds as
    in DAPO (arXiv 2503.14476, equation 10). At ratio 1 its gradient is REINFORCE's, -A_t d logprobs_t. With a dual clip
    c > 1 the loss is at most -c A_t where A_t < 0 (Ye et al. 2020, arXiv 1912.09729, equation 5): a token that became
    much more likely than when it was sampled cannot throw the whole step.

    Equals verl's `compute_policy_loss_vanilla` (fixtures in tests/rl/peers.json) but for two things, on purpose: verl
    limits log-ratios to +-20 where we do to +-80, which no token comes near in either; and verl always applies its dual
    clip (c = 3), which is off here unless asked for, as in the equation above.

    Args:
      logprobs: float[B, T], nats, of the tokens under the policy that is trained; the only argument with a gradient.
      old_logprobs: float[B, T], nats, under the policy at the start of the update.
      advantages: float[B, T], or [B, 1] for one advantage per episode.
      loss_mask: bool[B, T], True at the tokens the policy sampled; what stands elsewhere has no influence.
      clip_low, clip_high: the band around ratio 1, at least 0.
      dual_clip: c, greater than 1; 0 is off.
      token_weights: None or float[B, T], factors of each token's loss, see `truncated_weights`; no gradient.
      reduction: see `aggregate`.

    Returns:
      loss_sum, weight: float[] each; the loss is their quotient, and the weight may be 0.
      info: dict name -> (sum, number of tokens): `ratio_mean`; `clip_fraction`, the share of tokens whose gradient
        the clip removed; `approx_kl`, k3 of KL(old || new) in nats; with a dual clip `dual_clip_fraction`.

    Raises:
      ValueError: shapes differ, the mask is not bool, or the reduction is unknown.
    """
    loss_mask, logprobs, old_logprobs, advantages = _prepare(
        loss_mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    old_logprobs, advantages = jax.lax.stop_gradient((old_logprobs, advantages))
    log_ratio = jnp.clip(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return _clipped_surrogate(jnp.exp(log_ratio), log_ratio, advantages, loss_mask=loss_mask, band=(clip_low, clip_high),
                              dual_clip=dual_clip, token_weights=token_weights, reduction=reduction)


def gspo(logprobs, old_logprobs, advantages, *, loss_mask, clip_low=3e-4, clip_high=4e-4, token_weights=None,
         reduction="sequence_mean"):
    """Clipped surrogate with one ratio a sequence, the geometric mean of its tokens' ratios.

    With s_b = exp(mean_t (logprobs_bt - old_logprobs_bt)) over the True positions of row b, the loss of a token is
      -min(s_b A_bt, clip(s_b, 1 - clip_low, 1 + clip_high) A_bt),
    "Group Sequence Policy Optimization", Zheng et al. 2025 (arXiv 2507.18071), equations 5 to 7, whose band is
    [3e-4, 4e-4]. Where advantages differ within a row this is GSPO-token (equation 14): each token's advantage meets
    the row's ratio, and the gradient of token t's log-prob is that of its own term, s_b A_bt. With one advantage a row
    both have the same value and gradient, under "sequence_mean" that of the paper.

    Equals verl's `compute_policy_loss_gspo` (fixtures in tests/rl/peers.json), which limits s_b to e^10; ours to e^80.

    Same arguments, returns and errors as `ppo_clip`; `clip_fraction` counts tokens of clipped sequences.
    """
    loss_mask, logprobs, old_logprobs, advantages = _prepare(
        loss_mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    old_logprobs, advantages = jax.lax.stop_gradient((old_logprobs, advantages))
    log_ratio = logprobs - old_logprobs
    count = jnp.maximum(loss_mask.sum(axis=1, keepdims=True), 1)
    mean_log_ratio = jax.lax.stop_gradient(log_ratio.sum(axis=1, keepdims=True) / count)
    # The row's ratio in value, the token's own log-prob in gradient: d ratio / d logprobs_t = ratio.
    log_s = mean_log_ratio + logprobs - jax.lax.stop_gradient(logprobs)
    ratio = jnp.exp(jnp.clip(log_s, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    own = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return _clipped_surrogate(ratio, own, advantages, loss_mask=loss_mask, band=(clip_low, clip_high),
                              token_weights=token_weights, reduction=reduction)


def _clipped_surrogate(ratio, log_ratio, advantages, *, loss_mask, band, dual_clip=0.0, token_weights, reduction):
    """What `ppo_clip` and `gspo` return; log_ratio: each token's own, of which approx_kl is made."""
    clipped = jax.lax.stop_gradient(jnp.clip(ratio, 1 - band[0], 1 + band[1]))
    # A select rather than jnp.minimum, which splits the gradient at ties: at ratio 1 with a band of 0 half was lost.
    is_clipped = clipped * advantages < ratio * advantages
    per_token = -jnp.where(is_clipped, clipped, ratio) * advantages
    info = _means(loss_mask, ratio_mean=ratio, clip_fraction=is_clipped, approx_kl=jnp.expm1(log_ratio) - log_ratio)
    if dual_clip:
        bound = -dual_clip * advantages
        is_bounded = (advantages < 0) & (per_token > bound)
        per_token = jnp.where(is_bounded, bound, per_token)
        info |= _means(loss_mask, dual_clip_fraction=is_bounded)
    if token_weights is not None:
        per_token = per_token * jax.lax.stop_gradient(_prepare(loss_mask, token_weights=token_weights)[1])
    loss_sum, weight = aggregate(per_token, loss_mask=loss_mask, reduction=reduction)
    return loss_sum, weight, info


def _means(loss_mask, **arrays):
    """name -> (sum, number of tokens) of arrays that get no gradient."""
    return {name: aggregate(jax.lax.stop_gradient(x), loss_mask=loss_mask, reduction="token_mean")
            for name, x in arrays.items()}


def truncated_weights(old_logprobs, behavior_logprobs, *, loss_mask, limit):
    """min(exp(old - behavior), limit): importance weights of tokens that another program sampled.

    The sampler (cached decoding, other kernels, perhaps int8 weights) and the trainer do not give exactly the same
    log-probs; multiplied by these weights, a token's loss is that of data from the trainer's policy, with the variance
    of large ratios cut off: truncated importance sampling (Ionides 2008), per token. verl gives its losses such factors
    as `rollout_is_weights`, TRL as `importance_sampling_ratio`.

    Args:
      old_logprobs: float[B, T], nats, recomputed by the trainer.
      behavior_logprobs: float[B, T], nats, recorded by the sampler.
      loss_mask: bool[B, T].
      limit: largest weight, > 0.

    Returns:
      float[B, T], exactly 1 where the mask is False; no gradient.
    """
    loss_mask, old, behavior = _prepare(loss_mask, old_logprobs=old_logprobs, behavior_logprobs=behavior_logprobs)
    gap = jax.lax.stop_gradient(jnp.clip(old - behavior, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return jnp.where(loss_mask, jnp.minimum(jnp.exp(gap), limit), 1)


def value_clip(values, old_values, returns, *, loss_mask, clip, reduction="token_mean"):
    """Clipped value loss: half the squared error, the worse of the free and the clipped prediction.

    With v'_t = old_values_t + clip(values_t - old_values_t, -clip, clip), the loss of a token is
      max((values_t - returns_t)^2, (v'_t - returns_t)^2) / 2,
    as in OpenAI's baselines (ppo2), whose clip follows Schulman et al. 2015 (arXiv 1506.02438).

    Args:
      values: float[B, T], predictions of the value model that is trained; the only argument with a gradient.
      old_values: float[B, T], its predictions at the start of the update.
      returns: float[B, T], targets, in units of reward.
      loss_mask: bool[B, T], True at the tokens the policy sampled; what stands elsewhere has no influence.
      clip: the largest step of a prediction, in units of reward.
      reduction: see `aggregate`.

    Returns:
      loss_sum, weight: float[] each; the loss is their quotient, and the weight may be 0.
      info: dict name -> (sum, number of tokens): `value_clip_fraction`, `value_error` (mean squared error).

    Raises:
      ValueError: shapes differ, the mask is not bool, or the reduction is unknown.
    """
    loss_mask, values, old_values, returns = _prepare(loss_mask, values=values, old_values=old_values, returns=returns)
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    clipped = old_values + jnp.clip(values - old_values, -clip, clip)
    free_error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    # Not where it differs from the free one by rounding alone.
    is_clipped = (jnp.abs(values - old_values) > clip) & (clipped_error > free_error)
    per_token = 0.5 * jnp.where(is_clipped, clipped_error, free_error)
    loss_sum, weight = aggregate(per_token, loss_mask=loss_mask, reduction=reduction)
    return loss_sum, weight, _means(loss_mask, value_clip_fraction=is_clipped, value_error=free_error)


def kl_penalty(logprobs, ref_logprobs, *, kind):
    """Estimates KL(policy || reference) at each token from the sampled token's log-probs.

    With d = logprobs - ref_logprobs (Schulman, http://joschu.net/blog/kl-approx.html):
      "k1": d                     unbiased, of either sign
      "k2": d^2 / 2               biased, low variance; its gradient is an unbiased gradient of the KL
      "k3": exp(-d) + d - 1       unbiased, never negative
    The values are those of verl's `kl_penalty_forward`, which limits d to +-20 and k3 to 10, where its gradient ends;
    ours goes on pulling.
    k1 belongs into a reward, not into a loss: the expectation of its gradient over the policy's own tokens is
    E[d logprobs] = 0, so it would add noise and no force. `zsjax.rl.steps.make_update` refuses it.

    Args:
      logprobs: float[...], nats, under the policy; gradients flow through it.
      ref_logprobs: float[...], nats, under the reference; no gradient.
      kind: "k1", "k2" or "k3".

    Returns:
      float[...], nats.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in ("k1", "k2", "k3"):
        raise ValueError(f"unknown kind of KL estimate {kind!r}: 'k1', 'k2' or 'k3'")
    logprobs, ref_logprobs = jnp.asarray(logprobs), jnp.asarray(ref_logprobs)
    dtype = jnp.result_type(jnp.float32, logprobs, ref_logprobs)
    d = logprobs.astype(dtype) - jax.lax.stop_gradient(ref_logprobs.astype(dtype))
    if kind == "k1":
        return d
    # There is no mask here. A d that is not finite goes through a branch with slope 1, so that where a mask drops it
    # afterwards its gradient is 0 and not 0 * NaN.
    finite = jnp.isfinite(d)
    safe = jnp.where(finite, d, 0)
    # expm1: exp(-d) - 1 loses every digit near d = 0, where training begins.
    kl = 0.5 * safe * safe if kind == "k2" else jnp.expm1(-safe) + safe
    return jnp.where(finite, kl, jnp.where(d < 0, -d, d))
