"""From what an episode earned to the advantage of each token: KL in the reward, the estimator, whitening.

    rewards = kl_rewards(batch, loss_mask=mask, coef=1e-3, kind="k1")         # if the KL is part of the reward
    batch = batch.replace(rewards=rewards)
    advantages, returns = estimate(algorithm, batch, loss_mask=mask)

An advantage is a function (batch: TokenBatch, *, loss_mask bool[B, T]) -> float[B, T], float[B] (one an episode), or a
pair (advantages, returns). The batch's log-probs may be 0 where loss_mask is False. `algorithm.advantage =
"package.module:function"` names one, and `train(advantage=function)` takes it directly. Fields of `AlgorithmConfig` that
its decorator names in `reads` are given to it as keywords.
"""

from collections.abc import Callable

import jax.numpy as jnp

from zsjax.config.named import Registry, entry_of
from zsjax.errors import InputError
from zsjax.rl import advantages, losses
from zsjax.types import TokenBatch

ADVANTAGES = Registry("advantage")


@ADVANTAGES("grpo", reads=("normalize",), needs=("groups",), help="score minus its group's mean, over the deviation")
def grpo(batch, *, loss_mask, normalize):
    return advantages.grpo(batch.rewards.sum(axis=1), group_id=batch.group_id, normalize=normalize)


@ADVANTAGES("rloo", needs=("groups",), help="score minus the mean of the others in its group")
def rloo(batch, *, loss_mask):
    return advantages.rloo(batch.rewards.sum(axis=1), group_id=batch.group_id)


@ADVANTAGES("reinforce", help="score minus the batch's mean")
def reinforce(batch, *, loss_mask):
    return advantages.reinforce(batch.rewards.sum(axis=1), baseline="batch")


@ADVANTAGES("reinforce_plus_plus", reads=("gamma",), help="discounted returns, whitened over the batch")
def reinforce_plus_plus(batch, *, loss_mask, gamma):
    return advantages.reinforce_plus_plus(batch.rewards, loss_mask=loss_mask, gamma=gamma)


@ADVANTAGES("gae", reads=("gamma", "lam"), needs=("values",), help="generalised advantage estimation with a value model")
def gae(batch, *, loss_mask, gamma, lam):
    return advantages.gae(batch.rewards, batch.values, loss_mask=loss_mask, gamma=gamma, lam=lam)


def load_advantage(name: str) -> Callable:
    """The advantage of a name in `ADVANTAGES`, or of "package.module:function"; InputError if there is none."""
    return ADVANTAGES.load(name)


def kl_rewards(batch: TokenBatch, *, loss_mask, coef, kind):
    """rewards - coef * kl_penalty(old_logprobs, ref_logprobs): the KL to the reference as a cost of each token.

    Minus, so that drifting away costs: ZeroSearch's GRPO had the other sign and paid for it. The penalty is a number
    here, not a loss: no gradient flows through it, it acts through the advantages.

    k1 is the estimator to use here: its expected gradient is the KL's own. A reward f(d) has E[f(d) d logprobs], which
    for k3 is the gradient of KL(policy || ref) - KL(ref || policy): to second order nothing at the reference, and for
    a policy that is sharper than it, over few tokens, even of the wrong sign (tests/rl/test_kl_pull.py shows both). k2
    is weak in the same way. They are here since verl and others offer them, with the same values.

    Args:
      batch: rewards, old_logprobs and ref_logprobs are read, float32[B, T].
      loss_mask: bool[B, T], True at the tokens the policy sampled; elsewhere the result is 0.
      coef: float, >= 0, reward per nat.
      kind: "k1", "k2" or "k3".

    Returns:
      float32[B, T] rewards.
    """
    old, ref = (jnp.where(loss_mask, x, 0) for x in (batch.old_logprobs, batch.ref_logprobs))
    return jnp.where(loss_mask, batch.rewards, 0) - coef * losses.kl_penalty(old, ref, kind=kind)


def estimate(algorithm, batch: TokenBatch, *, loss_mask, own: Callable | None = None):
    """Advantages under an `AlgorithmConfig`.

    Args:
      algorithm: advantage, whiten, and what the advantage's decorator names in `reads`.
      batch: rewards, group_id and, for "gae", values are read.
      loss_mask: bool[B, T]. An episode whose row has no True (it is masked, see `AlgorithmConfig.mask`) counts in its
        group's and the batch's baseline all the same, as in TRL's `mask_truncated_completions`, but not in whitening.
      own: takes the place of `algorithm.advantage`.

    Returns:
      (advantages float32[B, T], returns float32[B, T] or None). An advantage per episode stands at every token of its
      row; the loss's mask decides which of them count.
    """
    function = own or load_advantage(algorithm.advantage)
    out = function(batch, loss_mask=loss_mask, **{name: getattr(algorithm, name) for name in entry_of(function).reads})
    out, returns = out if isinstance(out, tuple) else (out, None)
    out = jnp.asarray(out, jnp.promote_types(jnp.float32, jnp.asarray(out).dtype))
    if out.shape not in (loss_mask.shape, loss_mask.shape[:1]):
        raise InputError(f"the advantage {algorithm.advantage!r} returned {out.shape}; return [B, T] or [B] "
                         f"of {loss_mask.shape}")
    out = out if out.ndim == 2 else out[:, None]
    out = jnp.broadcast_to(out, loss_mask.shape)
    if algorithm.whiten:
        out = advantages.whiten(out, loss_mask=loss_mask)
    return out, returns
