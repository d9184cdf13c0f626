"""Advantages: from rewards to the numbers that multiply the gradient of a token's log-prob.

Per token (`gae`, `reinforce_plus_plus`, `whiten`) the time steps of a row are the True positions of its loss mask, in
order: a span of documents between two of the policy's tokens is one transition of the environment, however long it is.
Discounting over document tokens, or asking a value model about them, would make advantages depend on how much the
search engine wrote. Per episode (`grpo`, `rloo`, `reinforce`) there is one score and one advantage a row.

Everything is computed in the floating dtype of the input (float32 for integers). What stands where the mask is False
has no influence, even if it is NaN, and the output there is exactly 0. Losses let no gradient flow into advantages.
"""

import jax
import jax.numpy as jnp


def _floating(*arrays):
    """The arrays in their common dtype, float32 if that is not a floating one."""
    arrays = [jnp.asarray(x) for x in arrays]
    dtype = jnp.result_type(*arrays)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    return [x.astype(dtype) for x in arrays]


def _masked(loss_mask, *arrays):
    """The mask and the arrays, in their common floating dtype, with 0 where masked."""
    loss_mask = jnp.asarray(loss_mask)
    arrays = _floating(*arrays)
    shapes = [x.shape for x in (loss_mask, *arrays)]
    if loss_mask.dtype != jnp.bool_ or loss_mask.ndim != 2 or len(set(shapes)) > 1:
        raise ValueError(f"arrays must be [B, T] and loss_mask bool[B, T], not {shapes} with a {loss_mask.dtype} mask")
    return loss_mask, *(jnp.where(loss_mask, x, 0) for x in arrays)


def gae(rewards, values, *, loss_mask, gamma, lam):
    """Generalised advantage estimation from policy token to policy token.

    With t' the next True position after t in the row (and values and advantages 0 after the last one):
      delta_t      = rewards_t + gamma * values_t' - values_t
      advantages_t = delta_t + gamma * lam * advantages_t'
      returns_t    = advantages_t + values_t
    Schulman et al. 2015 (arXiv 1506.02438), equations 11 and 16. lam = 1 is the discounted return minus the value,
    lam = 0 the one-step error. Nothing is whitened here; see `whiten`. verl's `compute_gae_advantage_return` whitens
    inside, so that its caller cannot have the bare advantages; the returns are the same.

    Args:
      rewards: float[B, T], of the transition that follows the token; a final reward stands at the last True position.
      values: float[B, T], of the state before the token.
      loss_mask: bool[B, T], True at the tokens the policy sampled.
      gamma, lam: per step from one policy token to the next, 0 to 1.

    Returns:
      (advantages, returns): float[B, T] each, in units of reward.

    Raises:
      ValueError: shapes differ or the mask is not bool.
    """
    loss_mask, rewards, values = _masked(loss_mask, rewards, values)
    dtype = rewards.dtype
    gamma, lam = jnp.asarray(gamma, dtype), jnp.asarray(lam, dtype)

    def body(carry, inputs):
        next_value, next_advantage = carry
        mask, reward, value = inputs
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = jnp.where(mask, value, next_value), jnp.where(mask, advantage, next_advantage)
        return carry, jnp.where(mask, advantage, 0)

    zeros = jnp.zeros(rewards.shape[0], dtype)
    _, advantages = jax.lax.scan(body, (zeros, zeros), (loss_mask.T, rewards.T, values.T), reverse=True)
    return advantages.T, advantages.T + values


def _group_statistics(scores, group_id):
    """Scores measured from their group's lowest, the group's sum of these, and its size: [B] each.

    Groups are found by comparing all pairs (B is hundreds), which needs no sorted ids and no known number of
    groups under jit. Measuring from the lowest makes equal scores exactly 0, where score - mean is off by a rounding
    error that the division by a deviation of 0 + eps would blow up.
    """
    scores, = _floating(scores)
    group_id = jnp.asarray(group_id)
    if scores.ndim != 1 or group_id.shape != scores.shape:
        raise ValueError(f"scores and group_id must be [B], not {scores.shape} and {group_id.shape}")
    same = group_id[:, None] == group_id[None, :]
    above = scores - jnp.where(same, scores[None, :], jnp.inf).min(axis=1)
    return above, same, same.sum(axis=1).astype(scores.dtype)


def _group_sum(x, same):
    return jnp.where(same, x[None, :], 0).sum(axis=1)


def grpo(scores, *, group_id, normalize=True, eps=1e-6):
    """Score minus the mean of its group, over the group's deviation.

      (scores_i - mean) / (std + eps),  std with ddof 1
    "DeepSeekMath", Shao et al. 2024 (arXiv 2402.03300), section 4.1.2. Without `normalize` only the mean is
    subtracted (Dr. GRPO, arXiv 2503.20783), so that easy and hard questions are not weighted up. verl's
    `compute_grpo_outcome_advantage` is the same but for a group of one, to which it gives the score itself: a score
    that was compared with nothing, next to advantages around 0.

    Args:
      scores: float[B], one per episode.
      group_id: int[B], equal for the episodes of one question; arbitrary and unsorted.
      normalize: whether to divide.
      eps: added to the deviation, in units of the score.

    Returns:
      float[B]; exactly 0 for a group of one and for a group of equal scores.

    Raises:
      ValueError: shapes differ.
    """
    above, same, size = _group_statistics(scores, group_id)
    centered = above - _group_sum(above, same) / size
    if not normalize:
        return centered
    variance = _group_sum(centered**2, same) / jnp.maximum(size - 1, 1)
    return centered / (jnp.sqrt(variance) + eps)


def rloo(scores, *, group_id):
    """Score minus the mean of the others in its group (leave one out).

    Ahmadian et al. 2024 (arXiv 2402.14740), section 3: an unbiased baseline, as it does not contain the score itself.
    The same as verl's and TRL's, but for verl's group of one (see `grpo`).

    Args:
      scores: float[B], one per episode.
      group_id: int[B], equal for the episodes of one question; arbitrary and unsorted.

    Returns:
      float[B]; exactly 0 for a group of one and for a group of equal scores.

    Raises:
      ValueError: shapes differ.
    """
    above, same, size = _group_statistics(scores, group_id)
    others = (_group_sum(above, same) - above) / jnp.maximum(size - 1, 1)
    return jnp.where(size > 1, above - others, 0)


def reinforce(scores, *, baseline="batch"):
    """Score minus a baseline: REINFORCE (Williams 1992).

    Args:
      scores: float[B], one per episode.
      baseline: "batch" subtracts the mean of all scores; "none" nothing, and then scores that are never negative push
        every sampled token up.

    Returns:
      float[B]; with "batch" exactly 0 for equal scores.

    Raises:
      ValueError: unknown baseline.
    """
    scores, = _floating(scores)
    if baseline == "none":
        return scores
    if baseline == "batch":
        above = scores - scores.min()
        return above - above.mean()
    raise ValueError(f"unknown baseline {baseline!r}: 'batch' or 'none'")


def reinforce_plus_plus(rewards, *, loss_mask, gamma):
    """Discounted returns over the policy's tokens, whitened over the batch.

    G_t = rewards_t + gamma * G_t', t' the next True position; then `whiten`. "REINFORCE++", Hu 2025
    (arXiv 2501.03262), section 3; a KL penalty, if wanted, is part of the rewards.

    Args:
      rewards: float[B, T].
      loss_mask: bool[B, T], True at the tokens the policy sampled.
      gamma: per step from one policy token to the next, 0 to 1.

    Returns:
      float[B, T].

    Raises:
      ValueError: shapes differ or the mask is not bool.
    """
    loss_mask, rewards = _masked(loss_mask, rewards)
    returns, _ = gae(rewards, jnp.zeros_like(rewards), loss_mask=loss_mask, gamma=gamma, lam=1.0)
    return whiten(returns, loss_mask=loss_mask)


def whiten(x, *, loss_mask, eps=1e-8):
    """(x - mean) / sqrt(variance + eps) over the True positions of the whole batch; population variance.

    verl's `masked_whiten` takes the unbiased variance, smaller by sqrt((n - 1) / n), which a single token has none of.

    Args:
      x: float[B, T].
      loss_mask: bool[B, T].
      eps: added to the variance, in units of x squared.

    Returns:
      float[B, T]; exactly 0 where the mask is False, and everywhere if x is constant over the mask.

    Raises:
      ValueError: shapes differ or the mask is not bool.
    """
    loss_mask, x = _masked(loss_mask, x)
    # Measured from the lowest for the reason given in _group_statistics.
    above = x - jnp.where(loss_mask, x, jnp.inf).min()
    count = jnp.maximum(loss_mask.sum(), 1).astype(x.dtype)

    def total(y):
        return jnp.where(loss_mask, y, 0).sum()

    centered = jnp.where(loss_mask, above - total(above) / count, 0)
    return centered * jax.lax.rsqrt(total(centered**2) / count + eps)
